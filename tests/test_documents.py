import dataclasses
import json
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobqueue.documents import MAX_DEPTH, RefusedDocument, encode, join, storable, weight

pytestmark = pytest.mark.slow


def arrays(levels: int) -> Any:
    value: Any = []
    for _ in range(levels - 1):
        value = [value]
    return value


def objects(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels - 1):
        value = {"child": value}
    return value


def mixed(levels: int) -> Any:
    value: Any = {} if levels % 2 else []
    for level in range(levels - 1):
        value = [1, value] if level % 2 == levels % 2 else {"a": 1, "child": value}
    return value


def endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
"""Texts that PostgreSQL's text and jsonb can hold."""

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda children: st.lists(children) | st.dictionaries(texts, children),
    max_leaves=20,
)


# ----------------------------------------------------------------------------------------------------------------- what is accepted


@given(json_values)
def test_a_document_is_read_back_as_it_was(value: Any) -> None:
    assert json.loads(encode(value)) == value


@given(st.lists(json_values, max_size=5))
def test_documents_are_joined_to_one_array(values: list[Any]) -> None:
    assert json.loads(join([encode(value) for value in values])) == values


def test_integers_beyond_64_bits_are_kept_exactly() -> None:
    values = [2**63 - 1, 2**63, 2**64, 10**400, -(2**63), -(2**63) - 1, -(10**400)]
    assert json.loads(encode(values)) == values


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("within", [lambda n: n, lambda n: [None, {"a": (1, n)}], lambda n: Point(1, n)])
def test_numbers_without_a_json_form_are_rejected(within: Callable[[float], Any], number: float) -> None:
    with pytest.raises(RefusedDocument, match="not JSON compliant"):
        encode(within(number))


def test_an_intended_null_is_accepted() -> None:
    assert encode([None, {"null": 1.5, "raw": msgspec.Raw(b"[null]")}]) == b'[null,{"null":1.5,"raw":[null]}]'


@dataclasses.dataclass
class Point:
    x: int
    y: float


class Reading(msgspec.Struct):
    at: datetime
    sensor: UUID


@pytest.mark.parametrize(
    ("value", "document"),
    [
        (Point(1, 2.5), {"x": 1, "y": 2.5}),
        (
            Reading(datetime(2030, 1, 31, tzinfo=UTC), UUID(int=1)),
            {"at": "2030-01-31T00:00:00Z", "sensor": "00000000-0000-0000-0000-000000000001"},
        ),
        ((1, [2]), [1, [2]]),
        ({1: "a", 2.5: "b"}, {"1": "a", "2.5": "b"}),
        (b"bytes", "Ynl0ZXM="),
        (None, None),
        (msgspec.Raw(b'{"a": 1}'), {"a": 1}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_common_return_values_have_a_json_form(value: Any, document: Any) -> None:
    assert json.loads(encode(value)) == document


@pytest.mark.parametrize(
    "text",
    ["\\u0000", "\\\\u0000", "ends with a backslash \\", "\\", "\u0001\u001f\u007f", "\u2028\U0001f600", "u0000"],
    ids=ascii,
)
def test_a_text_that_looks_like_an_escaped_nul_is_accepted(text: str) -> None:
    assert json.loads(encode({text: [text]})) == {text: [text]}


@pytest.mark.parametrize("nested", [arrays, objects, mixed])
def test_a_document_may_be_nested_as_deep_as_the_bound_and_no_deeper(nested: Callable[[int], Any]) -> None:
    assert json.loads(encode(nested(MAX_DEPTH))) == nested(MAX_DEPTH)
    with pytest.raises(RefusedDocument, match=f"nested more than {MAX_DEPTH} levels deep"):
        encode(nested(MAX_DEPTH + 1))


def test_many_brackets_side_by_side_are_not_deep() -> None:
    value = [{"a": []}] * (2 * MAX_DEPTH)
    assert json.loads(encode(value)) == value


def test_a_large_document_weighs_as_much_as_many_small_ones() -> None:
    assert [weight(size) for size in (0, 100, 1 << 14, (1 << 15) - 1, 1 << 15, 1 << 20)] == [1, 1, 1, 1, 2, 64]


# ------------------------------------------------------------------------------------------------------------------ what is refused


REFUSED: dict[str, tuple[Any, str]] = {
    "NUL": ("\0", "U+0000"),
    "NUL within a text": ("a\0b", "U+0000"),
    "NUL after a backslash": ("\\\0", "U+0000"),
    "NUL after its escape as a text": ("\\u0000\0", "U+0000"),
    "NUL in a key": ({"\0": 1}, "U+0000"),
    "NUL in a key further down": ({"a": {"b\0": []}}, "U+0000"),
    "NUL in a value further down": ([[{"a": ["b", "\0"]}]], "U+0000"),
    "NUL in ready-made JSON": (msgspec.Raw(b'"\\u0000"'), "U+0000"),
    "lone surrogate": ("\ud800", "surrogates not allowed"),
    "lone surrogate in a key": ({"\udfff": 1}, "surrogates not allowed"),
    "surrogates in the wrong order": (["\udc80\ud800"], "surrogates not allowed"),
    "object": (object(), "type object is unsupported"),
    "function": ({"a": [len]}, "unsupported"),
    "key that is not a text": ({(1, 2): 3}, "keys"),
    "integer of 5,001 digits": (10**5000, "4300 digits"),
    "100,000 arrays": (arrays(100_000), "nested too deeply"),
    "100,000 objects": (objects(100_000), "nested too deeply"),
    "list that holds itself": (endless(), "nested too deeply"),
}


@pytest.mark.parametrize(("value", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_values_that_postgresql_cannot_store_are_rejected_with_the_reason(value: Any, reason: str) -> None:
    with pytest.raises(RefusedDocument, match=re.escape(reason)):
        encode(value)


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"1, 2", b"1}", b"nonsense", b'"\\ud800"', b'"\xff"', b"[" * 200, b"[" * 5_000 + b"]" * 5_000],
    ids=lambda raw: ascii(raw)[2:15],
)
def test_preencoded_json_is_checked_too(raw: bytes) -> None:
    with pytest.raises(RefusedDocument):
        encode({"ready": msgspec.Raw(raw)})


@given(st.lists(st.text("\0\\u0a", max_size=8)), st.lists(st.text("\0\\u0a", max_size=8)))
def test_exactly_the_documents_with_a_nul_are_rejected(keys: list[str], values: list[str]) -> None:
    document = [dict.fromkeys(keys, 1), values]
    if "\0" in "".join(keys + values):
        with pytest.raises(RefusedDocument, match=r"U\+0000"):
            encode(document)
    else:
        assert json.loads(encode(document)) == document


# ------------------------------------------------------------------------------------------------------------------ texts of errors


@given(st.text(st.characters()), st.integers(2, 50))
def test_storable_texts_are_unchanged(text: str, limit: int) -> None:
    encode(storable(text, limit))


@given(texts)
def test_a_text_within_the_limit_is_kept_as_it_is(text: str) -> None:
    assert storable(text, len(text)) == text


def test_a_text_over_the_limit_keeps_its_ends_and_names_the_omitted_length() -> None:
    assert storable("a" * 50 + "b", 51) == "a" * 50 + "b"
    assert storable("a" * 50 + "-" + "b" * 50, 100) == "a" * 50 + "\n... 1 characters left out ...\n" + "b" * 50
    assert len(storable("x" * 1_000_000, 4_000)) < 4_100


def test_characters_that_jsonb_rejects_are_made_visible() -> None:
    assert storable("a\0b\ud800c", 100) == r"a\0b\ud800c"
