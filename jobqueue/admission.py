"""Check submissions, give each job its id, and encode it for the database.

Almost all jobs are *plain*: one look at the JSON text shows that nothing needs a closer check. `plain` decodes and encodes these
quickly. Every other job first becomes a `Submission`, which is checked field by field. The result is the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

import msgspec
import uuid_utils
from msgspec import UNSET, UnsetType

from jobqueue import documents, tracing
from jobqueue.errors import InvalidJob, PayloadTooLarge, UnprocessableJob
from jobqueue.fields import in_utc, not_null
from jobqueue.job import MAX_PAYLOAD_BYTES, Delay, Name, NewJob, Options, PathName, Priority, Retries, Submission, Timeout


class Admitted(msgspec.Struct, frozen=True):
    """Checked and encoded jobs, in the form that ``jobqueue_internal.submit_batch`` accepts.

    Attributes:
        ids: the UUIDs (version 7) of the jobs, in the order of their submission.
        documents: one JSON document per job, in the same order.
        queues: the number of jobs that each queue can run now. Queues that only get scheduled jobs are omitted.
        counts: the number of jobs of each (queue, kind).
        keyed: whether any job has an idempotency or unique key. If so, the ids are not final: existing jobs may replace new ones.
        blocked: whether any job has a concurrency key. Such jobs first wait until their key has room, and do not count in `queues`.
    """

    ids: list[str]
    documents: list[bytes]
    queues: dict[str, int]
    counts: dict[tuple[str, str], int]
    keyed: bool = False
    blocked: bool = False

    @property
    def kinds(self) -> set[str]:
        """The kinds of the jobs."""
        return {kind for _, kind in self.counts}

    def part(self, begin: int, end: int) -> Admitted:
        """Return the jobs from position `begin` to `end` (exclusive) as a separate submission."""
        some = self.documents[begin:end]
        jobs = admit([([_new_job.decode(document) for document in some], some)])
        return msgspec.structs.replace(jobs, keyed=self.keyed, blocked=self.blocked)

    @property
    def weight(self) -> int:
        """The number of small jobs that these jobs count as, see `documents.weight`."""
        if documents.weight(max(map(len, self.documents))) == 1:
            return len(self.documents)  # a shortcut for the common case
        return sum([documents.weight(len(document)) for document in self.documents])


class Receipt(NamedTuple):
    """The result of a submission with keys.

    Attributes:
        ids: the ids of the jobs that exist now, in the order of their submission.
        existing: the positions, from 0, of the jobs that existed before.
    """

    ids: list[str]
    existing: list[int]


MAX_FAULTS = 100
"""Maximum number of a batch's faults that are kept as errors. For further faults, only the positions are kept."""


class Faults:
    """The faults of a batch whose valid jobs are submitted nevertheless.

    Attributes:
        places: the positions, from 0, of all faulty jobs.
        errors: the first `MAX_FAULTS` errors, in the order in which they were found. Each has its position as its `index`.
    """

    def __init__(self) -> None:
        self.places: set[int] = set()
        self.errors: list[InvalidJob] = []

    def add(self, place: int, error: InvalidJob) -> None:
        """Add the error of the job at a position."""
        self.places.add(place)
        if len(self.errors) < MAX_FAULTS:
            # The traceback and the context keep the job's text and other objects in memory.
            error.__traceback__ = error.__context__ = None
            error.index = place
            self.errors.append(error)


class PlainJob(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Like `NewJob`, but encoded with exactly the given fields."""

    id: Annotated[str, msgspec.Meta(pattern="(?!)")] = ""  # matches no text: submitters cannot choose ids
    kind: Name | UnsetType = UNSET
    payload: Any = UNSET
    queue: Name | UnsetType = UNSET  # a `PathName`, see `plain`
    priority: Priority | UnsetType = UNSET
    max_retries: Retries | UnsetType | None = UNSET
    run_at: UnsetType | None = UNSET  # a job with a date is not plain: encoding the date can change its number of colons
    delay: Delay | UnsetType | None = UNSET
    timeout: Timeout | UnsetType | None = UNSET


Encoded = tuple[Sequence[PlainJob | NewJob], Sequence[bytes]]
"""Jobs that have their ids, and the encoded document of each."""

_decode = msgspec.json.Decoder(PlainJob).decode
_encode = msgspec.json.Encoder().encode
_new_job = msgspec.json.Decoder(NewJob)
_nul_colon_or_dot = re.compile(rb"\\u00(?:00|3[aA]|2[eE])")
_digits_to_zeros = bytes.maketrans(b"-123456789", b"0" * 10)
_TWENTY = b"0" * 20


def plain(texts: Sequence[bytes]) -> Encoded | None:
    """Decode jobs from JSON and encode them for the database; return None if one of them needs a closer check.

    Args:
        texts: the JSON of each job. Each step runs for all texts before the next step starts, which is twice as fast.
    """
    text = b"\n".join(texts)
    if len(text) > MAX_PAYLOAD_BYTES or (b"\\" in text and _nul_colon_or_dot.search(text)):
        return None
    if b'"."' in text or b'".."' in text:
        return None  # these names are not allowed for queues
    if may_hold_large_integer(text) or (_may_be_deep(text) and any(map(_may_be_deep, texts))):
        return None
    colons = text.count(b":") + len(texts)
    try:
        jobs = list(map(_decode, texts))
        for job in jobs:
            job.id = str(uuid_utils.uuid7())
            if job.payload is UNSET:
                job.payload = {}
                colons += 1
        encoded = list(map(_encode, jobs))
    except (ValueError, RecursionError):
        return None
    document = b"\n".join(encoded)
    # If a text repeats a name, the document contains the name only once, so a colon is missing. Names with escapes never get here.
    return (jobs, encoded) if len(document) <= MAX_PAYLOAD_BYTES and document.count(b":") == colons else None


def may_hold_large_integer(text: bytes) -> bool:
    """Whether a text has enough digits in a row for an integer beyond 64 bits: nineteen with a sign, or twenty."""
    return _TWENTY in text.translate(_digits_to_zeros)


def _may_be_deep(text: bytes) -> bool:
    """Whether a text has enough brackets to be nested too deeply. Each level has two brackets."""
    return len(text) > 2 * documents.MAX_DEPTH and text.count(b"[") + text.count(b"{") > documents.MAX_DEPTH


def admit(
    jobs: Iterable[Submission | Encoded],
    *,
    many: bool = True,
    trace: Mapping[str, str] | None = None,
    faults: Faults | None = None,
) -> Admitted:
    """Give each submission an id and encode it for the database, except for plain jobs, which are encoded already.

    This processes one job after the other, so a whole batch is never in memory in decoded form.

    Args:
        jobs: submissions whose fields have the right types and ranges, and plain jobs.
        many: whether the jobs are a batch, so that an error has the position of the faulty job.
        trace: the trace of the request, for jobs without their own trace, see `jobqueue.tracing`.
        faults: collects the errors of invalid jobs, which are left out. Without it, the first error is raised. It may already
            contain the errors of jobs that the caller has left out, up to the current position.

    Raises:
        InvalidJob: two fields exclude each other, such as `run_at` and `delay`.
        PayloadTooLarge: a payload is larger than `MAX_PAYLOAD_BYTES`.
        UnprocessableJob: PostgreSQL cannot store a value.
    """
    ids: list[str] = []
    encoded: list[bytes] = []
    queues: dict[str, int] = {}
    counts: dict[tuple[str, str], int] = {}
    keyed = blocked = False
    for given in jobs:
        waits = isinstance(given, Submission) and given.concurrency_key is not None
        blocked = blocked or waits
        try:
            if isinstance(given, tuple):
                some, their_documents = given if not trace else _traced(given, trace)
            else:
                some, their_documents = _carefully(given, trace)
                keyed = keyed or bool(given.idempotency_key or given.unique_key or given.unique)
        except InvalidJob as error:
            if faults is None:
                error.index = len(ids) if many else None
                raise
            faults.add(len(ids) + len(faults.places), error)
            continue
        encoded += their_documents
        for job in some:
            ids.append(job.id)
            queue, _ = names = job.queue or "default", job.kind or "default"
            counts[names] = counts.get(names, 0) + 1
            # This node's clock may be wrong, but it only decides which queues to wake. The database decides which jobs are due.
            if not (waits or job.delay) and (not job.run_at or job.run_at <= datetime.now(UTC)):
                queues[queue] = queues.get(queue, 0) + 1
    return Admitted(ids, encoded, queues, counts, keyed, blocked)


def _traced(given: Encoded, trace: Mapping[str, str]) -> Encoded:
    """Add a trace to plain jobs, which have no options."""
    jobs, encoded = given
    ending = b',"options":' + _encode(trace) + b"}"
    return jobs, [document[:-1] + ending for document in encoded]


def _carefully(submission: Submission, trace: Mapping[str, str] | None) -> Encoded:
    if trace and submission.traceparent is None:
        submission.traceparent, submission.tracestate = trace["traceparent"], trace.get("tracestate")
    job = new_job(submission)
    job.id = str(uuid_utils.uuid7())
    return [job], [_encode(job)]


def new_job(submission: Submission) -> NewJob:
    """Check what the types of the fields do not cover, and convert a submission to a `NewJob` without an id.

    Raises:
        InvalidJob, PayloadTooLarge, UnprocessableJob: see `admit`.
    """
    refuse_both(submission, submission.EXCLUSIVE)
    for field in _NAMED:
        name = getattr(submission, field)
        if name is not None and not _storable_name(name):
            _encoded(name, field)
    payload = _encoded(submission.payload, "payload")
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise PayloadTooLarge(
            f"the payload has {len(payload)} bytes as JSON, and the limit is {MAX_PAYLOAD_BYTES}:"
            " store the data elsewhere and submit a reference to it",
            field="payload",
        )
    return NewJob(
        kind=submission.kind,
        payload=msgspec.Raw(payload),
        queue=submission.queue,
        priority=submission.priority,
        max_retries=submission.max_retries,
        run_at=None if submission.run_at is None else in_utc(submission.run_at),
        delay=submission.delay,
        timeout=submission.timeout,
        options=_options(submission),
    )


def refuse_both(given: msgspec.Struct, pairs: Iterable[tuple[str, str]]) -> None:
    """Check that at most one field of each pair has a value.

    Raises:
        InvalidJob: both fields of a pair have a value.
    """
    for one, other in pairs:
        if getattr(given, one) is not None and getattr(given, other) is not None:
            raise InvalidJob(f"{one} and {other} exclude each other: give only one of them", field=other)


def _options(submission: Submission) -> Options | None:
    """Return the fields that are not columns; None if there are none, as almost always."""
    trace = tracing.read(submission.traceparent, submission.tracestate)
    options = Options(
        expires_at=None if submission.expires_at is None else submission.expires_at.timestamp(),
        expires_in=submission.expires_in,
        group=submission.group,
        weight=submission.weight,
        concurrency_key=submission.concurrency_key,
        unique=submission.unique or None,
        unique_key=submission.unique_key,
        idempotency_key=submission.idempotency_key,
        traceparent=trace.get("traceparent"),
        tracestate=trace.get("tracestate"),
    )
    return None if options == _NO_OPTIONS else options


_NO_OPTIONS = Options()
_NAMED = [field.name for field in msgspec.structs.fields(Submission) if not_null(field.type) in {Name, PathName}]


@lru_cache(maxsize=1024)  # the jobs of a batch have few kinds and queues
def _storable_name(name: str) -> bool:
    try:
        documents.encode(name)
    except documents.RefusedDocument:
        return False
    return True


def _encoded(value: object, field: str) -> bytes:
    """Encode one value of a submission; an error names its field."""
    try:
        return documents.encode(value, finite=True)
    except documents.RefusedDocument as error:
        raise UnprocessableJob(f"{field} cannot be stored: {error}", field=field) from None
