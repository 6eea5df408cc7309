"""Parse the result of a claim: as a whole, or row by row if a row is unreadable."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobqueue.storage import claims
from tests.support.storage import new_id

pytestmark = pytest.mark.slow

DEEP = "[" * 1_200 + "]" * 1_200

BAD: dict[str, dict[int, str]] = {
    "a payload that is nested too deeply": {3: DEEP},
    "options that are nested too deeply": {12: DEEP, 13: "null"},
    "a group that is a number": {12: '{"group": 5}', 13: "null"},
    "a key that is a list": {12: '{"unique_key": ["a"]}', 13: "null"},
    "options that are a list": {12: "[1]", 13: "null"},
    "a weight that is a text": {12: '{"weight": "much"}', 13: "null"},
    "a time that is a text": {12: '{"expires_at": "soon"}', 13: "null"},
    "a time that JSON has no form for": {9: "Infinity"},
    "a rank that JSON has no form for": {10: "-Infinity"},
    "an age that JSON has no form for": {11: "NaN"},
}


def row(job_id: str, changes: dict[int, str] | None = None, *, queue: str = "q", kind: str = "k") -> str:
    names = [json.dumps(queue), json.dumps(job_id), json.dumps(kind), '{"a": "],[\\"}"}']
    columns = [*names, "0", "1", "2", "3", "null", "1.5", "1.25", "0.5"]
    for place, text in sorted((changes or {}).items()):
        columns[place : place + 1] = [text]
    return f"[{','.join(columns)}]"


@pytest.mark.parametrize("limited", [False, True], ids=["plain", "limited"])
@pytest.mark.parametrize("changes", BAD.values(), ids=BAD)
def test_one_unreadable_row_does_not_affect_its_neighbors(changes: dict[int, str], *, limited: bool) -> None:
    first, bad, last = (new_id() for _ in range(3))
    rows = [row(first), row(bad, changes, queue="a],", kind='{"again":'), row(last)]
    text = f"[{','.join(rows)}]"
    if limited:
        text = '{"jobs":' + text + ',"again":{"q": 2.5, "],\\"again\\":{": null},"dead":[]}'
    claimed = claims.read(text)
    assert [job.id for job in claimed] == [first, last]
    [unreadable] = claimed.unreadable
    job = unreadable.job
    assert (job.id, job.claims, job.queue, job.kind) == (bad, 2, "a],", '{"again":')
    assert bytes(job.payload) == b"null"
    assert unreadable.reason
    assert claimed.again == ({"q": 2.5, '],"again":{': math.inf} if limited else {})


def test_rows_that_can_be_read_are_read_as_a_whole() -> None:
    one, other = new_id(), new_id()
    rows = [row(one), row(other, {12: '{"group":"g"}', 13: '{"checkpoint":1}'})]
    claimed = claims.read(f"[{','.join(rows)}]")
    assert [job.id for job in claimed] == [one, other]
    assert claimed[1].options is not None
    assert claimed[1].options.group == "g"
    assert not claimed.unreadable
    assert claims.read("[]") == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
)


@given(st.lists(json_values), st.booleans())
def test_an_array_is_split_at_its_own_commas(values: list[Any], ascii_only: bool) -> None:
    text = json.dumps(values, ensure_ascii=ascii_only, separators=(",", ":"))
    assert [json.loads(element) for element in claims.elements(text)] == values
