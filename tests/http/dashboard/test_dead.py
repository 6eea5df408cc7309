"""Dead letters by cause: each cause is one row, whose jobs are retried or discarded at once."""

from __future__ import annotations

import re
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Page, expect

from tests.http.dashboard import given
from tests.http.dashboard.axe import accessible, fits
from tests.http.dashboard.board import Board, Visit


@pytest.fixture(autouse=True)
def _cleared(board: Board) -> None:
    given.clear(board)


def bury(
    board: Board, count: int, *, kind: str = "greet", queue: str = "elsewhere", error: str = "OSError: host 10.0.0.{n} is down"
) -> None:
    """Insert dead jobs; ``{n}`` in the error becomes the number of each job."""
    board.database.rows(
        """
        INSERT INTO jobqueue_internal.dead_jobs
               (id, queue, kind, priority, reason, payload, attempt, claims, created_at, available_since, died_at, errors)
        SELECT gen_random_uuid(), %s, %s, 0, 'attempt 1 of 1 failed: ' || d.error, '{}', 1, 1, d.died_at, d.died_at, d.died_at,
               jsonb_build_array(jsonb_build_object('attempt', 1, 'at', d.died_at, 'node', NULL, 'duration', 0.5, 'error', d.error))
          FROM generate_series(1, %s) AS n
         CROSS JOIN LATERAL (SELECT now() - n * interval '1 ms' AS died_at, replace(%s, '{n}', n::text) AS error) AS d
        """,
        queue,
        kind,
        count,
        error,
    )


def press(page: Page, within: str, button: str, answer: str) -> None:
    page.locator("tr, section").filter(has_text=within).get_by_role("button", name=button, exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name=answer, exact=True).click()
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_the_dead_letter_page_is_empty_without_dead_letters(board: Board, visit: Visit) -> None:
    page = visit(board.url, "#/dead")
    expect(page.locator(".empty")).to_contain_text("No dead letters.")
    accessible(page)
    fits(page)
    page.goto(f"{board.url}/#/dead?queue=nobodys")
    expect(page.locator(".empty")).to_contain_text("No dead letter matches this filter.")
    page.get_by_role("link", name="Clear the filter").click()
    expect(page.locator(".empty")).to_contain_text("No dead letters.")


def test_ten_thousand_failures_of_one_cause_are_one_row_and_retried_at_once(board: Board, visit: Visit) -> None:
    bury(board, 10_000)
    bury(board, 3, error="ValueError: another")
    page = visit(board.url, "#/dead")
    expect(page.locator("tbody tr")).to_have_count(2)
    first = page.locator("tbody tr").first
    expect(first.locator("td").first).to_have_text("10,000")
    expect(first).to_contain_text("OSError: host # is down")
    accessible(page)
    press(page, "OSError", "Retry all", "Keep as it is")
    assert board.database.states() == {"dead": 10_003}
    press(page, "OSError", "Retry all", "Retry 10,000 jobs")
    expect(page.locator(".said")).to_have_text("10,000 jobs retried.")
    expect(page.locator("tbody tr")).to_have_count(1)
    assert board.database.states() == {"dead": 3, "pending": 10_000}


def test_all_of_a_cause_are_discarded_and_nothing_else(board: Board, visit: Visit) -> None:
    bury(board, 5)
    bury(board, 4, kind="report")
    bury(board, 3, queue="third")
    page = visit(board.url, "#/dead")
    expect(page.locator("tbody tr")).to_have_count(3)
    press(page, "report", "Discard all", "Keep as it is")
    page.locator("tbody tr").filter(has_text="report").get_by_role("button", name="Discard all").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("This is final")
    accessible(page)
    dialog.get_by_role("button", name="Discard 4 jobs for good").click()
    expect(page.locator(".said")).to_have_text("4 jobs discarded.")
    expect(page.locator("tbody tr")).to_have_count(2)
    left = "SELECT kind, queue, count(*) FROM jobqueue_internal.dead_jobs GROUP BY kind, queue ORDER BY kind, queue"
    assert board.database.rows(left) == [("greet", "elsewhere", 5), ("greet", "third", 3)]


def test_a_group_opens_to_its_jobs_page_by_page(board: Board, visit: Visit) -> None:
    bury(board, 150)
    bury(board, 2, error="ValueError: another")
    page = visit(board.url, "#/dead")
    page.get_by_role("link", name="OSError: host # is down").click()
    expect(page.get_by_role("heading", level=2)).to_have_text("OSError: host # is down")
    expect(page.locator("tbody tr")).to_have_count(100)
    expect(page.locator("tbody tr").first).to_contain_text("OSError: host 10.0.0.1 is down")
    page.keyboard.press("n")
    expect(page.locator("tbody tr")).to_have_count(50)
    accessible(page)
    page.get_by_role("button", name="Newest").click()
    expect(page.locator("tbody tr")).to_have_count(100)
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page.locator("h1 .state")).to_have_text("dead")
    page.go_back()
    expect(page.locator("tbody tr")).to_have_count(100)
    press(page, "150 jobs", "Retry all", "Retry 150 jobs")
    expect(page.locator(".empty")).to_contain_text("No dead letter of this cause is left.")
    accessible(page)
    assert board.database.states() == {"dead": 2, "pending": 150}
    page.get_by_role("link", name="All groups").click()
    expect(page.locator("tbody tr")).to_have_count(1)


def test_the_filter_is_in_the_address_and_the_form(board: Board, visit: Visit) -> None:
    bury(board, 1)
    bury(board, 1, kind="report")
    bury(board, 1, queue="third")
    page = visit(board.url, "#/dead")
    expect(page.locator("tbody tr")).to_have_count(3)
    page.keyboard.press("/")
    page.keyboard.type("third")
    page.keyboard.press("Enter")
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(page).to_have_url(re.compile(r"#/dead\?queue=third$"))
    page.go_back()
    expect(page.locator("tbody tr")).to_have_count(3)
    expect(page.get_by_label("Queue")).to_have_value("")
    page.goto(f"{board.url}/#/dead?{urlencode({'kind': 'report', 'queue': 'elsewhere'})}")
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(page.get_by_label("Kind")).to_have_value("report")


def test_a_message_reports_dead_letters_that_are_gone(board: Board, visit: Visit) -> None:
    bury(board, 2)
    page = visit(board.url, "#/dead")
    expect(page.locator("tbody tr")).to_have_count(1)
    board.database.rows("DELETE FROM jobqueue_internal.dead_jobs")
    page.get_by_role("button", name="Retry all").click()
    expect(page.locator(".said")).to_contain_text("Nothing to do")
    expect(page.locator(".empty")).to_contain_text("No dead letters.")


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (3840, "light")])
def test_dead_letters_fit_narrow_and_wide_screens(board: Board, visit: Visit, width: int, scheme: str) -> None:
    bury(board, 2, error="x" * 3_000)
    page = visit(board.url, "#/dead", width=width, scheme=scheme)
    expect(page.locator("tbody tr")).to_have_count(1)
    fits(page)
    accessible(page)
    page.get_by_role("button", name="Discard all").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    fits(page)
    accessible(page)
    page.keyboard.press("Escape")
    page.locator("tbody a[data-row]").click()
    expect(page.get_by_role("heading", level=2)).to_be_visible()
    fits(page)
    accessible(page)
