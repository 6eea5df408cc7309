"""Lists of jobs: filters, pages, the keyboard, and the cancellation of all matching jobs."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.http.dashboard import given
from tests.http.dashboard.axe import accessible, fits
from tests.http.dashboard.board import Board, Visit


@pytest.fixture(autouse=True)
def _cleared(board: Board) -> None:
    given.clear(board)


def rows(page: Page, count: int) -> None:
    expect(page.locator("tbody tr")).to_have_count(count)


def hash_of(page: Page, address: str) -> None:
    expect(page).to_have_url(re.compile(re.escape(address) + "$"))


def seed(board: Board, count: int, *, kind: str = "greet", queue: str = "elsewhere", delay: float | None = None) -> None:
    """Submit jobs, by default to a queue that no node works."""
    fields = f", 'delay', {delay}" if delay is not None else ""
    board.database.rows(
        f"SELECT jobqueue.submit_many(jsonb_agg(jsonb_build_object('kind', %s::text, 'queue', %s::text{fields})))"
        " FROM generate_series(1, %s)",
        kind,
        queue,
        count,
    )


def test_without_jobs_the_page_shows_how_to_submit_one(board: Board, visit: Visit) -> None:
    page = visit(board.url, "#/jobs")
    expect(page.locator(".empty pre")).to_have_text(
        f"curl {board.url}/submit -H 'Content-Type: application/json' -d '{{\"kind\":\"default\"}}'"
    )
    accessible(page)
    fits(page)


def test_a_filter_is_in_the_address_and_the_form(board: Board, visit: Visit) -> None:
    mine = given.submit(board, "greet", delay=3600, group="a tenant", priority=3)
    given.submit(board, "report", queue="elsewhere")
    dead = given.ended(board, "fail", "dead", payload={"message": "the printer is on fire"})
    page = visit(board.url, "#/jobs")
    rows(page, 3)
    accessible(page)

    page.get_by_label("dead", exact=True).check()
    hash_of(page, "#/jobs?state=dead")
    rows(page, 1)
    expect(page.locator("tbody tr")).to_contain_text("the printer is on fire")
    page.get_by_label("scheduled", exact=True).check()
    rows(page, 2)
    page.get_by_label("Group").fill("a tenant")
    rows(page, 1)
    hash_of(page, "#/jobs?group=a+tenant&state=scheduled%2Cdead")
    expect(page.locator("tbody a")).to_have_attribute("title", mine)
    page.get_by_label("Kind").fill("nobody's")
    expect(page.locator(".empty")).to_contain_text("No job matches this filter.")
    accessible(page)
    page.get_by_role("link", name="Clear the filter").click()
    rows(page, 3)
    expect(page.get_by_label("Group")).to_have_value("")
    expect(page.get_by_label("dead", exact=True)).not_to_be_checked()

    page.go_back()
    expect(page.get_by_label("Kind")).to_have_value("nobody's")
    page.go_back()
    page.go_back()
    rows(page, 3)
    page.go_forward()
    expect(page.get_by_label("dead", exact=True)).to_be_checked()
    rows(page, 1)

    page.goto(f"{board.url}/#/jobs?queue=elsewhere")
    expect(page.get_by_label("Queue")).to_have_value("elsewhere")
    rows(page, 1)
    page.goto(f"{board.url}/#/jobs?text=PRINTER")
    rows(page, 1)
    expect(page.locator("tbody a")).to_have_attribute("title", dead)


def test_no_key_is_lost_while_the_list_updates(board: Board, visit: Visit) -> None:
    page = visit(board.url, "#/jobs")
    field = page.get_by_label("Id or error")
    field.press_sequentially("a text that is typed with pauses now and then", delay=35)
    expect(field).to_have_value("a text that is typed with pauses now and then")
    hash_of(page, "text=a+text+that+is+typed+with+pauses+now+and+then")
    expect(field).to_be_focused()
    assert page.evaluate("history.length") <= 3


def test_queues_are_suggested(board: Board, visit: Visit) -> None:
    seed(board, 1)
    page = visit(board.url, "#/jobs")
    for queue in ("default", "elsewhere"):
        expect(page.locator(f"datalist#queues option[value={queue}]")).to_have_count(1)


def test_a_complete_id_opens_its_job(board: Board, visit: Visit) -> None:
    job_id = given.submit(board, "greet", delay=3600)
    page = visit(board.url, "#/jobs")
    page.get_by_label("Id or error").fill(f"  {job_id.upper()} ")
    hash_of(page, f"#/jobs/{job_id}")
    expect(page.locator("h1")).to_contain_text("greet")
    page.go_back()
    hash_of(page, "#/jobs")
    expect(page.get_by_label("Id or error")).to_have_value("")


def test_pages_can_be_turned_forward_and_back_to_the_newest(board: Board, visit: Visit) -> None:
    seed(board, 250)
    page = visit(board.url, "#/jobs")
    rows(page, 100)
    first = page.locator("tbody a").first.get_attribute("title")
    page.get_by_role("button", name="Next page").click()
    expect(page).to_have_url(re.compile("after="))
    expect(page.locator("tbody a").first).not_to_have_attribute("title", str(first))
    rows(page, 100)
    page.locator("h1").click()
    page.keyboard.press("n")
    rows(page, 50)
    expect(page.get_by_role("button", name="Next page")).to_have_count(0)
    page.go_back()
    rows(page, 100)
    page.get_by_role("button", name="Newest").click()
    hash_of(page, "#/jobs")
    expect(page.locator("tbody a").first).to_have_attribute("title", str(first))


def test_a_search_without_a_match_can_continue_with_older_jobs(board: Board, visit: Visit) -> None:
    wanted = given.submit(board, "report", queue="elsewhere")
    seed(board, 10_500)
    page = visit(board.url, "#/jobs?kind=report")
    expect(page.locator(".empty")).to_contain_text("No match in the latest 10,000 jobs.")
    accessible(page)
    page.get_by_role("button", name="Search older jobs").click()
    rows(page, 1)
    expect(page.locator("tbody a")).to_have_attribute("title", wanted)


def test_the_page_can_be_operated_with_the_keyboard(board: Board, visit: Visit) -> None:
    seed(board, 3)
    page = visit(board.url, "#/jobs")
    rows(page, 3)
    page.keyboard.press("/")
    expect(page.get_by_label("Id or error")).to_be_focused()
    page.keyboard.type("jr")  # keys in a field are not shortcuts
    expect(page.get_by_label("Id or error")).to_have_value("jr")
    page.keyboard.press("Control+a")
    page.keyboard.press("Delete")
    rows(page, 3)
    page.locator("h1").click()
    seed(board, 1)
    page.keyboard.press("r")
    rows(page, 4)
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    page.keyboard.press("j")
    second = page.locator("tbody a").nth(1)
    expect(second).to_be_focused()
    job_id = second.get_attribute("title")
    page.keyboard.press("Enter")
    hash_of(page, f"#/jobs/{job_id}")


def test_all_matching_jobs_are_counted_and_then_cancelled(board: Board, visit: Visit) -> None:
    seed(board, 1_307)
    seed(board, 5, kind="report")
    page = visit(board.url, "#/jobs?kind=greet")
    rows(page, 100)
    page.get_by_role("button", name="Cancel all that match …").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("heading")).to_have_text("Cancel 1,307 jobs?")
    accessible(page)
    dialog.get_by_role("button", name="Keep as it is").click()
    expect(dialog).to_have_count(0)
    assert board.database.states() == {"pending": 1_312}

    page.get_by_role("button", name="Cancel all that match …").click()
    dialog.get_by_role("button", name="Cancel 1,307 jobs").click()
    expect(page.locator(".said")).to_contain_text("1,307 jobs cancelled")
    expect(page.locator("tbody .state").first).to_have_text("cancelled")
    assert board.database.states() == {"pending": 5, "cancelled": 1_307}

    page.get_by_role("button", name="Cancel all that match …").click()
    expect(page.locator(".said")).to_contain_text("Nothing to cancel")
    expect(dialog).to_have_count(0)

    page.goto(f"{board.url}/#/jobs?state=dead")
    expect(page.get_by_role("button", name="Cancel all that match …")).to_be_disabled()
    page.goto(f"{board.url}/#/jobs")
    page.get_by_role("button", name="Cancel all that match …").click()
    expect(dialog).to_contain_text("Without a filter, this cancels ALL waiting and running jobs in every queue.")
    dialog.get_by_role("button", name="Cancel 5 jobs").click()
    expect(page.locator(".said")).to_contain_text("5 jobs cancelled")
    assert board.database.states() == {"cancelled": 1_312}


def test_cancelling_several_states_cancels_only_unfinished_jobs(board: Board, visit: Visit) -> None:
    given.ended(board, "fail", "dead")
    seed(board, 2)
    seed(board, 3, delay=3600)
    page = visit(board.url, "#/jobs?state=dead,scheduled")
    rows(page, 4)
    page.get_by_role("button", name="Cancel all that match …").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel 3 jobs").click()
    expect(page.locator(".said")).to_contain_text("3 jobs cancelled")
    assert board.database.states() == {"dead": 1, "pending": 2, "cancelled": 3}


def test_an_invalid_filter_in_the_address_is_reported(board: Board, visit: Visit) -> None:
    page = visit(board.url, "#/jobs?state=asleep")
    page.complaints.expected.append("400")  # type: ignore[attr-defined]
    expect(page.get_by_role("alert")).to_contain_text("state")


def test_a_running_job_shows_its_progress(board: Board, visit: Visit) -> None:
    job_id = given.until_state(board, given.submit(board, "report"), "inflight")
    page = visit(board.url, "#/jobs?state=inflight")
    row = page.locator("tbody tr")
    expect(row).to_have_count(1)
    page.wait_for_function(
        "document.querySelector('progress') || (document.querySelector('main button').click(), false)", polling=200
    )
    expect(row).to_contain_text("40 % page 12 of 30")
    accessible(page)
    board.database.rows("SELECT jobqueue.cancel(%s)", job_id)
    given.until_state(board, job_id, "cancelled")


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (3840, "light")])
def test_the_list_fits_narrow_and_wide_screens(board: Board, visit: Visit, width: int, scheme: str) -> None:
    given.ended(board, "fail", "dead", payload={"message": "no space " * 30 + "x" * 300})
    given.submit(board, "k" * 200, queue="q" * 200, delay=3600)
    page = visit(board.url, "#/jobs", width=width, scheme=scheme)
    rows(page, 2)
    fits(page)
    accessible(page)
    page.get_by_role("button", name="Cancel all that match …").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    fits(page)
    accessible(page)
