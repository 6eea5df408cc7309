"""The overview in a browser: its data, its actions, and its memory use."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest
from playwright.sync_api import Locator, Page, expect

from tests.http.dashboard import seeds
from tests.http.dashboard.axe import accessible, each_look, fits
from tests.http.dashboard.board import SHOTS, Board, Visit


@pytest.fixture(scope="module")
def lively(board: Board) -> Board:
    """A service with a day of history, jobs in each state, and a second node."""
    node = seeds.node(
        board.database,
        "worker-2.example",
        {"mail": 8, "thumbnails": 8, "later": 4},
        activity={"mail": (14, 0.5), "thumbnails": (9, 0), "default": (19, 0.2)},
    )
    seeds.running(board.database, node, "mail", ["welcome", "invoice"])
    seeds.running(board.database, node, "thumbnails", ["thumbnail"])
    httpx.put(f"{board.url}/queues/thumbnails", json={"max_running": 8, "rate": 10, "burst": 20}, timeout=60).raise_for_status()
    batch = [
        *({"kind": "welcome", "queue": "later"} for _ in range(20)),
        *({"kind": "welcome", "queue": "later", "delay": 3600} for _ in range(60)),
        *({"kind": "report", "timeout": 3600} for _ in range(3)),
    ]
    httpx.post(f"{board.url}/submit", json=batch, timeout=60).raise_for_status()
    for _ in range(2):
        answer = httpx.post(f"{board.url}/submit", json={"kind": "fail"}, timeout=60).raise_for_status()
        httpx.get(f"{board.url}/jobs/{answer.json()['id']}", params={"wait": 60}, timeout=120).raise_for_status()
    seeds.history(board.database)
    return board


@pytest.fixture(scope="module")
def hostile(lively: Board) -> Board:
    """The same service with hostile names of queues, kinds, and hosts, and a node with a late heartbeat."""
    node = seeds.node(lively.database, seeds.HOSTILE[0], dict.fromkeys(seeds.HOSTILE, 1), heartbeat_ago=30)
    seeds.running(lively.database, node, seeds.HOSTILE[1], seeds.HOSTILE)
    batch = [{"kind": name, "queue": name} for name in (*seeds.HOSTILE, "unworked")]
    httpx.post(f"{lively.url}/submit", json=batch, timeout=60).raise_for_status()
    return lively


def figure(page: Page, name: str) -> Locator:
    return page.locator(".figures > div").filter(has=page.locator("dt", has_text=re.compile(f"^{name}$"))).locator("dd").first


def queue(page: Page, name: str) -> Locator:
    return page.get_by_role("region", name="Queues").get_by_role("row").filter(has=page.get_by_role("link", name=name, exact=True))


def chart(page: Page, title: str) -> Locator:
    return page.locator("figure").filter(has=page.get_by_role("heading", name=re.compile(f"^{title}")))


def local(at: datetime) -> str:
    """Format a time like the page."""
    there = at.astimezone(ZoneInfo("Europe/Berlin"))
    return f"{there:%Y-%m-%d %H:%M:%S} GMT+{there:%z}".replace("GMT++0", "GMT+")[:-2]


def test_the_figures_match_the_database(lively: Board, visit: Visit) -> None:
    page = visit(lively.url, "#/overview")
    for name, table in {
        "Pending": "pending_jobs",
        "Running": "inflight_jobs",
        "Dead letters": "dead_jobs",
        "Nodes": "nodes",
    }.items():
        expect(figure(page, name)).to_have_text(str(lively.database.value(f"SELECT count(*) FROM jobqueue_internal.{table}")))
    expect(figure(page, "Dead letters").get_by_role("link")).to_have_attribute("href", "#/dead")
    counts = lively.database.rows("SELECT queue, state, count(*) FROM jobqueue.jobs WHERE state <> 'succeeded' GROUP BY 1, 2")
    for name in {name for name, _, _ in counts}:
        depth = {state: str(count) for at, state, count in counts if at == name}
        cells = queue(page, name).get_by_role("cell")
        for place, state in enumerate(("pending", "inflight", "scheduled", "blocked", "dead")):
            expect(cells.nth(place)).to_have_text(depth.get(state, "0"))
    rates = queue(page, "mail").get_by_role("cell")
    expect(rates.nth(6)).to_have_text("14/s")
    expect(rates.nth(7)).to_have_text("0.5/s")
    expect(queue(page, "later").get_by_role("link")).to_have_attribute("href", "#/jobs?queue=later")
    if SHOTS is not None:
        page = visit(lively.url, "#/overview?range=3600")
        expect(page.get_by_text("Latest:")).to_have_count(4)
        page.screenshot(path=SHOTS / "overview.png")


def test_the_nodes_are_shown_with_their_load_and_running_jobs(lively: Board, visit: Visit) -> None:
    page = visit(lively.url, "#/overview")
    rows = page.get_by_role("region", name="Nodes").get_by_role("row")
    [[host, pid]] = lively.database.rows("SELECT host, pid FROM jobqueue_internal.nodes WHERE process <> 'made up'")
    mine = rows.filter(has_text=f"{host}:{pid}")
    expect(mine).to_contain_text("serves this page")
    expect(mine).to_contain_text("3 of 16 workers")
    expect(mine).to_contain_text(re.compile("default / report: 3 jobs, oldest"))
    other = rows.filter(has_text="worker-2.example:4711")
    expect(other).to_contain_text("3 of 20 workers")
    expect(other.get_by_role("meter")).to_have_attribute("max", "20")
    # The second node sends no heartbeats, and other tests have nodes with late heartbeats.
    lively.database.rows("UPDATE jobqueue_internal.nodes SET heartbeat_at = now() WHERE host = 'worker-2.example'")
    attention = page.get_by_role("region", name="Needs attention")
    expect(attention.filter(has_text=re.compile("worker-2.example|" + re.escape(f"{host}:{pid}")))).to_have_count(0)


def test_a_chart_has_a_table_with_the_history(lively: Board, visit: Visit) -> None:
    at = seeds.slot(60, 300)
    known = {"submitted": 12 * 60, "completed": 11 * 60, "failed": 30, "dead": 6, "waits": {1.1: 10}, "runs": {0.02: 10}}
    seeds.slots(lively.database, [{"step": 60, "at": at, **known, "depth": {"pending": 7}}])
    page = visit(lively.url, "#/overview?range=21600")
    points = httpx.get(f"{lively.url}/history", params={"seconds": 21600}, timeout=60).json()["points"]
    [point] = [point for point in points if datetime.fromisoformat(point["at"]) == at]
    waits = [float(f"{point['wait'][share]:.2g}") for share in ("p50", "p95", "p99")]
    expected = {
        "Jobs per second": ["12/s", "11/s", "0.5/s", "0.1/s"],
        "Depth by state": ["7", *["\N{EN DASH}"] * 4],
        "Wait": [f"{seconds:g} s" for seconds in waits],
    }
    for title, values in expected.items():
        one = chart(page, title)
        expect(one.get_by_role("table")).to_have_count(0)
        one.get_by_text("Show as table").click()
        row = one.get_by_role("row").filter(has=page.get_by_role("rowheader", name=local(at)))
        expect(row.get_by_role("cell")).to_have_text(values)
        one.get_by_text("Show as table").click()
        expect(one.get_by_role("table")).to_have_count(0)
    expect(page.get_by_role("img", name=re.compile("^Jobs per second, .* Latest: submitted "))).to_be_visible()


def test_the_pointer_marks_the_same_time_in_all_charts(lively: Board, visit: Visit) -> None:
    page = visit(lively.url, "#/overview?range=21600")
    canvas = chart(page, "Jobs per second").locator("canvas")
    expect(page.get_by_text("Latest:")).to_have_count(4)
    canvas.scroll_into_view_if_needed()
    canvas.hover(position={"x": 300, "y": 50}, force=True)
    times = page.locator("figcaption .spread .number", has_text="At ")
    expect(times).to_have_count(4)
    assert len(set(times.all_inner_texts())) == 1
    page.mouse.move(5, 5)
    expect(page.get_by_text("Latest:")).to_have_count(4)


def test_the_range_is_in_the_address_and_can_be_set_with_the_keyboard(lively: Board, visit: Visit) -> None:
    page = visit(lively.url)
    expect(page.get_by_role("link", name="15 min")).to_have_attribute("aria-current", "true")
    for name, seconds in {"1 h": 3600, "6 h": 21600, "24 h": 86400}.items():
        with page.expect_request(f"{lively.url}/overview/events?seconds={seconds}"):
            page.get_by_role("link", name=name).focus()
            page.keyboard.press("Enter")
        expect(page).to_have_url(f"{lively.url}/#/overview?range={seconds}")
        expect(page.get_by_role("link", name=name)).to_have_attribute("aria-current", "true")
        expect(page.get_by_role("link", name=name)).to_be_focused()
        expect(page.get_by_text("Latest:")).to_have_count(4)
    page.keyboard.press("j")
    expect(page.get_by_role("region", name="Queues").get_by_role("link").first).to_be_focused()


def test_a_queue_is_paused_and_resumed_on_all_nodes(lively: Board, visit: Visit) -> None:
    page = visit(lively.url, "#/overview")
    row = queue(page, "default")
    row.get_by_role("button", name="Pause default").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("No other jobs start on any node")
    accessible(page)
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    assert lively.database.value("SELECT paused FROM jobqueue_internal.queues WHERE name = 'default'") is False
    row.get_by_role("button", name="Pause default").click()
    dialog.get_by_role("button", name="Pause").click()
    expect(row.get_by_text("Paused", exact=True)).to_be_visible()
    expect(page.get_by_text("Queue default is paused.")).to_be_visible()
    assert lively.database.value("SELECT paused FROM jobqueue_internal.queues WHERE name = 'default'") is True
    job = httpx.post(f"{lively.url}/submit", json={"kind": "greet"}, timeout=60).json()["id"]
    expect(page.get_by_role("region", name="Needs attention")).to_contain_text("Queue default is paused, and 1 job waits in it.")
    resumed_at = lively.database.value("SELECT clock_timestamp()")
    row.get_by_role("button", name="Resume default").click()
    expect(dialog).to_contain_text("Waiting now: 1 job.")
    dialog.get_by_role("button", name="Resume").click()
    expect(row.get_by_text("Paused", exact=True)).to_have_count(0)
    assert lively.database.value("SELECT paused FROM jobqueue_internal.queues WHERE name = 'default'") is False
    done = httpx.get(f"{lively.url}/jobs/{job}", params={"wait": 60}, timeout=120).json()
    assert done["state"] == "succeeded"
    assert datetime.fromisoformat(done["claimed_at"]) > resumed_at, "the job started while its queue was paused"


def test_limits_are_set_and_removed(lively: Board, visit: Visit) -> None:
    page = visit(lively.url, "#/overview")
    row = queue(page, "later")
    set_to = "SELECT max_running, rate, burst FROM jobqueue_internal.queues WHERE name = 'later'"

    def fill(**values: str) -> None:
        row.get_by_role("button", name="Limits of later").click()
        for label, value in values.items():
            page.get_by_role("dialog").get_by_label(label.replace("_", " ")).fill(value)
        accessible(page)
        page.get_by_role("button", name="Set the limits").click()
        expect(page.get_by_role("dialog")).to_have_count(0)

    fill(Running_at_once="3", Started_per_second="0.5", Started_at_once="2")
    expect(row).to_contain_text("At most 3 running at once; 0.5/s started, 2 at once")
    assert lively.database.rows(set_to) == [(3, 0.5, 2)]
    fill(Running_at_once="", Started_at_once="")
    expect(row).to_contain_text("At most 0.5/s started")
    fill(Started_per_second="")
    expect(row).to_contain_text("None")
    assert lively.database.rows(set_to) == [(None, None, None)]


def test_hostile_names_run_nothing(hostile: Board, visit: Visit) -> None:
    page = visit(hostile.url, "#/overview")
    late = page.get_by_role("region", name="Nodes").get_by_role("row").filter(has_text=seeds.HOSTILE[0]).filter(has_text="Late:")
    expect(late).to_have_count(1)
    attention = page.get_by_role("region", name="Needs attention")
    expect(attention).to_contain_text("is late: its last heartbeat was")
    expect(attention).to_contain_text("No node works queue unworked, and 1 job waits in it.")
    for name in seeds.SHOWN:
        expect(page.get_by_role("region", name="Queues").get_by_text(name, exact=True)).to_be_visible()
        expect(page.get_by_role("region", name="Nodes").get_by_text(name, exact=True).first).to_be_visible()
    assert page.locator("main img, main script").count() == 0
    for link in page.locator("main a").all():
        assert (link.get_attribute("href") or "").startswith("#/")
    page.get_by_role("button", name=f"Pause {seeds.HOSTILE[1]}").click()
    expect(page.get_by_role("heading", name=seeds.HOSTILE[1])).to_be_visible()
    page.get_by_role("button", name="Pause", exact=True).click()
    expect(page.get_by_text(f"Queue {seeds.HOSTILE[1]} is paused.")).to_be_visible()
    assert hostile.database.value("SELECT paused FROM jobqueue_internal.queues WHERE name = %s", seeds.HOSTILE[1]) is True
    page.get_by_role("link", name=seeds.HOSTILE[0]).click()
    expect(page).to_have_url(re.compile("#/jobs"))
    assert page.evaluate("window.owned === undefined")


def test_the_page_is_accessible_at_any_width(hostile: Board, visit: Visit) -> None:
    page = visit(hostile.url, "#/overview")
    expect(page.get_by_role("region", name="Nodes")).to_be_visible()
    expect(page.get_by_text("Latest:")).to_have_count(4)
    chart(page, "Jobs per second").get_by_text("Show as table").click()
    for _ in each_look(page):
        accessible(page)
        fits(page)
        for plot in page.locator(".plot").all():
            page.wait_for_function(
                "plot => plot.querySelector('.uplot').offsetWidth === plot.clientWidth", arg=plot.element_handle()
            )


def test_charts_follow_the_color_scheme_and_the_width(lively: Board, visit: Visit) -> None:
    page = visit(lively.url, "#/overview")
    expect(page.get_by_text("Latest:")).to_have_count(4)
    canvas = chart(page, "Jobs per second").locator("canvas")
    made = canvas.element_handle()
    light = canvas.evaluate("canvas => canvas.toDataURL()")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("([canvas, light]) => canvas.toDataURL() !== light", arg=[made, light])
    page.set_viewport_size({"width": 700, "height": 900})
    page.wait_for_function("canvas => canvas.offsetWidth < 680 && canvas.isConnected", arg=made)
    fits(page)


def test_a_lost_connection_is_reported_and_restored(lively: Board, visit: Visit) -> None:
    page = visit(lively.url, "#/overview?range=3600")
    page.complaints.expected += [
        "ERR_CONNECTION_REFUSED",
        "ERR_INCOMPLETE_CHUNKED_ENCODING",
        "ERR_CONNECTION_RESET",
        "ERR_EMPTY_RESPONSE",
    ]  # type: ignore[attr-defined]
    connection = page.locator("header [role=status]")
    expect(connection).to_have_text("Live")
    expect(page.get_by_text("Latest:")).to_have_count(4)
    known = httpx.get(f"{lively.url}/history", params={"seconds": 3600}, timeout=60).json()["points"][-20]["at"]
    lively.service.kill()
    expect(connection).to_have_text("Connection lost, trying again")
    expect(page.get_by_text("The connection to the service is lost")).to_be_visible()
    expect(page.locator("main")).to_contain_text(re.compile(r"The page shows the data of \d{4}-.* GMT\+\d, .* ago\."))
    expect(queue(page, "later")).to_be_visible()
    accessible(page)
    lively.start()
    expect(connection).to_have_text("Live")
    expect(page.get_by_text("The connection to the service is lost")).to_have_count(0)
    chart(page, "Jobs per second").get_by_text("Show as table").click()
    expect(chart(page, "Jobs per second").get_by_role("rowheader", name=local(datetime.fromisoformat(known)))).to_be_visible()


FEED = """() => {
    const ask = fetch;
    const text = new TextEncoder();
    window.fetch = (url, options) => {
        if (!url.startsWith('/overview/events')) return ask(url, options);
        return Promise.resolve(new Response(new ReadableStream({
            start(stream) {
                window.tell = (name, data) => stream.enqueue(text.encode(`event: ${name}\\ndata: ${JSON.stringify(data)}\\n\\n`));
            },
        })));
    };
    location.hash = '#/overview?range=3600';
}"""
"""Replace the event stream of the page: `tell(event, data)` sends an event that the test makes up."""


def fed(page: Page) -> None:
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    page.evaluate(FEED)
    page.wait_for_function("'tell' in window")


def tell(page: Page, name: str, data: dict[str, Any]) -> None:
    page.evaluate("([name, data]) => tell(name, data)", [name, data])


def test_empty_sections_show_what_to_do(board: Board, visit: Visit) -> None:
    page = visit(board.url, "#/schedules")
    fed(page)
    tell(page, "overview", {"now": "2026-11-26T12:00:00Z", "node": None, "queues": [], "nodes": []})
    tell(page, "history", {"step": 10, "points": []})
    expect(page.get_by_text("The first points appear after ten seconds.")).to_have_count(4)
    expect(page.get_by_text("No job was submitted in the last 1 h, and none is waiting.")).to_be_visible()
    expect(page.get_by_text(f"curl {board.url}/submit")).to_be_visible()
    expect(page.get_by_text("jobqueue serve")).to_be_visible()
    expect(page.get_by_text("No queue yet")).to_be_visible()
    accessible(page)
    tell(page, "trouble", {"reasons": ["the database is unavailable: it is away"]})
    expect(page.locator("header [role=status]")).to_have_text("The database cannot be reached")
    expect(page.get_by_text("The service has no current data").locator("..")).to_contain_text("it is away")


DAY = """async ([slots, first]) => {
    const time = (seconds) => new Date(seconds * 1000).toISOString();
    for (let slot = first; slot < first + slots; slot += 1) {
        const at = 1_700_000_000 + slot * 10;
        const node = {id: `node ${slot % 50}`, host: 'host', pid: slot, version: '1', queues: {all: 4}, started_at: time(at),
                      heartbeat_at: time(at), lease_until: time(at + 10), throughput: {completed: 1, failed: 0},
                      running: [{queue: 'all', kind: `kind ${slot}`, jobs: 1, oldest: 2}]};
        const queues = ['all', `queue ${slot}`].map((name) => ({name, paused: false, depth: {pending: slot}, oldest: {pending: 3},
                                                               throughput: {completed: slot, failed: 1}}));
        tell('overview', {now: time(at + 10), node: node.id, queues, nodes: [node]});
        const shares = {p50: 0.1, p95: 0.2, p99: 0.3 + slot % 7};
        const counts = {submitted: slot % 9, completed: 2, failed: 1, dead: 0};
        tell('history', {step: 10, points: [{at: time(at), ...counts, wait: shares, run: shares, depth: {pending: slot}}]});
        if (slot % 60 === 0) await new Promise(requestAnimationFrame);
    }
    await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
}"""


def test_a_page_that_is_open_for_a_day_does_not_grow(board: Board, visit: Visit) -> None:
    page = visit(board.url, "#/schedules")
    fed(page)
    browser = page.context.new_cdp_session(page)
    browser.send("Performance.enable")

    def held() -> dict[str, float]:
        browser.send("HeapProfiler.collectGarbage")
        return {metric["name"]: metric["value"] for metric in browser.send("Performance.getMetrics")["metrics"]}

    page.evaluate(DAY, [720, 0])
    expect(queue(page, "queue 719")).to_be_visible()
    before = held()
    page.evaluate(DAY, [8640, 720])
    expect(queue(page, "queue 9359")).to_be_visible()
    after = held()
    assert after["Nodes"] <= before["Nodes"] + 50
    assert after["JSEventListeners"] <= before["JSEventListeners"] + 20
    assert after["JSHeapUsedSize"] <= before["JSHeapUsedSize"] + 1e6
    kept = page.evaluate(
        """async () => {
            const {History} = await import(document.querySelector('link[href$="/history.js"]').href);
            const history = new History(3600);
            for (let at = 0; at < 86400; at += 10) history.add({step: 10, points: [{at: new Date(at * 1000).toISOString()}]});
            return [history.length, history.slots().length];
        }"""
    )
    assert kept == [360, 360]


def test_many_queues_and_nodes_are_shown_in_part_and_queues_can_be_searched(board: Board, visit: Visit) -> None:
    page = visit(board.url, "#/schedules")
    fed(page)
    queues = [{"name": f"queue {number}", "paused": False} for number in range(60)]
    kinds = [{"queue": "queue 1", "kind": f"kind {number}", "jobs": 1, "oldest": 1.0} for number in range(7)]
    now = "2026-11-26T12:00:00Z"
    node = {"host": "host", "version": "1", "queues": {"queue 1": 9}, "throughput": {"completed": 0, "failed": 0}}
    node |= {"started_at": now, "heartbeat_at": now, "lease_until": "2026-11-26T12:00:10Z"}
    nodes = [{**node, "id": str(pid), "pid": pid, "running": kinds[: 7 - pid]} for pid in range(101)]
    tell(page, "overview", {"now": now, "node": None, "queues": queues, "nodes": nodes})
    rows = page.get_by_role("region", name="Nodes").get_by_role("row")
    expect(page.get_by_text("100 of 101 nodes are shown")).to_be_visible()
    expect(rows.filter(has_text="host:0")).to_contain_text("and 1 more")
    expect(rows.filter(has_text=re.compile("host:1[^0-9]")).get_by_role("listitem")).to_have_count(6)
    expect(rows.filter(has_text=re.compile("host:1[^0-9]"))).not_to_contain_text("more")
    expect(page.get_by_text("50 of 60 queues are shown")).to_be_visible()
    page.keyboard.press("/")
    page.keyboard.type("QUEUE 59")
    expect(page.get_by_text("1 of 60 queues are shown")).to_be_visible()
    expect(queue(page, "queue 59")).to_be_visible()
    page.keyboard.type("9")
    expect(page.get_by_text("No queue's name contains “QUEUE 599”.")).to_be_visible()


def test_a_token_for_reading_cannot_pause_a_queue(lively: Board, visit: Visit) -> None:
    lively.service.kill()
    lively.start(env={"JOBQUEUE_TOKENS": "read:just-looking"})
    page = visit(lively.url, "#/overview")
    page.complaints.expected += ["status of 401", "status of 403"]  # type: ignore[attr-defined]
    page.get_by_role("textbox", name="Token").fill("just-looking")
    page.get_by_role("button", name="Use token").click()
    page.get_by_role("button", name="Pause later").click()
    page.get_by_role("dialog").get_by_role("button", name="Pause").click()
    expect(page.get_by_text("This request requires a token with the role admin: yours has the role read.")).to_be_visible()
    assert lively.database.rows("SELECT paused FROM jobqueue_internal.queues WHERE name = 'later' AND paused") == []
