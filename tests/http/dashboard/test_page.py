"""The page around the views: navigation and shortcuts."""

from __future__ import annotations

from contextlib import suppress

from playwright.sync_api import expect

from tests.http.dashboard.board import Board, Visit


def test_a_visitor_finds_every_view(board: Board, visit: Visit) -> None:
    page = visit(board.url)
    for label in ("Jobs", "Dead letters", "Schedules", "Task tree", "Overview"):
        page.get_by_role("link", name=label, exact=True).click()
        expect(page.get_by_role("link", name=label, exact=True)).to_have_attribute("aria-current", "page")
        expect(page.get_by_role("heading", level=1)).to_be_visible()


def test_shortcuts_open_the_views_and_can_be_switched_off(board: Board, visit: Visit) -> None:
    page = visit(board.url)
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    for _ in range(20):  # try again: on a loaded machine, the second key may come too late
        page.keyboard.press("g")
        page.keyboard.press("t")
        with suppress(AssertionError):
            expect(page.get_by_role("link", name="Task tree")).to_have_attribute("aria-current", "page", timeout=3_000)
            break
    expect(page.get_by_role("link", name="Task tree")).to_have_attribute("aria-current", "page")
    page.keyboard.press("?")
    page.get_by_label("Shortcuts are on").uncheck()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.keyboard.press("g")
    page.keyboard.press("o")
    expect(page.get_by_role("link", name="Task tree")).to_have_attribute("aria-current", "page")
