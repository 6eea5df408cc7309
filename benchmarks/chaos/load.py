"""Submit jobs of all kinds to all nodes, in every form, and record the responses.

A submission is never repeated. If it has no response, it may have been committed, so repeating it could create duplicates.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing, suppress
from typing import Any, Literal, NamedTuple

import msgspec
import psycopg
import trio

from benchmarks.chaos.database import connect
from benchmarks.chaos.handlers import PERSISTENT
from benchmarks.client import Answer, Client, Unanswered, described

CLIENTS_PER_NODE = 4

PATIENCE = 8.0
"""How long a client waits for a response, in seconds.

This is longer than the time for which a fault freezes a node, and shorter than the time until a node notices a blackhole.
"""

LOOK_INTERVAL = 1.0
"""Seconds between two polls of a node's readiness."""

PROBE_INTERVAL = 0.25
"""Seconds between two probes: small submissions to each node, which show when the node accepts jobs again."""

STEADY_INTERVAL = 0.1
"""Seconds between two submissions from SQL over one connection."""

LIMITED = "limited"
"""The queue with limits."""

Form = Literal["one", "array", "ndjson", "sql", "invalid"]
Fate = Literal["acknowledged", "refused", "unknown"]

KINDS: dict[str, int] = {
    "async": 45,
    "thread": 13,
    "transaction": 15,
    "cpu": 5,
    "flaky": 10,
    "snooze": 4,
    "doomed": 2,
    "rollback": 2,
    "discard": 4,
}
"""Kinds of jobs and their percentages."""

FORMS: dict[Form, int] = {"one": 55, "array": 18, "ndjson": 15, "sql": 10, "invalid": 2}
"""Forms of submissions and their percentages."""

LARGEST: dict[Form, int] = {"one": 1, "array": 40, "ndjson": 80, "sql": 30, "invalid": 10}
"""Maximum number of jobs in one submission."""


class Submit(msgspec.Struct, frozen=True):
    """One submission and its response.

    Attributes:
        kinds: the kind of each of its jobs, by the number in the job's payload.
        node: the node that received it; None for SQL.
        fate: *refused* if the response guarantees that nothing was written; *unknown* if the jobs may or may not exist.
        ids: the acknowledged ids, in the order of `kinds`.
        why: the error if the submission was not acknowledged.
        sent, answered: seconds since 1970.
    """

    kinds: dict[int, str]
    node: int | None
    fate: Fate
    ids: tuple[str, ...]
    why: str
    sent: float
    answered: float


class Look(NamedTuple):
    """A node's response to GET /health/ready. `status` is 0 without a response; `at` is in seconds since 1970."""

    node: int
    at: float
    status: int


class Batch(msgspec.Struct, frozen=True):
    """Jobs to submit together, and the form of the submission."""

    form: Form
    jobs: list[dict[str, Any]]

    @property
    def kinds(self) -> dict[int, str]:
        return {job["payload"]["number"]: job["kind"] for job in self.jobs}

    @property
    def body(self) -> bytes:
        match self.form:
            case "one":
                return msgspec.json.encode(self.jobs[0])
            case "ndjson":
                return b"\n".join(msgspec.json.encode(job) for job in self.jobs)
            case "invalid":  # one job is invalid, so none may be stored
                return msgspec.json.encode([*self.jobs, {"priority": -1}])
            case _:
                return msgspec.json.encode(self.jobs)

    @property
    def content_type(self) -> str:
        return "application/x-ndjson" if self.form == "ndjson" else "application/json"


class Impatient(Client):
    """A client that sets the content type, and gives up after `PATIENCE` seconds."""

    async def submit(self, batch: Batch) -> Answer:
        """Submit a batch.

        Raises:
            Unanswered: the batch may or may not be committed.
        """
        body = batch.body
        head = f"POST /submit HTTP/1.1\r\n{self._headers}Content-Type: {batch.content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        try:
            with trio.fail_after(PATIENCE):
                return await self._exchange(head.encode() + body)
        except trio.TooSlowError:
            raise Unanswered(f"no response within {PATIENCE:.0f} s") from None
        except (OSError, trio.BrokenResourceError) as error:
            raise Unanswered(str(error) or type(error).__name__) from error


class Load:
    """The clients of all nodes.

    Args:
        seed: determines the jobs.
        jobs: the number of jobs.
        seconds: the time over which to spread them.
        urls: the URLs of the nodes.
        database_url: for submissions from SQL.

    Attributes:
        submits: the submissions and responses so far.
        looks: the nodes' responses about their readiness.
    """

    def __init__(self, seed: int, *, jobs: int, seconds: float, urls: Sequence[str], database_url: str) -> None:
        self._dice = random.Random(f"load {seed}")
        self._jobs = jobs
        self._seconds = seconds
        self._urls = urls
        self._database_url = database_url
        self._number = 0
        self._drawn = 0
        self._probed = trio.Event()
        self.submits: list[Submit] = []
        self.looks: list[Look] = []

    async def run(self) -> None:
        """Submit all jobs, spread over the time. If the service is slow, send late submissions as soon as possible."""
        batches = self._batches()
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for node in range(len(self._urls)):
                for _ in range(CLIENTS_PER_NODE):
                    nursery.start_soon(self._submit_some, node, batches, began)

    async def probe(self) -> None:
        """Submit a small job to each node repeatedly, without waiting for earlier responses, until `end_probes`.

        Meanwhile, also submit small jobs from SQL, one after another.
        """
        async with trio.open_nursery() as nursery:
            for node in range(len(self._urls)):
                nursery.start_soon(self._look, node)
            nursery.start_soon(self._submit_steadily)
            while not self._probed.is_set():
                for node in range(len(self._urls)):
                    nursery.start_soon(self._submit_alone, node, Batch("one", [self._small_job()]))
                await trio.sleep(PROBE_INTERVAL)

    async def _look(self, node: int) -> None:
        """Poll a node's readiness."""
        while not self._probed.is_set():
            at, status = time.time(), 0
            async with aclosing(Impatient(self._urls[node], None)) as client:
                with trio.move_on_after(LOOK_INTERVAL), suppress(Unanswered):
                    status = (await client.request("GET", "/health/ready")).status
            self.looks.append(Look(node, at, status))
            await trio.sleep(LOOK_INTERVAL)

    async def _submit_steadily(self) -> None:
        session = Session(self._database_url)
        while not self._probed.is_set():
            sent, job = time.time(), self._small_job()
            fate, ids, why = await trio.to_thread.run_sync(session.submit, job)
            self.submits.append(Submit({job["payload"]["number"]: job["kind"]}, None, fate, ids, why, sent, time.time()))
            await trio.sleep(STEADY_INTERVAL)

    def end_probes(self) -> None:
        """Send no more probes. Probes already sent still get their responses."""
        self._probed.set()

    def _batches(self) -> Iterator[Batch]:
        """Draw batches. The same seed gives the same batches."""
        left = self._jobs
        while left > 0:
            [form] = self._dice.choices(list(FORMS), list(FORMS.values()))
            size = min(left, self._dice.randint(1, LARGEST[form]))
            left -= size
            yield Batch(form, [self._job() for _ in range(size)])

    def _job(self) -> dict[str, Any]:
        dice = self._dice
        [kind] = dice.choices(list(KINDS), list(KINDS.values()))
        job = self._small_job(kind)
        if kind in {"async", "thread", "transaction", "cpu"} and dice.random() < 0.4:
            # Let a few jobs run long, so that a job is running whenever a fault begins.
            job["payload"]["seconds"] = round(min(2.0, 0.005 / (1 - dice.random())), 4)
        if dice.random() < 0.2:
            job["priority"] = dice.randint(1, 100)
        if dice.random() < 0.15:
            job["delay"] = round(dice.uniform(0.1, 5), 2)
        if dice.random() < 0.1:
            job["max_retries"] = 2 if kind in {"doomed", "rollback"} else PERSISTENT + 1
        if kind == "async":
            self._limit(job)
        if dice.random() < 0.05:
            job["payload"]["text"] = "\N{PARTY POPPER} Grüße"
        return job

    def _limit(self, job: dict[str, Any]) -> None:
        """Give some jobs a key, a group, or a queue with limits."""
        dice = self._dice
        if dice.random() < 0.08:
            job["concurrency_key"] = f"key {dice.randint(1, 20)}"
        if dice.random() < 0.08:
            job["group"] = f"group {dice.randint(1, 5)}"
        if dice.random() < 0.08:
            job["queue"] = LIMITED

    def _small_job(self, kind: str = "async") -> dict[str, Any]:
        self._number += 1
        return {"kind": kind, "payload": {"number": self._number}}

    async def _submit_some(self, node: int, batches: Iterator[Batch], began: float) -> None:
        async with aclosing(Impatient(self._urls[node], None)) as client:
            for batch in batches:
                self._drawn += len(batch.jobs)
                await trio.sleep_until(began + self._seconds * self._drawn / self._jobs)
                await self._submit(client, node, batch)

    async def _submit_alone(self, node: int, batch: Batch) -> None:
        async with aclosing(Impatient(self._urls[node], None)) as client:
            await self._submit(client, node, batch)

    async def _submit(self, client: Impatient, node: int, batch: Batch) -> None:
        sent = time.time()
        if batch.form == "sql":
            self.submits.append(await trio.to_thread.run_sync(submit_from_sql, self._database_url, batch))
            return
        fate, ids, why = await _submit_over_http(client, batch)
        self.submits.append(Submit(batch.kinds, node, fate, ids, why, sent, time.time()))


async def _submit_over_http(client: Impatient, batch: Batch) -> tuple[Fate, tuple[str, ...], str]:
    try:
        answer = await client.submit(batch)
    except Unanswered as error:
        return "unknown", (), f"no response: {error}"
    if answer.status == 201:
        return "acknowledged", (answer.body["id"],) if batch.form == "one" else tuple(answer.body["ids"]), ""
    in_doubt = isinstance(answer.body, dict) and answer.body.get("type") == "urn:jobqueue:in-doubt"
    promised = answer.status == 503 or 400 <= answer.status < 500
    return "refused" if promised and not in_doubt else "unknown", (), described(answer)


class Session:
    """A connection that submits jobs with jobqueue.submit, each in its own transaction. It opens again after it breaks."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: psycopg.Connection | None = None

    def submit(self, job: dict[str, Any]) -> tuple[Fate, tuple[str, ...], str]:
        """Submit a job. Return the result, its id if it was acknowledged, and the error otherwise."""
        try:
            self._connection = self._connection or connect(self._url, "submitter")
        except psycopg.OperationalError as error:
            return "refused", (), f"SQL: {' '.join(str(error).split())}"
        payload = msgspec.json.encode(job["payload"]).decode()
        try:
            row = self._connection.execute("SELECT jobqueue.submit(%s, %s::jsonb)::text", (job["kind"], payload)).fetchone()
        except psycopg.Error as error:
            why = f"SQL, one connection: {type(error).__name__}"
            if not self._connection.closed:
                return "refused", (), why
            self._connection = None
            return "unknown", (), why
        assert row is not None
        return "acknowledged", (row[0],), ""


def submit_from_sql(url: str, batch: Batch) -> Submit:
    """Submit a batch with jobqueue.submit_many."""
    sent = time.time()
    fate, ids, why = _call_submit_many(url, batch)
    return Submit(batch.kinds, None, fate, ids, why, sent, time.time())


def _call_submit_many(url: str, batch: Batch) -> tuple[Fate, tuple[str, ...], str]:
    try:
        connection = connect(url, "submitter")
    except psycopg.OperationalError as error:
        return "refused", (), f"SQL: {' '.join(str(error).split())}"
    try:
        with connection:
            row = connection.execute("SELECT jobqueue.submit_many(%s::jsonb)::text[]", (batch.body.decode(),)).fetchone()
    except psycopg.Error as error:
        return "unknown", (), f"SQL: {type(error).__name__}"
    assert row is not None
    return "acknowledged", tuple(row[0]), ""
