"""Follow a job over HTTP on any node: its events as a stream, and its end by a long poll."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import httpx
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from werkzeug.datastructures import MultiDict

from jobqueue.engine import job_watcher
from jobqueue.engine.job_watcher import JobWatcher
from jobqueue.engine.signals import Signals
from jobqueue.errors import InvalidQuery, TooManyWatchers
from jobqueue.http.api import queries
from jobqueue.http.resources import job_events as http_watch
from jobqueue.http.resources.jobs import WaitQuery
from jobqueue.storage.roles.inspect import Glance
from jobqueue.testing.memory_store import MemoryStore
from tests.support.running import Bench, cancel, submit
from tests.support.service import Service
from tests.support.storage import new_id

UNKNOWN = "0190a0b0-0000-7000-8000-00000000ffff"


class Event(NamedTuple):
    name: str
    id: str
    data: Any


class Stream:
    """The events of a job as they arrive."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.comments = 0
        self._lines = response.iter_lines()
        self.events = iter(self)

    def __iter__(self) -> Iterator[Event]:
        fields: dict[str, str] = {}
        for line in self._lines:
            if line.startswith(":"):
                self.comments += 1
            elif line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif fields:
                yield Event(fields["event"], fields["id"], json.loads(fields["data"]))
                fields = {}


@contextmanager
def following(service: Service, job_id: str, **headers: str) -> Iterator[Stream]:
    with httpx.stream("GET", f"{service.url}/jobs/{job_id}/events", headers=headers, timeout=60) as response:
        yield Stream(response)


def follow(service: Service, job_id: str) -> list[Event]:
    with following(service, job_id) as stream:
        return list(stream)


def start_now(service: Service, job_id: str) -> None:
    """Start a scheduled job."""
    httpx.patch(f"{service.url}/jobs/{job_id}", json={"delay": 0}, timeout=60).raise_for_status()


# -------------------------------------------------------------------------------------------------------------------- events


@pytest.mark.parametrize("elsewhere", [False, True], ids=["where it runs", "on another node"])
def test_an_event_stream_lasts_from_the_state_to_the_end_of_a_job(bench: Bench, elsewhere: bool) -> None:
    worker = bench.start()
    front = bench.start("--no-workers") if elsewhere else worker
    job_id = submit(front, "steps", payload={"steps": 4, "seconds": 2}, delay=3600)
    with following(front, job_id) as stream:
        assert stream.response.headers["content-type"] == "text/event-stream"
        assert stream.response.headers["cache-control"] == "no-store"
        events = [next(stream.events)]
        start_now(front, job_id)
        events += stream.events
    states = [event.data["state"] for event in events if event.name == "state"]
    assert states[0] == "scheduled"
    assert states[-2:] == ["inflight", "succeeded"]
    fractions = [event.data["fraction"] for event in events if event.name == "progress"]
    steps = [event.data for event in events if event.name == "checkpoint"]
    if elsewhere:  # the node sees the values that are written, once a second
        assert fractions == sorted(set(fractions))
        assert len(steps) >= 2
    else:
        assert fractions == [0, 0.25, 0.5, 0.75]
        assert steps == [0, 1, 2, 3]
    *before, end = events
    assert [event.id for event in before] == [str(number) for number in range(1, len(events))]
    assert (end.name, end.id) == ("end", "end")
    assert end.data == httpx.get(f"{front.url}/jobs/{job_id}", timeout=60).json()
    assert (end.data["result"], end.data["checkpoint"]) == ("walked", 3)


@pytest.mark.parametrize(("kind", "state"), [("fan-out", "dead"), ("sleep", "cancelled")])
def test_death_and_cancellation_end_the_event_stream(bench: Bench, kind: str, state: str) -> None:
    node = bench.start()
    job_id = submit(node, kind, payload={"fail": 2})
    if state == "cancelled":
        bench.until_effect(job_id, "began")
        threading.Timer(0.3, lambda: cancel(node, job_id)).start()
    events = follow(node, job_id)
    assert (events[-1].name, events[-1].data["state"]) == ("end", state)
    assert follow(node, job_id)[-1] == events[-1], "the stream of an ended job has the end at once"


def test_events_of_unknown_and_ended_jobs(bench: Bench) -> None:
    node = bench.start()
    assert httpx.get(f"{node.url}/jobs/{UNKNOWN}/events", timeout=60).status_code == 404
    assert httpx.get(f"{node.url}/jobs/x/events", timeout=60).status_code == 400
    job_id = submit(node, "fan-out", payload={"children": 0})
    assert httpx.head(f"{node.url}/jobs/{job_id}/events", timeout=60).status_code == 200
    again = httpx.get(f"{node.url}/jobs/{job_id}/events", headers={"Last-Event-ID": "end"}, timeout=60)
    assert (again.status_code, again.content) == (204, b""), "204 stops the reconnects of a browser"


def test_the_result_of_a_job_that_is_not_kept_is_known_only_where_it_ran(bench: Bench) -> None:
    worker, front = bench.start("--keep-finished", "0"), bench.start("--no-workers", "--keep-finished", "0")
    polled: dict[str, httpx.Response] = {}
    job_id = submit(front, "steps", payload={"steps": 2, "seconds": 5}, delay=3600)

    def poll(name: str, node: Service) -> None:
        polled[name] = httpx.get(f"{node.url}/jobs/{job_id}", params={"wait": 60}, timeout=90)

    threads = [threading.Thread(target=poll, args=(name, node)) for name, node in (("worker", worker), ("front", front))]
    for thread in threads:
        thread.start()
    with following(worker, job_id) as at_worker, following(front, job_id) as at_front:
        for stream in (at_worker, at_front):
            assert next(stream.events).data["state"] == "scheduled"
        start_now(front, job_id)
        worker_end, front_end = list(at_worker.events)[-1], list(at_front.events)[-1]
    for thread in threads:
        thread.join(90)
    assert (worker_end.name, worker_end.data["state"], worker_end.data["result"]) == ("end", "succeeded", "walked")
    assert front_end == Event("end", "end", {"id": job_id, "state": "gone"})
    assert (polled["worker"].status_code, polled["worker"].json()["result"]) == (200, "walked")
    assert polled["front"].status_code == 404


def test_a_stop_ends_event_streams_and_long_polls(bench: Bench) -> None:
    node = bench.start("--grace-period", "1")
    job_id = submit(node, "sleep")
    bench.until_effect(job_id, "began")
    waiting = http.client.HTTPConnection(node.url.removeprefix("http://"), timeout=60)
    waiting.request("GET", f"/jobs/{job_id}?wait=50")
    with following(node, job_id) as stream:
        events = iter(stream)
        assert next(events).name == "state"
        stopping = threading.Thread(target=node.stop)
        stopping.start()
        assert list(events) == [], "no end, because the job has not ended"
    answer = waiting.getresponse()
    assert (answer.status, json.loads(answer.read())["state"]) == (200, "inflight")
    waiting.close()
    stopping.join(60)
    assert "requests were cut off" not in node.log


def test_clients_that_disconnect_or_do_not_read_delay_nobody(bench: Bench) -> None:
    node = bench.start()
    host, port = node.url.removeprefix("http://").split(":")
    job_id = submit(node, "steps", payload={"steps": 100, "seconds": 0.05})
    silent = []
    for _ in range(20):
        connection = socket.create_connection((host, int(port)))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(f"GET /jobs/{job_id}/events HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        silent.append(connection)  # the client never reads
    for _ in range(20):
        with following(node, job_id) as stream:
            next(iter(stream))  # and disconnects
    began = time.monotonic()
    assert follow(node, job_id)[-1].data["state"] == "succeeded"
    assert time.monotonic() - began < 60
    for connection in silent:
        connection.close()
    assert httpx.get(f"{node.url}/health/ready", timeout=60).status_code == 200
    assert "watch" not in node.log


# ------------------------------------------------------------------------------------------------------------------ the long poll


@pytest.mark.parametrize("elsewhere", [False, True], ids=["where it runs", "on another node"])
def test_a_long_poll_returns_when_the_job_ends(bench: Bench, elsewhere: bool) -> None:
    worker = bench.start()
    front = bench.start("--no-workers") if elsewhere else worker
    began = time.monotonic()
    job_id = submit(front, "steps", payload={"steps": 2, "seconds": 0.7})
    answer = httpx.get(f"{front.url}/jobs/{job_id}", params={"wait": 60}, timeout=90)
    assert (answer.status_code, answer.json()["state"], answer.json()["result"]) == (200, "succeeded", "walked")
    assert 1.4 <= time.monotonic() - began < 50
    began = time.monotonic()
    assert httpx.get(f"{front.url}/jobs/{job_id}?wait=60", timeout=90).json()["state"] == "succeeded"
    assert time.monotonic() - began < 50, "the job has ended"


def test_the_bounds_of_wait() -> None:
    assert queries.read(MultiDict({"wait": f"{http_watch.MAX_WAIT}"}), WaitQuery).wait == http_watch.MAX_WAIT
    with pytest.raises(InvalidQuery, match="wait must be a number of seconds from 0 to 60") as refused:
        queries.read(MultiDict({"wait": f"{http_watch.MAX_WAIT + 0.1}"}), WaitQuery)
    assert refused.value.field == "wait"


def test_a_long_poll_returns_the_current_state_after_its_time(bench: Bench) -> None:
    node = bench.start()
    job_id = submit(node, "sleep")
    bench.until_effect(job_id, "began")
    began = time.monotonic()
    assert httpx.get(f"{node.url}/jobs/{job_id}?wait=0.5", timeout=60).json()["state"] == "inflight"
    assert time.monotonic() - began >= 0.5
    assert httpx.get(f"{node.url}/jobs/{UNKNOWN}?wait=5", timeout=60).status_code == 404
    for wrong in ("61", "-1", "soon", "nan", "inf", ""):
        refused = httpx.get(f"{node.url}/jobs/{job_id}", params={"wait": wrong}, timeout=60)
        assert (refused.status_code, refused.json()["detail"]) == (400, "wait must be a number of seconds from 0 to 60")


# -------------------------------------------------------------------------------------------------------------------- the watcher


class Looked(MemoryStore):
    """A store that returns the states that a test sets, and records the queries."""

    def __init__(self) -> None:
        super().__init__(trio.current_time)
        self.jobs: dict[str, Glance] = {}
        self.looks: list[set[str]] = []

    async def look(self, job_ids: Any) -> dict[str, Glance]:
        self.looks.append(set(job_ids))
        await trio.lowlevel.checkpoint()
        return {job_id: self.jobs[job_id] for job_id in job_ids if job_id in self.jobs}


async def test_one_query_covers_all_watched_jobs_and_without_watchers_there_is_none(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    assert autojump_clock is not None
    store = Looked()
    watcher = JobWatcher(store, Signals(), keep_finished=True)
    await nursery.start(watcher.run)
    await trio.sleep(60)
    assert store.looks == []
    ids = [new_id() for _ in range(5)]
    store.jobs = dict.fromkeys(ids, Glance("inflight", 1, 1, None))
    with watcher.watch(ids[0]) as first, watcher.watch(ids[0]), watcher.watch(ids[1]):
        await trio.sleep(10)
        assert first.view is not None
        assert first.view.state == "inflight"
        assert 15 <= len(store.looks) <= 25
        assert store.looks[-1] == set(ids[:2])
    store.looks.clear()
    await trio.sleep(60)
    assert len(store.looks) <= 1
    nursery.cancel_scope.cancel()


async def test_a_job_is_gone_when_two_looks_in_a_row_do_not_find_it(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    assert autojump_clock is not None
    store = Looked()
    watcher = JobWatcher(store, Signals(), keep_finished=True)
    await nursery.start(watcher.run)
    with watcher.watch(job_id := new_id()) as watch:
        await trio.sleep(0.3)
        assert watch.view is None
        store.jobs[job_id] = Glance("pending", 0, 0, None)
        assert await watch.wait(5)
        assert watch.view is not None
        del store.jobs[job_id]
        assert await watch.wait(5)
        assert watch.view.state == "gone"
    nursery.cancel_scope.cancel()


async def test_the_bound_on_watchers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_watcher, "MAX_WATCHERS", 2)
    watcher = JobWatcher(Looked(), Signals(), keep_finished=True)
    with watcher.watch(UNKNOWN):
        with watcher.watch(UNKNOWN), pytest.raises(TooManyWatchers), watcher.watch(new_id()):
            pass
        with watcher.watch(new_id()):
            pass


async def test_watchers_are_woken_when_the_node_stops(nursery: trio.Nursery) -> None:
    watcher = JobWatcher(Looked(), Signals(), keep_finished=True)
    woken: list[bool] = []

    async def wait() -> None:
        with watcher.watch(UNKNOWN) as watch:
            woken.append(await watch.wait(1000))

    nursery.start_soon(wait)
    await wait_all_tasks_blocked()
    watcher.close()
    with trio.fail_after(60):
        while not woken:  # noqa: ASYNC110 - the watcher is woken
            await trio.sleep(0.01)
    with watcher.watch(UNKNOWN) as late:
        assert late.closed
        assert await late.wait(1000)


async def test_an_idle_event_stream_gets_comments(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    assert autojump_clock is not None
    store = Looked()
    store.jobs[UNKNOWN] = Glance("inflight", 1, 1, None)
    watcher = JobWatcher(store, Signals(), keep_finished=True)
    await nursery.start(watcher.run)

    prolonged: list[float] = []
    began = trio.current_time()

    def go_on() -> bool:
        prolonged.append(trio.current_time() - began)
        return len(prolonged) <= 21

    stream = http_watch.events(SimpleNamespace(watcher=watcher), UNKNOWN, go_on)
    assert b"event: state\nid: 1\ndata: {" in await anext(stream)
    assert [await anext(stream) for _ in range(20)] == [b": still here\n\n"] * 20
    assert prolonged[-1] == pytest.approx(20 * http_watch.KEEP_ALIVE, abs=2)
    assert len(prolonged) == 21, "each piece extends the timeout of the connection"
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    nursery.cancel_scope.cancel()


def test_an_event_stream_outlives_the_request_timeout(bench: Bench) -> None:
    """The timeout of this service is short, because the default is two minutes."""
    node = bench.start(handlers="tests.handlers.short_requests")
    job_id = submit(node, "steps", payload={"steps": 8, "seconds": 2})
    host, port = node.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    connection.request("GET", f"/jobs/{job_id}/events")
    assert b"event: end" in connection.getresponse().read()
    connection.close()


def test_watchers_over_the_limit_are_rejected_until_another_one_leaves(bench: Bench) -> None:
    node = bench.start(handlers="tests.handlers.short_requests")
    job_id = submit(node, "sleep")
    with following(node, job_id) as first:
        assert next(iter(first)).name == "state"
        with following(node, job_id) as second:
            assert next(iter(second)).name == "state"
            for path in ("/events", "?wait=5"):
                refused = httpx.get(f"{node.url}/jobs/{job_id}{path}", timeout=60)
                assert (refused.status_code, refused.json()["type"]) == (503, "urn:jobqueue:too-many-watchers")
                assert refused.headers["retry-after"] == "5"
            assert httpx.get(f"{node.url}/jobs/{job_id}", timeout=60).status_code == 200
        bench.until(lambda: httpx.get(f"{node.url}/jobs/{job_id}?wait=0.01", timeout=60).status_code == 200)
