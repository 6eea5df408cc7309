"""Parse the jobs in a request's body. An invalid body raises `InvalidJob` with a reason for the caller.

A body of 64 MiB may be hostile, so memory is bounded by the limits on a job, not by the body. Each job is measured before it is
decoded. The jobs of a batch are decoded one at a time, or in groups that together stay within the limit of one job.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import count

import msgspec
from werkzeug.exceptions import UnsupportedMediaType
from werkzeug.http import parse_options_header

from jobqueue.admission import Admitted, Encoded, Faults, admit, may_hold_large_integer, plain
from jobqueue.errors import BatchTooLarge, InvalidJob, PayloadTooLarge, UnprocessableJob
from jobqueue.fields import MAX_SHOWN_NAME, must_be
from jobqueue.http.bodies import strict_json
from jobqueue.http.responses.answers import JSON
from jobqueue.job import MAX_BATCH_JOBS, MAX_NAME_LENGTH, MAX_PAYLOAD_BYTES, Submission

MAX_JOB_BYTES = MAX_PAYLOAD_BYTES + (64 << 10)
"""Maximum size of one job's JSON, in bytes: the maximum size of a payload, and room for the other fields."""

AT_ONCE = 32
"""Number of jobs of a batch that are parsed together. The number is small, because one job that needs the slow parser slows down
all jobs of its group."""

MAX_ARRAY_OBJECTS = 4_000_000
"""Maximum number of JSON objects, at any depth, in an array of jobs. Without it, 64 MiB of ``{},`` would decode to gigabytes. With
``partial=true``, elements may have any type, so this is also the maximum number of commas. NDJSON has no such limit."""

MAX_SPLIT_BYTES = 1 << 20
"""Maximum number of bytes to search for the malformed element of an array. If the search finds nothing, the error has no index."""

MAX_IGNORED_NAMES = 20
"""Maximum number of names of ignored fields that the response lists."""

NDJSON = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl"})

MEDIA_TYPES = (JSON, *sorted(NDJSON, reverse=True))
"""Media types of bodies that may contain jobs; the most frequent types come first."""


class ParsedBody(msgspec.Struct, frozen=True):
    """The jobs of a body.

    Attributes:
        jobs: the jobs, ready for the database.
        many: whether the body was a batch; a batch may have one job.
        ignored: names of unknown fields, sorted, without duplicates. The response lists them so that the caller notices a typo.
        faults: the problems of rejected jobs, which are not in `jobs`; None unless ``partial=true``.
    """

    jobs: Admitted
    many: bool
    ignored: list[str]
    faults: Faults | None = None


def require_json(content_type: str | None) -> str:
    """Return the media type of a Content-Type header.

    Raises:
        UnsupportedMediaType: the header is missing or names another type. This covers every type that a browser sends
            cross-origin without a preflight.
    """
    media_type = _media_type(content_type)
    if media_type is None:
        raise UnsupportedMediaType(
            f"the body must be JSON in UTF-8: send -H 'Content-Type: {JSON}', or {min(NDJSON)} for one job per line"
        )
    return media_type


@lru_cache(maxsize=64)  # clients repeat the same header
def _media_type(content_type: str | None) -> str | None:
    media_type, options = parse_options_header(content_type)
    known = media_type.lower() in MEDIA_TYPES and options.get("charset", "utf-8").lower() in {"utf-8", "utf8"}
    return media_type.lower() if known else None


def parse(
    content_type: str | None,
    body: bytes,
    key: str | None = None,
    trace: Mapping[str, str] | None = None,
    *,
    partial: bool = False,
) -> ParsedBody:
    """Parse the jobs in a body: an object is one job, an array or lines of JSON are a batch.

    Args:
        key: the request's ``Idempotency-Key`` header. For a single job, it has the meaning of the field ``idempotency_key``.
        trace: the request's trace headers, for all jobs without their own.
        partial: whether to accept the valid jobs of a batch if other jobs are invalid. Errors of the whole batch still raise.

    Raises:
        UnsupportedMediaType: the content type is not JSON.
        InvalidJob: the body, one of its jobs, or the key is malformed.
        PayloadTooLarge, BatchTooLarge: a size limit is exceeded.
        UnprocessableJob: a value cannot be stored.
    """
    first = body.lstrip()[:1]
    if not first:
        raise InvalidJob('the body is empty: send a job, such as {"kind": "default", "payload": {}}')
    media_type = require_json(content_type)
    ignored: set[str] = set()
    if key is not None or not (media_type in NDJSON or first == b"["):
        job = plain([body]) or _submission(body, ignored) if key is None else _with_key(key, media_type, body, ignored)
        return ParsedBody(admit([job], many=False, trace=trace), many=False, ignored=sorted(ignored))
    faults = Faults() if partial else None
    texts = _lines(body) if media_type in NDJSON else _elements(body, of_any_type=partial)
    jobs = admit(_jobs(texts, ignored, faults), trace=trace, faults=faults)
    if not jobs.ids and not (faults and faults.places):
        raise InvalidJob("the batch is empty: send at least one job")
    return ParsedBody(jobs, many=True, ignored=sorted(ignored), faults=faults)


KEY_PATTERN = rf"""^("([ !#-\[\]-~]|\\["\\]){{1,{MAX_NAME_LENGTH}}}"|[!#-+\--:<-\[\]-~]{{1,{MAX_NAME_LENGTH}}})$"""
"""Matches an ``Idempotency-Key``, with quotes or without."""

_well_formed_key = re.compile(KEY_PATTERN)


def _key(header: str) -> str:
    """Parse an ``Idempotency-Key`` header (draft-ietf-httpapi-idempotency-key-header).

    The value is a string as defined by RFC 8941, section 3.3.3. The same string without quotes is accepted too.
    """
    if not _well_formed_key.fullmatch(header):
        rule = f'be 1 to {MAX_NAME_LENGTH} ASCII characters, with or without quotes, such as "8e03978e-40d5"'
        raise InvalidJob(f"the Idempotency-Key header must {rule}", field="idempotency_key")
    return re.sub(r"\\(.)", r"\1", header[1:-1]) if header.startswith('"') else header


def _with_key(header: str, media_type: str, body: bytes, ignored: set[str]) -> Submission:
    """Parse the single job of a request with an ``Idempotency-Key`` header."""
    key = _key(header)
    if media_type in NDJSON or body.lstrip()[:1] == b"[":
        raise UnprocessableJob(
            "the Idempotency-Key header requires a request with one job: in a batch, set idempotency_key on each job",
            field="idempotency_key",
        )
    submission = _submission(body, ignored)
    if submission.idempotency_key not in {None, key}:
        raise UnprocessableJob(
            "the Idempotency-Key header and the job's idempotency_key differ: send one of them", field="idempotency_key"
        )
    submission.idempotency_key = key
    return submission


# ---------------------------------------------------------------------------------------------------------------------- batches


_line_end = re.compile(rb"\n[ \t\r\n]*")


def _lines(body: bytes) -> list[bytes]:
    """Split a body into its lines, without empty ones: a million empty lines must not use memory."""
    lines = _line_end.split(body.lstrip(b" \t\r\n"), MAX_BATCH_JOBS + 1)
    return lines if lines[-1] else lines[:-1]


def _elements(body: bytes, *, of_any_type: bool) -> list[bytes]:
    """Split an array into the texts of its elements."""
    if max(body.count(b"{"), body.count(b",") if of_any_type else 0) > MAX_ARRAY_OBJECTS:
        what = "commas" if of_any_type else "objects"
        raise BatchTooLarge(f"the array has more than {MAX_ARRAY_OBJECTS} {what}: split it, or send it as {min(NDJSON)}")
    try:
        # Decoding ends at the first element that is not an object. So it never builds a list of millions of other values.
        if not of_any_type and len(_objects.decode(body)) > MAX_BATCH_JOBS:
            raise _batch_too_large()
        elements = _texts.decode(body)
        if len(elements) > MAX_BATCH_JOBS:
            raise _batch_too_large()
        return list(map(bytes, elements))
    except msgspec.ValidationError:
        raise InvalidJob("a job must be a JSON object", index=_leading_objects(body)) from None
    except (ValueError, RecursionError) as error:
        raise InvalidJob(f"the array cannot be read: {_malformed(body, error)}", index=_place(body)) from None


def _leading_objects(array: bytes) -> int:
    """Return the number of objects before an array's first element of another type.

    Raises:
        BatchTooLarge: there are more than `MAX_BATCH_JOBS`.
    """
    numbers = count()

    class Counted(msgspec.Struct):
        def __post_init__(self) -> None:
            if next(numbers) == MAX_BATCH_JOBS:
                raise _batch_too_large()

    with suppress(msgspec.ValidationError):
        msgspec.json.decode(array, type=list[Counted])
    return next(numbers)


def _place(body: bytes) -> int | None:
    """Return the index of an array's first malformed element.

    None means that the malformed part is outside of the elements, or beyond `MAX_SPLIT_BYTES`.
    """
    for index, element in enumerate(_split(body)):
        try:
            _text.decode(element)
        except (ValueError, RecursionError):
            return index
    return None


_structure = re.compile(rb'[\[\]{},]|"(?:[^"\\]++|\\.)*+"?', re.DOTALL)


def _split(array: bytes) -> Iterator[bytes]:
    """Split an array at its commas, without validating it. Up to the first malformed element, the parts are the elements."""
    begin = depth = 0
    for token in _structure.finditer(array, 0, MAX_SPLIT_BYTES):
        mark = token[0]
        if mark in b"[{":
            depth += 1
            begin = token.end() if depth == 1 else begin
        elif mark in b"]}":
            depth -= 1
        if depth == 0 or (depth == 1 and mark == b","):
            yield array[begin : token.start()]
            begin = token.end()
        if depth == 0:
            return
    if len(array) <= MAX_SPLIT_BYTES:
        yield array[begin:]


def _jobs(texts: Sequence[bytes], ignored: set[str], faults: Faults | None) -> Iterator[Submission | Encoded]:
    for begin in range(0, len(texts), AT_ONCE):
        some = texts[begin : begin + AT_ONCE]
        if begin + len(some) <= MAX_BATCH_JOBS and (encoded := plain(some)):
            yield encoded
            continue
        for index, text in enumerate(some, begin):
            if index == MAX_BATCH_JOBS:
                raise _batch_too_large()
            try:
                submission = _submission(text, ignored)
            except InvalidJob as error:
                if faults is None:
                    error.index = index
                    raise
                faults.add(index, error)
            else:
                yield submission


def _batch_too_large() -> BatchTooLarge:
    return BatchTooLarge(f"the batch has more than {MAX_BATCH_JOBS} jobs: split it into smaller batches")


# ---------------------------------------------------------------------------------------------------------------------- one job


class _Object(msgspec.Struct):
    """Any JSON object. Decoding to this type is cheap, because the decoder skips all members."""


_objects = msgspec.json.Decoder(list[_Object])
_text = msgspec.json.Decoder(msgspec.Raw)
_texts = msgspec.json.Decoder(list[msgspec.Raw])
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_whole = msgspec.json.Decoder(Submission)
_fields = {field.name: msgspec.json.Decoder(field.type) for field in msgspec.structs.fields(Submission)}
_camel_case = {re.sub(r"_(\w)", lambda letter: letter.group(1).upper(), name): name for name in _fields if "_" in name}


def _submission(text: bytes, ignored: set[str]) -> Submission:
    if len(text) > MAX_JOB_BYTES:
        raise PayloadTooLarge(
            f"a job may have at most {MAX_JOB_BYTES} bytes, with at most {MAX_PAYLOAD_BYTES} bytes of payload", field="payload"
        )
    try:
        members = _members.decode(text)
        if _repeats(text, members):
            name = _shown(_repeated(text))
            raise InvalidJob(f"{name} is given more than once", field=name)
    except msgspec.ValidationError:
        raise InvalidJob("a job must be a JSON object") from None
    except (ValueError, RecursionError) as error:
        raise InvalidJob(f"the job cannot be read: {_malformed(text, error)}") from None
    if not members.keys() <= _fields.keys():
        members = _known(members, ignored)
        text = msgspec.json.encode(members)
    payload = members.get("payload", b"")
    if memoryview(payload).nbytes > MAX_PAYLOAD_BYTES:
        raise PayloadTooLarge(f"the payload has more than {MAX_PAYLOAD_BYTES} bytes of JSON", field="payload")
    try:
        submission = _decoded(text, members)
    except (ValueError, RecursionError):
        raise _fault(members) from None
    if payload and not _is_unambiguous(bytes(payload), submission.payload):
        _check("payload", payload)
    return submission


def _is_unambiguous(text: bytes, value: object) -> bool:
    """Return True if a text certainly has no duplicate name, at any depth, and no integer beyond 64 bits.

    Encoding the decoded value writes a duplicate name only once. So if a name is duplicate, the original text has more colons.
    """
    if may_hold_large_integer(text) or b"\\u003" in text:
        return False
    try:
        return msgspec.json.encode(value).count(b":") == text.count(b":")
    except RecursionError:
        return False


def _check(name: str, text: bytes | msgspec.Raw) -> None:
    """Validate a field's value with `strict_json.read`."""
    name = _shown(name)
    try:
        strict_json.read(bytes(text))
    except strict_json.TooLarge as error:
        raise UnprocessableJob(f"{name} cannot be accepted: {error}", field=name) from None
    except (ValueError, RecursionError) as error:
        raise InvalidJob(f"{name} cannot be read: {_malformed(text, error)}", field=name) from None


def _decoded(text: bytes, members: dict[str, msgspec.Raw]) -> Submission:
    try:
        return _whole.decode(text)
    except ValueError:
        whole = {name: value if name == "payload" else _integral(value) for name, value in members.items()}
        return _whole.decode(msgspec.json.encode(whole))


_float = re.compile(rb"-?[0-9]{1,20}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?")


def _integral(value: msgspec.Raw) -> msgspec.Raw:
    """Rewrite a number without a fraction as an integer: in JSON, 5.0 and 5 are the same."""
    text = bytes(value)
    if _float.fullmatch(text) and (number := float(text)).is_integer():
        return msgspec.Raw(b"%d" % number)
    return value


def _repeats(text: bytes, members: dict[str, msgspec.Raw]) -> bool:
    """Return whether a field is given more than once. JSON allows duplicates, and a decoder silently keeps only one of the
    values.

    Each member has one colon outside of its name and value. So if a name is duplicate, the text has an extra colon. An escaped
    colon in a name can hide a duplicate, but no known field has such a name.
    """
    colons = len(members) + b"".join(members.values()).count(b":") + "".join(members).count(":")
    return text.count(b":") > colons


def _repeated(text: bytes) -> str:
    pairs = json.loads(text.decode(errors="replace"), object_pairs_hook=list, parse_int=str)
    [(name, _)] = Counter(str(name) for name, _ in pairs).most_common(1)
    return name


def _known(members: dict[str, msgspec.Raw], ignored: set[str]) -> dict[str, msgspec.Raw]:
    """Return the known fields, including fields with a name in camelCase. Add the names of unknown fields to `ignored`."""
    known: dict[str, msgspec.Raw] = {}
    for name, value in members.items():
        field = _camel_case.get(name, name)
        if field in known:
            raise InvalidJob(f"{field} is given twice, in snake_case and in camelCase", field=field)
        if field in _fields:
            known[field] = value
            continue
        _check(name, value)
        if len(ignored) < MAX_IGNORED_NAMES:
            ignored.add(_shown(name))
    return known


def _fault(members: dict[str, msgspec.Raw]) -> InvalidJob:
    """Return the error for the first field that cannot be decoded."""
    for name, value in members.items():
        try:
            _fields[name].decode(value)
        except (ValueError, RecursionError) as error:
            if name == "payload":
                return InvalidJob(f"payload cannot be read: {_malformed(value, error)}", field=name)
            return InvalidJob(f"{name} must be {must_be(_fields[name].type)}", field=name)
    return InvalidJob("the job cannot be read")


_MALFORMATIONS: list[tuple[bytes, str]] = [
    (rb"\xef\xbb\xbf", "it begins with a byte order mark"),
    (rb"(?s:.*)\\u[dD][89abAB]..(?!\\u[dD][c-fC-F])", "a string holds half of a surrogate pair"),
]


def _malformed(text: bytes | msgspec.Raw, error: Exception) -> str:
    """Return why a JSON text is malformed: a clear reason for known cases, else the decoder's message."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeError):
        return "it is not UTF-8"
    for pattern, reason in _MALFORMATIONS:
        if re.match(pattern, bytes(text)):
            return reason
    return str(error)


def _shown(name: str) -> str:
    return name[:MAX_SHOWN_NAME]
