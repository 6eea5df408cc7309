"""The clients, on Trio, on asyncio and without a loop, against real services, on good days and on bad ones."""

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
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jobqueue
from jobqueue import Client, InvalidJob, JobQueueError, SyncClient, UnprocessableJob
from jobqueue.client import JobCancelled, JobFailed, JobNotFound, NotFound, RequestRefused, Unreachable
from jobqueue.client.chunks import MAX_CHUNK_BYTES, cut
from jobqueue.client.event_stream import EventStream
from jobqueue.client.wires import run
from tests import postgres
from tests.clients import FORMS, opener
from tests.conftest import ROOT, Database, ServerPool, Service
from tests.interference import CUT, LOSE, Answer, Interference, interfering
from tests.running import HANDLERS, Bench, free_port

NOBODY = "0190a0b0-0000-7000-8000-00000000ffff"
TOKEN = "secret"

Open = Callable[..., Any]


class Node:
    """A service that several tests use, and its database."""

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
    """Open clients of each form, all used as if they blocked."""
    with ExitStack() as stack:
        yield opener(request.param, stack)


@pytest.fixture
def client(opened: Open, node: Node) -> Any:
    return opened(node.url, TOKEN)


@pytest.fixture
def bench(service: Callable[..., Service], database: Database, tmp_path: Path) -> Iterator[Bench]:
    opened = Bench(service, database, tmp_path / "effects")
    yield opened
    for node in opened.on_ports:
        node.kill()


@pytest.fixture
def tag(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


def numbered(tag: str, count: int) -> Iterator[dict[str, Any]]:
    """Make jobs that will not run while the test does."""
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


def test_a_call_without_a_loop_that_waits_for_anything_else_is_refused() -> None:
    class Suspended:
        def __await__(self) -> Iterator[None]:
            yield

    async def waits() -> None:
        await Suspended()

    with pytest.raises(RuntimeError, match="waits for something that is not its wire"):
        run(waits())


def test_the_package_does_not_need_what_only_its_clients_need() -> None:
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
def test_an_error_goes_from_a_process_to_another(error: Exception) -> None:
    came = pickle.loads(pickle.dumps(error))
    assert (type(came), str(came), vars(came)) == (type(error), str(error), vars(error))


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ, check=False, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("127.0.0.1:8080",), "must be such as http"),
        (("ftp://127.0.0.1",), "must be such as http"),
        (("http://",), "must be such as http"),
        (("http://[::1",), "cannot be read"),
        (("http://127.0.0.1:8080", "line\n"), "printable ASCII"),
        (("http://127.0.0.1:8080", ""), "not empty"),
    ],
)
def test_what_can_be_no_url_and_no_token_is_refused_at_once(arguments: tuple[str, ...], reason: str) -> None:
    for cls in (Client, SyncClient):
        with pytest.raises(ValueError, match=reason):
            cls(*arguments)


# ------------------------------------------------------------------------------------------------------------------------ good days


def test_submit_look_wait_and_cancel(client: Any) -> None:
    job_id = client.submit("steps", {"steps": 2, "seconds": 0.1}, priority=7)
    assert client.job(job_id)["priority"] == 7
    assert client.result(job_id, timeout=20) == "walked"

    dead = client.submit("fan-out", {"fail": 3})
    with pytest.raises(JobFailed, match=r"is dead: attempt 1 of 1 failed: 3 errors") as failed:
        client.result(dead, timeout=20)
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


def test_what_is_refused_says_why(client: Any, opened: Open, node: Node) -> None:
    with pytest.raises(RequestRefused, match=r"^400: priority must be an integer") as refused:
        client.submit("steps", priority=-1)
    assert (refused.value.field, refused.value.index) == ("priority", None)
    with pytest.raises(JobNotFound):
        client.result(NOBODY, timeout=5)
    with pytest.raises(JobNotFound):
        list(client.events(NOBODY))
    with pytest.raises(NotFound, match="there is no schedule") as missing:
        client.schedule("no such schedule")
    assert not isinstance(missing.value, JobNotFound)
    with pytest.raises(RequestRefused, match="401"):
        opened(node.url, "wrong").result(NOBODY, timeout=5)


def test_what_has_no_form_in_json_is_refused_before_it_is_sent(client: Any, node: Node, tag: str) -> None:
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


def test_a_bad_job_among_many_is_named_by_its_place_among_all(client: Any, node: Node, tag: str) -> None:
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
            client.result(job_id, timeout=20)
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
        client.result(ids[0], timeout=20)
    assert client.discard(ids[0])["state"] == "discarded"
    assert client.retry_dead(dry_run=True, group=tag) == client.discard_dead(dry_run=True, group=tag) == 4
    assert client.retry_dead(group=tag, reason="attempt 1 of 1") == 4
    for job_id in ids[1:]:
        with pytest.raises(JobFailed):
            client.result(job_id, timeout=20)
    assert client.discard_dead(group=tag) == 4
    with pytest.raises(RequestRefused) as refused:
        client.discard_dead()
    assert refused.value.field == "all"


def test_jobs_are_listed_changed_and_cancelled_by_filter(client: Any, tag: str) -> None:
    ids = client.submit_many(({**job, "group": tag} for job in numbered(tag, 5)), chunk=3)
    # A page may have less than it could, and not be the last.
    assert [job["id"] for page in client.jobs(limit=2, group=tag) for job in page["jobs"]] == ids[::-1]
    first = next(page for page in client.jobs(limit=2, group=tag) if page["jobs"])
    rest = [job["id"] for page in client.jobs(group=tag, after=first["next"]) for job in page["jobs"]]
    assert rest == ids[::-1][len(first["jobs"]) :]
    created = datetime.now(UTC) - timedelta(days=1)
    states = ["scheduled", "pending"]
    assert sum(len(page["jobs"]) for page in client.jobs(group=tag, state=states, kind="steps", created_after=created)) == 5
    assert sum(len(page["jobs"]) for page in client.jobs(group=tag, created_before=created)) == 0

    assert client.update(ids[0], priority=9, delay=0)["priority"] == 9
    assert client.result(ids[0], timeout=20) == "walked"
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
    assert client.result(client.trigger_schedule(name), timeout=20) == "walked"
    assert name in [schedule["name"] for schedule in client.schedules()]
    assert client.unschedule(name)["name"] == name
    with pytest.raises(NotFound):
        client.schedule(name)


def test_any_request_can_be_sent(client: Any) -> None:
    assert client.request("GET", "/health") == {"status": "ok"}
    assert "jobqueue_schema_version" in client.request("GET", "/metrics")
    assert client.request("HEAD", "/health") is None
    assert set(client.request("GET", "/dead", params={"limit": 1, "after": None})) == {"jobs", "next"}
    with pytest.raises(RequestRefused, match="405"):
        client.request("DELETE", "/nodes")


def test_a_client_is_shared_by_tasks_and_by_threads(client: Any, node: Node, tag: str) -> None:
    with ThreadPoolExecutor(20) as threads:
        ids = list(threads.map(lambda job: client.submit(**job), numbered(tag, 100)))
    assert len(set(ids)) == node.count(tag) == 100


def test_a_job_is_followed_to_its_end(client: Any) -> None:
    events = list(client.events(client.submit("steps", {"steps": 2, "seconds": 0.6})))
    assert {event.name for event in events} == {"state", "progress", "checkpoint", "end"}
    assert events[-1].name == "end"
    assert events[-1].data["result"] == "walked"


SEPARATORS = "".join(map(chr, [0x0A, 0x0B, 0x0C, 0x0D, 0x1C, 0x1D, 0x1E, 0x85, 0x2028, 0x2029, 0xFEFF, 0x1F600]))
"""Every character at which `str.splitlines` cuts, and two that are often mishandled."""


def test_events_hold_any_character_that_ends_a_line_elsewhere(client: Any, tag: str) -> None:
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
def test_an_event_stream_is_read_alike_however_it_is_cut(data: list[str], line_end: str, cuts: set[int], bom: bool) -> None:
    lines: list[str] = []
    for number, text in enumerate(data):
        lines += [": a comment", f"id: {number}", f"event:{number}", f"data: {json.dumps(text, ensure_ascii=False)}", "data:  ", ""]
    sent = ("\ufeff" * bom + line_end.join([*lines, "event: cut", "data: off"])).encode()
    stream = EventStream()
    got = [event for start, stop in pairwise(sorted({0, len(sent), *cuts})) for event in stream.feed(sent[start:stop])]
    assert got == [(str(number), json.dumps(text, ensure_ascii=False) + "\n ") for number, text in enumerate(data)]


def test_an_event_is_there_with_the_last_byte_of_its_blank_line() -> None:
    stream = EventStream()
    assert list(stream.feed(b"event: a\r\ndata: 1\r\n")) == []
    assert list(stream.feed(b"\r")) == [("a", "1")]
    assert list(stream.feed(b"\ndata: 2\n\n\n\n")) == [("", "2")]


# ------------------------------------------------------------------------------------------------------------------------- bad days


def test_what_is_not_an_event_stream_is_refused(opened: Open, bad_day: Interference) -> None:
    client = opened(bad_day.url, TOKEN)
    for answer, words in (
        (Answer(200, {"Content-Type": "text/html"}, "<p>Welcome!</p>"), "is this the URL of a job queue"),
        (Answer(200, {"Content-Type": "application/json"}, "{}"), "is not a stream of events"),
    ):
        bad_day.mishaps = [answer]
        with pytest.raises(RequestRefused, match=words):
            list(client.events(NOBODY))


def test_events_that_a_proxy_cuts_off_are_asked_for_again(opened: Open, bad_day: Interference, node: Node, tag: str) -> None:
    job_id = opened(node.url, TOKEN).submit("steps", {"tag": tag}, delay=3600)
    opened(node.url, TOKEN).cancel(job_id)
    bad_day.mishaps = [Answer(200, {"Content-Type": "text/event-stream"}, 'event: state\ndata: {"state"')]
    assert [event.name for event in opened(bad_day.url, TOKEN).events(job_id)][-1] == "end"
    assert len(bad_day.passed) == 2


def test_many_jobs_on_a_bad_day_are_doubled_as_little_as_lost(opened: Open, bad_day: Interference, node: Node, tag: str) -> None:
    now = {"Retry-After": "0"}
    bad_day.mishaps = [LOSE, LOSE, CUT, Answer(503), Answer(503, now), Answer(429, now), Answer(502), "passes", CUT, LOSE]
    ids = opened(bad_day.url, TOKEN).submit_many(numbered(tag, 250), chunk=100)
    assert len(bad_day.passed) == 12
    assert not bad_day.mishaps
    known = dict(node.database.rows("SELECT id::text, payload->'n' FROM jobqueue.jobs WHERE payload->>'tag' = %s", tag))
    assert [known[job_id] for job_id in ids] == list(range(250))
    assert len(known) == 250


def test_one_job_on_a_bad_day_is_one(opened: Open, bad_day: Interference, node: Node, tag: str) -> None:
    bad_day.mishaps = [LOSE, Answer(504), CUT]
    job_id = opened(bad_day.url, TOKEN).submit("steps", {"tag": tag}, delay=3600)
    assert node.count(tag) == 1
    bodies = [json.loads(passage.body) for passage in bad_day.passed]
    assert bodies == [bodies[0]] * 4
    assert node.database.value("SELECT options->>'idempotency_key' FROM jobqueue.jobs WHERE id = %s", job_id)


def test_what_has_no_key_is_not_sent_again_when_it_may_have_arrived(
    opened: Open, bad_day: Interference, node: Node, tag: str
) -> None:
    client = opened(bad_day.url, TOKEN)
    bad_day.mishaps = [Answer(503, {"Retry-After": "0"}), LOSE]
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1.*\(the request may have been carried out\)") as lost:
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
    assert client.nodes()  # to read is harmless


def test_the_service_is_given_the_time_that_it_asks_for(opened: Open, bad_day: Interference) -> None:
    client = opened(bad_day.url, TOKEN, patience=20)
    bad_day.mishaps = [Answer(429, {"Retry-After": "1"}), Answer(503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})]
    client.pause("a queue of its own")
    first, second, third = (passage.at for passage in bad_day.passed)
    assert second - first >= 1
    assert third - second < 1
    bad_day.mishaps = [Answer(429, {"Retry-After": "30"})]
    began = time.monotonic()
    with pytest.raises(RequestRefused, match="429"):
        client.pause("a queue of its own")
    assert time.monotonic() - began < 10  # not sent again, and not waited for


def test_patience_has_an_end(opened: Open, bad_day: Interference) -> None:
    client = opened(bad_day.url, TOKEN, patience=1)
    bad_day.mishaps = [Answer(503)] * 1000
    began = time.monotonic()
    with pytest.raises(RequestRefused, match="503: a mishap"):
        client.nodes()
    assert time.monotonic() - began < 10
    assert 3 <= len(bad_day.passed) <= 20


def test_a_service_that_is_not_there_is_waited_for_and_given_up(opened: Open, bench: Bench) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    impatient = opened(url, patience=0)
    with pytest.raises(Unreachable, match=rf"^no answer from {url}: ") as unreachable:
        impatient.submit("steps")
    assert isinstance(unreachable.value, JobQueueError)
    assert not unreachable.value.in_doubt
    with pytest.raises(TimeoutError):
        impatient.result(NOBODY, timeout=0.5)
    with starting_soon(bench, port):
        assert opened(url).cancel(opened(url).submit("steps", delay=3600))["state"] == "cancelled"


@contextmanager
def starting_soon(bench: Bench, port: str) -> Iterator[None]:
    """Start a service beside the block, for as long as it takes: a service ends with the thread that started it."""
    over = threading.Event()

    def start() -> None:
        bench.start_on(port)
        over.wait(60)

    thread = threading.Thread(target=start)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(60)


def test_a_key_in_a_transaction_that_is_not_over_is_waited_for(opened: Open, bad_day: Interference, node: Node, tag: str) -> None:
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


def test_what_is_no_job_queue_is_not_taken_for_one(opened: Open, bad_day: Interference) -> None:
    client = opened(bad_day.url)
    bad_day.mishaps = [Answer(200, {"Content-Type": "text/html"}, "<p>Welcome!</p>"), Answer(404, {}, "<p>Sorry!</p>")]
    for _ in range(2):
        with pytest.raises(RequestRefused, match=r"^\d+: the answer is no JSON: is this the URL of a job queue"):
            client.nodes()


def test_chunks_are_cut_by_bytes_too_and_read_no_further_than_they_go() -> None:
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
    assert taken == 3  # a full chunk is not kept waiting for the job after it


# ------------------------------------------------------------------------------------------------------------------------- restarts


@pytest.mark.parametrize(("ask", "end"), [("result", "stop"), ("result", "kill"), ("events", "kill")])
def test_a_job_is_waited_for_over_a_restart(bench: Bench, opened: Open, ask: str, end: str) -> None:
    port = free_port()
    node = bench.start_on(port, "--grace-period", "0.1")
    client = opened(f"http://127.0.0.1:{port}")
    job_id = client.submit("pages", {"hold_at": 2}, max_retries=5)
    bench.until_effect(job_id, "holds")

    def restart() -> None:
        time.sleep(0.3)  # the client waits by then
        getattr(node, end)()
        bench.database.rows("UPDATE jobqueue.pending_jobs SET attempt = 1 WHERE id = %s", job_id)  # so that it does not hold again
        bench.start_on(port)
        over.wait(60)  # a service that this thread has started ends with it

    over = threading.Event()
    restarting = threading.Thread(target=restart)
    restarting.start()
    try:
        result = client.result(job_id, timeout=40) if ask == "result" else list(client.events(job_id))[-1].data["result"]
    finally:
        over.set()
        restarting.join(60)
    assert result[-1] == 4
