"""A job's page: its data, live, and all actions."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.http.dashboard import given
from tests.http.dashboard.axe import accessible, fits
from tests.http.dashboard.board import SHOTS, Board, Visit

BIG = 12_345_678_901_234_567_890


def job(board: Board, job_id: str) -> dict[str, Any]:
    return dict(httpx.get(f"{board.url}/jobs/{job_id}", timeout=60).json())


def state(page: Page, name: str) -> None:
    expect(page.locator("h1 .state")).to_have_text(name)


def press(page: Page, button: str, answer: str) -> None:
    """Press a button of the page, and then a button of its dialog."""
    page.get_by_role("button", name=button, exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name=answer, exact=True).click()
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_a_job_that_failed_twice_shows_its_timeline(board: Board, visit: Visit) -> None:
    page = visit(board.url, f"#/jobs/{given.ended(board, 'fail-twice', 'succeeded')}")
    state(page, "succeeded")
    waited, second = "Waited to retry", re.compile(r"Attempt 2 failed.*\bm?s\b.*attempt 2 met nobody", re.DOTALL)
    steps = ["Created", "Waited", "attempt 1 met nobody", waited, second, waited, "Attempt 3 succeeded", "Ended: succeeded"]
    expect(page.locator(".timeline li")).to_contain_text(steps)
    expect(page.locator("section", has=page.get_by_role("heading", name="Result")).locator("pre")).to_have_text('"done"')
    failures = page.locator("details.failure")
    expect(failures).to_have_count(2)
    expect(failures.first).to_have_attribute("open", "")
    expect(failures.first.locator("pre")).to_contain_text("ConnectionError: attempt 2 met nobody")
    expect(failures.last).not_to_have_attribute("open", "")
    accessible(page)


def test_an_exception_group_is_a_tree_that_can_be_expanded(board: Board, visit: Visit) -> None:
    page = visit(board.url, f"#/jobs/{given.ended(board, 'fail-in-groups', 'dead')}")
    state(page, "dead")
    members = page.locator(".members > details")
    expect(members).to_have_count(2)
    expect(members.filter(has_text="FileNotFoundError: no shelf north")).to_be_visible()
    inner = members.filter(has_text="FileNotFoundError: no shelf south")
    expect(inner.locator("pre")).to_be_hidden()
    inner.locator("summary").focus()
    page.keyboard.press("Enter")
    expect(inner.locator("pre")).to_contain_text("in _open")
    accessible(page)


def test_numbers_are_shown_as_they_were_sent(board: Board, visit: Visit) -> None:
    job_id = given.submit(
        board, "greet", payload={"name": "x", "exact": [BIG, 0.1]}, delay=3600, group="a tenant", idempotency_key="k-1"
    )
    page = visit(board.url, f"#/jobs/{job_id}")
    expect(page.get_by_label("Payload").locator("pre")).to_contain_text(str(BIG))
    expect(page.get_by_label("Options").locator("pre")).to_contain_text('"group": "a tenant"')
    expect(page.get_by_label("Result")).to_have_count(0)


def test_a_large_payload_is_truncated_until_the_user_requests_all_of_it(board: Board, visit: Visit) -> None:
    payload = {"a": "x" * 100_000, "last": "the end"}
    page = visit(board.url, f"#/jobs/{given.submit(board, 'greet', payload=payload, delay=3600)}")
    shown = page.locator("section", has=page.get_by_role("heading", name="Payload")).locator("pre")
    expect(shown).to_contain_text("xxx")
    assert "the end" not in shown.inner_text()
    height = shown.evaluate("element => element.clientHeight")
    page.get_by_role("button", name="Show all").click()
    expect(shown).to_contain_text("the end")
    assert shown.evaluate("element => element.clientHeight") < height + 1_000  # the element scrolls


def test_progress_and_checkpoint_are_live_and_a_cancel_ends_the_job(board: Board, visit: Visit) -> None:
    job_id = given.submit(board, "report", payload={"checkpoint": {"page": BIG}})
    page = visit(board.url, f"#/jobs/{job_id}")
    state(page, "inflight")
    expect(page.get_by_role("progressbar")).to_have_js_property("value", 0.4)
    expect(page.locator(".panel.progress")).to_contain_text("40 %")
    expect(page.locator(".panel.progress")).to_contain_text("page 12 of 30")
    expect(page.get_by_label("Checkpoint").locator("pre")).to_contain_text(str(BIG))
    expect(page.locator(".connection")).to_have_text("Live")
    expect(page.locator(".facts")).to_contain_text(f"process {board.service.process.pid}")
    accessible(page)
    press(page, "Cancel …", "Keep as it is")
    assert job(board, job_id)["cancel_requested_at"] is None
    press(page, "Cancel …", "Cancel the job")
    state(page, "cancelled")
    assert given.state_of(board, job_id) == "cancelled"
    expect(page.get_by_role("button", name="Cancel …")).to_have_count(0)
    expect(page.locator("#content")).to_be_focused()  # the button with the focus is gone
    expect(page.locator(".timeline .what").last).to_have_text("Ended: cancelled")


def test_a_waiting_job_is_changed_postponed_run_and_cancelled(board: Board, visit: Visit) -> None:
    job_id = given.submit(board, "greet", delay=3600)
    page = visit(board.url, f"#/jobs/{job_id}")
    state(page, "scheduled")

    page.get_by_role("button", name="Change …").click()
    dialog = page.get_by_role("dialog")
    accessible(page)
    dialog.get_by_label("Priority").fill("7")
    dialog.get_by_role("button", name="Keep as it is").click()
    assert job(board, job_id)["priority"] == 0
    page.get_by_role("button", name="Change …").click()
    dialog.get_by_label("Priority").fill("7")
    dialog.get_by_label("Not before").fill("2035-01-02T03:04:05")
    page.keyboard.press("Enter")
    expect(page.locator(".facts")).to_contain_text("2035-01-02 03:04:05 GMT+1")
    changed = job(board, job_id)
    assert (changed["priority"], changed["run_at"][:19]) == (7, "2035-01-02T02:04:05")

    press(page, "Run now …", "Keep as it is")
    assert given.state_of(board, job_id) == "scheduled"
    press(page, "Run now …", "Run now")
    state(page, "succeeded")
    assert given.state_of(board, job_id) == "succeeded"

    waiting = given.submit(board, "greet", delay=3600)
    page.goto(f"{board.url}/#/jobs/{waiting}")
    state(page, "scheduled")
    press(page, "Cancel …", "Cancel the job")
    state(page, "cancelled")
    assert given.state_of(board, waiting) == "cancelled"


def test_messages_report_an_empty_and_an_impossible_change(board: Board, visit: Visit) -> None:
    job_id = given.submit(board, "greet", delay=3600)
    page = visit(board.url, f"#/jobs/{job_id}")
    press(page, "Change …", "Change")
    expect(page.locator(".said")).to_have_text("Nothing was changed.")
    page.get_by_role("button", name="Change …").click()
    board.database.rows("SELECT jobqueue.cancel(%s)", job_id)
    page.complaints.expected.append("409")  # type: ignore[attr-defined]
    page.get_by_role("dialog").get_by_label("Priority").fill("9")
    page.keyboard.press("Enter")
    expect(page.locator(".said")).to_contain_text("The job is cancelled: only waiting jobs can be changed.")
    state(page, "cancelled")


def test_a_dead_job_is_retried_and_discarded(board: Board, visit: Visit) -> None:
    job_id = given.ended(board, "fail", "dead")
    page = visit(board.url, f"#/jobs/{job_id}")
    state(page, "dead")
    press(page, "Retry …", "Keep as it is")
    assert len(job(board, job_id)["errors"]) == 1
    press(page, "Retry …", "Retry")
    expect(page.locator("details.failure")).to_have_count(2)
    state(page, "dead")
    expect(page.locator(".timeline .what").filter(has_text="retry by hand")).to_have_count(1)
    press(page, "Discard …", "Keep as it is")
    assert given.state_of(board, job_id) == "dead"
    press(page, "Discard …", "Discard for good")
    expect(page.get_by_role("alert")).to_contain_text("It was discarded.")
    assert given.state_of(board, job_id) is None
    expect(page.get_by_role("button", name="Retry …")).to_have_count(0)
    accessible(page)


def test_the_page_of_an_unknown_job_lists_possible_reasons(board: Board, visit: Visit) -> None:
    page = visit(board.url, "#/jobs/01a21855-702d-7000-8000-000000003139")
    page.complaints.expected.append("404")  # type: ignore[attr-defined]
    expect(page.get_by_role("heading", name="Job not found")).to_be_visible()
    expect(page.locator(".empty")).to_contain_text("belong to another service")
    accessible(page)


def test_a_message_reports_that_a_watched_job_is_gone(board: Board, visit: Visit) -> None:
    job_id = given.submit(board, "greet", payload={"name": "Ada"}, delay=3600)
    page = visit(board.url, f"#/jobs/{job_id}")
    expect(page.locator(".connection")).to_have_text("Live")
    board.database.rows("DELETE FROM jobqueue_internal.scheduled_jobs WHERE id = %s", job_id)
    expect(page.get_by_role("alert")).to_contain_text("This job is gone.")
    expect(page.locator("section", has=page.get_by_role("heading", name="Payload"))).to_contain_text("Ada")
    page.complaints.expected.append("404")  # type: ignore[attr-defined]
    page.keyboard.press("r")
    expect(page.get_by_role("alert")).to_contain_text("This job is gone.")


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (3840, "light")])
def test_a_job_fits_narrow_and_wide_screens(board: Board, visit: Visit, width: int, scheme: str) -> None:
    page = visit(board.url, f"#/jobs/{given.ended(board, 'fail-in-groups', 'dead')}", width=width, scheme=scheme)
    state(page, "dead")
    fits(page)
    accessible(page)
    page.get_by_role("button", name="Discard …").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    fits(page)
    accessible(page)


def test_an_id_is_copied(board: Board, visit: Visit) -> None:
    job_id = given.submit(board, "greet", delay=3600)
    page = visit(board.url, f"#/jobs/{job_id}", permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy the id").click()
    expect(page.locator(".said")).to_have_text("The id is copied.")
    assert page.evaluate("navigator.clipboard.readText()") == job_id


FIRST = """Traceback (most recent call last):
  File "/srv/library/inventory.py", line 31, in count_shelves
    await catalogue.ping()
ConnectionError: catalogue.internal:5432 refused the connection
"""
LAST = """  + Exception Group Traceback (most recent call last):
  |   File "/srv/library/inventory.py", line 34, in count_shelves
  |     async with trio.open_nursery() as nursery:
  | ExceptionGroup: Exceptions from Trio nursery (2 sub-exceptions)
  +-+---------------- 1 ----------------
    | Traceback (most recent call last):
    |   File "/srv/library/inventory.py", line 18, in count
    |     return len(await shelf.books())
    | FileNotFoundError: no shelf north
    +---------------- 2 ----------------
    | Exception Group Traceback (most recent call last):
    |   File "/srv/library/inventory.py", line 22, in compare
    |     raise ExceptionGroup("south", missing)
    | ExceptionGroup: south (2 sub-exceptions)
    +-+---------------- 1 ----------------
      | KeyError: 'isbn 978-0-14-044913-6'
      +---------------- 2 ----------------
      | KeyError: 'isbn 978-0-14-028329-7'
      +------------------------------------
"""


def test_the_screenshot_of_the_readme(board: Board, visit: Visit) -> None:
    """The job failed twice, and died of nested exceptions."""
    ended = datetime.now(UTC) - timedelta(minutes=3)
    summary = "3 errors: FileNotFoundError: no shelf north; KeyError: 'isbn 978-0-14-044913-6'; KeyError: 'isbn 978-0-14-028329-7'"
    refused = "ConnectionError: catalogue.internal:5432 refused the connection"
    errors = [
        {
            "attempt": attempt,
            "at": (ended - timedelta(seconds=ago)).isoformat(),
            "node": None,
            "duration": ran,
            "error": error,
            "traceback": text,
        }
        for attempt, ago, ran, error, text in (
            (1, 21.4, 1.2, refused, FIRST),
            (2, 14.1, 2.9, refused, FIRST),
            (3, 0, 6.3, summary, LAST),
        )
    ]
    job_id = board.database.value(
        """
        INSERT INTO jobqueue_internal.dead_jobs
               (id, queue, kind, priority, max_retries, attempt, claims, payload,
                reason, created_at, available_since, died_at, errors)
        VALUES ('01a2186e-739a-7c31-9e54-5d0f8a6b21c7', 'library', 'count-shelves', 5, 2, 3, 3, '{"shelves": ["north", "south"]}',
                %s, %s, %s, %s, %s)
        RETURNING id::text
        """,
        f"attempt 3 of 3 failed: {summary}",
        ended - timedelta(seconds=24),
        ended - timedelta(seconds=24),
        ended,
        json.dumps(errors),
    )
    page = visit(board.url, f"#/jobs/{job_id}")
    expect(page.locator(".timeline .what")).to_have_count(8)
    south = page.locator(".failure > .members > details").last
    expect(south.locator("summary").first).to_contain_text("KeyError: 'isbn 978-0-14-028329-7'")
    south.locator("summary").first.click()
    expect(south.locator(".members > details")).to_have_count(2)
    if SHOTS is not None:
        page.evaluate("scrollTo(0, 0)")
        page.screenshot(path=SHOTS / "job.png")
