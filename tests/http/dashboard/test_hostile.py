"""The page shows hostile values as text, and other sites cannot use it."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.http.dashboard import given
from tests.http.dashboard.axe import fits
from tests.http.dashboard.board import PATIENCE_MS, Board, Visit

HACK = "window.hacked=1"

HOSTILE = [
    f"<script>{HACK}</script>\"'><img src=x onerror='{HACK}'></script></style></title><svg onload={HACK}>",
    f"javascript:{HACK}",
    f"{{{{constructor.constructor('{HACK}')()}}}} ${{{HACK}}} #{{7*7}} <%= 7*7 %>",
    "<!--?lit$0$--><?lit$0$?>lit$0$ {{lit-0}} <!---->",
    "__proto__",
    "\u202etxt.exe\u202d \u2066isolated\u200b \x1b[31mred\x07\x9b31m \ufffd\ufffe\U0001f469\u200d\U0001f680"
    + "Z\u0351\u036b\u0343" * 20,
    "../../queues/default?#&=%00%2e%2e/",
    "'; DROP TABLE jobqueue.jobs; --\na\r\nb\tc",
]
"""Texts of at most 200 characters, the limit for names."""

DEEP = "[" * 90 + "]" * 90


def named(text: str) -> str:
    """Return a name as the page shows it: invisible and bidirectional characters are escaped."""
    return "".join(rf"\u{ord(sign):04x}" if unicodedata.category(sign) in {"Cc", "Cf", "Zl", "Zp"} else sign for sign in text)


def unharmed(page: Page) -> None:
    assert page.evaluate("[window.hacked, ({}).polluted]") == [None, None]
    page.get_by_role("button", name="Refresh").click()  # the page is usable


def everywhere(text: str) -> dict[str, Any]:
    """Return a document that contains a text in every possible place."""
    return {text: [text, {text: text}], "__proto__": {"polluted": 1}, "constructor": {"prototype": {"polluted": 1}}}


@pytest.fixture(scope="module")
def hostile_jobs(board: Board) -> list[tuple[str, str]]:
    """Jobs with a hostile text in all fields that a client sets: (text, id)."""
    made = []
    for place, text in enumerate(HOSTILE):
        job_id = given.submit(
            board,
            text,
            queue=text,
            payload=everywhere(text),
            group=text,
            concurrency_key=text,
            unique_key=text,
            idempotency_key=f"{place} {text}",
            delay=3600,
        )
        made.append((text, job_id))
    return made


def test_lists_show_hostile_names_as_text(board: Board, visit: Visit, hostile_jobs: list[tuple[str, str]]) -> None:
    page = visit(board.url, "#/jobs?state=scheduled")
    expect(page.locator("tbody tr")).to_have_count(len(hostile_jobs))
    shown = page.locator("tbody tr td:nth-child(3)").all_text_contents()
    assert sorted(shown) == sorted(named(text) for text, _ in hostile_jobs)
    fits(page)
    unharmed(page)


def test_the_page_of_a_hostile_job_shows_it(board: Board, visit: Visit, hostile_jobs: list[tuple[str, str]]) -> None:
    page = visit(board.url, "#/jobs")
    for text, job_id in hostile_jobs:
        page.goto(f"{board.url}/#/jobs/{job_id}")
        expect(page.locator("main .mono").first).to_have_text(job_id)
        assert page.locator("h1 bdi").text_content() == named(text)
        shown = page.locator("pre[aria-labelledby=payload]").text_content()
        assert shown is not None
        assert json.loads(shown) == everywhere(text)
        unharmed(page)
    page.get_by_role("button", name="Change …").click()
    expect(page.get_by_role("dialog")).to_be_visible()


def test_filters_take_hostile_texts(board: Board, visit: Visit, hostile_jobs: list[tuple[str, str]]) -> None:
    page = visit(board.url, "#/jobs")
    for text, job_id in hostile_jobs:
        page.goto(f"{board.url}/#/jobs?state=scheduled&kind={quote(text)}&group={quote(text)}&queue={quote(text)}")
        expect(page.locator("tbody a")).to_have_count(1)
        expect(page.locator("tbody a")).to_have_attribute("title", job_id)
        expect(page.get_by_label("Group")).to_have_value(re.sub(r"[\r\n]", "", text))  # browsers remove line breaks
        page.get_by_role("button", name="Cancel all that match …").click()
        assert page.get_by_role("dialog").locator("dd").first.text_content() == named(text)
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)
        unharmed(page)
    for address in (
        "#/jobs/%E0%A4%A",
        "#/__proto__",
        "#/constructor/<script>",
        "#/jobs?state=<img>",
        "#/jobs/<img src=x onerror=1>",
        "#/jobs?after=x",
    ):
        page.complaints.expected += ["400", "404"]  # type: ignore[attr-defined]
        page.goto(f"{board.url}/{address}")
        expect(page.locator("h1")).to_be_visible()
    assert page.evaluate("window.hacked") is None


def test_texts_of_handlers_are_shown_as_text(board: Board, visit: Visit) -> None:
    text = " ".join(HOSTILE)[:450]
    page = visit(board.url, "#/jobs")
    dead = given.ended(
        board, "fail", "dead", payload={"message": text + "\n  +-+---------------- 1 ----------------\n    | " + text}
    )
    page.goto(f"{board.url}/#/jobs/{dead}")
    expect(page.locator(".failure > summary .error")).to_contain_text("<!--?lit$0$-->")
    expect(page.locator(".failure pre").last).to_contain_text("<!--?lit$0$-->")
    unharmed(page)
    result = given.ended(board, "greet", "succeeded", payload={"name": text})
    page.goto(f"{board.url}/#/jobs/{result}")
    expect(page.locator("pre[aria-labelledby=result]")).to_contain_text("Hello, <script>")
    running = given.submit(board, "report", payload={"message": text, "checkpoint": everywhere(text)})
    page.goto(f"{board.url}/#/jobs/{running}")
    expect(page.locator(".progress span").last).to_contain_text("<!--?lit$0$-->")
    expect(page.locator("pre[aria-labelledby=checkpoint]")).to_contain_text("polluted")
    unharmed(page)
    page.goto(f"{board.url}/#/jobs?state=inflight,dead")
    expect(page.locator("tbody tr")).to_have_count(2)
    unharmed(page)
    httpx.post(f"{board.url}/jobs/{running}/cancel", timeout=60)
    given.until_state(board, running, "cancelled")
    page.goto(f"{board.url}/#/dead")
    expect(page.locator("tbody tr")).to_have_count(1)
    unharmed(page)


def test_dead_letters_of_hostile_names_are_retried_and_discarded(board: Board, visit: Visit) -> None:
    board.database.rows("DELETE FROM jobqueue_internal.dead_jobs")
    for text in HOSTILE:
        board.database.rows(
            """
            INSERT INTO jobqueue_internal.dead_jobs
                   (id, queue, kind, priority, reason, payload, attempt, claims, created_at, available_since, died_at, errors)
            VALUES (gen_random_uuid(), %s, %s, 0, %s, '{}', 1, 1, now(), now(), now(), %s)
            """,
            text,
            text,
            text,
            json.dumps([{"attempt": 1, "at": "2026-01-01T00:00:00Z", "node": None, "error": text, "traceback": text}]),
        )
    page = visit(board.url, "#/dead")
    for left in range(len(HOSTILE), 0, -1):
        expect(page.locator("tbody tr")).to_have_count(left)
        page.locator("tbody a[data-row]").first.click()
        expect(page.get_by_role("heading", level=2)).to_be_visible()
        expect(page.locator("tbody tr")).to_have_count(1)
        page.get_by_role("button", name="Discard all").click()
        page.get_by_role("dialog").get_by_role("button", name="Discard 1 job for good").click()
        expect(page.locator(".empty")).to_be_visible()
        page.goto(f"{board.url}/#/dead")
    expect(page.locator(".empty")).to_contain_text("No dead letters.")
    unharmed(page)


def test_schedules_of_hostile_names_are_shown_and_deleted(board: Board, visit: Visit) -> None:
    for text in HOSTILE:
        board.database.rows("SELECT jobqueue.schedule(%s, '0 3 * * *', 'UTC', kind => %s, queue => %s)", text, text, text)
    page = visit(board.url, "#/schedules")
    expect(page.locator("tbody tr")).to_have_count(len(HOSTILE))
    fits(page)
    unharmed(page)
    for left in range(len(HOSTILE), 0, -1):
        expect(page.locator("tbody tr")).to_have_count(left)
        page.get_by_role("button", name="Delete").first.click()
        page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.locator(".empty")).to_contain_text("No schedules.")


def test_large_and_deep_documents_leave_the_page_usable(board: Board, visit: Visit) -> None:
    large = {"text": "<b>" * 340_000}
    for payload in (large, {"deep": json.loads(DEEP)}, {"many": [{"n": n} for n in range(20_000)]}, {"escapes": '\\"\n' * 150_000}):
        page = visit(board.url, f"#/jobs/{given.submit(board, 'greet', payload=payload, delay=3600)}")
        expect(page.locator("pre[aria-labelledby=payload]")).to_be_visible()
        if page.get_by_role("button", name="Show all").count():
            page.get_by_role("button", name="Show all").click()
            expect(page.get_by_role("button", name="Show all")).to_have_count(0)
        shown = page.locator("pre[aria-labelledby=payload]").text_content()
        assert shown is not None
        assert json.loads(shown) == payload
        unharmed(page)
        fits(page)


@pytest.mark.parametrize(
    "errors",
    [
        {"no": "array"},
        [None, 7, "text", {}, {"error": {"_$litType$": 1, "strings": ["<img src=x onerror=window.hacked=1>"], "values": []}}],
        [{"error": "the only one", "at": "soon", "attempt": {}, "node": {"a": 1}, "duration": "long", "traceback": ["x"]}],
    ],
)
def test_forged_error_histories_leave_the_page_usable(board: Board, visit: Visit, errors: Any) -> None:
    board.database.rows("DELETE FROM jobqueue_internal.dead_jobs")
    job_id = board.database.value(
        """
        INSERT INTO jobqueue_internal.dead_jobs
               (id, queue, kind, priority, reason, payload, attempt, claims, created_at, available_since, died_at, errors, saved)
        VALUES (gen_random_uuid(), 'q', 'forged', 0, 'as written', '{}', 1, 1, now(), now(), now(), %s, '{"checkpoint": 1}')
        RETURNING id::text
        """,
        json.dumps(errors),
    )
    page = visit(board.url, f"#/jobs/{job_id}")
    expect(page.locator("h1")).to_contain_text("forged")
    expect(page.locator(".timeline .what").last).to_have_text("Ended: dead")
    unharmed(page)
    page.goto(f"{board.url}/#/dead")
    page.locator("tbody a[data-row]").click()
    expect(page.locator("tbody tr")).to_have_count(1)
    unharmed(page)


class Elsewhere:
    """A site of another origin, with one page."""

    def __init__(self) -> None:
        self.page = ""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = outer.page.encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@contextmanager
def another_site() -> Iterator[Elsewhere]:
    site = Elsewhere()
    thread = Thread(target=site.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield site
    finally:
        site.server.shutdown()
        thread.join()
        site.server.server_close()


TRY = """async ([url, method, mode, type, body]) => {
    const headers = {"Content-Type": type};
    try {
        const answer = await fetch(url, {method, mode, headers, credentials: "include", body: method === "GET" ? undefined : body});
        return answer.type === "opaque" ? "" : await answer.text();
    } catch { return ""; }
}"""
"""Send a request from a page; return the body of the response if the page can read it."""


def test_other_sites_cannot_act_read_or_frame_the_page(board: Board, browser: Browser) -> None:
    job_id = given.submit(board, "greet", delay=3600)
    before = board.database.states()
    with another_site() as site, browser.new_context() as context:
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        field = """<input name='{"all": true, "x": "' value='"}'>"""
        site.page = f"<form method=post enctype=text/plain action='{board.url}/jobs/cancel'>{field}</form>"
        page.goto(site.url)
        with page.expect_navigation() as answered:
            page.evaluate("document.forms[0].submit()")
        assert answered.value.status == 403

        page.goto(site.url)
        for method, path, mode, media_type, body in [
            ("POST", f"/jobs/{job_id}/cancel", "no-cors", "text/plain", ""),
            ("POST", "/jobs/cancel", "no-cors", "text/plain", '{"all": true}'),
            ("POST", "/jobs/cancel", "cors", "application/json", '{"all": true}'),
            ("POST", "/submit", "no-cors", "text/plain", '{"kind": "greet"}'),
            ("POST", "/submit", "no-cors", "application/x-www-form-urlencoded", '{"kind": "greet"}'),
            ("POST", "/dead/retry", "cors", "application/json", '{"all": true}'),
            ("DELETE", f"/jobs/{job_id}", "cors", "application/json", ""),
            ("GET", f"/jobs/{job_id}", "cors", "application/json", ""),
            ("GET", f"/jobs/{job_id}", "no-cors", "text/plain", ""),
        ]:
            assert page.evaluate(TRY, [board.url + path, method, mode, media_type, body]) == "", (method, path)

        site.page = f'<iframe src="{board.url}/"></iframe>'
        with page.expect_console_message(lambda message: "frame" in message.text.lower()):
            page.goto(site.url)
        frame = page.locator("iframe").element_handle().content_frame()
        assert frame is not None
        assert frame.get_by_text("jobqueue").count() == 0
    assert board.database.states() == before
