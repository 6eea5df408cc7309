"""Encode jobs into request bodies: each job with a key, in chunks of a suitable size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple
from uuid import uuid4

import msgspec

from jobqueue import documents
from jobqueue.errors import InvalidJob, UnprocessableJob
from jobqueue.job import MAX_BATCH_JOBS

CHUNK_JOBS = 1_000
"""Default number of jobs in one request."""

MAX_CHUNK_BYTES = 8 << 20
"""Maximum size of a request with several jobs, in bytes. A larger job gets its own request.

At 3 Mbit/s, a request of this size arrives within the 30 s that the service allows for a body.
"""

NDJSON = "application/x-ndjson"

_KEY = "idempotency_key"
_KEYS = (_KEY, "idempotencyKey")


class Encoded(NamedTuple):
    """An encoded job, or an encoded chunk with one job per line.

    Attributes:
        keyed: whether all jobs have keys, so that the request can be retried safely.
    """

    body: bytes
    keyed: bool


class Chunk(NamedTuple):
    """Jobs that were submitted in one request, and so in one transaction.

    Attributes:
        ids: the ids of the jobs, in the order of the jobs.
        existing: indexes, from 0, of the jobs that an earlier request, or an earlier try of this request, had already created.
        ignored: names of unknown fields.
    """

    ids: list[str]
    existing: list[int]
    ignored: list[str]


def encode(fields: Mapping[str, Any], index: int | None = None) -> Encoded:
    """Encode a job. Adds a generated key if the job has none, and omits a key that is None.

    Args:
        index: the job's index in its submission, for the error; None for a single job.

    Raises:
        InvalidJob: JSON cannot represent the job, or PostgreSQL cannot store it.
    """
    if not isinstance(fields, Mapping):
        raise InvalidJob(f"a job must be a mapping of its fields, got {type(fields).__name__}", index=index)
    try:
        payload = documents.encode(fields.get("payload"))
    except documents.RefusedDocument as error:
        raise UnprocessableJob(f"payload cannot be sent: {error}", field="payload", index=index) from None
    given = [fields[name] for name in _KEYS if name in fields]
    others = {name: value for name, value in fields.items() if name != "payload" and not (name in _KEYS and value is None)}
    if not given:
        others[_KEY] = str(uuid4())
    try:
        documents.encode(others)
    except documents.RefusedDocument as error:
        raise InvalidJob(f"a job cannot be sent: {error}", index=index) from None
    keyed = not given or any(value is not None for value in given)
    return Encoded(msgspec.json.encode({**others, "payload": msgspec.Raw(payload)}), keyed)


def cut(jobs: Iterable[Mapping[str, Any]], chunk: int) -> Iterator[Encoded]:
    """Yield the jobs in encoded chunks. Reads the jobs of a chunk only when the chunk is requested.

    Raises:
        InvalidJob: see `encode`.
    """
    if not 1 <= chunk <= MAX_BATCH_JOBS:
        raise ValueError(f"chunk must be from 1 to {MAX_BATCH_JOBS} jobs, got {chunk}")
    lines: list[Encoded] = []
    size = 0
    for index, fields in enumerate(jobs):
        line = encode(fields, index)
        if lines and size + len(line.body) > MAX_CHUNK_BYTES:
            yield _joined(lines)
            lines, size = [], 0
        lines.append(line)
        size += len(line.body) + 1
        if len(lines) == chunk:
            yield _joined(lines)
            lines, size = [], 0
    if lines:
        yield _joined(lines)


def _joined(lines: list[Encoded]) -> Encoded:
    return Encoded(b"\n".join(line.body for line in lines), all(line.keyed for line in lines))
