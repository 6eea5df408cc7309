"""Build requests of the HTTP API and read their responses."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import httpx

from jobqueue import tracing
from jobqueue.client.errors import JobNotFound, NotFound, RequestRefused
from jobqueue.client.transports import Transport

ANSWER_SECONDS = 20.0
"""Seconds to wait for a response, in addition to the wait that the request asks for."""

JSON = "application/json"

_DOTS = {".": "%2E", "..": "%2E%2E"}
"""Names that httpx would resolve as relative path segments. If they are encoded, they reach the service, which rejects them."""


def build(
    transport: Transport,
    method: str,
    path: str,
    content: bytes | None = None,
    content_type: str = JSON,
    *,
    params: Mapping[str, Any] | None = None,
    seconds: float = ANSWER_SECONDS,
) -> httpx.Request:
    """Build a request. It carries the trace of the current OpenTelemetry span, if any.

    Args:
        transport: the transport that will send it.
        path: the path below the service's URL.
        params: the query; None omits a parameter.
        seconds: timeout for connecting, for sending each piece, and for receiving each piece.
    """
    headers = tracing.current_headers() | ({} if content is None else {"Content-Type": content_type})
    query = {name: _text(value) for name, value in (params or {}).items() if value is not None}
    return transport.http.build_request(method, path, content=content, headers=headers, params=query or None, timeout=seconds)


def below(*names: str) -> str:
    """Return a path of these names, with all characters encoded."""
    return "".join(f"/{_DOTS.get(name) or quote(name, safe='')}" for name in names)


def read(answer: httpx.Response) -> Any:
    """Return the JSON document or the text of a response; None for an empty one.

    Raises:
        RequestRefused: the response is an error, or does not come from jobqueue.
    """
    content_type = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if answer.is_success and (not answer.content or content_type == "text/plain"):
        return answer.text or None
    try:
        document = answer.json()
    except ValueError:
        document = {"title": "the response is not JSON: check that the URL is a jobqueue service"}
    else:
        if answer.is_success:
            return document
    problem = document if isinstance(document, dict) else {}
    if answer.status_code == HTTPStatus.NOT_FOUND:
        of_a_job = "/jobs/" in answer.request.url.path
        raise (JobNotFound if of_a_job else NotFound)(answer.status_code, problem)
    raise RequestRefused(answer.status_code, problem)


def _text(value: Any) -> str:
    """Return the text of a query parameter."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, list | tuple | set | frozenset):
        return ",".join(map(_text, value))
    return str(value)
