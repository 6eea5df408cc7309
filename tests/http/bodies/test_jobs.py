import contextlib
import json
import re
import time
from typing import Any
from unittest import mock

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from werkzeug.exceptions import UnsupportedMediaType

from jobqueue import fields
from jobqueue.admission import may_hold_large_integer, plain
from jobqueue.errors import BatchTooLarge, InvalidJob, PayloadTooLarge, UnprocessableJob
from jobqueue.http.bodies import jobs as bodies
from jobqueue.http.bodies.jobs import JSON, ParsedBody
from jobqueue.job import (
    MAX_BATCH_JOBS,
    MAX_NAME_LENGTH,
    MAX_PAYLOAD_BYTES,
    NewJob,
    Submission,
)

pytestmark = pytest.mark.slow

NDJSON = "application/x-ndjson"


def read(body: bytes | str, content_type: str = JSON) -> ParsedBody:
    return bodies.parse(content_type, body.encode() if isinstance(body, str) else body)


def one(body: bytes | str) -> Any:
    submitted = read(body)
    assert not submitted.many
    (document,) = submitted.jobs.documents
    return msgspec.json.decode(document)


def refusal(body: bytes | str, content_type: str = JSON) -> InvalidJob:
    with pytest.raises(InvalidJob) as refused:
        read(body, content_type)
    assert refused.value.reason == str(refused.value) != ""
    return refused.value


# ---------------------------------------------------------------------------------------------------------------- what is taken


def test_the_least_job() -> None:
    job = one("{}")
    assert job.keys() == {"id", "payload"}
    assert job["payload"] == {}


def test_requests_of_the_original_interface() -> None:
    job = one('{"priority": 5, "max_retries": 3}')
    assert (job["priority"], job["max_retries"]) == (5, 3)
    submitted = read('{"id": "job-17", "priority": 2, "payload": "hello", "maxRetries": 4}')
    job = msgspec.json.decode(submitted.jobs.documents[0])
    assert (job["payload"], job["priority"], job["max_retries"]) == ("hello", 2, 4)
    assert job["id"] == submitted.jobs.ids[0] != "job-17"
    assert submitted.ignored == ["id"]


storable_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | storable_text
)


@settings(max_examples=50)
@given(st.recursive(scalars, lambda children: st.lists(children) | st.dictionaries(storable_text, children), max_leaves=10))
def test_a_payload_arrives_as_it_was_sent(payload: Any) -> None:
    assert one(json.dumps({"payload": payload}))["payload"] == payload


def test_the_error_for_a_name_in_camel_case_has_the_name_of_the_field() -> None:
    assert refusal('{"maxRetries": -1}').field == "max_retries"


def test_an_array_is_many_even_of_one() -> None:
    submitted = read(' \n[{"kind": "a"}, {"kind": "b"}]')
    assert submitted.many
    assert [msgspec.json.decode(document).get("kind") for document in submitted.jobs.documents] == ["a", "b"]
    assert read("[{}]").many


@pytest.mark.parametrize("content_type", [NDJSON, "application/jsonl", "application/ndjson", "Application/X-NDJSON; charset=UTF-8"])
def test_lines_are_many(content_type: str) -> None:
    submitted = read('\n{"kind": "a"}\r\n\r\n  \n\t{"kind": "b"} \n\n', content_type)
    assert submitted.many
    assert [msgspec.json.decode(document).get("kind") for document in submitted.jobs.documents] == ["a", "b"]


# -------------------------------------------------------------------------------------------------------------- ignored names


def test_ignored_names_are_sorted_and_given_once() -> None:
    assert read('[{"prio": 1, "b": 2}, {"prio": 3}]').ignored == ["b", "prio"]


def test_ignored_names_are_bounded() -> None:
    body = msgspec.json.encode({f"{n:03}" + "x" * 100: n for n in range(100)})
    ignored = read(body).ignored
    assert len(ignored) == bodies.MAX_IGNORED_NAMES
    assert {len(name) for name in ignored} == {fields.MAX_SHOWN_NAME}


def test_names_and_values_with_colons_are_not_duplicates() -> None:
    submitted = read('{"a:b": 1, "payload": {"c:d": ":", "kind": "::"}, "kind": "x:y"}')
    assert submitted.ignored == ["a:b"]
    assert submitted.jobs.kinds == {"x:y"}


# ------------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("", "empty"),
        (" \n ", "empty"),
        ("[]", "empty"),
        ("null", "object"),
        ('"x"', "object"),
        ("5", "object"),
        ("{", "truncated"),
        ("[{}", "truncated"),
        ("{'kind': 'a'}", "malformed"),
        ('{"kind": "a",}', "malformed"),
        ("{} {}", "trailing"),
        ("{}x", "trailing"),
        ("[{}]]", "trailing"),
        ("{}\0", "trailing"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b"\xff\xfe{\x00}\x00", "malformed"),
        ('{"payload": NaN}', "malformed"),
        ('{"payload": -Infinity}', "malformed"),
        ('{"payload": 01}', "malformed"),
        ('{"payload": 1e999}', "out of range"),
        ('{"payload": ' + "9" * 5000 + "}", "out of range"),
        ('{"payload": "\\ud800"}', "surrogate"),
        ('{"payload": "\\ud800\\ud800"}', "surrogate"),
        ('{"payload": "\\udc00"}', "surrogate"),
        ('{"payload": {"\\ud800": 1}}', "surrogate"),
        (b'{"payload": "\xff"}', "UTF-8"),
        (b'{"payload": "\xed\xa0\x80"}', "UTF-8"),
        (b'{"kin\xff": 1}', "UTF-8"),
        ('{"payload": "\n"}', "malformed"),
        ('{"payload": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested"),
        ('{"payload": ' + '{"a":' * 100_000 + "1" + "}" * 100_000 + "}", "nested"),
        ("[" * 100_000, "object"),
        ('{"priority": 1, "priority": 2}', "priority is given more than once"),
        ('{"payload": {"priority": 1}, "priority": 1, "kind": "a", "priorit\\u0079": 2}', "priority is given more than once"),
        ('{"payload": "' + '\\"' * 9 + '", "payload": 1e999}', "more than once"),
        (b'{"payload": "\xff", "payload": 1}', "more than once"),
        ('{"x": 1, "x": 2}', "more than once"),
        ('{"maxRetries": 1, "max_retries": 1}', "camelCase"),
        ('{"run_at": "2030-01-31T08:00:00Z", "delay": 1}', "exclude"),
    ],
)
def test_hostile_bodies(body: bytes | str, reason: str) -> None:
    assert re.search(reason, refusal(body).reason)


@pytest.mark.parametrize("jobs", [0, 2, MAX_BATCH_JOBS])
def test_the_error_for_an_element_that_is_not_an_object_has_its_index(jobs: int) -> None:
    refused = refusal(b"[" + b'{"payload": [{"a": 1}]},' * jobs + b"[{}], {}]")
    assert (refused.reason, refused.index) == ("a job must be a JSON object", jobs)


@pytest.mark.parametrize("line", [b'{"payload": NaN}', b"\xff", b"[]", b'{"kind": "a"} {"kind": "b"}', b'{"payload": "\xff"}'])
def test_the_error_for_a_hostile_line_has_its_index(line: bytes) -> None:
    assert refusal(b"{}\n\n{}\n" + line, NDJSON).index == 2


def test_unstorable_values_are_unprocessable() -> None:
    refused = refusal('[{}, {"payload": {"a": "\\u0000"}}]')
    assert isinstance(refused, UnprocessableJob)
    assert (refused.field, refused.index) == ("payload", 1)
    assert refusal('{"kind": "\\u0000"}').field == "kind"
    assert isinstance(refusal('{"payload": ' + "[" * 101 + "]" * 101 + "}"), UnprocessableJob)


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json; charset=latin-1",
        "é",
    ],
)
def test_only_json(content_type: str | None) -> None:
    with pytest.raises(UnsupportedMediaType, match="-H 'Content-Type: application/json'"):
        bodies.parse(content_type, b"{}")


# ------------------------------------------------------------------------------------------------------------ plain and careful


def outcome(content_type: str, body: bytes) -> Any:
    """Return the result for a body: the stored jobs with the exact bytes of their payloads, or the whole error."""
    try:
        submitted = bodies.parse(content_type, body)
    except InvalidJob as error:
        return type(error), error.reason, error.field, error.index
    jobs = submitted.jobs
    assert jobs.kinds == {kind for _, kind in jobs.counts}
    assert [msgspec.json.decode(document)["id"] for document in jobs.documents] == jobs.ids == sorted(set(jobs.ids))
    return submitted.many, submitted.ignored, list(map(stored, jobs.documents)), jobs.queues, jobs.counts


def stored(document: bytes) -> Any:
    payload = msgspec.json.decode(document, type=dict[str, msgspec.Raw])["payload"]
    fields = {name: value for name, value in msgspec.json.decode(document).items() if name not in {"id", "payload"}}
    return bytes(payload), msgspec.convert(fields, NewJob)


names = st.sampled_from([*Submission.__struct_fields__, "maxRetries", "runAt", "id", "\\u006bind", "a:b", "\\u003a", "ü"])
values = st.sampled_from(
    [
        *("null", "true", "NaN", "0", "1", "-1", "1.0", "1.50", "-0", "-0.0", "1e2", "1e400", "1" * 23, "0." + "1" * 19),
        *('""', '"a"', '"a:b"', '"default"', '"[[{{"', '"ü"', r'"\/"', '"\t"', '"\x7f"'),
        *(r'"a\u003ab"', r'"\u003A"', r'"\u0000"', r'"\\u0000"', r'"\ud800"', r'"\ud83d\ude00\u00fc"', r'{"\u003a": 1}'),
        *('"2030-01-31T08:00:00Z"', '"2030-01-31T08:00:00+0100"', '"2020-01-31 08:00:00.5+01:00"'),
        *("{}", "[ ]", '{"a": 1, "a": 2}', '{"a":{"kind":[":"]}}', "[1,]", "[" * 99 + "]" * 99, "[" * 100 + "]" * 100),
        *("[" * 101 + "]" * 101, '{"a":' * 101 + "0" + "}" * 101, "[" + "[]," * 101 + "0]"),
    ]
)
payloads = st.recursive(scalars, lambda children: st.lists(children) | st.dictionaries(storable_text, children))
members = st.tuples(names, values) | st.tuples(st.just("payload"), payloads.map(json.dumps))
ordinary = st.fixed_dictionaries(
    {},
    optional={
        "kind": st.sampled_from(["mail", "ü", "default"]),
        "payload": scalars | st.dictionaries(storable_text, scalars),
        "queue": st.sampled_from(["a", "default"]),
        "priority": st.integers(0, 3),
        "max_retries": st.none() | st.integers(0, 3),
        "run_at": st.none(),
        "delay": st.none() | st.sampled_from([0, 0.5, 3]),
        "timeout": st.none() | st.just(1.5),
    },
)
job_texts = (
    st.lists(members, max_size=4).map(lambda pairs: "{" + ", ".join(f'"{name}": {value}' for name, value in pairs) + "}")
    | ordinary.map(json.dumps)
    | ordinary.map(lambda job: json.dumps(job, ensure_ascii=False, indent=1))
    | st.sampled_from(["", " ", "[]", "0", '{"kind":"a"', '"queue":"b"}', "{} {}", "{},{}", "{\r", "}"])
)


@settings(max_examples=400)
@given(
    texts=st.lists(job_texts, min_size=1, max_size=5),
    form=st.sampled_from([("", "", ""), ("[", ",", "]"), (" [\n", " ,\r\n", "\n]\n"), ("", "\n", ""), ("\n ", "\r\n\t\n ", "\n")]),
    content_type=st.sampled_from([JSON, NDJSON]),
    at_once=st.sampled_from([1, 2, 32]),
    cut=st.none() | st.tuples(st.integers(0, 200), st.binary(max_size=2), st.integers(0, 2)),
)
@example([r'{"kind": "a", "kind": "b\u003a"}'], ("", "", ""), JSON, 1, None)
@example(['{"kind":"a"', '"queue":"b"}', "{},{}"], ("", "\n", ""), NDJSON, 32, None)
def test_the_plain_and_the_careful_path_agree(
    texts: list[str], form: tuple[str, str, str], content_type: str, at_once: int, cut: tuple[int, bytes, int] | None
) -> None:
    begin, between, end = form
    body = (begin + between.join(texts) + end).encode()
    if cut is not None:
        place, instead, length = cut
        body = body[:place] + instead + body[place + length :]
    with mock.patch.object(bodies, "AT_ONCE", at_once):
        found = outcome(content_type, body)
    with mock.patch.object(bodies, "plain", return_value=None):
        assert found == outcome(content_type, body)


@settings(max_examples=50)
@given(st.lists(ordinary, min_size=1, max_size=3))
def test_ordinary_jobs_are_plain(jobs: list[dict[str, Any]]) -> None:
    texts = [json.dumps(job, ensure_ascii=False).encode() for job in jobs]
    careful = re.search(rb"\\u00(00|3[aA])", b"".join(texts)) or any(map(may_hold_large_integer, texts))
    assert (plain(texts) is not None) == (not careful)


@pytest.mark.parametrize(
    "text",
    [
        b'{"payload": 1, "payload": 2}',
        rb'{"kind": "a", "kind": "b\u003a"}',
        rb'{"kind": "a", "kind": "b\u003A"}',
        rb'{"payload": "\u0000"}',
        b'{"payload": ' + b"[" * 101 + b"]" * 101 + b"}",
        b'{"payload": "' + b"x" * MAX_PAYLOAD_BYTES + b'"}',
        b'{"payload": [' + b",".join([b"1e9"] * 100_000) + b"]}",
        b'{"id": "x"}',
        b'{"run_at": "2030-01-31T08:00:00Z"}',
        b'{"priority": -1}',
        b'{"kind": "\xff"}',
        b"{} {}",
        b"",
    ],
    ids=lambda text: text[:40],
)
def test_jobs_that_need_the_careful_path_are_not_plain(text: bytes) -> None:
    assert plain([b"{}", text]) is None


# --------------------------------------------------------------------------------------------------------------------- bounds


def test_the_payload_bound_from_both_sides() -> None:
    fits = "x" * (MAX_PAYLOAD_BYTES - 2)
    assert one(f'{{"payload": "{fits}"}}')["payload"] == fits
    refused = refusal(f'[{{}}, {{"payload": "{fits}x"}}]')
    assert isinstance(refused, PayloadTooLarge)
    assert (refused.field, refused.index) == ("payload", 1)


def test_a_payload_that_grows_when_it_is_encoded_is_too_large() -> None:
    assert isinstance(refusal('{"payload": [' + ",".join(["1e9"] * 100_000) + "]}"), PayloadTooLarge)


def test_the_job_bound_from_both_sides() -> None:
    assert one("{}" + " " * (bodies.MAX_JOB_BYTES - 2))
    assert isinstance(refusal("{}" + " " * (bodies.MAX_JOB_BYTES - 1)), PayloadTooLarge)


@pytest.mark.parametrize(("content_type", "form"), [(JSON, "[%s]"), (NDJSON, "%s")])
def test_the_batch_bound_from_both_sides(monkeypatch: pytest.MonkeyPatch, content_type: str, form: str) -> None:
    monkeypatch.setattr(bodies, "MAX_BATCH_JOBS", 3)
    separator = "," if content_type == JSON else "\n"
    assert len(read(form % separator.join(["{}"] * 3), content_type).jobs.ids) == 3
    assert isinstance(refusal(form % separator.join(["{}"] * 4), content_type), BatchTooLarge)


def test_the_bound_of_objects_from_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "MAX_ARRAY_OBJECTS", 3)
    assert read('[{"payload": {}}, {}]').many
    assert isinstance(refusal('[{"payload": {}}, {"payload": {}}]'), BatchTooLarge)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (NDJSON, b"\n" * (16 << 20)),
        (NDJSON, b"{}\n" * (MAX_BATCH_JOBS + 1)),
        (JSON, b"[" + b"{}," * (5 << 20) + b"{}]"),
        (JSON, b"[" + b"0," * (8 << 20) + b"0]"),
        (JSON, b'{"payload":[' + b"[]," * (5 << 20) + b"[]]}"),
        (JSON, b"{" + b",".join(b'"%d":0' % n for n in range(100_000)) + b"}"),
        (JSON, b"[" * (16 << 20)),
    ],
    ids=["empty lines", "tiny lines", "empty objects", "zeros", "huge payload", "many names", "brackets"],
)
def test_large_worthless_bodies_are_rejected_quickly(content_type: str, body: bytes) -> None:
    started = time.process_time()
    with contextlib.suppress(InvalidJob):
        read(body, content_type)
    assert time.process_time() - started < 5


# ------------------------------------------------------------------------------------------------------------- the key of a request


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ("8e03978e-40d5-43e8-bc93-6894a57f9324", None),
        ('"8e03978e-40d5-43e8-bc93-6894a57f9324"', "8e03978e-40d5-43e8-bc93-6894a57f9324"),
        ('"a b, c; d=\\"e\\\\"', 'a b, c; d="e\\'),
        ("a/b+c=:.!~[x]<y>", None),
        ("x" * MAX_NAME_LENGTH, None),
        ('"' + '\\"' * MAX_NAME_LENGTH + '"', '"' * MAX_NAME_LENGTH),
    ],
)
@pytest.mark.parametrize("body", [b"{}", b'{"payload": {"a": 1}}', b' {"idempotency_key": null, "more": 1}'])
def test_a_key_in_the_header_is_the_jobs(header: str, key: str | None, body: bytes) -> None:
    submitted = bodies.parse(JSON, body, header)
    [document] = submitted.jobs.documents
    assert msgspec.json.decode(document)["options"] == {"idempotency_key": key or header}
    assert (submitted.many, submitted.jobs.keyed) == (False, True)
    assert submitted.ignored == (["more"] if b"more" in body else [])


@pytest.mark.parametrize(
    "header",
    [
        *["", '"', '""', '"a', 'a"', '"a" "b"', '"a", "b"', "a, b", "a b", "a;b=1", '"a";b=1', '"\\a"', '"a\\"', "a\\b"],
        *["ä", "\x7f", "a\tb", "x" * (MAX_NAME_LENGTH + 1), '"' + "x" * (MAX_NAME_LENGTH + 1) + '"'],
    ],
)
def test_an_invalid_key_in_the_header_is_rejected(header: str) -> None:
    with pytest.raises(InvalidJob, match=f"Idempotency-Key header must be 1 to {MAX_NAME_LENGTH} ASCII characters") as refused:
        bodies.parse(JSON, b"{}", header)
    assert refused.value.field == "idempotency_key"


def test_a_key_in_the_header_that_the_body_has_too_must_be_the_same() -> None:
    body = b'{"idempotency_key": "a"}'
    assert bodies.parse(JSON, body, '"a"').jobs.documents[0].count(b'"a"') == 1
    with pytest.raises(InvalidJob, match="differ") as refused:
        bodies.parse(JSON, body, "b")
    assert (refused.value.field, refused.value.index) == ("idempotency_key", None)


@pytest.mark.parametrize(("content_type", "body"), [(JSON, b"[{}]"), (JSON, b" []"), (NDJSON, b"{}"), (NDJSON, b"{}\n{}")])
def test_a_key_in_the_header_is_not_for_a_batch(content_type: str, body: bytes) -> None:
    with pytest.raises(InvalidJob, match="in a batch, set idempotency_key on each job") as refused:
        bodies.parse(content_type, body, "a")
    assert refused.value.field == "idempotency_key"


@pytest.mark.parametrize(
    ("body", "keyed"),
    [
        ('{"idempotency_key": "k"}', True),
        ('{"unique_key": "k"}', True),
        ('{"unique": true}', True),
        ('{"unique": false}', False),
        ('{"group": "g"}', False),
        ("{}", False),
        ('[{}, {"uniqueKey": "k"}, {}]', True),
        ('[{}, {"unique": null}]', False),
    ],
)
def test_parsing_detects_jobs_with_keys(body: str, keyed: bool) -> None:
    assert read(body).jobs.keyed == keyed
