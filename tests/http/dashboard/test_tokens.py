"""A service with tokens: the page requests one, and has its permissions."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.http.dashboard import given
from tests.http.dashboard.axe import accessible
from tests.http.dashboard.board import Board, Visit
from tests.support.waiting import wait_for

READ, ADMIN = "read-secret", "admin-secret"
ENTRIES = f"read:{READ}\nadmin:{ADMIN}\n"


@pytest.fixture(scope="module")
def token_file(board: Board, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The token file of the service."""
    file = tmp_path_factory.mktemp("tokens") / "tokens"
    file.write_text(ENTRIES)
    board.service.kill()
    board.start("--token-file", str(file))
    return file


@pytest.fixture
def waiting(board: Board, token_file: Path) -> str:
    """A waiting job, on a service with the tokens of the file."""
    assert token_file.exists()
    return str(board.database.value("SELECT jobqueue.submit('greet', run_at => now() + interval '1 hour')"))


def give(page: Page, secret: str) -> None:
    page.get_by_role("textbox", name="Token").fill(secret)
    page.keyboard.press("Enter")


@pytest.mark.usefixtures("waiting")
def test_the_page_requests_a_token_and_rejects_a_wrong_one(board: Board, visit: Visit) -> None:
    page = visit(board.url, "#/jobs")
    page.complaints.expected.append("401")  # type: ignore[attr-defined]
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("This service requires a token")
    accessible(page)
    give(page, "nonsense")
    expect(dialog).to_contain_text("The service does not know the last token.")
    dialog.get_by_role("button", name="Not now").click()
    expect(page.get_by_role("alert")).to_contain_text("refresh to enter one")
    page.get_by_role("button", name="Refresh").click()
    give(page, READ)
    expect(page.locator("tbody a").first).to_be_visible()
    assert READ not in page.url
    page.reload()
    expect(page.locator("tbody a").first).to_be_visible()
    page.get_by_role("button", name="Forget the token").click()
    expect(dialog).to_be_visible()
    expect(page.locator("tbody a")).to_have_count(0)


def test_actions_require_a_token_with_the_role_admin(board: Board, visit: Visit, waiting: str) -> None:
    page = visit(board.url, f"#/jobs/{waiting}")
    page.complaints.expected += ["401", "403"]  # type: ignore[attr-defined]
    give(page, READ)
    page.get_by_role("button", name="Cancel …").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel the job").click()
    refused = "This request requires a token with the role admin: yours has the role read."
    expect(page.locator(".said")).to_have_text(refused)
    accessible(page)
    assert given.state_of(board, waiting) == "scheduled"
    page.goto(f"{board.url}/#/jobs")
    expect(page.locator("tbody a").first).to_be_visible()
    page.get_by_role("button", name="Cancel all that match …").click()
    expect(page.locator(".said")).to_have_text(refused)
    expect(page.get_by_role("dialog")).to_have_count(0)

    page.get_by_role("button", name="Forget the token").click()
    give(page, ADMIN)
    page.goto(f"{board.url}/#/jobs/{waiting}")
    page.get_by_role("button", name="Cancel …").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel the job").click()
    expect(page.locator("h1 .state")).to_have_text("cancelled")
    assert given.state_of(board, waiting) == "cancelled"


def test_after_a_token_is_revoked_the_page_requests_another_one(board: Board, visit: Visit, waiting: str, token_file: Path) -> None:
    page = visit(board.url, f"#/jobs/{waiting}")
    page.complaints.expected.append("401")  # type: ignore[attr-defined]
    give(page, READ)
    expect(page.locator("h1 .state")).to_have_text("scheduled")
    token_file.write_text(f"admin:{ADMIN}\n")
    old = {"Authorization": f"Bearer {READ}"}
    wait_for(lambda: httpx.get(f"{board.url}/jobs", headers=old, timeout=60).status_code == 401, "the old token is rejected")
    page.keyboard.press("r")
    expect(page.get_by_role("dialog")).to_contain_text("The service does not know the last token.")
    give(page, ADMIN)
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.locator("h1 .state")).to_have_text("scheduled")
    token_file.write_text(ENTRIES)
