"""The measured job queues: their versions, adapters, and numbers of jobs."""

from __future__ import annotations

from pathlib import Path

import msgspec

ADAPTERS = Path(__file__).parent / "adapters"

MEASURES = ("bulk", "drain", "single", "pickup")

US = "jobqueue"
"""The row with which all other rows are compared."""


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """A job queue.

    Attributes:
        adapter: the file in `ADAPTERS` that runs loads on it.
        packages: the pinned packages to install; none for jobqueue.
        drains: known rate of its worker, in jobs per second. It determines how many jobs a drain has.
        singles: known rate of 16 producers, in jobs per second.
        left: SQL condition that is true while a job is not yet recorded as done.
        python: the minimum Python version of its packages.
        producers: concurrent callers in the measure `single`.
        batch: jobs per call in the measure `bulk`.
        service: whether producers submit to jobqueue's service, which is also the worker.
        options: command line options of jobqueue's service.
        measures: the names of its measures, from `MEASURES`; variants of jobqueue have only some of them.
    """

    adapter: str
    packages: tuple[str, ...] = ()
    drains: int = 1000
    singles: int = 1000
    left: str = ""
    python: tuple[int, int] = (3, 11)
    producers: int = 16
    batch: int = 1000
    service: bool = False
    options: tuple[str, ...] = ()
    measures: tuple[str, ...] = MEASURES

    @property
    def node(self) -> bool:
        """Whether it runs on Node.js."""
        return self.adapter.endswith(".mjs")


OURS_LEFT = "EXISTS (SELECT FROM jobqueue_internal.pending_jobs) OR EXISTS (SELECT FROM jobqueue_internal.inflight_jobs)"

HTTP = Peer(adapter="for_jobqueue_http.py", service=True, drains=25_000, singles=1500, left=OURS_LEFT)

PEERS = {
    US: HTTP,
    "graphile-worker": Peer(
        adapter="for_graphile_worker.mjs",
        packages=("graphile-worker@0.18.0",),
        drains=25_000,
        left="EXISTS (SELECT FROM graphile_worker._private_jobs)",
    ),
    "pg-boss": Peer(
        adapter="for_pg_boss.mjs",
        packages=("pg-boss@12.38.0",),
        drains=18_000,
        left="EXISTS (SELECT FROM pgboss.job WHERE name = 'noop' AND state <> 'completed')",
    ),
    "pgqueuer": Peer(
        adapter="for_pgqueuer.py",
        packages=("pgqueuer==1.6.0", "asyncpg==0.32.0", "uvloop==0.23.0"),
        drains=5500,
        left="EXISTS (SELECT FROM pgqueuer)",
    ),
    "procrastinate": Peer(
        adapter="for_procrastinate.py",
        packages=("procrastinate==3.10.0", "psycopg-binary==3.3.9"),
        drains=400,
        left="EXISTS (SELECT FROM procrastinate_jobs WHERE status <> 'succeeded')",
    ),
    "oban": Peer(
        adapter="for_oban.py",
        packages=("oban==0.7.0",),
        python=(3, 12),
        drains=2300,
        left="EXISTS (SELECT FROM oban_jobs WHERE state <> 'completed')",
    ),
    "chancy": Peer(
        adapter="for_chancy.py",
        packages=("chancy==0.26.0", "psycopg-binary==3.3.9"),
        drains=450,
        left="EXISTS (SELECT FROM chancy_jobs WHERE state <> 'succeeded')",
    ),
    "awa-pg": Peer(
        adapter="for_awa.py",
        packages=("awa-pg==0.6.9",),
        drains=2100,
        singles=350,
        left="EXISTS (SELECT FROM awa.jobs WHERE state <> 'completed')",
    ),
}

VARIANTS = {
    "jobqueue, keeps none": msgspec.structs.replace(HTTP, options=("--keep-finished=0",), measures=("drain",)),
    "jobqueue, 32 connections": msgspec.structs.replace(HTTP, producers=32, measures=("single",)),
    "jobqueue, 10,000 a request": msgspec.structs.replace(HTTP, batch=10_000, measures=("bulk",)),
    "jobqueue, SQL": Peer(adapter="for_jobqueue_sql.py", drains=HTTP.drains, singles=HTTP.singles, measures=("bulk", "single")),
}
"""Variants of jobqueue. One of them keeps no finished jobs, like graphile-worker and pgqueuer."""
