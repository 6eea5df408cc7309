"""Deliver webhooks: each job is one signed HTTP POST, sent again until the receiver takes it.

    WEBHOOK_SECRET=whsec_c2VjcmV0IG9mIGF0IGxlYXN0IDI0IGJ5dGVz jobqueue serve examples.webhooks

    curl http://127.0.0.1:8080/submit -H 'Content-Type: application/json' -d '{"kind": "webhook", "payload":
        {"url": "https://example.com/hooks", "event": "order.paid", "data": {"order": 17}}}'

Headers and signature are those of Standard Webhooks (https://www.standardwebhooks.com), so receivers find a library that verifies
them. Whoever may submit a job chooses the URL: pass on none that you have not checked.
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
"""Seconds that a receiver may ask us to wait before the next attempt."""

PATIENCE = 10.0
"""Seconds that a receiver may be silent."""

WORTH_ANOTHER_TRY = {408, 425, 429}
"""Too slow, too early, too many: the 4xx that time can cure."""


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

# Reading the certificates is what takes time: once for the process. A client is cheap and belongs to one delivery.
TLS = httpx.create_ssl_context()

app = jobqueue.App()


# 15 attempts over 17 hours: 5 s, 10 s, 20 s, and so on, up to 6 hours.
@app.handler("webhook", timeout=30, max_retries=14, backoff=jobqueue.Backoff(base=5, cap=LONGEST_WAIT))
async def webhook(job: jobqueue.Job, url: str, event: str, data: Any = None) -> dict[str, Any]:
    """Send one event to one URL, and return how long the receiver took to accept it."""
    body = msgspec.json.encode({"type": event, "timestamp": job.created_at, "data": data})
    timestamp = str(int(time.time()))
    headers = {
        "Content-Type": "application/json",
        "User-Agent": f"jobqueue/{jobqueue.__version__}",
        "Webhook-Id": job.id,  # the same on every attempt: an answer may be lost, and then the receiver sees the event twice
        "Webhook-Timestamp": timestamp,
        "Webhook-Signature": sign(job.id, timestamp, body),
    }
    started = time.monotonic()
    try:
        async with (
            httpx.AsyncClient(verify=TLS, timeout=PATIENCE, follow_redirects=False) as client,
            client.stream("POST", url, content=body, headers=headers) as response,  # the answer's body is of no use: leave it
        ):
            judge(response)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise jobqueue.Discard(f"not a URL to deliver to: {error}") from None
    except httpx.TransportError as error:
        raise jobqueue.Retry(reason=f"no answer: {type(error).__name__} {error}".rstrip()) from error
    return {"status": response.status_code, "seconds": round(time.monotonic() - started, 3)}


def sign(message_id: str, timestamp: str, body: bytes) -> str:
    """Sign what the receiver must be able to trust: which message it is, when it was sent, what it says."""
    digest = hmac.digest(KEY, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256)
    return f"v1,{base64.b64encode(digest).decode()}"


def judge(response: httpx.Response) -> None:
    """Return when the receiver took it; otherwise say whether another attempt can help.

    Raises:
        jobqueue.Retry: it may take it later: when it says so, or after our own backoff.
        jobqueue.Discard: it never will.
    """
    status = response.status_code
    if response.is_success:
        return
    if response.is_server_error or status in WORTH_ANOTHER_TRY:
        raise jobqueue.Retry(delay=retry_after(response), reason=f"the receiver answered {status}")
    if status == httpx.codes.GONE:
        raise jobqueue.Discard("the receiver answered 410: it wants no more of these, unsubscribe it")
    if response.is_redirect:
        raise jobqueue.Discard(f"the receiver answered {status}: redirects are not followed, submit the new URL")
    raise jobqueue.Discard(f"the receiver answered {status}: sending the same again would not help")


def retry_after(response: httpx.Response) -> float | None:
    """Read Retry-After (RFC 9110, 10.2.3), seconds or a date, as seconds from now; None without one that makes sense."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isdecimal():
        seconds = float(value)
    else:
        try:
            date = parsedate_to_datetime(value)
        except (ValueError, OverflowError):
            return None
        # The obsolete forms of an HTTP-date name no zone: it is always GMT.
        seconds = date.replace(tzinfo=date.tzinfo or UTC).timestamp() - time.time()
    return min(max(seconds, 1.0), LONGEST_WAIT)
