"""The clients on Trio, on asyncio, and without an event loop, against real services and through network failures."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import httpx
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jobqueue
from jobqueue import Client, InvalidJob, JobQueueError, SyncClient, UnprocessableJob
from jobqueue.client import JobCancelled, JobFailed, JobNotFound, NotFound, RequestRefused, Unreachable
from jobqueue.client.batches import MAX_CHUNK_BYTES, cut
from jobqueue.client.event_stream import EventStream
from jobqueue.client.retries import HARMLESS, LONGEST_BACKOFF, ask
from jobqueue.client.transports import run
from tests.support import ROOT, postgres
from tests.support.clients import FORMS, opener
from tests.support.interference import CUT, LOSE, Answer, Interference, interfering
from tests.support.postgres import Database, ServerPool
from tests.support.running import HANDLERS, Bench, free_port
from tests.support.service import Service

pytestmark = pytest.mark.slow

NOBODY = "0190a0b0-0000-7000-8000-00000000ffff"
TOKEN = "secret"

Open = Callable[..., Any]


class Node:
    """A service that several tests share, and its database."""

    def __init__(self, service: Service, database: Database) -> None:
        self.url = service.url
        self.database = database

    def count(self, tag: str) -> int:
        """Count the jobs whose payload has a tag."""
        return int(self.database.value("SELECT count(*) FROM jobqueue.jobs WHERE payload->>'tag' = %s", tag))


@pytest.fixture(scope="module")
def node(servers: ServerPool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    effects = tmp_path_factory.mktemp("node") / "effects"
    with postgres.database(servers.url("embedded")) as url:
        service = Service([HANDLERS, "--port", "0", "--database-url", url, "--token", f"admin:{TOKEN}"], {"EFFECTS": str(effects)})
        database = Database(url)
        yield Node(service, database)
        database.close()
        service.kill()


@pytest.fixture
def bad_day(node: Node) -> Iterator[Interference]:
    with interfering(node.url) as interference:
        yield interference


@pytest.fixture(params=FORMS)
def opened(request: pytest.FixtureRequest) -> Iterator[Open]:
    """Open clients of each form. The test calls all of them synchronously."""
    with ExitStack() as stack:
        yield opener(request.param, stack)


@pytest.fixture
def client(opened: Open, node: Node) -> Any:
    return opened(node.url, TOKEN)


@pytest.fixture
def tag(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


def numbered(tag: str, count: int) -> Iterator[dict[str, Any]]:
    """Yield jobs that do not start during the test."""
    return ({"kind": "steps", "payload": {"tag": tag, "n": n}, "delay": 3600} for n in range(count))


# ------------------------------------------------------------------------------------------------------------------ the two classes


def public(cls: type) -> dict[str, Callable[..., Any]]:
    return dict(inspect.getmembers(cls, lambda member: inspect.isfunction(member) and not member.__name__.startswith("_")))


def test_both_classes_have_the_same_methods_with_the_same_signatures_and_docs() -> None:
    methods, blocking = public(Client), public(SyncClient)
    assert methods.keys() == blocking.keys() >= {"submit", "submit_many", "job", "result", "cancel"}
    for name, method in methods.items():
        assert inspect.signature(method) == inspect.signature(blocking[name]), name
        assert inspect.getdoc(method) == inspect.getdoc(blocking[name]), name
        assert inspect.getdoc(method), name
        assert not inspect.iscoroutinefunction(blocking[name]), name
    assert list(inspect.signature(Client).parameters) == list(inspect.signature(SyncClient).parameters)


def test_a_blocking_call_may_wait_for_its_wire_alone() -> None:
    class Suspended:
        def __await__(self) -> Iterator[None]:
            yield

    async def waits() -> None:
        await Suspended()

    with pytest.raises(RuntimeError, match="waits for something other than its transport"):
        run(waits())


def test_importing_the_package_does_not_import_the_dependencies_of_the_clients() -> None:
    assert python("import sys, jobqueue; sys.exit('anyio' in sys.modules or 'httpx' in sys.modules)").returncode == 0
    assert jobqueue.Client is Client
    with pytest.raises(AttributeError, match="has no attribute 'Customer'"):
        jobqueue.Customer  # noqa: B018


@pytest.mark.parametrize(
    "error",
    [
        RequestRefused(400, {"detail": "no", "field": "kind", "index": 3}),
        JobNotFound(404, {}),
        Unreachable("no answer", in_doubt=True),
        JobCancelled({"id": NOBODY}),
        JobFailed({"id": NOBODY, "reason": "expired", "errors": [{"attempt": 1}]}),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_can_be_pickled(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ, check=False, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("127.0.0.1:8080",), "needs http or https and a host"),
        (("ftp://127.0.0.1",), "needs http or https and a host"),
        (("http://",), "needs http or https and a host"),
        (("http://[::1",), "is not valid"),
        (("http://127.0.0.1:8080", "line\n"), "printable ASCII"),
        (("http://127.0.0.1:8080", ""), "not empty"),
    ],
)
def test_invalid_urls_and_tokens_are_rejected_at_once(arguments: tuple[str, ...], reason: str) -> None:
    for cls in (Client, SyncClient):
        with pytest.raises(ValueError, match=reason):
            cls(*arguments)


# ------------------------------------------------------------------------------------------------------------------------ good days


def test_submit_look_wait_and_cancel(client: Any) -> None:
    job_id = client.submit("steps", {"steps": 2, "seconds": 0.1}, priority=7)
    assert client.job(job_id)["priority"] == 7
    assert client.result(job_id, timeout=60) == "walked"

    dead = client.submit("fan-out", {"fail": 3})
    with pytest.raises(JobFailed, match=r"is dead: attempt 1 of 1 failed: 3 errors") as failed:
        client.result(dead, timeout=60)
    assert failed.value.reason.startswith("attempt 1 of 1 failed")
    assert "ValueError: child 1" in failed.value.errors[0]["traceback"]
    assert failed.value.job["id"] == dead

    slow = client.submit("sleep")
    with pytest.raises(TimeoutError, match=r"has not ended within 0\.3 s"):
        client.result(slow, timeout=0.3)
    with pytest.raises(TimeoutError):
        client.result(slow, timeout=0)
    assert client.cancel(slow)["state"] in ("inflight", "cancelled")
    with pytest.raises(JobCancelled, match="was cancelled"):
        client.result(slow)
    with pytest.raises(RequestRefused, match="409") as refused:
        client.cancel(slow)
    assert refused.value.status == 409


def test_rejections_have_a_reason(client: Any, opened: Open, node: Node) -> None:
    with pytest.raises(RequestRefused, match=r"^400: priority must be an integer") as refused:
        client.submit("steps", priority=-1)
    assert (refused.value.field, refused.value.index) == ("priority", None)
    with pytest.raises(JobNotFound):
        client.result(NOBODY, timeout=60)
    with pytest.raises(JobNotFound):
        list(client.events(NOBODY))
    with pytest.raises(NotFound, match=r"schedule .* not found") as missing:
        client.schedule("no such schedule")
    assert not isinstance(missing.value, JobNotFound)
    with pytest.raises(RequestRefused, match="401"):
        opened(node.url, "wrong").result(NOBODY, timeout=60)


def test_values_without_a_json_form_are_rejected_before_they_are_sent(client: Any, node: Node, tag: str) -> None:
    with pytest.raises(UnprocessableJob, match="payload cannot be sent") as refused:
        client.submit("steps", {"tag": tag, "n": float("nan")})
    assert refused.value.field == "payload"
    with pytest.raises(UnprocessableJob) as refused:
        client.submit_many([*numbered(tag, 3), {"payload": {"tag": tag, "text": "\0"}}], chunk=2)
    assert refused.value.index == 3
    assert node.count(tag) == 2  # the first chunk
    with pytest.raises(InvalidJob, match="a job cannot be sent"):
        client.submit("steps", delay=float("inf"))
    with pytest.raises(InvalidJob, match="must be a mapping") as invalid:
        client.submit_many([["steps"]])
    assert invalid.value.index == 0
    with pytest.raises(ValueError, match="chunk must be from 1"):
        client.submit_many([{}], chunk=0)


def test_many_jobs_are_submitted_in_chunks_and_in_order(client: Any, node: Node, tag: str) -> None:
    ids = client.submit_many(numbered(tag, 2_345))
    known = dict(node.database.rows("SELECT id::text, payload->'n' FROM jobqueue.jobs WHERE payload->>'tag' = %s", tag))
    assert [known[job_id] for job_id in ids] == list(range(2_345))
    assert client.submit_many([]) == []

    jobs = [{**job, "idempotency_key": f"{tag}-{n}", "colour": "red"} for n, job in enumerate(numbered(tag, 5))]
    first = list(client.submit_chunks(jobs, chunk=2))
    assert [len(chunk.ids) for chunk in first] == [2, 2, 1]
    assert first[0].existing == []
    assert first[0].ignored == ["colour"]
    again = list(client.submit_chunks(jobs[1:], chunk=3))
    assert [chunk.existing for chunk in again] == [[0, 1, 2], [0]]
    assert [job_id for chunk in again for job_id in chunk.ids] == [job_id for chunk in first for job_id in chunk.ids][1:]


def test_the_error_for_a_bad_job_has_its_index_among_all_jobs(client: Any, node: Node, tag: str) -> None:
    jobs = list(numbered(tag, 1_500))
    jobs[1_203] |= {"priority": -1}
    with pytest.raises(RequestRefused, match=r"^400: job 1203: priority must be") as refused:
        client.submit_many(jobs, chunk=500)
    assert (refused.value.index, refused.value.field) == (1_203, "priority")
    assert node.count(tag) == 1_000


def test_dead_letters_are_listed_run_again_and_deleted(client: Any, tag: str) -> None:
    ids = client.submit_many({"kind": "fan-out", "payload": {"fail": 3}, "group": tag[:200]} for _ in range(5))
    for job_id in ids:
        with pytest.raises(JobFailed):
            client.result(job_id, timeout=60)
    pages = list(client.dead(limit=2, group=tag))
    assert [len(page["jobs"]) for page in pages] == [2, 2, 1]
    assert {job["id"] for page in pages for job in page["jobs"]} == set(ids)
    rest = next(client.dead(limit=10, group=tag, after=pages[0]["next"]))
    assert [job["id"] for job in rest["jobs"]] == [job["id"] for page in pages[1:] for job in page["jobs"]]

    [cause] = {job["cause"] for page in pages for job in page["jobs"]}
    grouped = client.dead_causes(kind="fan-out", limit=1_000)
    assert not grouped["more"]
    assert next(group["jobs"] for group in grouped["causes"] if group["cause"] == cause) >= 5
    assert client.retry_dead(dry_run=True, group=tag, cause=cause) == 5

    assert client.retry(ids[0])["id"] == ids[0]
    with pytest.raises(JobFailed):
        client.result(ids[0], timeout=60)
    assert client.discard(ids[0])["state"] == "discarded"
    assert client.retry_dead(dry_run=True, group=tag) == client.discard_dead(dry_run=True, group=tag) == 4
    assert client.retry_dead(group=tag, reason="attempt 1 of 1") == 4
    for job_id in ids[1:]:
        with pytest.raises(JobFailed):
            client.result(job_id, timeout=60)
    assert client.discard_dead(group=tag) == 4
    with pytest.raises(RequestRefused) as refused:
        client.discard_dead()
    assert refused.value.field == "all"


def test_jobs_are_listed_changed_and_cancelled_by_filter(client: Any, tag: str) -> None:
    ids = client.submit_many(({**job, "group": tag} for job in numbered(tag, 5)), chunk=3)
    # A page may be short without being the last one.
    assert [job["id"] for page in client.jobs(limit=2, group=tag) for job in page["jobs"]] == ids[::-1]
    first = next(page for page in client.jobs(limit=2, group=tag) if page["jobs"])
    rest = [job["id"] for page in client.jobs(group=tag, after=first["next"]) for job in page["jobs"]]
    assert rest == ids[::-1][len(first["jobs"]) :]
    created = datetime.now(UTC) - timedelta(days=1)
    states = ["scheduled", "pending"]
    assert sum(len(page["jobs"]) for page in client.jobs(group=tag, state=states, kind="steps", created_after=created)) == 5
    assert sum(len(page["jobs"]) for page in client.jobs(group=tag, created_before=created)) == 0

    assert client.update(ids[0], priority=9, delay=0)["priority"] == 9
    assert client.result(ids[0], timeout=60) == "walked"
    with pytest.raises(RequestRefused, match="409"):
        client.update(ids[0], priority=1)
    with pytest.raises(JobNotFound):
        client.update(NOBODY, run_at=datetime.now(UTC))

    assert client.cancel_jobs(dry_run=True, group=tag, state=states, created_after=created) == 4
    assert client.job(ids[1])["state"] == "scheduled"
    assert client.cancel_jobs(group=tag, state="scheduled") == 4
    assert client.job(ids[1])["state"] == "cancelled"
    with pytest.raises(RequestRefused) as refused:
        client.cancel_jobs(colour="red")
    assert refused.value.field == "colour"


def test_queues_nodes_and_schedules_are_operated(client: Any, tag: str) -> None:
    name = f"a queue/{tag}?"
    assert client.configure(name, max_running=3, rate=2.5)["max_running"] == 3
    assert client.configure(name, rate=None)["rate"] is None
    client.pause(name)
    assert next(queue for queue in client.queues() if queue["name"] == name)["paused"] is True
    client.resume(name)
    assert client.queue(name)["paused"] is False
    with pytest.raises(NotFound):
        client.queue("no such queue")
    assert [set(running["queues"]) for running in client.nodes()] == [{"default"}]

    assert client.put_schedule(name, "0 8 * * MON", kind="steps", payload={"steps": 0})["cron"] == "0 8 * * MON"
    assert client.pause_schedule(name)["paused"] is True
    assert client.resume_schedule(name)["paused"] is False
    assert client.result(client.trigger_schedule(name), timeout=60) == "walked"
    assert name in [schedule["name"] for schedule in client.schedules()]
    assert client.unschedule(name)["name"] == name
    with pytest.raises(NotFound):
        client.schedule(name)


def test_request_sends_any_request(client: Any) -> None:
    assert client.request("GET", "/health") == {"status": "ok"}
    assert "jobqueue_schema_version" in client.request("GET", "/metrics")
    assert client.request("HEAD", "/health") is None
    assert set(client.request("GET", "/dead", params={"limit": 1, "after": None})) == {"jobs", "next"}
    with pytest.raises(RequestRefused, match="405"):
        client.request("DELETE", "/nodes")


def test_tasks_and_threads_can_share_a_client(client: Any, node: Node, tag: str) -> None:
    with ThreadPoolExecutor(20) as threads:
        ids = list(threads.map(lambda job: client.submit(**job), numbered(tag, 100)))
    assert len(set(ids)) == node.count(tag) == 100


def test_a_job_is_followed_to_its_end(client: Any) -> None:
    events = list(client.events(client.submit("steps", {"steps": 2, "seconds": 0.6})))
    assert {event.name for event in events} == {"state", "progress", "checkpoint", "end"}
    assert events[-1].name == "end"
    assert events[-1].data["result"] == "walked"


SEPARATORS = "".join(map(chr, [0x0A, 0x0B, 0x0C, 0x0D, 0x1C, 0x1D, 0x1E, 0x85, 0x2028, 0x2029, 0xFEFF, 0x1F600]))
"""Every character at which `str.splitlines` splits, and two that are often mishandled."""


def test_events_may_contain_any_line_separator(client: Any, tag: str) -> None:
    payload = {"tag": tag, "text": SEPARATORS}
    job_id = client.submit("steps", payload, delay=3600)
    client.cancel(job_id)
    assert [event.data["payload"] for event in client.events(job_id) if event.name == "end"] == [payload]


@given(
    data=st.lists(st.text(st.sampled_from(f"a :{SEPARATORS}") | st.characters(exclude_categories=["Cs"]), max_size=10), min_size=1),
    line_end=st.sampled_from(["\n", "\r", "\r\n"]),
    cuts=st.sets(st.integers(0, 400)),
    bom=st.booleans(),
)
def test_an_event_stream_is_parsed_independently_of_its_chunks(data: list[str], line_end: str, cuts: set[int], bom: bool) -> None:
    lines: list[str] = []
    for number, text in enumerate(data):
        lines += [": a comment", f"id: {number}", f"event:{number}", f"data: {json.dumps(text, ensure_ascii=False)}", "data:  ", ""]
    sent = ("\ufeff" * bom + line_end.join([*lines, "event: cut", "data: off"])).encode()
    stream = EventStream()
    got = [event for start, stop in pairwise(sorted({0, len(sent), *cuts})) for event in stream.feed(sent[start:stop])]
    assert got == [(str(number), json.dumps(text, ensure_ascii=False) + "\n ") for number, text in enumerate(data)]


def test_an_event_is_complete_with_the_last_byte_of_its_blank_line() -> None:
    stream = EventStream()
    assert list(stream.feed(b"event: a\r\ndata: 1\r\n")) == []
    assert list(stream.feed(b"\r")) == [("a", "1")]
    assert list(stream.feed(b"\ndata: 2\n\n\n\n")) == [("", "2")]


# ------------------------------------------------------------------------------------------------------------------------- bad days


def test_other_responses_than_event_streams_are_rejected(opened: Open, bad_day: Interference) -> None:
    client = opened(bad_day.url, TOKEN)
    for answer, words in (
        (Answer(200, {"Content-Type": "text/html"}, "<p>Welcome!</p>"), "check that the URL is a jobqueue service"),
        (Answer(200, {"Content-Type": "application/json"}, "{}"), "is not an event stream"),
    ):
        bad_day.mishaps = [answer]
        with pytest.raises(RequestRefused, match=words):
            list(client.events(NOBODY))


def test_a_client_reconnects_to_a_truncated_event_stream(opened: Open, bad_day: Interference, node: Node, tag: str) -> None:
    job_id = opened(node.url, TOKEN).submit("steps", {"tag": tag}, delay=3600)
    opened(node.url, TOKEN).cancel(job_id)
    bad_day.mishaps = [Answer(200, {"Content-Type": "text/event-stream"}, 'event: state\ndata: {"state"')]
    assert [event.name for event in opened(bad_day.url, TOKEN).events(job_id)][-1] == "end"
    assert len(bad_day.passed) == 2


def test_network_failures_neither_lose_nor_duplicate_jobs_of_a_batch(
    opened: Open, bad_day: Interference, node: Node, tag: str
) -> None:
    now = {"Retry-After": "0"}
    bad_day.mishaps = [LOSE, LOSE, CUT, Answer(503), Answer(503, now), Answer(429, now), Answer(502), "passes", CUT, LOSE]
    ids = opened(bad_day.url, TOKEN).submit_many(numbered(tag, 250), chunk=100)
    assert len(bad_day.passed) == 12
    assert not bad_day.mishaps
    known = dict(node.database.rows("SELECT id::text, payload->'n' FROM jobqueue.jobs WHERE payload->>'tag' = %s", tag))
    assert [known[job_id] for job_id in ids] == list(range(250))
    assert len(known) == 250


def test_network_failures_do_not_duplicate_a_job(opened: Open, bad_day: Interference, node: Node, tag: str) -> None:
    bad_day.mishaps = [LOSE, Answer(504), CUT]
    job_id = opened(bad_day.url, TOKEN).submit("steps", {"tag": tag}, delay=3600)
    assert node.count(tag) == 1
    bodies = [json.loads(passage.body) for passage in bad_day.passed]
    assert bodies == [bodies[0]] * 4
    assert node.database.value("SELECT options->>'idempotency_key' FROM jobqueue.jobs WHERE id = %s", job_id)


def test_requests_without_keys_are_not_retried_in_doubt(opened: Open, bad_day: Interference, node: Node, tag: str) -> None:
    client = opened(bad_day.url, TOKEN)
    bad_day.mishaps = [Answer(503, {"Retry-After": "0"}), LOSE]
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1.*\(the service may have processed the request\)") as lost:
        client.submit("steps", {"tag": tag}, delay=3600, idempotency_key=None)
    assert lost.value.in_doubt
    assert isinstance(lost.value.__cause__, httpx.RemoteProtocolError)
    assert (len(bad_day.passed), node.count(tag)) == (2, 1)
    bad_day.mishaps = [Answer(503)]
    with pytest.raises(RequestRefused, match="503"):
        client.submit_many([*numbered(tag, 2), {"kind": "steps", "idempotencyKey": None}])
    bad_day.mishaps = [CUT]
    with pytest.raises(Unreachable):
        client.cancel(NOBODY)
    bad_day.mishaps = [CUT, CUT]
    assert client.nodes()  # reads are retried


def test_a_client_waits_for_the_time_in_retry_after(opened: Open, bad_day: Interference) -> None:
    client = opened(bad_day.url, TOKEN, patience=600)
    bad_day.mishaps = [Answer(429, {"Retry-After": "1"}), Answer(503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})]
    client.pause("a queue")
    first, second, third = (passage.at for passage in bad_day.passed)
    assert second - first >= 1
    assert third - second < 60
    bad_day.mishaps = [Answer(429, {"Retry-After": "3600"})]
    began = time.monotonic()
    with pytest.raises(RequestRefused, match="429"):
        client.pause("a queue")
    assert time.monotonic() - began < 60  # more than its patience: the client does not wait
    assert len(bad_day.passed) == 4


def test_a_client_gives_up_after_its_patience(opened: Open, bad_day: Interference) -> None:
    client = opened(bad_day.url, TOKEN, patience=1)
    bad_day.mishaps = [Answer(503)] * 1000
    with pytest.raises(RequestRefused, match="503: a mishap"):
        client.nodes()
    assert 1 <= len(bad_day.passed) <= 20


class UnavailableWire:
    """A service that always returns 503, in virtual time."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.requests = 0

    def now(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        self.seconds += seconds

    async def send(self, _request: httpx.Request) -> httpx.Response:
        self.requests += 1
        return httpx.Response(503)


async def test_a_request_is_retried_with_backoff_for_the_time_of_the_patience() -> None:
    wire: Any = UnavailableWire()
    assert (await ask(wire, httpx.Request("GET", "http://test"), 10, HARMLESS)).status_code == 503
    assert 10 - LONGEST_BACKOFF <= wire.seconds <= 10
    assert 10 <= wire.requests <= 20


def test_a_client_waits_for_an_unreachable_service_and_then_gives_up(opened: Open, bench: Bench) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    impatient = opened(url, patience=0)
    with pytest.raises(Unreachable, match=rf"^no response from {url}: ") as unreachable:
        impatient.submit("steps")
    assert isinstance(unreachable.value, JobQueueError)
    assert not unreachable.value.in_doubt
    with pytest.raises(TimeoutError):
        impatient.result(NOBODY, timeout=0.5)
    with starting_soon(bench, port):
        client = opened(url, patience=300)
        assert client.cancel(client.submit("steps", delay=3600))["state"] == "cancelled"


@contextmanager
def starting_soon(bench: Bench, port: str) -> Iterator[None]:
    """Start a service in another thread during the block. The thread waits, because the service ends with its thread."""
    over = threading.Event()

    def start() -> None:
        bench.start_on(port)
        over.wait(600)

    thread = threading.Thread(target=start)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(60)


def test_a_client_waits_for_an_unfinished_transaction_with_its_key(
    opened: Open, bad_day: Interference, node: Node, tag: str
) -> None:
    payload = {"tag": tag, "steps": 0}
    with psycopg.connect(node.database.url) as other:

        def on_status(status: int) -> None:
            if status == 409:
                other.commit()

        bad_day.on_status = on_status
        submit = "SELECT jobqueue.submit('steps', %s, idempotency_key => %s)::text"
        theirs = other.execute(submit, (json.dumps(payload), tag)).fetchone()
        assert theirs == (opened(bad_day.url, TOKEN).submit("steps", payload, idempotency_key=tag),)
    assert [passage.status for passage in bad_day.passed] == [409, 200]


def test_responses_of_other_services_are_rejected(opened: Open, bad_day: Interference) -> None:
    client = opened(bad_day.url)
    bad_day.mishaps = [Answer(200, {"Content-Type": "text/html"}, "<p>Welcome!</p>"), Answer(404, {}, "<p>Sorry!</p>")]
    for _ in range(2):
        with pytest.raises(RequestRefused, match=r"^\d+: the response is not JSON: check that the URL is a jobqueue service"):
            client.nodes()


def test_chunks_are_limited_in_bytes_and_are_read_lazily() -> None:
    taken = 0

    def jobs() -> Iterator[dict[str, Any]]:
        nonlocal taken
        for size in [900_000] * 20 + [10] * 20:
            taken += 1
            yield {"payload": "x" * size}

    chunks = cut(jobs(), 20)
    first = next(chunks)
    assert first.body.count(b"\n") + 1 == MAX_CHUNK_BYTES // 900_100
    assert taken == MAX_CHUNK_BYTES // 900_100 + 1
    others = list(chunks)
    assert sum(chunk.body.count(b"\n") + 1 for chunk in others) == 40 - first.body.count(b"\n") - 1
    assert all(len(chunk.body) <= MAX_CHUNK_BYTES for chunk in others)

    taken = 0
    assert next(cut(jobs(), 3)).body.count(b"\n") == 2
    assert taken == 3  # a full chunk does not wait for the next job


# ------------------------------------------------------------------------------------------------------------------------- restarts


@pytest.mark.parametrize(("ask", "end"), [("result", "stop"), ("result", "kill"), ("events", "kill")])
def test_a_client_waits_for_a_job_across_a_restart(bench: Bench, opened: Open, ask: str, end: str) -> None:
    port = free_port()
    node = bench.start_on(port, "--grace-period", "0.1")
    client = opened(f"http://127.0.0.1:{port}", patience=300)
    job_id = client.submit("pages", {"hold_at": 2}, max_retries=5)
    bench.until_effect(job_id, "holds")

    def restart() -> None:
        time.sleep(0.3)  # time for the client to start to wait; the result is the same if it starts later
        getattr(node, end)()
        bench.database.rows(
            "UPDATE jobqueue_internal.pending_jobs SET attempt = 1 WHERE id = %s", job_id
        )  # so that the job does not block again
        bench.start_on(port)
        over.wait(600)  # the service ends with the thread that started it

    over = threading.Event()
    restarting = threading.Thread(target=restart)
    restarting.start()
    try:
        result = client.result(job_id, timeout=300) if ask == "result" else list(client.events(job_id))[-1].data["result"]
    finally:
        over.set()
        restarting.join(60)
    assert result[-1] == 4
