"""Answers that a client may have already: entity tags and 304 (RFC 9110, sections 8.8.3 and 13)."""

from __future__ import annotations

from hashlib import sha256
from http import HTTPStatus

from werkzeug.datastructures import ETags

from jobqueue.http.answers import Answer


def tagged(answer: Answer, known: ETags) -> Answer:
    """Give an answer the tag of its body, or answer that the client has it.

    Args:
        answer: what is there.
        known: the request's If-None-Match.
    """
    if answer.status != HTTPStatus.OK:
        return answer
    tag = sha256(answer.body).hexdigest()[:32]
    # It may be kept, and has to be asked for again each time: nobody knows for how long a job is as it is.
    headers = {"ETag": f'"{tag}"', "Cache-Control": "no-cache"}
    if known.contains_weak(tag):
        return Answer(HTTPStatus.NOT_MODIFIED, headers, b"")
    return answer._replace(headers={**answer.headers, **headers})
