"""The overview as a page follows it: first everything, then changes. All pages share one query; without a page, there is none."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from jobqueue import documents
from jobqueue.direct import open_api
from jobqueue.engine import overview
from jobqueue.engine.depths import Depths
from jobqueue.engine.history import HistoryWriter
from jobqueue.engine.leases import Lease
from jobqueue.engine.overview import LOOK_INTERVAL, OverviewWatcher
from jobqueue.engine.signals import Signals
from jobqueue.errors import DatabaseUnavailable, TooManyWatchers
from jobqueue.http.resources import job_events
from jobqueue.http.resources import overview as http_overview
from jobqueue.job import NewJob
from jobqueue.metrics import Metrics
from jobqueue.storage.embedded.cluster import PORT, ROLE
from jobqueue.storage.roles.inspect import HISTORY_SETTLE, HistorySlot, NodeEntry
from jobqueue.testing.memory_store import MemoryStore
from tests.support.postgres import Database
from tests.support.proxy import proxy_in_thread
from tests.support.running import Bench, submit
from tests.support.service import Service
from tests.support.storage import new_id, open_driver
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow

Event = tuple[str, Any]


class Counted(MemoryStore):
    """A store in virtual time that counts its queries, and fails when `failing` is set."""

    def __init__(self) -> None:
        super().__init__(trio.current_time)
        self.looks = 0
        self.reads: list[tuple[int, float]] = []
        self.failing = False

    async def nodes(self) -> list[NodeEntry]:
        self.looks += 1
        if self.failing:
            raise DatabaseUnavailable("as told")
        return await super().nodes()

    async def history(self, step: int, *, seconds: float) -> list[HistorySlot]:
        self.reads.append((step, seconds))
        return await super().history(step, seconds=seconds)


class Watched:
    """An overview, with the node's own history, in virtual time."""

    def __init__(self, store: Counted) -> None:
        self.store = store
        self.metrics = Metrics()
        lease = Lease(store, self.metrics, Signals(), queues={}, seconds=30)
        self.overview = OverviewWatcher(store, Depths(store), lease)
        self._streams: list[AsyncGenerator[bytes]] = []

    def events(self, seconds: int = 900, go_on: Callable[[], bool] = lambda: True) -> AsyncGenerator[bytes]:
        self._streams.append(http_overview.events(self.overview, seconds, go_on))
        return self._streams[-1]

    async def aclose(self) -> None:
        """Close the pages that are still open."""
        for stream in self._streams:
            await stream.aclose()


@pytest.fixture
async def watched(nursery: trio.Nursery) -> AsyncIterator[Watched]:
    one = Watched(Counted())
    await nursery.start(one.overview.run)
    yield one
    await one.aclose()
    nursery.cancel_scope.cancel()


def read(piece: bytes) -> Event:
    name, data, *end = piece.decode().split("\n")
    assert end == ["", ""]
    return name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


async def following(events: AsyncIterator[bytes], pieces: int) -> list[Event]:
    return [read(await anext(events)) for _ in range(pieces)]


async def told_of(name: str, events: AsyncIterator[bytes]) -> Any:
    """Return the data of the next event with this name."""
    with trio.fail_after(600):
        while True:
            [(told, data)] = await following(events, 1)
            if told == name:
                return data


# ------------------------------------------------------------------------------------------------------------------------ one look


async def test_everything_is_told_at_once_and_then_every_two_seconds(watched: Watched, autojump_clock: MockClock) -> None:
    assert autojump_clock is not None
    await watched.store.submit([documents.encode(NewJob(id=new_id(), queue="q"))], wake=False)
    began = trio.current_time()
    events = watched.events()
    (first, state), (second, history) = await following(events, 2)
    assert trio.current_time() - began < 0.1
    assert (first, second) == ("overview", "history")
    assert state.keys() == {"now", "node", "queues", "nodes"}
    assert [(queue["name"], queue["depth"]) for queue in state["queues"]] == [("q", {"pending": 1})]
    assert history == {"step": 10, "points": []}
    await following(events, 5)
    assert trio.current_time() - began == pytest.approx(5 * LOOK_INTERVAL, abs=0.1)


async def test_slots_are_told_as_they_come_and_none_twice(
    watched: Watched, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    assert autojump_clock is not None
    await nursery.start(HistoryWriter(watched.store, watched.metrics).run)
    events = watched.events()
    told: list[list[float]] = []
    while len(told) < 20:
        data = await told_of("history", events)
        told.append([point["submitted"] for point in data["points"]])
        watched.metrics.of("q", "k").submitted.inc(10 * len(told))
    assert told[0] in ([], [0])
    assert [len(points) for points in told[1:]] == [1] * 19
    assert [after[0] - before[0] for before, after in pairwise(told[3:])] == [1] * 16, "each as it was counted"
    whole = watched.events()
    [_, (_, data)] = await following(whole, 2)
    assert [[point["submitted"]] for point in data["points"]][-19:] == told[1:]
    assert watched.store.reads.count((10, 900)) == 1, "later queries read only the latest slots"


async def test_a_slot_that_a_node_was_late_for_is_told_again(watched: Watched, autojump_clock: MockClock) -> None:
    assert autojump_clock is not None
    counts = watched.metrics.totals()._replace(waits=(), runs=())
    await watched.store.record(counts._replace(submitted=10))
    await trio.sleep(HISTORY_SETTLE + 0.5)
    events = watched.events()
    [_, (_, before)] = await following(events, 2)
    [known] = before["points"]
    [slot] = [slot for (step, _), slot in watched.store._history.items() if step == 10]
    slot.counts = slot.counts._replace(submitted=30)
    assert (await told_of("history", events))["points"] == [{**known, "submitted": 3.0}]


async def test_pages_share_one_look_and_each_thing_is_encoded_once(watched: Watched, autojump_clock: MockClock) -> None:
    assert autojump_clock is not None
    streams = [watched.events(seconds) for seconds in (900, 900, 900, 86_400)]
    pieces = [[await anext(stream) for _ in range(2)] for stream in streams]
    began = watched.store.looks
    await trio.sleep(60)
    assert watched.store.looks - began == pytest.approx(30, abs=2)
    assert pieces[0] == pieces[1] == pieces[2]
    assert (read(pieces[0][1])[1]["step"], read(pieces[3][1])[1]["step"]) == (10, 300)
    with watched.overview.watch(900) as one, watched.overview.watch(900) as other:
        for mine, theirs in zip(one.news(), other.news(), strict=True):
            assert mine.data is theirs.data


async def test_nobody_looks_where_nobody_watches_and_what_was_seen_then_is_not_told(
    watched: Watched, autojump_clock: MockClock
) -> None:
    assert autojump_clock is not None
    await trio.sleep(3600)
    assert watched.store.looks == 0
    for _ in range(3):
        events = watched.events()
        await following(events, 1)
        await events.aclose()
        looks = watched.store.looks
        await trio.sleep(3600)
        assert watched.store.looks <= looks + 1
        assert watched.overview._ranges == {}
    events = watched.events()
    began = await watched.store.now()
    [(_, state)] = await following(events, 1)
    assert state["now"] >= began.isoformat()[:19]


async def test_who_reads_slowly_is_told_the_latest_in_one_piece_and_holds_up_nobody(
    watched: Watched, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    assert autojump_clock is not None
    await nursery.start(HistoryWriter(watched.store, watched.metrics).run)
    slow, fast = watched.events(), watched.events()
    await following(slow, 2)
    await following(fast, 2)
    points, name = [], ""
    began = trio.current_time()
    while trio.current_time() - began < 300 or name != "history":  # the history comes after the overview
        [(name, data)] = await following(fast, 1)
        points += data["points"] if name == "history" else []
    (first, state), (second, history) = await following(slow, 2)
    assert (first, second) == ("overview", "history")
    assert state["now"] > points[-1]["at"]
    assert history["points"] == points


async def test_a_page_that_stays_open_does_not_make_the_node_grow(
    watched: Watched, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    assert autojump_clock is not None
    await nursery.start(HistoryWriter(watched.store, watched.metrics).run)
    with watched.overview.watch(900) as page:
        began = trio.current_time()
        while trio.current_time() - began < 7_200:
            await trio.sleep(60)
            page.news()
        [kept] = watched.overview._ranges.values()
        assert len(kept._points) == pytest.approx(90, abs=2)
        assert len(kept._told) <= 2


# ------------------------------------------------------------------------------------------------------------------------- trouble


async def test_a_database_that_is_away_is_told_once_and_what_comes_after_says_that_it_is_back(
    watched: Watched, autojump_clock: MockClock
) -> None:
    assert autojump_clock is not None
    prolonged = 0

    def go_on() -> bool:
        nonlocal prolonged
        prolonged += 1
        return True

    events = watched.events(go_on=go_on)
    await following(events, 2)
    watched.store.failing = True
    assert await following(events, 1) == [("trouble", {"reasons": ["the database is unavailable: as told"]})]
    assert [await anext(events) for _ in range(3)] == [job_events.COMMENT] * 3
    assert prolonged == 6, "each piece restarts the timeout of the connection"
    late = watched.events()
    assert (await following(late, 1))[0][0] == "trouble", "a new page gets it too"
    watched.store.failing = False
    [(name, _)] = await following(events, 1)
    assert name == "overview"


async def test_who_comes_while_the_database_is_away_is_told_and_looked_for_again(
    watched: Watched, autojump_clock: MockClock
) -> None:
    assert autojump_clock is not None
    watched.store.failing = True
    for _ in range(2):
        events = watched.events()
        assert (await following(events, 1))[0][0] == "trouble"
        await events.aclose()
        await trio.sleep(60)
    events = watched.events()
    await following(events, 1)
    watched.store.failing = False
    assert [name for name, _ in await following(events, 2)] == ["overview", "history"]


# ----------------------------------------------------------------------------------------------------------------- ends and bounds


async def test_a_node_that_stops_lets_every_page_go(watched: Watched, autojump_clock: MockClock) -> None:
    assert autojump_clock is not None
    events = watched.events()
    await following(events, 2)
    watched.overview.close()
    with pytest.raises(StopAsyncIteration):
        await anext(events)
    with watched.overview.watch(900) as late:
        assert late.closed
        assert await late.wait(1000)


async def test_a_page_that_may_not_look_any_more_is_let_go(watched: Watched, autojump_clock: MockClock) -> None:
    assert autojump_clock is not None
    left = 3

    def go_on() -> bool:
        nonlocal left
        left -= 1
        return left >= 0

    events = watched.events(go_on=go_on)
    await following(events, 3)
    with pytest.raises(StopAsyncIteration):
        await anext(events)
    assert watched.overview._ranges == {}


async def test_the_bound_on_pages(watched: Watched, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    assert autojump_clock is not None
    monkeypatch.setattr(overview, "MAX_PAGES", 2)
    await wait_all_tasks_blocked()
    with watched.overview.watch(900):
        with watched.overview.watch(3600), pytest.raises(TooManyWatchers), watched.overview.watch(900):
            pass
        with watched.overview.watch(900):
            pass


# ------------------------------------------------------------------------------------------------------------------ the real thing


@contextmanager
def open_page(service: Service, seconds: int = 900) -> Iterator[Iterator[Event]]:
    url = f"{service.url}/overview/events?seconds={seconds}"
    with httpx.stream("GET", url, timeout=60) as response:
        assert (response.status_code, response.headers["content-type"]) == (200, "text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        yield _events(response)


def _events(response: httpx.Response) -> Iterator[Event]:
    name = ""
    for line in response.iter_lines():
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)


def until(events: Iterator[Event], condition: Callable[[str, Any], bool]) -> Any:
    """Read up to the first event that matches."""
    return next(data for name, data in events if condition(name, data))


def total(history: Any, name: str) -> float:
    return float(sum(point[name] * history["step"] for point in history["points"]))


def test_two_nodes_have_one_history_and_a_restart_loses_nothing_of_it(bench: Bench) -> None:
    nodes = [bench.start("--queue", "default=4"), bench.start("--queue", "default=4")]
    for number in range(6):
        submit(nodes[number % 2], "fan-out", payload={"children": 0})
    bench.database.rows("SELECT jobqueue.submit('nobody''s', max_retries => 0)")
    bench.until(lambda: bench.database.states() == {"succeeded": 6, "dead": 1})
    for node in nodes:
        node.stop()
    # A node writes its counts when it stops. Jobs submitted in SQL enter the history when the next slot begins.
    counted = (
        "SELECT sum(completed)::integer, sum(dead)::integer, sum(failed)::integer FROM jobqueue_internal.history WHERE step = 10"
    )
    assert bench.database.rows(counted) == [(6, 1, 1)]
    front, other = bench.start("--no-workers"), bench.start("--no-workers")

    def known(history: Any) -> tuple[float, float]:
        return round(total(history, "submitted")), round(total(history, "completed"))

    def history(node: Service, seconds: int = 900) -> Any:
        return httpx.get(f"{node.url}/history?seconds={seconds}", timeout=60).raise_for_status().json()

    wait_for(lambda: known(history(front)) == (7, 6), "the history of the stopped nodes")
    mine, theirs = history(front), history(other)
    shown = {point["at"]: point for point in mine["points"]}
    assert all(shown.get(point["at"], point) == point for point in theirs["points"])
    assert any(point["run"] and point["wait"] for point in mine["points"])
    assert any(point["depth"] for point in mine["points"])
    with open_page(front) as events:
        assert known(until(events, lambda name, _: name == "history")) == (7, 6)
    assert httpx.get(f"{front.url}/history?seconds=86400", timeout=60).json()["step"] == 300
    refused = httpx.get(f"{front.url}/history?seconds=901", timeout=60)
    assert (refused.status_code, refused.json()["detail"]) == (400, "seconds must be 900, 3600, 21600 or 86400 seconds")


def test_a_page_is_told_what_goes_on_at_once_and_then_again(bench: Bench) -> None:
    node = bench.start()
    with open_page(node) as events, open_page(node, 3600) as others:
        state = until(events, lambda name, _: name == "overview")
        assert [one["id"] for one in state["nodes"]] == [state["node"]]
        job_id = submit(node, "sleep")
        bench.until_effect(job_id, "began")
        for stream in (events, others):
            later = until(stream, lambda name, data: name == "overview" and data["nodes"][0]["running"])
            assert later["now"] > state["now"]
            assert later["nodes"][0]["running"][0]["kind"] == "sleep"
    assert httpx.head(f"{node.url}/overview/events", timeout=60).status_code == 200


def test_a_row_that_cannot_be_read_is_told_and_ends_no_node(bench: Bench) -> None:
    node = bench.start()
    bench.database.rows(
        "INSERT INTO jobqueue_internal.nodes (id, host, pid, process, version, queues, lease_until, activity) VALUES"
        """ (jobqueue_internal.uuid7(), 'forged', 1, 'forged', '0', '{}', now() + interval '1 hour', '{"default": ["many", 0]}')"""
    )
    with open_page(node) as events:
        told = until(events, lambda name, _: name == "trouble")
        assert "many" in told["reasons"][0]
        bench.database.rows("DELETE FROM jobqueue_internal.nodes WHERE host = 'forged'")
        until(events, lambda name, _: name == "overview")
    assert httpx.get(f"{node.url}/health/ready", timeout=60).status_code == 200


def test_a_stop_ends_the_events_of_pages(bench: Bench) -> None:
    node = bench.start("--grace-period", "600")
    with open_page(node) as events:
        next(events)
        stopping = threading.Thread(target=node.stop)
        stopping.start()
        for _ in events:
            pass
    stopping.join(120)
    assert not stopping.is_alive(), "it did not wait for the grace period"
    assert "requests were cut off" not in node.log


def test_a_page_outlives_the_bound_of_a_request_and_too_many_are_refused(bench: Bench) -> None:
    node = bench.start(handlers="tests.handlers.hasty")
    with open_page(node) as first, open_page(node, 3600) as second:
        for events in (first, second):
            for _ in range(12):  # every half second
                until(events, lambda name, _: name == "overview")
        refused = httpx.get(f"{node.url}/overview/events", timeout=60)
        assert (refused.status_code, refused.json()["type"]) == (503, "urn:jobqueue:too-many-watchers")
        assert refused.headers["retry-after"] == "5"
    bench.until(lambda: httpx.head(f"{node.url}/overview/events", timeout=60).status_code == 200)


def test_pages_that_do_not_read_or_go_away_hold_up_nobody(bench: Bench) -> None:
    node = bench.start()
    host, port = node.url.removeprefix("http://").split(":")
    silent = []
    for _ in range(20):
        connection = socket.create_connection((host, int(port)))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(f"GET /overview/events HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        silent.append(connection)  # it never reads
    for _ in range(20):
        with open_page(node) as events:
            next(events)  # and goes away
    with open_page(node) as events:
        for _ in range(3):
            until(events, lambda name, _: name == "overview")
    for connection in silent:
        connection.close()
    assert httpx.get(f"{node.url}/health/ready", timeout=60).status_code == 200


def test_a_page_is_told_that_the_database_is_away_and_that_it_is_back(database_url: str, tmp_path: Path) -> None:
    parts = urlsplit(database_url)
    [directory] = parse_qs(parts.query)["host"]
    with proxy_in_thread(directory, PORT) as proxy:
        url = f"postgresql://{ROLE}@127.0.0.1:{proxy.port}{parts.path}"
        node = Service(["tests.handlers.running", "--port", "0", "--database-url", url], {"EFFECTS": str(tmp_path / "effects")})
        try:
            with open_page(node) as events:
                until(events, lambda name, _: name == "overview")
                proxy.refuse()
                proxy.cut()
                trouble = until(events, lambda name, _: name == "trouble")
                assert trouble["reasons"][0].startswith("the database is unavailable: ")
                proxy.heal()
                until(events, lambda name, _: name == "overview")
        finally:
            node.kill()


# -------------------------------------------------------------------------------------------------------------- without a service


async def test_without_a_service_there_is_the_history_and_the_overview_and_what_is_submitted_is_counted(database_url: str) -> None:
    async with open_driver(database_url):
        pass
    async with open_api(database_url) as api:
        transport = httpx.ASGITransport(api)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            assert (await client.post("/submit", json={"kind": "a"})).status_code == 201
            assert (await client.get("/history")).json() == {"step": 10, "points": []}
    database = Database(database_url)
    assert database.value("SELECT sum(submitted) FROM jobqueue_internal.history WHERE step = 10") == 1
    database.close()
