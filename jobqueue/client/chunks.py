"""From jobs to the bodies of their submissions: each job with a key, as many together as one request should have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple
from uuid import uuid4

import msgspec

from jobqueue import documents
from jobqueue.errors import InvalidJob, UnprocessableJob
from jobqueue.job import MAX_BATCH_JOBS

CHUNK_JOBS = 1_000
"""Jobs in one request, unless told otherwise."""

MAX_CHUNK_BYTES = 8 << 20
"""The most bytes in one request, unless one job has more: at 3 Mbit/s it comes within the half minute that a body may take."""

NDJSON = "application/x-ndjson"

_KEY = "idempotency_key"
_KEYS = (_KEY, "idempotencyKey")


class Encoded(NamedTuple):
    """One job, or the jobs of a chunk, one a line.

    Attributes:
        keyed: whether all have keys, so that they may be sent again.
    """

    body: bytes
    keyed: bool


class Chunk(NamedTuple):
    """Jobs that were submitted in one request, and so in one transaction.

    Attributes:
        ids: of its jobs, in their order.
        existing: the places in it, from 0, of jobs that were there already: by an earlier request, or this one, sent again.
        ignored: names of fields that jobs do not have.
    """

    ids: list[str]
    existing: list[int]
    ignored: list[str]


def encode(fields: Mapping[str, Any], index: int | None = None) -> Encoded:
    """Encode a job, with a key made up where it has none; one that is None stays away.

    Args:
        index: its place among others, for the error.

    Raises:
        InvalidJob: it holds what JSON has no form for, or what PostgreSQL cannot store.
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
    """Cut jobs into chunks, each taken from them no earlier than it is asked for.

    Raises:
        InvalidJob: see `encode`.
    """
    if not 1 <= chunk <= MAX_BATCH_JOBS:
        raise ValueError(f"chunk must be from 1 to {MAX_BATCH_JOBS} jobs")
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
