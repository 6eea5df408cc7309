"""The pure functions of the page, called in the browser."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from playwright.sync_api import Browser

from jobqueue.documents import storable
from tests.http.dashboard.board import PATIENCE_MS, Board

Call = Callable[..., Any]


@pytest.fixture(scope="module")
def call(board: Board, browser: Browser) -> Iterator[Call]:
    """Call a function of a module: ``call("format.js", "duration", 1.5)``."""
    with browser.new_context(timezone_id="Europe/Berlin") as context:
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.goto(board.url)
        assets = re.search(r"/assets/\w+", page.content())
        assert assets is not None
        script = """async ([url, name, given]) => {
            const answer = (await import(url))[name](...given);
            return answer instanceof Map ? [...answer] : answer;
        }"""

        def call(module: str, name: str, *given: Any) -> Any:
            return page.evaluate(script, [f"{assets[0]}/{module}", name, list(given)])

        yield call


@pytest.mark.parametrize(
    ("document", "members"),
    [
        ('{"a": 12345678901234567890, "b": {"c": [1, "}"]}}', [["a", "12345678901234567890"], ["b", '{"c": [1, "}"]}']]),
        ("{}", []),
        ('{"\\"": "\\\\", "": 1}', [['"', '"\\\\"'], ["", "1"]]),
        ('{"__proto__": {"polluted": true}}', [["__proto__", '{"polluted": true}']]),
    ],
)
def test_a_document_is_split_without_parsing_its_numbers(call: Call, document: str, members: list[list[str]]) -> None:
    assert call("json.js", "members", document) == members


@pytest.mark.parametrize(
    ("document", "shown"),
    [
        ('{"big":12345678901234567890,"e":1.0e5}', '{\n  "big": 12345678901234567890,\n  "e": 1.0e5\n}'),
        ("[[],{},[1]]", "[\n  [],\n  {},\n  [\n    1\n  ]\n]"),
        ('"a:b,{c}"', '"a:b,{c}"'),
        ("null", "null"),
        ('"evil\u202egnp.exe"', '"evil\\u202egnp.exe"'),
    ],
)
def test_a_document_is_formatted_and_otherwise_unchanged(call: Call, document: str, shown: str) -> None:
    assert call("json.js", "pretty", document) == shown


def test_large_and_deep_documents_are_formatted(call: Call) -> None:
    long = '"' + 'x\\"' * 350_000 + '"'
    assert call("json.js", "pretty", long) == long
    assert call("json.js", "pretty", "[" * 5_000 + "]" * 5_000).count("[") == 5_000


def raised(error: BaseException) -> str:
    """Return the traceback of an exception that was raised in a frame."""
    try:
        raise error  # noqa: TRY301 - raised here for the traceback
    except BaseException as caught:  # noqa: BLE001 - any exception
        return "".join(traceback.format_exception(caught))


def shape(parts: list[dict[str, Any]]) -> list[Any]:
    """Reduce parts to the last line of each text and its members."""
    return [
        (part["text"].splitlines()[-1], [(member["title"], shape(member["parts"])) for member in part["members"]]) for part in parts
    ]


def test_a_traceback_without_groups_is_one_text(call: Call) -> None:
    text = raised(ValueError("as asked"))
    assert call("tracebacks.js", "parse", text) == [{"text": text.rstrip("\n"), "members": []}]


def test_nested_groups_are_a_tree(call: Call) -> None:
    inner = ExceptionGroup("inner", [KeyError("k"), OSError(2, "no such file")])
    parts = call("tracebacks.js", "parse", raised(ExceptionGroup("outer", [ValueError("v"), inner, TypeError("t")])))
    assert shape(parts) == [
        (
            "ExceptionGroup: outer (3 sub-exceptions)",
            [
                ("1", [("ValueError: v", [])]),
                (
                    "2",
                    [
                        (
                            "ExceptionGroup: inner (2 sub-exceptions)",
                            [("1", [("KeyError: 'k'", [])]), ("2", [("FileNotFoundError: [Errno 2] no such file", [])])],
                        )
                    ],
                ),
                ("3", [("TypeError: t", [])]),
            ],
        )
    ]
    assert call("tracebacks.js", "leaves", parts) == [
        "ValueError: v",
        "KeyError: 'k'",
        "FileNotFoundError: [Errno 2] no such file",
        "…",
    ]


def test_the_end_of_the_text_closes_all_nested_groups(call: Call) -> None:
    parts = call(
        "tracebacks.js", "parse", raised(ExceptionGroup("a", [ExceptionGroup("b", [ExceptionGroup("c", [ValueError("v")])])]))
    )
    [(_, [(_, [(_, [(_, [(_, leaf)])])])])] = shape(parts)
    assert leaf == [("1", [("ValueError: v", [])])]


def test_exceptions_that_python_omits_are_counted(call: Call) -> None:
    [(_, members)] = shape(call("tracebacks.js", "parse", raised(ExceptionGroup("many", [ValueError(str(n)) for n in range(20)]))))
    assert members[0] == ("1", [("ValueError: 0", [])])
    assert members[-1] == ("...", [("and 5 more exceptions", [])])


def test_causes_of_and_in_groups_are_parts_before_them(call: Call) -> None:
    member = ValueError("v")
    member.__cause__ = KeyError("the cause in it")
    group = ExceptionGroup("outer", [member])
    group.__cause__ = OSError("the cause of it")
    first, last = call("tracebacks.js", "parse", raised(group))
    assert "OSError: the cause of it" in first["text"]
    assert first["members"] == []
    [only] = last["members"]
    assert "KeyError: 'the cause in it'" in only["parts"][0]["text"]
    assert call("tracebacks.js", "message", only["parts"][0]["text"]) == "ValueError: v"


def test_a_group_as_a_cause_is_followed_by_its_effect(call: Call) -> None:
    error = RuntimeError("the effect")
    error.__cause__ = ExceptionGroup("the cause", [ValueError("v")])
    first, last = call("tracebacks.js", "parse", raised(error))
    assert [member["title"] for member in first["members"]] == ["1"]
    assert last["text"].endswith("RuntimeError: the effect")


def test_messages_of_several_lines_stay_in_their_part(call: Call) -> None:
    hostile = "one\n  +-+---------------- 1 ----------------\n    | two\n"
    [(_, members)] = shape(call("tracebacks.js", "parse", raised(ExceptionGroup("g", [ValueError(hostile), KeyError("k")]))))
    assert [title for title, _ in members] == ["1", "2"]


@pytest.mark.parametrize("limit", [200, 333, 500, 801])
def test_the_rest_of_a_truncated_text_is_plain(call: Call, limit: int) -> None:
    whole = raised(ExceptionGroup("outer", [ExceptionGroup("inner", [ValueError("v" * 100)] * 5), KeyError("k")]))
    text = storable(whole, limit)
    parts = call("tracebacks.js", "parse", text)

    def letters(parts: list[dict[str, Any]]) -> int:
        return sum(part["text"].count("v") + sum(letters(member["parts"]) for member in part["members"]) for part in parts)

    assert letters(parts) == text.count("v")  # nothing is lost
    assert any("characters left out" in part["text"] for part in parts)


@pytest.mark.parametrize(
    "text",
    ["", "\n", "  + Exception Group Traceback (", "  | ", "  +-+---------------- 1 ----------------\n", "  |x", "   + - |\n\n  | "],
)
def test_unknown_forms_are_text(call: Call, text: str) -> None:
    parts = call("tracebacks.js", "parse", text)
    assert all(part["members"] == [] for part in parts)


BEGAN = 1_790_000_000_000


def at(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(BEGAN / 1000 + seconds, UTC).isoformat()


def job(
    state: str, *, errors: tuple[tuple[int, float, float | None], ...] = (), available: float = 0, **times: Any
) -> dict[str, Any]:
    """Return a job's document. Errors are (attempt, time of the failure, duration). Times are in seconds after its creation."""
    shown = {name: at(times.pop(name, None)) for name in ("run_at", "claimed_at", "ended_at")}
    told = [
        {
            "attempt": attempt,
            "at": at(failed),
            "node": None,
            "error": f"error {attempt}",
            **({} if ran is None else {"duration": ran}),
        }
        for attempt, failed, ran in errors
    ]
    return (
        {"state": state, "attempt": 1, "errors": told, "created_at": at(0), "available_since": at(available), "node_id": None}
        | shown
        | times
    )


@pytest.mark.parametrize(
    ("document", "steps"),
    [
        (job("pending"), [("created", 0, 0), ("waited", 0, 100)]),
        (job("scheduled", available=150, run_at=150), [("created", 0, 0), ("scheduled", 0, 150)]),
        (job("inflight", claimed_at=40), [("created", 0, 0), ("waited", 0, 40), ("attempt 1 running", 40, 100)]),
        (
            job("succeeded", available=10, claimed_at=12, ended_at=15),
            [("created", 0, 0), ("scheduled", 0, 10), ("waited", 10, 12), ("attempt 1 succeeded", 12, 15), ("ended", 15, 15)],
        ),
        (
            job("succeeded", errors=((1, 3, 1), (2, 8, 2)), attempt=3, claimed_at=20, ended_at=21),
            [
                ("created", 0, 0),
                ("waited", 0, 2),
                ("attempt 1 failed", 2, 3),
                ("waited retry", 3, 6),
                ("attempt 2 failed", 6, 8),
                ("waited retry", 8, 20),
                ("attempt 3 succeeded", 20, 21),
                ("ended", 21, 21),
            ],
        ),
        (
            job("scheduled", errors=((1, 3, 1),), run_at=130),
            [("created", 0, 0), ("waited", 0, 2), ("attempt 1 failed", 2, 3), ("waited retry", 3, 130)],
        ),
        (
            job("dead", errors=((1, 3, 1),), ended_at=3),
            [("created", 0, 0), ("waited", 0, 2), ("attempt 1 failed", 2, 3), ("ended", 3, 3)],
        ),
        (job("dead", ended_at=9), [("created", 0, 0), ("waited", 0, 9), ("ended", 9, 9)]),
        (job("cancelled", ended_at=5), [("created", 0, 0), ("waited", 0, 5), ("ended", 5, 5)]),
        (
            job("cancelled", errors=((1, 5, 3),), claimed_at=2, ended_at=5),
            [("created", 0, 0), ("waited", 0, 2), ("attempt 1 cancelled", 2, 5), ("ended", 5, 5)],
        ),
        (
            job("pending", errors=((1, 3, 1), (2, 5, 1)), attempt=0, available=60),
            [
                ("created", 0, 0),
                ("waited", 0, 2),
                ("attempt 1 failed", 2, 3),
                ("waited retry", 3, 4),
                ("attempt 2 failed", 4, 5),
                ("dead", 5, 60),
                ("waited again", 60, 100),
            ],
        ),
        (
            job("dead", errors=((1, 3, 1), (1, 50, 10)), available=30, ended_at=50),
            [
                ("created", 0, 0),
                ("waited", 0, 2),
                ("attempt 1 failed", 2, 3),
                ("dead", 3, 40),
                ("attempt 1 failed", 40, 50),
                ("ended", 50, 50),
            ],
        ),
        (
            job("dead", errors=((7, 30, 1), (8, 40, None)), ended_at=40),
            [
                ("created", 0, 0),
                ("missing", 0, 29),
                ("attempt 7 failed", 29, 30),
                ("waited retry", 30, 40),
                ("attempt 8 failed", 40, 40),
                ("ended", 40, 40),
            ],
        ),
    ],
)
def test_the_timeline_of_a_job(call: Call, document: dict[str, Any], steps: list[tuple[str, float, float]]) -> None:
    told = call("timeline.js", "timeline", document, BEGAN + 100_000)

    def name(step: dict[str, Any]) -> str:
        more = {"attempt": f" {step.get('attempt')} {step.get('outcome')}", "waited": f" {step.get('reason')}"}.get(
            step["what"], ""
        )
        return (step["what"] + more).rstrip()

    assert [(name(step), (step["from"] - BEGAN) / 1000, (step["to"] - BEGAN) / 1000) for step in told["steps"]] == steps
    assert told["begin"] == BEGAN
    assert told["end"] == told["steps"][-1]["to"]


def test_a_timeline_tolerates_invalid_histories(call: Call) -> None:
    """Other programs with access to the database may write to the column."""
    for errors in (None, "x", [None], [{}], [{"at": "soon"}], [{"at": at(-50), "attempt": "x", "duration": -3}]):
        told = call("timeline.js", "timeline", {**job("dead", ended_at=9), "errors": errors}, BEGAN + 100_000)
        assert told["steps"][-1]["what"] == "ended"
        assert all(step["from"] <= step["to"] for step in told["steps"])


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "\N{EN DASH}"),
        (0, "0 s"),
        (0.00085, "850 µs"),
        (0.0021, "2.1 ms"),
        (1.94, "1.9 s"),
        (200, "3 min 20 s"),
        (7_500, "2 h 5 min"),
        (273_600, "3 d 4 h"),
        (-3, "-3 s"),
    ],
)
def test_durations_have_units(call: Call, seconds: float | None, shown: str) -> None:
    assert call("format.js", "duration", seconds) == shown


def test_counts_times_and_rates_have_units(call: Call) -> None:
    assert call("format.js", "count", 1307) == "1,307"
    assert call("format.js", "count", 1_310_000) == "1.31M"
    assert [call("format.js", "jobs", n) for n in (0, 1, 12_000)] == ["0 jobs", "1 job", "12,000 jobs"]
    assert [call("format.js", "rate", n) for n in (0, 0.02, 3.6)] == ["0/s", "1.2/min", "3.6/s"]
    assert call("format.js", "time", "2026-11-25T13:03:07.123456+00:00") == "2026-11-25 14:03:07 GMT+1"
    assert call("format.js", "ago", "2026-11-25T13:03:07Z", 1_795_611_987_000) == "3 min 20 s ago"
    assert call("format.js", "cut", "abcdef", 3) == "abc …"
    assert call("format.js", "cut", "abc", 3) == "abc"
