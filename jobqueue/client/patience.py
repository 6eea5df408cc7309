"""When a request is sent again, and when not.

A request that was not sent, or that the service says it has not carried out (429 or 503 with ``Retry-After``), is always sent
again. Where nobody knows (a connection that broke, 503 without ``Retry-After``, a gateway's 502 and 504), only one is that does no
harm when it is carried out twice.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import httpx

from jobqueue.client.errors import Unreachable
from jobqueue.client.wires import Wire

PATIENCE = 30.0
"""Seconds for which a request is sent again before its call fails, unless the client is told otherwise."""

FIRST_BACKOFF = 0.05
LONGEST_BACKOFF = 1.5
"""Seconds between the first two requests, at the most, and between any two while the service cannot be reached."""

SPREAD = 0.5
"""Seconds over which clients that got the same ``Retry-After`` spread their requests."""

Statuses = frozenset[int]
"""The statuses at which a request is sent again that may be carried out twice."""

NEVER: Statuses = frozenset()
"""It may not."""

HARMLESS: Statuses = frozenset(
    {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT}
)
"""To read is harmless, and to write the same again."""

KEYED: Statuses = HARMLESS | {HTTPStatus.CONFLICT}
"""Jobs with keys. A 409 says that a transaction which is not over yet has one of them, such as that of a request that broke off."""

_NOT_CARRIED_OUT = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_BROKEN = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError, httpx.TimeoutException)


async def ask(wire: Wire, request: httpx.Request, patience: float, again_at: Statuses) -> httpx.Response:
    """Send a request, again and again if need be, and return the answer, be it a refusal.

    Args:
        patience: seconds after which it is not sent again.
        again_at: see `Statuses`.

    Raises:
        Unreachable: no answer came.
    """
    give_up_at = wire.now() + patience
    in_doubt = False
    failures = 0
    while True:
        failures += 1
        try:
            answer = await wire.send(request)
        except httpx.RequestError as error:
            in_doubt = in_doubt or may_have_arrived(error)
            pause = pause_after_error(error, failures, again_at)
            if pause is None or wire.now() + pause > give_up_at:
                raise unreachable(error, in_doubt=in_doubt) from error
        else:
            pause = pause_after_answer(answer, failures, again_at)
            if pause is None or wire.now() + pause > give_up_at:
                return answer
        await wire.sleep(pause)


def backoff(failures: int) -> float:
    """Choose how many seconds to wait after so many failures in a row: longer each time, and never the same for two clients."""
    return min(LONGEST_BACKOFF, FIRST_BACKOFF * 2.0 ** min(failures - 1, 10)) * random.uniform(0.5, 1)


def pause_after_error(error: httpx.RequestError, failures: int, again_at: Statuses) -> float | None:
    """Say how many seconds after an error the request is to be sent again; None when it is not."""
    return backoff(failures) if isinstance(error, _NOT_SENT) or (again_at and isinstance(error, _BROKEN)) else None


def pause_after_answer(answer: httpx.Response, failures: int, again_at: Statuses) -> float | None:
    """Say how many seconds after an answer the request is to be sent again; None when the answer is the last word."""
    asked = _retry_after(answer.headers.get("Retry-After"))
    if answer.status_code in again_at or (asked is not None and answer.status_code in _NOT_CARRIED_OUT):
        return asked + random.uniform(0, SPREAD) if asked else backoff(failures)
    return None


def may_have_arrived(error: httpx.RequestError) -> bool:
    """Whether the service may have got a request that failed in this way."""
    return not isinstance(error, (*_NOT_SENT, httpx.UnsupportedProtocol, httpx.LocalProtocolError))


def unreachable(error: httpx.RequestError, *, in_doubt: bool) -> Unreachable:
    """Say so of the service, by its address, without what else is in its URL."""
    url = error.request.url
    reason = str(error) or type(error).__name__
    return Unreachable(f"no answer from {url.scheme}://{url.netloc.decode()}: {reason}", in_doubt=in_doubt)


def _retry_after(value: str | None) -> float | None:
    """Read the header in either of its forms (RFC 9110, 10.2.3), in seconds from now."""
    if value is None:
        return None
    if value.isascii() and value.isdecimal():
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
