"""From what a submitter said to what the database is given: each job gets its id here, and is encoded once and for all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache

import msgspec
import uuid_utils

from jobqueue import documents
from jobqueue.errors import InvalidJob, PayloadTooLarge, UnprocessableJob
from jobqueue.job import MAX_PAYLOAD_BYTES, NewJob, Submission

_encoder = msgspec.json.Encoder()


class Admitted(msgspec.Struct, frozen=True):
    """Jobs that nothing more can be wrong with, in the form that ``jobqueue.submit_many`` takes.

    Attributes:
        ids: the jobs' UUIDs (version 7), in the order that they were submitted in.
        documents: one JSON document a job, in the same order.
        kinds: the kinds among them.
        queues: how many of them each queue can run now; queues that only get scheduled jobs are not in it.
        counts: how many of them there are of each (queue, kind).
    """

    ids: list[str]
    documents: list[bytes]
    kinds: set[str]
    queues: dict[str, int]
    counts: dict[tuple[str, str], int]


def admit(submissions: Iterable[Submission], *, many: bool = True) -> Admitted:
    """Give each submission an id and encode it for the database.

    The submissions are taken one by one, so that a batch is never held decoded as a whole.

    Args:
        submissions: jobs whose fields are of the right type and within their ranges.
        many: whether they are a batch, so that an error names the position of the job at fault.

    Raises:
        InvalidJob: `run_at` and `delay` exclude each other.
        PayloadTooLarge: a payload is larger than `MAX_PAYLOAD_BYTES`.
        UnprocessableJob: a value that PostgreSQL cannot store.
    """
    ids: list[str] = []
    encoded: list[bytes] = []
    queues: Counter[str] = Counter()
    counts: Counter[tuple[str, str]] = Counter()
    # This node's clock may be wrong: it only decides whom to wake. What is due is for the database's clock to say.
    now = datetime.now(UTC)
    for index, submission in enumerate(submissions):
        job_id = str(uuid_utils.uuid7())
        try:
            encoded.append(_document(job_id, submission))
        except InvalidJob as error:
            error.index = index if many else None
            raise
        ids.append(job_id)
        counts[submission.queue, submission.kind] += 1
        if not submission.delay and (submission.run_at is None or submission.run_at <= now):
            queues[submission.queue] += 1
    return Admitted(ids, encoded, {kind for _, kind in counts}, dict(queues), dict(counts))


def _document(job_id: str, submission: Submission) -> bytes:
    if submission.run_at is not None and submission.delay is not None:
        raise InvalidJob("run_at and delay exclude each other: give one of them", field="delay")
    if not (_storable_name(submission.kind) and _storable_name(submission.queue)):
        _encode(submission.kind, "kind")
        _encode(submission.queue, "queue")
    payload = _encode(submission.payload, "payload")
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise PayloadTooLarge(f"the payload has {len(payload)} bytes as JSON, {MAX_PAYLOAD_BYTES} are allowed", field="payload")
    return _encoder.encode(
        NewJob(
            id=job_id,
            kind=submission.kind,
            payload=msgspec.Raw(payload),
            queue=submission.queue,
            priority=submission.priority,
            max_retries=submission.max_retries,
            run_at=submission.run_at,
            delay=submission.delay,
            timeout=submission.timeout,
        )
    )


@lru_cache(maxsize=1024)  # jobs of a batch have few kinds and queues between them
def _storable_name(name: str) -> bool:
    try:
        documents.encode(name)
    except documents.RefusedDocument:
        return False
    return True


def _encode(value: object, field: str) -> bytes:
    """Pass one value of the submitter's through the gate, so that a refusal names its field."""
    try:
        return documents.encode(value, finite=True)
    except documents.RefusedDocument as error:
        raise UnprocessableJob(f"{field} cannot be stored: {error}", field=field) from None
