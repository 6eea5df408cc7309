"""Request every route and method with every kind of token, and show the responses: ``python -m tests.support.route_walk``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple, cast

import httpx
from werkzeug.exceptions import HTTPException

from jobqueue.http import app as api
from jobqueue.http.access.auth import Authorizer
from jobqueue.tokens import ROLES
from tests.support import postgres
from tests.support.service import Service

SECRETS = {"no token": None, "unknown": "walk-stranger", **{role: f"walk-{role}" for role in ROLES}}
"""The roles of the walk's requests, with their secrets."""

ENTRIES = " ".join(f"{role}:{SECRETS[role]}" for role in ROLES)
"""The tokens of the service."""

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW")

PAGE = "/"
"""The dashboard, which contains no data."""

UNKNOWN_PATHS = ("/nowhere", "/health/", "//health", "/submit/", "/jobs/1/2/3", "/%2e%2e/metrics", "/metrics%2f")

UNKNOWN_ID = "0190a0b0-0000-7000-8000-00000000ffff"


class Step(NamedTuple):
    """One request with every token: the path in the table, the requested route, and the responses by role."""

    method: str
    path: str
    route: str | None
    answers: dict[str, httpx.Response]

    @property
    def statuses(self) -> dict[str, int]:
        return {who: answer.status_code for who, answer in self.answers.items()}


def may(role: str, step: Step) -> bool:
    """Return whether a role may make this request according to docs/security.md."""
    looks = step.method in ("GET", "HEAD")
    method, _, path = (step.route or " ").partition(" ")
    if role == "admin" or path in ("", PAGE, "/health", "/health/ready"):
        return True
    if role == "read":
        return looks
    return (looks and re.fullmatch(r"/jobs/{\w+}(/events)?", path) is not None) or (method, path) == ("POST", "/submit")


def walk(url: str) -> Iterator[Step]:
    """Send all requests to a service with the tokens of `ENTRIES` and without jobs."""
    node = cast("Any", None)
    paths = sorted({PAGE, *(route.path for route in api.table(node))})
    map_ = api.build(node, Authorizer()).url_map.bind("localhost")
    # Use a new connection for each request: the service closes a connection if it rejects a request before the end of its body.
    with httpx.Client(base_url=url, timeout=60, limits=httpx.Limits(max_keepalive_connections=0)) as client:
        for path in [*paths, *UNKNOWN_PATHS]:
            target = re.sub(r"{(\w+)}", lambda found: "walk" if found[1] == "name" else UNKNOWN_ID, path)
            for method in METHODS:
                route = None
                if path not in UNKNOWN_PATHS and method != "OPTIONS":
                    with suppress(HTTPException):
                        route = str(map_.match(target, method)[0])
                body: dict[str, Any] = {"json": {}} if method in ("POST", "PUT", "PATCH", "DELETE") else {}
                exactly = {"target": target.encode()}  # httpx would take //health for a host
                answers = {}
                for who, secret in SECRETS.items():
                    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
                    with client.stream(method, "/", headers=headers, extensions=exactly, **body) as answers[who]:
                        if answers[who].headers.get("content-type") != "text/event-stream":  # an event stream may never end
                            answers[who].read()
                yield Step(method, path, route, answers)


def table(steps: Iterable[Step]) -> str:
    """Show the responses in a table: one row for each route, and one for each kind of request without a route."""
    rows: dict[str, dict[str, set[int]]] = {}
    for step in steps:
        if step.route is not None:
            if not step.route.endswith(f" {step.path}"):
                continue  # a name may contain slashes, so it has its own row
            name = f"{step.method:8}{step.path}"
        elif step.method == "OPTIONS" and step.path not in UNKNOWN_PATHS:
            name = "OPTIONS of these"
        else:
            name = "an unknown path" if step.path in UNKNOWN_PATHS else "a method without a route"
        row = rows.setdefault(name, {who: set() for who in SECRETS})
        for who, status in step.statuses.items():
            row[who].add(status)
    lines = [f"{'':34}" + "".join(f"{who:>10}" for who in SECRETS)]
    for name, row in sorted(rows.items(), key=lambda named: "/" not in named[0]):
        lines.append(f"{name:34}" + "".join(f"{' '.join(map(str, sorted(found))):>10}" for found in row.values()))
    return "\n".join(lines)


def main() -> None:
    """Start a service, walk through it, and print the table."""
    with (
        postgres.directory() as directory,
        postgres.server(None, directory / "data") as url,
        postgres.database(url) as database_url,
    ):
        arguments = ["examples.quickstart", "--port", "0", "--database-url", database_url]
        service = Service(arguments, {"JOBQUEUE_TOKENS": ENTRIES})
        try:
            print(table(walk(service.url)))  # noqa: T201
        finally:
            service.kill()


if __name__ == "__main__":
    main()
