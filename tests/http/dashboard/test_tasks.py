"""The task tree in a browser: its tasks, its filter, and its expanded entries."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Locator, Page, expect

from tests.http.dashboard import seeds
from tests.http.dashboard.axe import accessible, each_look, fits
from tests.http.dashboard.board import Board, Visit
from tests.support.waiting import wait_for


@pytest.fixture(scope="module")
def busy(board: Board) -> dict[str, str]:
    """Two running jobs, one of them with a hostile kind; ids by kind."""
    kinds = ("report", seeds.HOSTILE[0])
    ids = [httpx.post(f"{board.url}/submit", json={"kind": kind}, timeout=60).raise_for_status().json()["id"] for kind in kinds]
    wait_for(lambda: board.database.value("SELECT count(*) FROM jobqueue_internal.inflight_jobs") == len(kinds), "the jobs run")
    return dict(zip(kinds, ids, strict=True))


def task(page: Page, name: str) -> Locator:
    return page.locator(".task").filter(has=page.locator("b", has_text=re.compile(rf"^{re.escape(name)}$")))


def look(page: Page) -> dict[str, Any]:
    """Pause the updates, update once more, and return the response."""
    page.get_by_role("button", name="Pause").click()
    with page.expect_response("**/tasks") as answer:
        page.keyboard.press("r")
    return answer.value.json()


def names(task: dict[str, Any]) -> Iterator[str]:
    yield task["name"]
    for nursery in task["nurseries"]:
        for child in nursery["tasks"]:
            yield from names(child)


def test_the_tree_is_that_of_the_responding_node(board: Board, busy: dict[str, str], visit: Visit) -> None:
    page = visit(board.url, "#/tasks")
    expect(task(page, "stage dispatcher")).to_be_visible()
    worker = page.locator(".task").filter(has=page.get_by_role("link", name="job report"))
    expect(worker).to_contain_text("waits on sleep_forever (trio/")
    expect(worker.get_by_role("link")).to_have_attribute("href", f"#/jobs/{busy['report']}")
    page.get_by_label("Name").fill("a child of")
    expect(task(page, "a child of the report")).to_be_visible()
    expect(worker).to_be_visible()
    expect(task(page, "stage dispatcher")).to_have_count(0)
    page.get_by_label("Name").fill("")
    seen = look(page)
    expect(page.locator("main")).to_contain_text(seen["node"])
    expect(page.locator(".tally")).to_contain_text(f"{seen['tasks']} tasks")
    stages = [name for name in names(seen["root"]) if "stage" in name]
    page.get_by_label("Name").fill("STAGE")
    expect(page.locator(".tally")).to_contain_text(f"{len(stages)} of {seen['tasks']} tasks match")
    for name in stages:
        expect(task(page, name)).to_be_visible()
    page.get_by_label("Name").fill("nothing is called this")
    expect(page.get_by_text("No task's name contains")).to_be_visible()


def test_expanded_entries_stay_expanded_after_an_update(board: Board, visit: Visit) -> None:
    page = visit(board.url, "#/tasks", height=500)
    stack = task(page, "stage recovery").locator("details")
    stack.locator("summary").click()
    expect(stack.get_by_role("listitem").first).to_contain_text(re.compile(r"\(jobqueue/.*:\d+\)"))
    workers = page.locator("details.nursery", has=task(page, "stage workers")).last
    workers.locator("li").filter(has=task(page, "stage workers")).locator("summary", has_text="nursery of").first.click()
    expect(task(page, "worker default 0")).to_have_count(0)
    stack.scroll_into_view_if_needed()
    made = stack.element_handle()
    for _ in range(2):
        with page.expect_response("**/tasks"):
            pass
    page.evaluate("() => new Promise(requestAnimationFrame)")
    expect(stack.get_by_role("listitem").first).to_be_visible()
    expect(task(page, "worker default 0")).to_have_count(0)
    expect(stack).to_be_in_viewport()
    assert page.evaluate("scrollY") > 0
    assert made.evaluate("element => element.isConnected && element.open")


@pytest.mark.usefixtures("busy")
def test_long_waits_are_marked_in_words(board: Board, visit: Visit) -> None:
    page = visit(board.url, "#/tasks")
    page.get_by_label("Mark tasks that have waited for").select_option("1 s")
    worker = page.locator(".task").filter(has=page.get_by_role("link", name="job report"))
    expect(worker.get_by_text("long", exact=True)).to_be_visible()
    expect(page.locator(".tally")).to_contain_text(re.compile(r"\d+ (has|have) waited for 1 s or longer"))


def test_hostile_kinds_run_nothing(board: Board, busy: dict[str, str], visit: Visit) -> None:
    page = visit(board.url, "#/tasks")
    link = page.get_by_role("link", name=f"job {seeds.HOSTILE[0]}")
    expect(link).to_have_attribute("href", f"#/jobs/{busy[seeds.HOSTILE[0]]}")
    assert page.locator("main img, main script").count() == 0
    assert page.evaluate("window.owned === undefined")


@pytest.mark.usefixtures("busy")
def test_the_page_is_accessible_at_any_width(board: Board, visit: Visit) -> None:
    page = visit(board.url, "#/tasks")
    task(page, "stage dispatcher").locator("summary").click()
    expect(task(page, "stage dispatcher").get_by_role("listitem").first).to_be_visible()
    look(page)
    for _ in each_look(page):
        accessible(page)
        fits(page)


def test_a_lost_connection_is_reported_and_restored(board: Board, visit: Visit) -> None:
    page = visit(board.url, "#/tasks")
    page.complaints.expected.append("ERR_CONNECTION")  # type: ignore[attr-defined]
    before = page.locator("main p .mono")
    expect(before).to_be_visible()
    node = before.inner_text()
    board.service.kill()
    expect(page.locator("header [role=status]")).to_have_text("Connection lost, trying again")
    expect(page.get_by_text("The service cannot be reached.")).to_be_visible()
    board.start()
    expect(page.locator("header [role=status]")).to_have_text("Live")
    expect(before).not_to_have_text(node)
