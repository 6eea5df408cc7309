"""The page of the schedules: their next ticks, and all actions."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.http.dashboard import given
from tests.http.dashboard.axe import accessible, fits
from tests.http.dashboard.board import Board, Visit


@pytest.fixture(autouse=True)
def _cleared(board: Board) -> None:
    given.clear(board)


def put(board: Board, name: str, **fields: Any) -> None:
    given = {"cron": "0 3 1 1 *", "timezone": "Europe/Berlin", "kind": "greet", "queue": "elsewhere", **fields}
    answer = httpx.put(f"{board.url}/schedules/{quote(name, safe='')}", json=given, timeout=60)
    assert answer.status_code == 201, answer.text


def press(page: Page, name: str, button: str, answer: str) -> None:
    row(page, name).get_by_role("button", name=button, exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name=answer, exact=True).click()
    expect(page.get_by_role("dialog")).to_have_count(0)


def row(page: Page, name: str) -> Any:
    return page.locator("tbody tr").filter(has_text=name)


def test_without_schedules_the_page_shows_how_to_declare_one(board: Board, visit: Visit) -> None:
    page = visit(board.url, "#/schedules")
    expect(page.locator(".empty")).to_contain_text("No schedules.")
    expect(page.locator(".empty")).to_contain_text(f"curl -X PUT {board.url}/schedules/nightly")
    accessible(page)
    fits(page)


def test_a_schedule_is_paused_resumed_triggered_and_deleted(board: Board, visit: Visit) -> None:
    put(board, "new year")
    put(board, "a/b ?#%")
    page = visit(board.url, "#/schedules")
    expect(row(page, "new year")).to_contain_text(re.compile(r"20\d\d-01-01 03:00:00 GMT\+1"))
    expect(row(page, "new year")).to_contain_text("never")
    accessible(page)

    def paused() -> bool:
        return bool(board.database.value("SELECT paused FROM jobqueue_internal.schedules WHERE name = 'new year'"))

    press(page, "new year", "Pause", "Keep as it is")
    assert not paused()
    press(page, "new year", "Pause", "Pause")
    expect(row(page, "new year")).to_contain_text("Paused")
    assert paused()
    press(page, "new year", "Resume", "Keep as it is")
    assert paused()
    press(page, "new year", "Resume", "Resume")
    expect(row(page, "new year").get_by_role("button", name="Pause")).to_be_visible()
    assert not paused()

    press(page, "new year", "Trigger now", "Keep as it is")
    assert board.database.states() == {}
    press(page, "new year", "Trigger now", "Trigger now")
    page.locator(".said").get_by_role("link", name="the job").click()
    expect(page.locator("h1")).to_contain_text("greet")
    assert board.database.states() == {"pending": 1}
    page.go_back()

    press(page, "a/b ?#%", "Delete", "Keep as it is")
    press(page, "a/b ?#%", "Delete", "Delete")
    expect(page.locator("tbody tr")).to_have_count(1)
    assert board.database.rows("SELECT name FROM jobqueue_internal.schedules") == [("new year",)]


def test_a_declared_schedule_cannot_be_deleted_and_errors_are_shown(board: Board, visit: Visit) -> None:
    put(board, "declared")
    put(board, "broken")
    board.database.rows("UPDATE jobqueue_internal.schedules SET source = 'shop.reports' WHERE name = 'declared'")
    board.database.rows("UPDATE jobqueue_internal.schedules SET next_at = NULL, error = 'no such zone' WHERE name = 'broken'")
    page = visit(board.url, "#/schedules")
    expect(row(page, "declared")).to_contain_text("from shop.reports")
    expect(row(page, "declared").get_by_role("button", name="Delete")).to_have_count(0)
    expect(row(page, "broken")).to_contain_text("no such zone")
    accessible(page)


def test_the_page_can_be_operated_with_the_keyboard(board: Board, visit: Visit) -> None:
    put(board, "new year")
    page = visit(board.url, "#/schedules")
    expect(page.locator("tbody tr")).to_have_count(1)
    put(board, "second")
    page.keyboard.press("r")
    expect(page.locator("tbody tr")).to_have_count(2)
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    accessible(page)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(row(page, "new year")).to_contain_text("Paused")
    expect(page.locator("tbody [data-row]").first).to_be_focused()


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (3840, "light")])
def test_schedules_fit_narrow_and_wide_screens(board: Board, visit: Visit, width: int, scheme: str) -> None:
    put(board, "n" * 200, kind="k" * 200)
    page = visit(board.url, "#/schedules", width=width, scheme=scheme)
    expect(page.locator("tbody tr")).to_have_count(1)
    fits(page)
    accessible(page)
