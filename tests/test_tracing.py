"""Traces: from a submitter's span, through HTTP, SQL, or Python and the queue, to the spans of handlers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psycopg
import pytest
import trio
import trio_parallel
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import messaging_attributes as messaging
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from trio.testing import MockClock, wait_all_tasks_blocked

import jobqueue
from jobqueue import App, documents, testing, tracing
from jobqueue.engine.executor import Cause, Run
from jobqueue.http.bodies import jobs as bodies
from jobqueue.job import NewJob, Options
from jobqueue.testing.memory_store import MemoryStore
from tests.support import ROOT
from tests.support.executor import Runner, claimed
from tests.support.postgres import SERVERS, Database, ServerPool
from tests.support.service import Service
from tests.support.storage import Driver, joined, new_id, open_driver
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN_ID = "00f067aa0ba902b7"
IDS = f"{TRACE_ID}-{SPAN_ID}-01"
PARENT = f"00-{IDS}"
OTHER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"

MALFORMED = [
    "",
    "nonsense",
    f"0-{IDS}",
    f"ff-{IDS}",
    f"00-{IDS}-more",
    f"cc-{IDS}more",
    f"00-{IDS.upper()}",
    f"00-{'0' * 32}-{SPAN_ID}-01",
    f"00-{TRACE_ID}-{'0' * 16}-01",
    f"00-{TRACE_ID}-{SPAN_ID}",
    f"{PARENT}, {PARENT}",
    f"{PARENT}\n",
    "\ud800",
]

# ------------------------------------------------------------------------------------------------------------------ what is read


@pytest.mark.parametrize("sent", MALFORMED)
def test_a_malformed_traceparent_is_ignored(sent: str) -> None:
    assert tracing.read(sent, "a=1") == {}


@pytest.mark.parametrize(("sent", "kept"), [(PARENT, PARENT), (f"cc-{IDS}", f"cc-{IDS}"), (f"cc-{IDS}-what-ever", f"cc-{IDS}")])
def test_a_traceparent_is_kept_up_to_what_version_00_has(sent: str, kept: str) -> None:
    assert tracing.read(sent) == {"traceparent": kept}


@pytest.mark.parametrize(("state", "kept"), [("a=1,b=2", True), ("x" * 512, True), ("", False), ("x" * 513, False), ("é", False)])
def test_a_malformed_tracestate_is_ignored_alone(state: str, kept: bool) -> None:
    assert tracing.read(PARENT, state) == {"traceparent": PARENT} | ({"tracestate": state} if kept else {})


@given(st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-x)?", fullmatch=True))
def test_what_is_kept_is_what_opentelemetry_takes(sent: str) -> None:
    read = tracing.read(sent)
    taken = [
        trace.get_current_span(TraceContextTextMapPropagator().extract(given, Context())) for given in ({"traceparent": sent}, read)
    ]
    assert taken[0].get_span_context().is_valid == bool(read)
    assert taken[0].get_span_context() == taken[1].get_span_context()


# ------------------------------------------------------------------------------------------------------------- into a submission

BODIES = {
    "one": ("application/json", '{"kind": "a"}'),
    "careful": ("application/json", '{"kind": "a", "group": "g"}'),
    "array": ("application/json", '[{"kind": "a"}, {"kind": "b", "priority": 3}]'),
    "lines": ("application/x-ndjson", '{"kind": "a"}\n{"kind": "b"}'),
}


def options(submitted: bodies.Submitted) -> list[dict[str, Any] | None]:
    return [json.loads(document).get("options") for document in submitted.jobs.documents]


def without_ids(submitted: bodies.Submitted) -> list[dict[str, Any]]:
    return [{**json.loads(document), "id": None, "options": None} for document in submitted.jobs.documents]


@pytest.mark.parametrize("form", BODIES)
def test_the_requests_trace_is_that_of_all_its_jobs(form: str) -> None:
    content_type, body = BODIES[form]
    plain = bodies.parse(content_type, body.encode())
    traced = bodies.parse(content_type, body.encode(), trace=tracing.read(PARENT, "a=1"))
    assert without_ids(traced) == without_ids(plain)
    assert options(traced) == [{**(before or {}), "traceparent": PARENT, "tracestate": "a=1"} for before in options(plain)]


def test_the_requests_trace_goes_beside_its_key() -> None:
    [found] = options(bodies.parse("application/json", b"{}", "k", tracing.read(PARENT)))
    assert found == {"idempotency_key": "k", "traceparent": PARENT}


def test_a_job_of_a_batch_may_have_its_own_trace() -> None:
    body = json.dumps([{}, {"traceparent": OTHER, "tracestate": "b=2"}, {"traceparent": "nonsense"}]).encode()
    assert options(bodies.parse("application/json", body, trace=tracing.read(PARENT, "a=1"))) == [
        {"traceparent": PARENT, "tracestate": "a=1"},
        {"traceparent": OTHER, "tracestate": "b=2"},
        None,
    ]


def test_a_job_without_a_trace_is_as_ever() -> None:
    assert options(bodies.parse("application/json", b"[{}, {}]", trace={})) == [None, None]


# --------------------------------------------------------------------------------------------------------------- into the database


@pytest.fixture(params=["memory", *sorted(SERVERS)])
async def driver(request: pytest.FixtureRequest, servers: ServerPool) -> AsyncIterator[Driver]:
    if request.param == "memory":
        yield await joined(MemoryStore())
        return
    async with open_driver(servers.emptied(request.param)) as opened:
        yield opened


async def test_a_trace_comes_out_of_a_claim(driver: Driver) -> None:
    await driver.submit(options=Options(traceparent=PARENT, tracestate="a=1"))
    await driver.submit()
    traced, plain = await driver.claim()
    assert traced.options == Options(traceparent=PARENT, tracestate="a=1")
    assert plain.options is None


async def test_a_key_does_not_know_of_the_trace(driver: Driver) -> None:
    [first] = await submitted(driver, Options(idempotency_key="k", traceparent=PARENT, tracestate="a=1"))
    assert await submitted(driver, Options(idempotency_key="k", traceparent=OTHER)) == [first]
    assert await submitted(driver, Options(idempotency_key="k")) == [first]
    [unique] = await submitted(driver, Options(unique=True, traceparent=PARENT), kind="b")
    assert await submitted(driver, Options(unique=True, traceparent=OTHER), kind="b") == [unique]


async def submitted(driver: Driver, asked: Options, **fields: Any) -> list[str] | None:
    job = NewJob(id=new_id(), options=asked, **fields)
    return (await driver.store.submit([documents.encode(job)], wake=False, key_ttl=60)).ids


def test_in_sql_what_is_malformed_is_ignored_as_over_http(sql: Database) -> None:
    storable = [text for text in (*MALFORMED, PARENT, f"cc-{IDS}", f"cc-{IDS}-what-ever") if text.isascii()]
    for text in storable:
        job_id = sql.value("SELECT jobqueue.submit('a', traceparent => %s)", text)
        found = sql.value("SELECT options FROM jobqueue.jobs WHERE id = %s", job_id)
        assert found == (tracing.read(text) or None), text
    for state in ("a=1,b=2", "x" * 512, "", "x" * 513, "é"):
        job_id = sql.value("SELECT jobqueue.submit('a', traceparent => %s, tracestate => %s)", PARENT, state)
        assert sql.value("SELECT options FROM jobqueue.jobs WHERE id = %s", job_id) == tracing.read(PARENT, state), state


def test_from_python_the_current_span_is_the_jobs_parent(sql: Database) -> None:
    tracer = TracerProvider().get_tracer("a submitter")
    with psycopg.connect(sql.url) as conn:
        before = jobqueue.submit(conn, "a")
        with tracer.start_as_current_span("submit") as span:
            [current] = jobqueue.submit_many(conn, [{"kind": "a"}])
            given = jobqueue.submit(conn, "a", traceparent=OTHER)
            none = jobqueue.submit(conn, "a", traceparent=None)
    found = dict(sql.rows("SELECT id::text, options ->> 'traceparent' FROM jobqueue.jobs"))
    own = span.get_span_context()
    expected = f"00-{own.trace_id:032x}-{own.span_id:016x}-{own.trace_flags:02x}"
    assert found == {before: None, current: expected, given: OTHER, none: None}


# --------------------------------------------------------------------------------------------------------------- the handler's span


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Set up an SDK like a user's module; return the spans that have ended."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)  # its public function works once per process
    return exporter


@pytest.fixture
async def traced(spans: InMemorySpanExporter) -> AsyncIterator[Runner]:  # noqa: ARG001 - the node needs it
    """A node whose runs have spans."""
    async with trio_parallel.open_worker_context(grace_period=10.0) as processes:
        yield Runner(processes)


async def noop() -> None:
    pass


def only(spans: InMemorySpanExporter) -> ReadableSpan:
    [span] = spans.get_finished_spans()
    return span


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def current() -> tuple[str, str]:
    """Return the ids of the current span."""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)


def ids(span: ReadableSpan) -> list[str]:
    context = span.get_span_context()
    return [trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)]


async def test_a_span_says_what_ran_as_the_conventions_have_it(traced: Runner, spans: InMemorySpanExporter) -> None:
    await traced.run(noop, job={"options": Options(traceparent=PARENT, tracestate="a=1"), "waited": 1.5, "attempt": 2})
    span = only(spans)
    assert (span.name, span.kind, span.status.status_code) == ("process test", SpanKind.CONSUMER, StatusCode.UNSET)
    assert span.parent is not None
    assert (span.parent.trace_id, span.parent.span_id, span.parent.is_remote) == (int(TRACE_ID, 16), int(SPAN_ID, 16), True)
    assert span.get_span_context().trace_state.to_header() == "a=1"
    assert attributes(span) == {
        messaging.MESSAGING_SYSTEM: "jobqueue",
        messaging.MESSAGING_OPERATION_TYPE: messaging.MessagingOperationTypeValues.PROCESS.value,
        messaging.MESSAGING_OPERATION_NAME: "process",
        messaging.MESSAGING_DESTINATION_NAME: "default",
        messaging.MESSAGING_MESSAGE_ID: claimed().id,
        messaging.MESSAGING_CLIENT_ID: "node",
        "jobqueue.kind": "test",
        "jobqueue.attempt": 2,
        "jobqueue.max_retries": 3,
        "jobqueue.wait": 1.5,
        "jobqueue.outcome": "succeeded",
    }


async def test_a_job_without_a_trace_begins_one(traced: Runner, spans: InMemorySpanExporter) -> None:
    traced.handle(noop)
    await traced.execute(claimed())
    await traced.execute(claimed(options=Options(group="g")))
    first, second = spans.get_finished_spans()
    assert first.parent is second.parent is None
    assert ids(first)[0] != ids(second)[0]


async def test_a_trace_that_is_not_sampled_stays_so(traced: Runner, spans: InMemorySpanExporter) -> None:
    await traced.run(noop, job={"options": Options(traceparent=OTHER)})
    assert spans.get_finished_spans() == ()


async def in_the_task() -> tuple[str, str]:
    return current()


async def in_a_child(job: jobqueue.Job) -> list[tuple[str, str]]:
    found = []

    async def child() -> None:
        found.append(current())

    job.nursery.start_soon(child)
    await wait_all_tasks_blocked()
    return found


@pytest.mark.parametrize("function", [in_the_task, current, in_a_child], ids=["async", "thread", "nursery"])
async def test_the_span_is_the_current_one_in_the_handler(
    function: Callable[..., Any], traced: Runner, spans: InMemorySpanExporter
) -> None:
    outcome = await traced.run(function)
    result = msgspec.json.decode(outcome.result or b"")
    assert (result if function is not in_a_child else result[0]) == ids(only(spans))
    assert not trace.get_current_span().get_span_context().is_valid, "it is over with the run"


async def test_a_process_goes_on_from_the_span(traced: Runner, spans: InMemorySpanExporter) -> None:
    outcome = await traced.run(current, cpu=True)
    assert msgspec.json.decode(outcome.result or b"") == ids(only(spans))


async def leave_one_attached() -> None:
    context.attach(trace.set_span_in_context(trace.INVALID_SPAN))


async def test_each_run_has_a_span_of_its_own_whatever_the_one_before_left(traced: Runner, spans: InMemorySpanExporter) -> None:
    seen = []

    async def look() -> None:
        seen.append(list(current()))

    traced.app.handler("look")(look)
    traced.app.handler("leave")(leave_one_attached)
    runs = [claimed(kind=kind) for kind in ("look", "leave", "look")]

    async def take(scope: trio.CancelScope) -> Run:
        if not runs:
            raise trio.EndOfChannel
        return Run(runs.pop(0), "node", scope)

    async def record(*_: object) -> None:
        assert not trace.get_current_span().get_span_context().is_valid

    with pytest.raises(trio.EndOfChannel):
        await traced.executor.run_each(take, record)
    first, _, last = spans.get_finished_spans()
    assert seen == [ids(first), ids(last)]


class Odd(Exception):
    pass


def fail() -> None:
    raise Odd("no such file")


def snooze() -> None:
    raise jobqueue.Snooze(60)


def retry() -> None:
    raise jobqueue.Retry(delay=5, reason="the shop is closed")


def discard() -> None:
    raise jobqueue.Discard("the account is closed")


async def sleep() -> None:
    await trio.sleep_forever()


HERE = "tests.test_tracing"
ERROR = StatusCode.ERROR


@pytest.mark.parametrize("cpu", [False, True], ids=["thread", "process"])
async def test_a_failed_attempt_is_an_error_with_its_exception(traced: Runner, spans: InMemorySpanExporter, cpu: bool) -> None:
    await traced.run(fail, cpu=cpu, backoff=jobqueue.Backoff(base=5, cap=5, jitter=0))
    span = only(spans)
    assert (span.status.status_code, span.status.description) == (ERROR, "Odd: no such file")
    found = attributes(span)
    assert (found["error.type"], found["jobqueue.outcome"], found["jobqueue.delay"]) == (f"{HERE}.Odd", "retry", 5)
    [event] = span.events
    said = dict(event.attributes or {})
    assert event.name == "exception"
    assert (said["exception.type"], said["exception.message"]) == (f"{HERE}.Odd", "Odd: no such file")
    assert "in fail" in str(said["exception.stacktrace"])


@pytest.mark.parametrize(
    ("function", "status", "expected"),
    [
        (snooze, (StatusCode.UNSET, None), {"jobqueue.outcome": "snoozed", "jobqueue.delay": 60}),
        (retry, (ERROR, "the shop is closed"), {"jobqueue.outcome": "retry", "error.type": "jobqueue.errors.Retry"}),
        (
            discard,
            (ERROR, "discarded: the account is closed"),
            {"jobqueue.outcome": "dead", "error.type": "jobqueue.errors.Discard"},
        ),
        (lambda: {object()}, (ERROR, None), {"jobqueue.outcome": "retry", "error.type": "_OTHER"}),  # it has no form in JSON
    ],
    ids=["snooze", "retry", "discard", "result"],
)
async def test_what_a_handler_decides_is_in_its_span(
    function: Callable[[], None],
    status: tuple[StatusCode, str | None],
    expected: dict[str, Any],
    traced: Runner,
    spans: InMemorySpanExporter,
) -> None:
    await traced.run(function)
    span = only(spans)
    assert span.status.status_code == status[0]
    assert status[1] is None or span.status.description == status[1]
    assert expected.items() <= attributes(span).items()
    assert span.events == ()


async def test_the_last_failure_and_a_payload_that_does_not_fit_are_dead(traced: Runner, spans: InMemorySpanExporter) -> None:
    def picky(n: int = 0) -> None:  # noqa: ARG001
        fail()

    traced.handle(picky)
    await traced.execute(claimed(attempt=4))
    await traced.execute(claimed(payload=b'{"n": "one"}'))
    last, unfit = map(attributes, spans.get_finished_spans())
    assert (last["jobqueue.outcome"], last["error.type"]) == ("dead", f"{HERE}.Odd")
    assert (unfit["jobqueue.outcome"], unfit["error.type"]) == ("dead", "jobqueue.engine.handlers.PayloadMismatch")


async def test_a_timeout_is_an_error(
    autojump_clock: MockClock,  # noqa: ARG001 - requesting this fixture makes it the test's clock
    traced: Runner,
    spans: InMemorySpanExporter,
) -> None:
    await traced.run(sleep, timeout=3)
    span = only(spans)
    assert (span.status.status_code, span.status.description) == (ERROR, "timed out after 3 s")
    assert attributes(span)["error.type"] == "timeout"


@pytest.mark.parametrize(("cause", "told"), [("interrupted", "released"), ("cancelled", "cancelled"), ("lease lost", "lease lost")])
async def test_a_run_that_is_ended_early_says_why_and_is_no_error(
    cause: Cause, told: str, traced: Runner, spans: InMemorySpanExporter
) -> None:
    traced.handle(sleep)
    await traced.execute(claimed(), lambda run: run.cancel(cause))
    span = only(spans)
    assert (span.status.status_code, attributes(span)["jobqueue.outcome"]) == (StatusCode.UNSET, told)


async def test_a_handler_that_is_left_behind_ends_its_span_when_it_is(
    traced: Runner, spans: InMemorySpanExporter, nursery: trio.Nursery
) -> None:
    goes_on, runs = trio.Event(), []

    async def stubborn() -> None:
        with trio.CancelScope(shield=True):
            await goes_on.wait()

    traced.handle(stubborn)
    nursery.start_soon(traced.execute, claimed(), runs.append)
    await wait_all_tasks_blocked()
    [run] = runs
    run.cancel("cancelled")
    traced.executor.give_up(run)
    assert attributes(only(spans))["jobqueue.outcome"] == "cancelled"
    goes_on.set()
    await wait_all_tasks_blocked()
    assert attributes(only(spans))["jobqueue.outcome"] == "cancelled", "it ended once"


class Broken(SpanProcessor):
    def __init__(self, method: str) -> None:
        setattr(self, method, self._fail)

    def _fail(self, *_: object, **__: object) -> None:
        raise RuntimeError("as asked")


@pytest.mark.parametrize("method", ["on_start", "on_end"])
async def test_an_sdk_that_fails_harms_no_job(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = TracerProvider()
    provider.add_span_processor(Broken(method))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    app = App()
    app.handler("test")(in_the_task)
    assert await testing.run(app, "test") is not None


# --------------------------------------------------------------------------------------------------------- where nobody traces


def test_without_an_sdk_there_is_nothing() -> None:
    assert tracing.handler_spans() is None


def test_an_sdk_that_is_disabled_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", TracerProvider())
    assert tracing.handler_spans() is None


def test_nothing_of_opentelemetry_is_loaded_for_who_does_not_use_it() -> None:
    script = """
import sys, jobqueue, jobqueue.cli, jobqueue.service, jobqueue.in_transaction, jobqueue.testing, jobqueue.tracing
app = jobqueue.App()
@app.handler("test")
async def handler(): return jobqueue.tracing.current_headers()
assert jobqueue.testing.run_sync(app, "test", traceparent=%r) == {}
with jobqueue.tracing.continued({"traceparent": %r}): pass
assert [name for name in sys.modules if name.startswith("opentelemetry")] == []
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script % (PARENT, PARENT)], check=True, cwd=ROOT)


# ------------------------------------------------------------------------------------------------------------ the whole service


class Traced:
    """A service that writes its spans to a file, and a submitter's tracer."""

    def __init__(self, start: Callable[..., Service], file: Path, *, delay: int = 20) -> None:
        self._file = file
        # The default delay of an SDK's processor is five seconds.
        self.service = start("tests.handlers.traced", env={"SPANS": str(file), "OTEL_BSP_SCHEDULE_DELAY": str(delay)})
        self.url = self.service.url
        self.tracer = TracerProvider().get_tracer("a submitter")

    def spans(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._file.read_bytes().splitlines()] if self._file.exists() else []

    def of(self, job_id: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait until a job has this many spans of runs; return them in the order of their ends."""

        def found() -> list[dict[str, Any]]:
            return [span for span in self.spans() if span["attributes"].get("messaging.message.id") == job_id]

        wait_for(lambda: len(found()) >= count, f"{count} spans of {job_id}")
        return found()

    def until_below(self, span: dict[str, Any], *names: str) -> None:
        wait_for(lambda: self.below(span) == set(names), f"{names} below {span['name']}")

    def below(self, span: dict[str, Any]) -> set[str]:
        """Return the names of its children."""
        assert {one["context"]["trace_id"] for one in self.spans() if one["parent_id"] == span["context"]["span_id"]} <= {
            span["context"]["trace_id"]
        }
        return {one["name"] for one in self.spans() if one["parent_id"] == span["context"]["span_id"]}


@pytest.fixture
def service_with_spans(service: Callable[..., Service], tmp_path: Path) -> Traced:
    return Traced(service, tmp_path / "spans")


def is_child(span: dict[str, Any], parent: trace.SpanContext) -> bool:
    return span["context"]["trace_id"] == f"0x{parent.trace_id:032x}" and span["parent_id"] == f"0x{parent.span_id:016x}"


WAYS_IN = {
    "express": {},
    "hypercorn": {"TE": "trailers"},  # the express lane does not handle this header
}


@pytest.mark.parametrize("way", WAYS_IN)
def test_a_trace_goes_over_http_into_every_attempt(way: str, service_with_spans: Traced) -> None:
    traced = service_with_spans
    with traced.tracer.start_as_current_span("submit") as span:
        headers = {**tracing.current_headers(), **WAYS_IN[way]}
        answer = httpx.post(f"{traced.url}/submit", json={"kind": "async"}, headers=headers, timeout=60)
    attempts = traced.of(answer.json()["id"], 2)
    assert all(is_child(attempt, span.get_span_context()) for attempt in attempts)
    told = [(one["attributes"]["jobqueue.attempt"], one["status"]["status_code"], one["kind"]) for one in attempts]
    assert told == [(1, "ERROR", "SpanKind.CONSUMER"), (2, "UNSET", "SpanKind.CONSUMER")]
    for attempt in attempts:
        traced.until_below(attempt, "on the loop", "in a task of the job's")
    assert [event["attributes"]["exception.type"] for event in attempts[0]["events"]] == ["ValueError"]


def test_a_client_sends_the_trace_that_it_is_in(service_with_spans: Traced) -> None:
    traced = service_with_spans
    with jobqueue.SyncClient(traced.url) as client, traced.tracer.start_as_current_span("submit") as span:
        job_id = client.submit("async")
    assert all(is_child(attempt, span.get_span_context()) for attempt in traced.of(job_id, 2))


def test_two_traceparents_are_none(service_with_spans: Traced) -> None:
    answer = httpx.post(
        f"{service_with_spans.url}/submit",
        json={"kind": "thread"},
        headers=[("traceparent", PARENT), ("traceparent", PARENT)],
        timeout=60,
    )
    [span] = service_with_spans.of(answer.json()["id"])
    assert span["parent_id"] is None


def test_a_batch_has_the_requests_trace_and_runs_in_processes_too(service_with_spans: Traced) -> None:
    traced = service_with_spans
    with traced.tracer.start_as_current_span("submit") as span:
        jobs = [{"kind": "cpu"}, {"kind": "thread"}, {"kind": "thread", "traceparent": PARENT}]
        answer = httpx.post(f"{traced.url}/submit", json=jobs, headers=tracing.current_headers(), timeout=60)
    in_process, in_thread, other = [traced.of(job_id)[0] for job_id in answer.json()["ids"]]
    assert is_child(in_process, span.get_span_context())
    assert is_child(in_thread, span.get_span_context())
    assert (other["context"]["trace_id"], other["parent_id"]) == (f"0x{TRACE_ID}", f"0x{SPAN_ID}")
    traced.until_below(in_process, "in a process")
    traced.until_below(in_thread, "in a thread")


def test_a_trace_goes_through_sql_and_on_into_the_jobs_that_a_handler_submits(
    service_with_spans: Traced, database: Database
) -> None:
    traced = service_with_spans
    job_id = str(database.value("SELECT jobqueue.submit('chain', traceparent => %s)", PARENT))
    [span] = traced.of(job_id)
    assert (span["context"]["trace_id"], span["parent_id"]) == (f"0x{TRACE_ID}", f"0x{SPAN_ID}")
    wait_for(lambda: "in a transaction" in traced.below(span), "the handler's own span")
    wait_for(lambda: database.value("SELECT state FROM jobqueue.jobs WHERE id = %s", job_id) == "succeeded", "done")
    [further] = traced.of(database.value("SELECT result #>> '{}' FROM jobqueue.jobs WHERE id = %s", job_id))
    assert (further["context"]["trace_id"], further["parent_id"]) == (f"0x{TRACE_ID}", span["context"]["span_id"])


def test_spans_that_wait_to_be_sent_are_sent_at_the_end(service: Callable[..., Service], tmp_path: Path) -> None:
    traced = Traced(service, tmp_path / "spans", delay=600_000)
    httpx.post(f"{traced.url}/submit", json={"kind": "thread"}, timeout=60)
    wait_for(
        lambda: 'completed_total{kind="thread",queue="default"} 1.0' in httpx.get(f"{traced.url}/metrics", timeout=60).text, "done"
    )
    assert traced.spans() == []
    assert traced.service.stop() == 0
    assert {span["name"] for span in traced.spans()} == {"process thread", "in a thread"}
