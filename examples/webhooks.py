"""Deliver webhooks: each job is one signed HTTP POST, retried until the receiver accepts it.

    WEBHOOK_SECRET=whsec_c2VjcmV0IG9mIGF0IGxlYXN0IDI0IGJ5dGVz jobqueue serve examples.webhooks

    curl http://127.0.0.1:8080/submit -H 'Content-Type: application/json' -d '{"kind": "webhook", "payload":
        {"url": "https://example.com/hooks", "event": "order.paid", "data": {"order": 17}}}'

Headers and signature follow Standard Webhooks (https://www.standardwebhooks.com), so receivers can
verify them with an existing library. Anyone who can submit a job chooses the URL, so check URLs
from other people before you submit them.
"""

import base64
import hashlib
import hmac
import os
import time
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import msgspec

import jobqueue

LONGEST_WAIT = 6 * 3600.0
"""The longest wait before the next attempt that a receiver can request, in seconds."""

PATIENCE = 10.0
"""Timeout in seconds for a receiver that sends nothing."""

WORTH_ANOTHER_TRY = {408, 425, 429}
"""The 4xx statuses after which a later attempt may succeed: request timeout, too early, too many requests."""


def signing_key(secret: str) -> bytes:
    """Decode a secret of the form ``whsec_<base64>``."""
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except ValueError:
        key = b""
    if len(key) < 24:
        raise SystemExit("webhooks: set WEBHOOK_SECRET to whsec_ and the base64 of at least 24 random bytes")
    return key


KEY = signing_key(os.environ.get("WEBHOOK_SECRET", ""))

# Reading the certificates takes time, so the process does it once. A client is cheap, so each delivery creates one.
TLS = httpx.create_ssl_context()

app = jobqueue.App()


# 15 attempts over 17 hours: 5 s, 10 s, 20 s, and so on, up to 6 hours.
@app.handler("webhook", timeout=30, max_retries=14, backoff=jobqueue.Backoff(base=5, cap=LONGEST_WAIT))
async def webhook(job: jobqueue.Job, url: str, event: str, data: Any = None) -> dict[str, Any]:
    """Send one event to one URL; return how long the receiver took to accept it."""
    body = msgspec.json.encode({"type": event, "timestamp": job.created_at, "data": data})
    timestamp = str(int(time.time()))
    headers = {
        "Content-Type": "application/json",
        "User-Agent": f"jobqueue/{jobqueue.__version__}",
        "Webhook-Id": job.id,  # the same for all attempts, so that the receiver can recognize a repeated event
        "Webhook-Timestamp": timestamp,
        "Webhook-Signature": sign(job.id, timestamp, body),
    }
    started = time.monotonic()
    try:
        async with (
            httpx.AsyncClient(verify=TLS, timeout=PATIENCE, follow_redirects=False) as client,
            client.stream("POST", url, content=body, headers=headers) as response,  # the body of the response is not read
        ):
            judge(response)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise jobqueue.Discard(f"not a URL to deliver to: {error}") from None
    except httpx.TransportError as error:
        raise jobqueue.Retry(reason=f"no response: {type(error).__name__} {error}".rstrip()) from error
    return {"status": response.status_code, "seconds": round(time.monotonic() - started, 3)}


def sign(message_id: str, timestamp: str, body: bytes) -> str:
    """Sign the message id, the time, and the body."""
    digest = hmac.digest(KEY, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256)
    return f"v1,{base64.b64encode(digest).decode()}"


def judge(response: httpx.Response) -> None:
    """Do nothing if the receiver accepted the event. Otherwise raise an error, which decides whether to retry.

    Raises:
        jobqueue.Retry: the receiver may accept the event later. The next attempt is at the time that the receiver
            requests, or after our own backoff.
        jobqueue.Discard: the receiver will never accept the event.
    """
    status = response.status_code
    if response.is_success:
        return
    if response.is_server_error or status in WORTH_ANOTHER_TRY:
        raise jobqueue.Retry(delay=retry_after(response), reason=f"the receiver returned {status}")
    if status == httpx.codes.GONE:
        raise jobqueue.Discard("the receiver returned 410: it wants no more events, so unsubscribe it")
    if response.is_redirect:
        raise jobqueue.Discard(f"the receiver returned {status}: redirects are not followed, submit the new URL")
    raise jobqueue.Discard(f"the receiver returned {status}: a retry would not help")


def retry_after(response: httpx.Response) -> float | None:
    """Parse Retry-After (RFC 9110, 10.2.3), a number or a date, as seconds from now; None without a valid value."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isdecimal():
        seconds = float(value)
    else:
        try:
            date = parsedate_to_datetime(value)
        except (ValueError, OverflowError):
            return None
        # The obsolete forms of an HTTP-date do not contain a time zone. Such dates are always in GMT.
        seconds = date.replace(tzinfo=date.tzinfo or UTC).timestamp() - time.time()
    return min(max(seconds, 1.0), LONGEST_WAIT)
