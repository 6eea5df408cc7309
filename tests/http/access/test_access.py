"""Access control: roles, token rotation, origins, and open routes; with `Authorizer` alone, a recording node, and a service."""

from __future__ import annotations

import hmac
import http.client
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from werkzeug.exceptions import Forbidden, Unauthorized

from jobqueue.errors import SettingsError
from jobqueue.http import app as api
from jobqueue.http.access import auth, file_watch
from jobqueue.http.access.auth import Authorizer
from jobqueue.http.access.credentials import Credentials
from jobqueue.http.express import lane as express
from jobqueue.settings import Settings
from jobqueue.tokens import ROLES, parse
from tests.support import route_walk
from tests.support.command_line import run_jobqueue
from tests.support.http import both_lanes, problem, serving
from tests.support.service import Service, Start
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow

THREE = [parse(f"{role}:{role}-secret") for role in ROLES]


def check(authorizer: Authorizer, method: str, needs: Any, secret: str | None) -> None:
    authorization = None if secret is None else f"Bearer {secret}"
    authorizer.check(method, needs, authorization=authorization, host="localhost", origin=None)


# ------------------------------------------------------------------------------------------------------------------- the authorizer


@pytest.mark.parametrize(
    ("method", "needs", "allowed"),
    [
        ("POST", "submit", {"submit", "admin"}),
        ("GET", "submit", {"submit", "read", "admin"}),
        ("HEAD", "submit", {"submit", "read", "admin"}),
        ("GET", "read", {"read", "admin"}),
        ("GET", "metrics", {"read", "admin"}),
        ("GET", "admin", {"admin"}),
        ("POST", "admin", {"admin"}),
        ("GET", "health", {"submit", "read", "admin"}),
        ("BREW", None, {"submit", "read", "admin"}),
    ],
)
def test_a_token_without_the_required_role_is_rejected_with_its_name(method: str, needs: Any, allowed: set[str]) -> None:
    authorizer = Authorizer(THREE, opened=())
    for role in ROLES:
        if role in allowed:
            check(authorizer, method, needs, f"{role}-secret")
        else:
            with pytest.raises(Forbidden) as refused:
                check(authorizer, method, needs, f"{role}-secret")
            named = " or ".join(other for other in ROLES if other in allowed)
            assert refused.value.description == f"This request requires a token with the role {named}: yours has the role {role}."
    for secret in (None, "", "stranger", "submit:submit-secret"):
        with pytest.raises(Unauthorized):
            check(authorizer, method, needs, secret)


@pytest.mark.parametrize("secret", ["submit-secret", "admin-secret", "stranger"])
def test_a_token_is_compared_with_all_in_constant_time(secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    compare = hmac.compare_digest

    def counting(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return compare(one, other)

    monkeypatch.setattr(auth.hmac, "compare_digest", counting)
    try:
        check(Authorizer(THREE), "GET", None, secret)
    except Unauthorized:
        assert secret == "stranger"
    assert compared == [token.digest for token in THREE]


def test_the_express_lane_requires_the_roles_of_the_route_table() -> None:
    node: Any = None
    needs = {route.path: route.needs for route in api.table(node) if route.path in express.NEEDS}
    assert needs == express.NEEDS


@both_lanes
async def test_roles_over_http() -> None:
    async with serving(authorizer=Authorizer(THREE)) as served:
        assert (await served.post("/submit", "{}", Authorization="Bearer submit-secret")).status_code == 201
        refused = await served.post("/submit", "{}", Authorization="Bearer read-secret")
        problem(refused, 403)
        assert refused.json()["detail"] == "This request requires a token with the role submit or admin: yours has the role read."
        assert "www-authenticate" not in refused.headers
        missing = await served.post("/submit", "{}")
        problem(missing, 401)
        assert missing.headers["www-authenticate"] == "Bearer"


# -------------------------------------------------------------------------------------------------------------------- what is open


@pytest.mark.parametrize(
    ("opened", "answers"),
    [("health", [200, 200, 401]), ("health,metrics", [200, 200, 200]), ("metrics", [401, 401, 200]), ("none", [401, 401, 401])],
)
@both_lanes
async def test_the_open_setting_selects_the_routes_without_a_token(opened: str, answers: list[int]) -> None:
    credentials = Credentials(Settings(tokens=("submit:a",), open=opened))
    async with serving(authorizer=credentials.authorizer) as served:
        paths = ("/health", "/health/ready", "/metrics")
        assert [(await served.http.get(path)).status_code for path in paths] == answers
        assert [(await served.http.head(path)).status_code for path in paths] == answers
        with_token = [(await served.http.get(path, headers={"Authorization": "Bearer a"})).status_code for path in paths]
        assert with_token == [200, 200, 200 if "metrics" in opened else 403]


async def test_open_metrics_are_not_open_to_pages_of_other_sites() -> None:
    async with serving(authorizer=Authorizer(None, opened={"health", "metrics"})) as served:
        assert (await served.http.get("/metrics")).status_code == 200
        problem(await served.http.get("/metrics", headers={"Host": "evil.example"}), 403)
        problem(await served.http.get("/metrics", headers={"Origin": "https://evil.example"}), 403)


@pytest.mark.parametrize("refused", ["", "queues", "health,", "none,health", "health, metrics", "all"])
def test_other_routes_cannot_be_opened(refused: str) -> None:
    with pytest.raises(SettingsError, match="--open must be"):
        Settings(open=refused)


# ---------------------------------------------------------------------------------------------------------------------------- CORS

PAGE = "https://jobs.example"


@both_lanes
async def test_pages_of_an_allowed_origin_may_send_requests_with_a_token() -> None:
    async with serving(authorizer=Authorizer(THREE, origins=[PAGE, "http://localhost:3000"])) as served:
        asked = {
            "Origin": PAGE,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        for path in ("/submit", "/queues/a/pause", "/nowhere"):
            preflight = await served.http.options(path, headers=asked)
            assert (preflight.status_code, preflight.content) == (204, b"")
            assert preflight.headers["access-control-allow-origin"] == PAGE
            assert preflight.headers["access-control-max-age"] == "600"
            assert {"POST", "PUT", "PATCH", "DELETE"} <= set(preflight.headers["access-control-allow-methods"].split(", "))
            allowed = preflight.headers["access-control-allow-headers"].lower().split(", ")
            assert {"authorization", "content-type", "idempotency-key"} <= set(allowed)
            assert preflight.headers["vary"] == "Origin"
        for secret, status in (("submit-secret", 201), ("read-secret", 403), ("stranger", 401)):
            answer = await served.post("/submit", "{}", Origin=PAGE, Authorization=f"Bearer {secret}")
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == PAGE
            assert answer.headers["vary"] == "Origin"
            assert "access-control-allow-credentials" not in answer.headers
        plain = await served.http.get("/queues", headers={"Authorization": "Bearer read-secret"})
        assert plain.headers["vary"] == "Origin"
        assert "access-control-allow-origin" not in plain.headers
        assert (await served.http.options("/queues")).status_code == 401, "it is not a preflight, and has no token"


@both_lanes
async def test_pages_of_other_origins_are_rejected() -> None:
    async with serving(authorizer=Authorizer(THREE, origins=[PAGE])) as served:
        for origin in (
            "https://evil.example",
            f"{PAGE}.evil.example",
            "http://jobs.example",
            f"{PAGE}:8443",
            PAGE.upper(),
            "null",
            "",
        ):
            asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            for answer in (
                await served.http.options("/submit", headers=asked),
                await served.post("/submit", "{}", Origin=origin, Authorization="Bearer admin-secret"),
            ):
                problem(answer, 403)
                assert "access-control-allow-origin" not in answer.headers
        assert served.node.submitted == []
    async with serving(authorizer=Authorizer(None)) as served:
        refused = await served.http.options("/submit", headers={"Origin": PAGE, "Access-Control-Request-Method": "POST"})
        problem(refused, 403)
        assert not [name for name in refused.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "origin", ["*", "null", "https://", "jobs.example", f"{PAGE}/", f"{PAGE}/x", "https://JOBS.example", "https://a b"]
)
def test_invalid_origins_are_rejected(origin: str) -> None:
    with pytest.raises(SettingsError, match="--cors-origin must be an origin"):
        Settings(cors_origins=(origin,))


def test_origins() -> None:
    origins = (PAGE, "http://localhost:3000", "http://[::1]:3000", "chrome-extension://abcdef")
    assert Credentials(Settings(cors_origins=origins)).authorizer.origins == set(origins)


# ---------------------------------------------------------------------------------------------------------------- the real service


def test_every_route_rejects_requests_without_a_token_or_with_another_role(service: Start) -> None:
    node = service("examples.quickstart", env={"JOBQUEUE_TOKENS": route_walk.ENTRIES})
    steps = list(route_walk.walk(node.url))
    wrong = []
    for step in steps:
        opened = step.route in ("GET /", "GET /health", "GET /health/ready")
        for role, answer in step.answers.items():
            if role in ROLES:
                right = (answer.status_code == 403) is not route_walk.may(role, step) and answer.status_code not in (401, 500)
            else:
                right = answer.status_code == 200 if opened else answer.status_code == 401
            if answer.status_code == 401:
                right &= answer.headers.get("www-authenticate") == "Bearer"
            if not right:
                wrong.append(f"{step.method} {step.path} with {role}: {answer.status_code}")
    assert not wrong, "\n".join([*wrong, route_walk.table(steps)])
    assert len([step for step in steps if step.route]) > 30
    assert len(steps) > 150


class Kept:
    """A keep-alive connection."""

    def __init__(self, url: str, method: str, path: str) -> None:
        self._connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
        self._request = method, path, "{}" if method == "POST" else None
        self._connection.connect()
        self._port = self._connection.sock.getsockname()[1]

    def status(self, secret: str) -> int:
        method, path, body = self._request
        self._connection.request(method, path, body, {"Content-Type": "application/json", "Authorization": f"Bearer {secret}"})
        assert self._connection.sock.getsockname()[1] == self._port, "the connection stays open"
        answer = self._connection.getresponse()
        answer.read()
        return answer.status

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    put(path, "admin:old")
    return path


def put(path: Path, text: str) -> None:
    """Replace a file atomically."""
    new = path.with_name("new")
    new.write_text(text + "\n")
    new.chmod(0o600)
    new.rename(path)


def overwrite(path: Path, text: str) -> None:
    """Change the content of a file that is not longer, in one write, so that no reader sees an empty file."""
    with path.open("r+b", buffering=0) as file:
        assert file.write((text + "\n").encode()) >= path.stat().st_size


def test_tokens_change_without_a_restart_on_open_connections_too(service: Start, token_file: Path) -> None:
    node = service("examples.quickstart", "--token-file", str(token_file), env={"JOBQUEUE_TOKENS": "read:given"})
    assert "TOKEN" in node.banner[-1]
    with closing(Kept(node.url, "POST", "/submit")) as express_lane, closing(Kept(node.url, "GET", "/queues")) as behind:
        for change, old, new in ((put, "old", "new"), (overwrite, "new", "old")):
            for connection, status in ((express_lane, 201), (behind, 200)):
                assert connection.status(old) == status
            change(token_file, f"admin:{new}  # since today")
            for connection in (express_lane, behind):
                wait_for(lambda connection=connection, old=old: connection.status(old) == 401, "the old token is rejected")  # type: ignore[misc]
            assert (express_lane.status(new), behind.status(new)) == (201, 200)
            assert behind.status("given") == 200, "the token of the variable stays valid"

        put(token_file, "secret-without-a-role")
        wait_for(lambda: "cannot reload files" in node.log, "the error is logged")
        time.sleep(2.5 * file_watch.LOOK_EVERY)  # further checks do not log it again
        assert node.log.count("cannot reload files") == 1
        assert (express_lane.status("old"), behind.status("old")) == (201, 200)
        token_file.unlink()
        wait_for(lambda: node.log.count("cannot reload files") == 2, "another error is logged")
        assert (express_lane.status("old"), behind.status("old")) == (201, 200)
        put(token_file, "submit:newest")
        wait_for(lambda: behind.status("old") == 401, "a valid file is loaded again")
        assert (express_lane.status("newest"), behind.status("newest")) == (201, 403)
    assert node.stop() == 0
    assert "secret-without-a-role" not in node.log


def test_an_event_stream_ends_once_its_token_is_revoked(service: Start, token_file: Path) -> None:
    node = service("examples.quickstart", "--token-file", str(token_file))
    with httpx.Client(base_url=node.url, timeout=60) as client:
        old, new = ({"Authorization": f"Bearer {secret}"} for secret in ("old", "new"))
        job_id = client.post("/submit", json={"delay": 3600}, headers=old).json()["id"]
        with client.stream("GET", f"/jobs/{job_id}/events", headers=old) as answer:
            lines = answer.iter_lines()
            assert '"scheduled"' in "".join(next(lines) for _ in range(4))
            put(token_file, "admin:new")
            wait_for(lambda: client.get("/queues", headers=new).status_code == 200, "the new token is valid")
            assert client.post(f"/jobs/{job_id}/cancel", headers=new).status_code == 200
            assert list(lines) == []


def test_every_process_reloads_the_token_file(database_url: str, token_file: Path) -> None:
    arguments = ["--port", "0", "--database-url", database_url, "--processes", "2", "--token-file", str(token_file)]
    node = Service(["examples.quickstart", *arguments], {})
    try:

        def statuses(secret: str) -> set[int]:
            found = set()
            for _ in range(24):  # the kernel selects a process for each connection
                with closing(Kept(node.url, "GET", "/queues")) as connection:
                    found.add(connection.status(secret))
            return found

        assert statuses("old") == {200}
        put(token_file, "admin:new")
        wait_for(lambda: statuses("old") == {401}, "all processes reject the old token")
        assert statuses("new") == {200}
        assert node.stop() == 0
    finally:
        node.kill()


@pytest.mark.parametrize("processes", ["1", "2"])
def test_unusable_access_settings_end_the_start_with_a_remedy(processes: str, tmp_path: Path) -> None:
    for arguments, reason in (
        (["--token-file", str(tmp_path / "none")], f"jobqueue token create --role admin --file {tmp_path / 'none'}"),
        (["--host", "0.0.0.0"], "jobqueue token create --role submit"),
        (["--token", "sesame"], "jobqueue token create --role submit"),
        (["--certfile", "x"], "give both --certfile and --keyfile"),
        (["--certfile", "/x", "--keyfile", "/y"], "the certificate /x with the key /y cannot be used"),
    ):
        done = run_jobqueue("serve", "examples.quickstart", "--port", "0", "--processes", processes, *arguments)
        assert done.returncode == 1
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("Error: ")
        assert reason in last
        assert "sesame" not in last


def test_a_token_file_is_enough_to_listen_off_loopback(service: Start, token_file: Path) -> None:
    node = service("examples.quickstart", "--host", "0.0.0.0", "--token-file", str(token_file))
    with closing(Kept(node.url.replace("0.0.0.0", "127.0.0.1"), "GET", "/queues")) as connection:
        assert (connection.status("old"), connection.status("x")) == (200, 401)
