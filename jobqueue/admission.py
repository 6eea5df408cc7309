"""From what a submitter said to what the database is given: each job gets its id here, and is encoded once and for all.

Almost all jobs are *plain*: a glance at the text tells that there is nothing to look for, and `plain` decodes and encodes it with
no more ado. Any other takes the careful way, through a `Submission`, which finds out what is wrong with it, if anything is. Both
ways come to the same.
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
from jobqueue.fields import in_utc
from jobqueue.job import MAX_PAYLOAD_BYTES, Delay, Name, NewJob, Options, Priority, Retries, Submission, Timeout


class Admitted(msgspec.Struct, frozen=True):
    """Jobs that nothing more can be wrong with, in the form that ``jobqueue.submit_many`` takes.

    Attributes:
        ids: the jobs' UUIDs (version 7), in the order that they were submitted in.
        documents: one JSON document a job, in the same order.
        queues: how many of them each queue can run now; queues that only get scheduled jobs are not in it.
        counts: how many of them there are of each (queue, kind).
        keyed: whether some have a key, so that a job may be there in place of one of them: then the ids are not final.
        blocked: whether some have a concurrency key, and wait for their turn first: they do not count among `queues`.
    """

    ids: list[str]
    documents: list[bytes]
    queues: dict[str, int]
    counts: dict[tuple[str, str], int]
    keyed: bool = False
    blocked: bool = False

    @property
    def kinds(self) -> set[str]:
        """The kinds among them."""
        return {kind for _, kind in self.counts}

    def part(self, begin: int, end: int) -> Admitted:
        """Return some of the jobs, by their places, as a submission of their own."""
        some = self.documents[begin:end]
        jobs = admit([([_new_job.decode(document) for document in some], some)])
        return msgspec.structs.replace(jobs, keyed=self.keyed, blocked=self.blocked)

    @property
    def weight(self) -> int:
        """How many small jobs they count for together, see `documents.weight`."""
        if documents.weight(max(map(len, self.documents))) == 1:
            return len(self.documents)  # so it almost always is, and costs next to nothing
        return sum([documents.weight(len(document)) for document in self.documents])


class Receipt(NamedTuple):
    """What a submission with keys came to.

    Attributes:
        ids: of the jobs that are there now, in the order that they were submitted in.
        existing: the positions, from 0, of those that were there already.
    """

    ids: list[str]
    existing: list[int]


MAX_FAULTS = 100
"""How many of the faults of a batch are kept in words; of the others only their places."""


class Faults:
    """What is wrong with jobs of a batch of which the good ones are to be taken.

    Attributes:
        places: the positions, from 0, of all of them.
        errors: the first of them, by the order in which they were found; each has its position as its `index`.
    """

    def __init__(self) -> None:
        self.places: set[int] = set()
        self.errors: list[InvalidJob] = []

    def add(self, place: int, error: InvalidJob) -> None:
        """Note what is wrong with the job at a position."""
        self.places.add(place)
        if len(self.errors) < MAX_FAULTS:
            # What it came through holds the job's text, and whatever else was at hand there.
            error.__traceback__ = error.__context__ = None
            error.index = place
            self.errors.append(error)


class PlainJob(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What `NewJob` is, but encoded with exactly the fields that were given."""

    id: Annotated[str, msgspec.Meta(pattern="(?!)")] = ""  # no text matches: ids are ours to give
    kind: Name | UnsetType = UNSET
    payload: Any = UNSET
    queue: Name | UnsetType = UNSET  # a `PathName`, see `plain`
    priority: Priority | UnsetType = UNSET
    max_retries: Retries | UnsetType | None = UNSET
    run_at: UnsetType | None = UNSET  # a date may be encoded with more colons than it was given with
    delay: Delay | UnsetType | None = UNSET
    timeout: Timeout | UnsetType | None = UNSET


Encoded = tuple[Sequence[PlainJob | NewJob], Sequence[bytes]]
"""Jobs that have their ids, and a document of each."""

_decode = msgspec.json.Decoder(PlainJob).decode
_encode = msgspec.json.Encoder().encode
_new_job = msgspec.json.Decoder(NewJob)
_nul_colon_or_dot = re.compile(rb"\\u00(?:00|3[aA]|2[eE])")
_digits_to_zeros = bytes.maketrans(b"-123456789", b"0" * 10)
_TWENTY = b"0" * 20


def plain(texts: Sequence[bytes]) -> Encoded | None:
    """Read jobs from JSON and encode them for the database, or return None if one of them takes more care.

    Args:
        texts: the JSON of each job. Each step is taken for all of them before the next is: that is twice as fast.
    """
    text = b"\n".join(texts)
    if len(text) > MAX_PAYLOAD_BYTES or (b"\\" in text and _nul_colon_or_dot.search(text)):
        return None
    if b'"."' in text or b'".."' in text:
        return None  # no queue has such a name
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
    # A name that is given again is encoded once, which leaves its colon over: none was spelt as an escape.
    return (jobs, encoded) if len(document) <= MAX_PAYLOAD_BYTES and document.count(b":") == colons else None


def may_hold_large_integer(text: bytes) -> bool:
    """Tell whether there are digits enough, in one place, for an integer beyond 64 bits: nineteen with a sign, or twenty."""
    return _TWENTY in text.translate(_digits_to_zeros)


def _may_be_deep(text: bytes) -> bool:
    """Tell whether there are enough brackets for more levels than are allowed. Each level has two."""
    return len(text) > 2 * documents.MAX_DEPTH and text.count(b"[") + text.count(b"{") > documents.MAX_DEPTH


def admit(
    jobs: Iterable[Submission | Encoded],
    *,
    many: bool = True,
    trace: Mapping[str, str] | None = None,
    faults: Faults | None = None,
) -> Admitted:
    """Give each submission an id and encode it for the database, unless that is done already.

    The jobs are taken one by one, so that a batch is never held decoded as a whole.

    Args:
        jobs: submissions whose fields are of the right type and within their ranges, and jobs that were found to be plain.
        many: whether they are a batch, so that an error names the position of the job at fault.
        trace: of the request, for jobs that have none of their own, see `jobqueue.tracing`.
        faults: where to put the errors of single jobs, which are left out then, in place of raising them. It may hold those of jobs
            that were left out before, up to the one that is at hand.

    Raises:
        InvalidJob: `run_at` and `delay` exclude each other.
        PayloadTooLarge: a payload is larger than `MAX_PAYLOAD_BYTES`.
        UnprocessableJob: a value that PostgreSQL cannot store.
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
            # This node's clock may be wrong: it only decides whom to wake. What is due is for the database's clock to say.
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
    """Look for what a field's type cannot tell, and make of a submission what the database takes: all but its id.

    Raises:
        InvalidJob, PayloadTooLarge, UnprocessableJob: see `admit`.
    """
    refuse_both(submission, submission.EXCLUSIVE)
    if not (_storable_name(submission.kind) and _storable_name(submission.queue)):
        _gate(submission.kind, "kind")
        _gate(submission.queue, "queue")
    payload = _gate(submission.payload, "payload")
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise PayloadTooLarge(f"the payload has {len(payload)} bytes as JSON, {MAX_PAYLOAD_BYTES} are allowed", field="payload")
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
    """Make sure that of each pair of fields not both have a value.

    Raises:
        InvalidJob: both have.
    """
    for one, other in pairs:
        if getattr(given, one) is not None and getattr(given, other) is not None:
            raise InvalidJob(f"{one} and {other} exclude each other: give one of them", field=other)


def _options(submission: Submission) -> Options | None:
    """Gather what is not a column; None when that is nothing, as almost always."""
    for field in ("group", "concurrency_key", "unique_key", "idempotency_key"):
        name = getattr(submission, field)
        if name is not None and not _storable_name(name):
            _gate(name, field)
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


@lru_cache(maxsize=1024)  # jobs of a batch have few kinds and queues between them
def _storable_name(name: str) -> bool:
    try:
        documents.encode(name)
    except documents.RefusedDocument:
        return False
    return True


def _gate(value: object, field: str) -> bytes:
    """Pass one value of the submitter's through the gate, so that a refusal names its field."""
    try:
        return documents.encode(value, finite=True)
    except documents.RefusedDocument as error:
        raise UnprocessableJob(f"{field} cannot be stored: {error}", field=field) from None
