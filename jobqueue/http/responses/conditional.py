"""Conditional requests: entity tags and 304 (RFC 9110, sections 8.8.3 and 13)."""

from __future__ import annotations

from hashlib import sha256
from http import HTTPStatus

from werkzeug.datastructures import ETags

from jobqueue.http.responses.answers import Answer


def tagged(answer: Answer, known: ETags) -> Answer:
    """Add an entity tag to a response. If the client already has the same response, return a 304 instead.

    Args:
        answer: the full response.
        known: the tags in the request's If-None-Match.
    """
    if answer.status != HTTPStatus.OK:
        return answer
    tag = sha256(answer.body).hexdigest()[:32]
    # no-cache: clients may store the response, but must revalidate it each time, because a job can change at any moment.
    headers = {"ETag": f'"{tag}"', "Cache-Control": "no-cache"}
    if known.contains_weak(tag):
        return Answer(HTTPStatus.NOT_MODIFIED, headers, b"")
    return answer._replace(headers={**answer.headers, **headers})
