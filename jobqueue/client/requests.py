"""Requests of the HTTP API, and what their answers say."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import httpx

from jobqueue import tracing
from jobqueue.client.errors import JobNotFound, NotFound, RequestRefused
from jobqueue.client.wires import Wire

ANSWER_SECONDS = 20.0
"""Seconds for an answer, beyond those that the service was asked to wait."""

JSON = "application/json"

_DOTS = {".": "%2E", "..": "%2E%2E"}
"""Names that httpx would resolve as a part of the path; so the service gets them, and refuses them."""


def build(
    wire: Wire,
    method: str,
    path: str,
    content: bytes | None = None,
    content_type: str = JSON,
    *,
    params: Mapping[str, Any] | None = None,
    seconds: float = ANSWER_SECONDS,
) -> httpx.Request:
    """Make a request; where a span of OpenTelemetry is current, it carries its trace.

    Args:
        wire: that it will be sent on.
        path: below the URL of the service.
        params: the query; a parameter that is None is left out.
        seconds: for connecting, for each piece of the body, and for each of the answer.
    """
    headers = tracing.current_headers() | ({} if content is None else {"Content-Type": content_type})
    query = {name: _text(value) for name, value in (params or {}).items() if value is not None}
    return wire.http.build_request(method, path, content=content, headers=headers, params=query or None, timeout=seconds)


def below(*names: str) -> str:
    """Make a path of names, whatever characters they have."""
    return "".join(f"/{_DOTS.get(name) or quote(name, safe='')}" for name in names)


def read(answer: httpx.Response) -> Any:
    """Return the document, or the text, of an answer; None where there is none.

    Raises:
        RequestRefused: it is a refusal, or not from a job queue.
    """
    content_type = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if answer.is_success and (not answer.content or content_type == "text/plain"):
        return answer.text or None
    try:
        document = answer.json()
    except ValueError:
        document = {"title": "the answer is no JSON: is this the URL of a job queue?"}
    else:
        if answer.is_success:
            return document
    problem = document if isinstance(document, dict) else {}
    if answer.status_code == HTTPStatus.NOT_FOUND:
        of_a_job = "/jobs/" in answer.request.url.path
        raise (JobNotFound if of_a_job else NotFound)(answer.status_code, problem)
    raise RequestRefused(answer.status_code, problem)


def _text(value: Any) -> str:
    """Write a parameter of a query."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, list | tuple | set | frozenset):
        return ",".join(map(_text, value))
    return str(value)
