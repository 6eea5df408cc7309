"""The four measures, each of which uses its own database."""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import msgspec
import psycopg

from benchmarks.harness import Database, percentile
from benchmarks.peers.catalog import Peer
from benchmarks.peers.environments import Environment
from benchmarks.peers.program import Program, ProgramError

DRAIN_SECONDS = 5
SINGLE_SECONDS = 4
BULK_JOBS = 10_000
"""Minimum number of jobs of a drain. Some peers drain fewer jobs than this in a few seconds, but claim more than that at once."""

PICKUP_JOBS = 200
PICKUP_WARM_UP = 20
PICKUP_PAUSE = 0.02
SETTLE_SECONDS = 1.0

START_TIMEOUT = 60.0
SLOWER = 10
"""Maximum duration of a load, as a multiple of its expected duration."""

LOOK_INTERVAL = 0.002
"""Seconds between two polls that check whether the last jobs are recorded as done."""

Figures = dict[str, float]


class Bench(msgspec.Struct, frozen=True):
    """A peer, ready to be measured.

    Attributes:
        server: any database on the server.
        scale: the factor by which to multiply the numbers of jobs.
    """

    peer: Peer
    environment: Environment
    server: Database
    scale: float

    def measure(self, measure: str) -> Figures:
        """Run one of `catalog.MEASURES`.

        Raises:
            ProgramError: a program failed, or did not do its work in time.
        """
        with self._database() as url:
            figures: Figures = getattr(self, measure)(url)
        return figures

    def bulk(self, url: str) -> Figures:
        """Submit jobs in batches, from one caller."""
        jobs = max(self._jobs(BULK_JOBS), self._drained())
        with self._door(url) as address:
            return {"bulk/s": jobs / self._submit("bulk", address, jobs=jobs, batch=self.peer.batch, warm=True)}

    def single(self, url: str) -> Figures:
        """Submit one job per call, from several callers."""
        jobs = self._jobs(self.peer.singles * SINGLE_SECONDS)
        with self._door(url) as address:
            return {"single/s": jobs / self._submit("single", address, jobs=jobs, producers=self.peer.producers, warm=True)}

    def drain(self, url: str) -> Figures:
        """Drain existing jobs with a worker, timed from the first handler's start until all jobs are recorded as done."""
        jobs = self._drained()
        with self._door(url) as address:
            self._submit("bulk", address, jobs=jobs, batch=1000)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("VACUUM (ANALYZE)")
            connection.execute("CHECKPOINT")
            with self.server.span() as cost, self._worker(url, jobs) as worker:
                worker.event("first", START_TIMEOUT)
                at_first = worker.usage()
                first = worker.event("handled", SLOWER * DRAIN_SECONDS)["first"]
                self._wait_until_recorded(connection)
                seconds = time.time() - first
                used = worker.usage()
        figures = {
            "drain/s": jobs / seconds,
            "worker us/job": (used.cpu - at_first.cpu) / jobs * 1e6,
            "RSS MiB": used.rss_mib,
            "WAL B/job": cost.wal_bytes / jobs,
            "commits/job": cost.commits / jobs,
        }
        server = cost.cpu_per(jobs)
        return figures if server is None else {**figures, "server us/job": server}

    def pickup(self, url: str) -> Figures:
        """Submit jobs one by one to an idle worker, timed from the start of a submission to the handler's start."""
        jobs = self._jobs(PICKUP_JOBS)
        with self._worker(url, PICKUP_WARM_UP + jobs, timed=True) as worker:
            address = self._address(worker, url)
            self._submit("trickle", address, jobs=PICKUP_WARM_UP, pause=PICKUP_PAUSE)
            worker.event("first", START_TIMEOUT)
            time.sleep(SETTLE_SECONDS)
            self._submit("trickle", address, jobs=jobs, pause=PICKUP_PAUSE)
            latencies = worker.event("handled", START_TIMEOUT)["latencies"][PICKUP_WARM_UP:]
        return {"p50 ms": percentile(latencies, 0.5) * 1000, "p99 ms": percentile(latencies, 0.99) * 1000}

    @contextmanager
    def _database(self) -> Iterator[str]:
        """Create a database with the peer's schema."""
        name = f"peer_{uuid.uuid4().hex[:12]}"
        self.server.connection.execute(f"CREATE DATABASE {name}")
        try:
            url = urlsplit(self.server.url)._replace(path=f"/{name}").geturl()
            if not self.peer.service:
                self._submit("install", url)
            yield url
        finally:
            self.server.connection.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def _submit(self, role: str, address: str, **options: Any) -> float:
        """Run a load with producers and return its duration in seconds."""
        with self._adapter(role, address, options) as program:
            return float(program.event("done", START_TIMEOUT + SLOWER * max(DRAIN_SECONDS, SINGLE_SECONDS))["seconds"])

    @contextmanager
    def _door(self, url: str) -> Iterator[str]:
        """Yield the address to which producers submit: the database, or jobqueue's service without workers."""
        if not self.peer.service:
            yield url
            return
        with self._service(url, {"JOBQUEUE_NO_WORKERS": "1"}) as service:
            yield service.serving_url(START_TIMEOUT)

    def _worker(self, url: str, jobs: int, *, timed: bool = False) -> Program:
        options = {"jobs": jobs, "timed": timed}
        if self.peer.service:
            return self._service(url, {"BENCHMARK_SEEN": json.dumps(options)})
        return self._adapter("work", url, options)

    def _address(self, worker: Program, url: str) -> str:
        return worker.serving_url(START_TIMEOUT) if self.peer.service else url

    def _adapter(self, role: str, address: str, options: dict[str, Any]) -> Program:
        command = [self.environment.interpreter, self.peer.adapter, role, address, json.dumps(options)]
        return Program(command, self.environment.variables)

    def _service(self, url: str, variables: dict[str, str]) -> Program:
        handlers = "jobqueue_handlers:app"
        options = ["--port=0", "--log-level=warning", *self.peer.options]
        command = [sys.executable, "-m", "jobqueue", "serve", handlers, f"--database-url={url}", *options]
        return Program(command, {"BENCHMARK_SEEN": '{"jobs": 1, "timed": false}', **variables})

    def _wait_until_recorded(self, connection: psycopg.Connection[Any]) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while connection.execute(f"SELECT {self.peer.left}").fetchall() == [(True,)]:
            if time.monotonic() > deadline:
                raise ProgramError(f"all jobs were handled, but not all are recorded as done {START_TIMEOUT:.0f} s later")
            time.sleep(LOOK_INTERVAL)

    def _jobs(self, jobs: int) -> int:
        return max(1, int(jobs * self.scale))

    def _drained(self) -> int:
        return self._jobs(self.peer.drains * DRAIN_SECONDS)
