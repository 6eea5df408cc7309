"""Decide when to retry a request.

The client always retries a request that was not sent, or that the service reports as unprocessed
(429 or 503 with ``Retry-After``). After a broken connection, a 503 without ``Retry-After``, or a
gateway's 502 or 504, the service may have processed the request. In these cases, the client retries
only requests that are safe to process twice.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import httpx

from jobqueue.client.errors import Unreachable
from jobqueue.client.transports import Transport
from jobqueue.retry import exponential_pause

PATIENCE = 30.0
"""Default time for which a request is retried before the call fails, in seconds."""

FIRST_BACKOFF = 0.05
LONGEST_BACKOFF = 1.5
"""Maximum wait before the first retry, and before any retry while the service is unreachable, in seconds."""

SPREAD = 0.5
"""Seconds over which clients with the same ``Retry-After`` spread their requests."""

Statuses = frozenset[int]
"""The statuses after which a request is retried even though the service may have processed it."""

NEVER: Statuses = frozenset()
"""For requests that must not be processed twice."""

HARMLESS: Statuses = frozenset(
    {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT}
)
"""For reads, and for writes of the same value."""

KEYED: Statuses = HARMLESS | {HTTPStatus.CONFLICT}
"""For jobs with keys. A 409 means that an unfinished transaction, such as that of an interrupted request, uses a key."""

_NOT_CARRIED_OUT = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_BROKEN = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError, httpx.TimeoutException)


async def ask(transport: Transport, request: httpx.Request, patience: float, again_at: Statuses) -> httpx.Response:
    """Send a request, with retries; return the response, even if it is an error.

    Args:
        patience: seconds after which the request is no longer retried.
        again_at: see `Statuses`.

    Raises:
        Unreachable: no response was received.
    """
    give_up_at = transport.now() + patience
    in_doubt = False
    failures = 0
    while True:
        failures += 1
        try:
            answer = await transport.send(request)
        except httpx.RequestError as error:
            in_doubt = in_doubt or may_have_arrived(error)
            pause = pause_after_error(error, failures, again_at)
            if pause is None or transport.now() + pause > give_up_at:
                raise unreachable(error, in_doubt=in_doubt) from error
        else:
            pause = pause_after_answer(answer, failures, again_at)
            if pause is None or transport.now() + pause > give_up_at:
                return answer
        await transport.sleep(pause)


def backoff(failures: int) -> float:
    """Return the seconds to wait after this many failures in a row: increasing, with jitter."""
    return exponential_pause(failures, FIRST_BACKOFF, LONGEST_BACKOFF, jitter=True)


def pause_after_error(error: httpx.RequestError, failures: int, again_at: Statuses) -> float | None:
    """Return the seconds before a retry after an error; None for no retry."""
    return backoff(failures) if isinstance(error, _NOT_SENT) or (again_at and isinstance(error, _BROKEN)) else None


def pause_after_answer(answer: httpx.Response, failures: int, again_at: Statuses) -> float | None:
    """Return the seconds before a retry after a response; None if the response is final."""
    asked = _retry_after(answer.headers.get("Retry-After"))
    if answer.status_code in again_at or (asked is not None and answer.status_code in _NOT_CARRIED_OUT):
        return asked + random.uniform(0, SPREAD) if asked else backoff(failures)
    return None


def may_have_arrived(error: httpx.RequestError) -> bool:
    """Return whether a request that failed with this error may have reached the service."""
    return not isinstance(error, (*_NOT_SENT, httpx.UnsupportedProtocol, httpx.LocalProtocolError))


def unreachable(error: httpx.RequestError, *, in_doubt: bool) -> Unreachable:
    """Return the error for an unreachable service. It contains only the scheme, host and port of the URL."""
    url = error.request.url
    reason = str(error) or type(error).__name__
    return Unreachable(f"no response from {url.scheme}://{url.netloc.decode()}: {reason}", in_doubt=in_doubt)


def _retry_after(value: str | None) -> float | None:
    """Parse a Retry-After header, a number or a date (RFC 9110, 10.2.3), as seconds from now."""
    if value is None:
        return None
    if value.isascii() and value.isdecimal():
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
