"""Make ``version_1.sql``, the dump of a version 1 database with every kind of row.

Run ``python -m tests.upgrades.make_version_1`` in a clone, with Debian's postgresql-15 and libfaketime. It takes a minute.

The dump is an example of the databases that version 1 left behind. Make it again only to add a kind of row. Nodes and SQL functions
of version 1 write the rows on PostgreSQL 15. PostgreSQL's clock starts five days before the real time and ends one day
before it. So all retries, leases, and ticks in the dump are due when a test loads it. Two kinds of rows need more than a user's
calls: killed nodes leave running jobs behind, and an UPDATE makes rows that no node can move or read.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jobqueue.storage.embedded.cluster import Cluster
from jobqueue.testing.postgres import FAST, directory, wait_until_ready
from jobqueue.testing.process import ServiceProcess
from tests.support.clock import Clock
from tests.support.postgres import Database
from tests.support.processes import children_of
from tests.support.waiting import wait_for
from tests.upgrades.dumps import VERSION_1_SQL
from tests.upgrades.releases import HANDLERS, check_out

BINARIES = Path("/usr/lib/postgresql/15/bin")

DAY = 86400.0

LEASE = 3600.0
"""The lease of the nodes that die last, in seconds, so that no other node recovers their jobs."""

STALL_LIMIT = 5
"""The shortest time after which the keeper releases the jobs of a blocked node, in seconds."""

TRACE = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "vendor=opaque"}

UNICODE = {"text": "Grüße, 日本語, 🐘, \u2028, \\, \t, \n, 'quoted', \"quoted\"", "null": None, "float": 1e20, "integer": 2**63}


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


DEEP = json.loads(nested(100))
LARGE = random.Random(1).randbytes(10_000).hex()
"""PostgreSQL stores it outside of the row, even compressed."""

WAITING: list[dict[str, Any]] = [
    {"queue": "paused"},
    {"queue": "paused", "concurrency_key": "account 1"},
    {"queue": "paused", "concurrency_key": "account 1"},
    {"delay": 1800},
    {"delay": 1800, "concurrency_key": "account 1", "group": "acme"},
]
"""Fields of jobs that wait: one or more for each waiting state."""

UNSERVED: list[dict[str, Any]] = [
    {"payload": UNICODE, **TRACE},
    {"payload": DEEP},
    {"payload": LARGE},
    {"kind": "größe 🐘", "queue": "größe/日本 🐘"},
    {"priority": 7, "max_retries": 9, "timeout": 2.5},
    {"queue": "aging", "priority": 3},
    {"queue": "aging", "group": "acme", "weight": 0.5},
    {"group": "acme", "weight": 3},
    {"group": "globex", "priority": 2},
    {"expires_at": "2099-12-31T23:59:59Z"},
    {"expires_in": 60},
    {"expires_in": 60, "delay": 1800},
    {"unique": True, "payload": {"unique": True}},
    {"unique_key": "waiting"},
    {"delay": 1800, "unique_key": "größe 🐘", "payload": UNICODE},
    {"delay": 1800, "concurrency_key": "account 1", "group": "acme", "weight": 2, "expires_at": "2099-12-31T23:59:59Z"},
    {"concurrency_key": "größe 🐘", "expires_in": 60},
    {"concurrency_key": "größe 🐘", "expires_in": 60},
    {"kind": "unknown"},
    *({"queue": "declared", "payload": {"number": number}} for number in range(3)),
]
"""Fields of jobs in queues without workers."""

FORGERIES = ["claims = 2147483647", """options = '{"group": 5}'""", f"payload = '{nested(1200)}'"]
"""Changes of a user that make a job die at its next claim."""


def main() -> None:
    with tempfile.TemporaryDirectory() as checkout, server() as (database, clock):
        check_out(Path(checkout))
        maker = Maker(Path(checkout), database, clock)
        maker.begin()
        node = maker.end_jobs()
        maker.end_jobs_without_partitions(node)
        maker.leave_jobs_unfinished()
        VERSION_1_SQL.write_bytes(_dump(database.url).replace(checkout.encode(), b"/srv/jobqueue"))


@contextmanager
def server() -> Iterator[tuple[Database, Clock]]:
    """Run PostgreSQL 15 with a clock."""
    library = Clock.find_library()
    assert library is not None, "libfaketime is missing: install Debian's package libfaketime"
    with directory() as path:
        clock = Clock(library, path / "clock")
        clock.set(-5 * DAY)
        cluster = Cluster(path / "data", binaries=BINARIES, settings=FAST, environment=clock.environment)
        cluster.prepare()
        process = cluster.start()
        try:
            wait_until_ready(cluster)
            database = Database(cluster.url)
            yield database, clock
            database.close()
        finally:
            cluster.stop()
            clock.forget(process.pid)


class Maker:
    """Fill a database by running version 1.

    Args:
        checkout: the files of version 1.
        database: an empty database.
        clock: the server's clock.
    """

    def __init__(self, checkout: Path, database: Database, clock: Clock) -> None:
        self._checkout = checkout
        self._database = database
        self._clock = clock
        self._env = {"PYTHONPATH": str(checkout), "DATABASE_URL": database.url}

    def begin(self) -> None:
        """Create the schema, queues, and schedules."""
        subprocess.run([sys.executable, "-m", "jobqueue", "migrate"], cwd=self._checkout, env=os.environ | self._env, check=True)
        for statement in (
            "pause('paused')",
            "configure('aging', aging_interval => '10 seconds')",
            "configure('limited', max_running => 2, rate => 50, burst => 3)",
            "configure('keyed', key_max_running => 1)",
            "configure('starts', key_max_running => 5, key_rate => 0.001, key_burst => 1)",
            "schedule('one', '*/5 * * * *', kind => 'echo')",
            "schedule('skip', '30 * * * *', 'America/New_York', 'skip', 'echo', priority => 3, max_retries => 1, timeout => 60)",
            """schedule('all', '0 12 * * *', missed => 'all', kind => 'echo', payload => '{"text": "größe 🐘"}', queue => 'all')""",
            "schedule('paused', '0 0 1 1 *', kind => 'echo')",
            "pause_schedule('paused')",
            "schedule('wrong', '61 * * * *', kind => 'echo')",
        ):
            self._database.rows(f"SELECT jobqueue.{statement}")

    def end_jobs(self) -> ServiceProcess:
        """End jobs with each outcome, for each reason. Return a running node."""
        stop, hold = self._submit({"kind": "stop"}, {"kind": "hold"})
        node = self._node("default=4", hold=True)
        self._wait_for("count(*) = 2 FROM jobqueue.inflight_jobs WHERE saved IS NOT NULL", "both jobs run")
        node.kill()  # its keeper ends its lease, so the next node recovers the jobs at once
        node = self._node("default=4", hold=True)
        self._wait_for("count(*) = 1 FROM jobqueue.inflight_jobs WHERE saved IS NOT NULL AND claims = 3", "one job runs again")
        self._submit({"kind": "block", "max_retries": 0})
        self._wait_for("count(*) = 1 FROM jobqueue.inflight_jobs WHERE blame IS NOT NULL", "the keeper released the jobs")
        node.kill()

        node = self._node("default=4")
        [redriven] = self._submit({"kind": "fail", "payload": {"redriven": True}})
        self._wait_for(f"reason IS NOT NULL FROM jobqueue.jobs WHERE id = '{redriven}'", "the job is dead")
        self._database.rows("SELECT jobqueue.retry(%s)", redriven)
        self._submit(*({"kind": kind, "payload": {"number": n}} for kind in ("echo", "flaky", "hold", "nap") for n in range(3)))
        self._submit({"payload": UNICODE, "group": "acme", "weight": 2.5, "priority": 5, **TRACE})
        self._submit(*({"kind": kind, "max_retries": 0} for kind in ("fail", "discard", "slow", "unstorable", "unknown")))
        self._submit({"kind": "typed", "payload": {"number": "größe 🐘"}})
        for forgery in FORGERIES:
            [job] = self._submit({"queue": "paused"})
            self._database.rows(f"UPDATE jobqueue.pending_jobs SET queue = 'default', {forgery} WHERE id = %s", job)
        self._submit(*({**fields, "expires_in": 1} for fields in WAITING))
        self._cancel(*self._submit(*WAITING))
        [running] = self._submit({"kind": "rest"})
        self._wait_for(f"claimed_at IS NOT NULL FROM jobqueue.jobs WHERE id = '{running}'", "the job runs")
        self._cancel(running)
        self._wait_until_all_ended()
        states = dict(self._database.rows("SELECT id::text, state FROM jobqueue.jobs"))
        assert (states[str(stop)], states[str(hold)], states[str(running)]) == ("dead", "succeeded", "cancelled")
        return node

    def end_jobs_without_partitions(self, node: ServiceProcess) -> None:
        """End jobs three days later, before the node creates partitions for that day."""
        self._clock.set(-2 * DAY)
        self._submit({"payload": "late"}, {"kind": "flaky"})
        self._cancel(*self._submit({"queue": "paused"}))
        self._wait_until_all_ended()
        assert node.stop() == 0

    def leave_jobs_unfinished(self) -> None:
        """Leave unfinished jobs in each state, of nodes that die."""
        self._clock.set(-1 * DAY)
        node = self._node("default=4")
        self._submit({"unique_key": "ended"}, {"kind": "flaky"}, {"kind": "fail"}, {"kind": "later"}, {"kind": "snooze"})
        self._wait_for("count(*) = 2 FROM jobqueue.scheduled_jobs WHERE claims > 0", "jobs wait for their retry")
        self._wait_for("count(*) = 4 FROM jobqueue.schedules WHERE next_at > now()", "the next ticks are computed")
        self._wait_for("count(*) > 0 FROM jobqueue.history WHERE at > now() - interval '1 hour' AND depth IS NOT NULL", "history")
        assert node.stop() == 0

        node = self._node("default=3", "limited=4", "keyed=2", "starts=4", "fair=1", hold=True)
        stuck = self._node("stuck=2", hold=True)  # a node that starts later would recover the jobs of dead nodes on this machine
        self._submit(*({"kind": "hold", "payload": {"number": n}, "timeout": 1000, "max_retries": 5} for n in range(3)))
        self._submit(*({"kind": "stop", "queue": "limited", "payload": {"number": n}} for n in range(4)))
        self._submit(*({"kind": "stop", "queue": "keyed", "concurrency_key": f"account {n % 3}"} for n in range(7)))
        self._submit(*({"kind": "stop", "queue": "starts", "concurrency_key": f"account {n % 2}"} for n in range(4)))
        self._submit(
            *(
                {"kind": "nap", "queue": "fair", "group": f"tenant {n % 3}", "weight": 1 + n % 3, "priority": n % 4 // 3}
                for n in range(60)
            )
        )
        self._wait_for("count(*) = 9 FROM jobqueue.inflight_jobs WHERE saved IS NOT NULL", "jobs run in each queue")
        self._wait_for("count(*) > 9 FROM jobqueue.succeeded_jobs WHERE queue = 'fair' AND priority = 0", "the groups take turns")
        _kill(node)

        one, other = self._database.rows(
            "SELECT id FROM jobqueue.inflight_jobs WHERE queue IN ('default', 'limited') ORDER BY id LIMIT 2"
        )
        self._cancel(*one)
        self._wait_for(
            "count(*) = 1 FROM jobqueue.inflight_jobs WHERE cancel_requested_at IS NOT NULL", "a heartbeat marks the job"
        )
        self._submit({"kind": "hold", "queue": "stuck"})
        self._wait_for("count(*) = 1 FROM jobqueue.inflight_jobs WHERE queue = 'stuck' AND saved IS NOT NULL", "the job runs")
        self._submit({"kind": "block", "queue": "stuck"})
        self._wait_for("count(*) = 1 FROM jobqueue.inflight_jobs WHERE blame IS NOT NULL", "the keeper released the jobs")
        _kill(stuck)

        self._cancel(*other)
        jobs = self._submit(*({"queue": "unserved", **fields} for fields in UNSERVED))
        self._submit({"queue": "keyed", "concurrency_key": "account 1"})
        self._database.rows("SELECT jobqueue.change(%s, priority => 50)", jobs[0])
        self._database.rows("SELECT jobqueue.trigger_schedule('all')")
        # A node with --idempotency-ttl submits jobs in this way.
        keyed = json.dumps([{"kind": "echo", "queue": "unserved", "options": {"idempotency_key": "größe 🐘"}}])
        self._database.rows("SELECT jobqueue.submit_batch(%s::jsonb, key_ttl => 1e9)", keyed)

    def _node(self, *queues: str, hold: bool = False) -> ServiceProcess:
        arguments = [HANDLERS, "--port", "0", "--stall-limit", str(STALL_LIMIT), "--keep-finished", str(30 * DAY)]
        arguments += [f"--queue={queue}" for queue in queues]
        if hold:
            arguments += ["--visibility-timeout", str(LEASE)]
        return ServiceProcess(arguments, {**self._env, "HOLD": str(int(hold))}, self._checkout)

    def _submit(self, *jobs: dict[str, Any]) -> list[Any]:
        return list(
            self._database.value("SELECT jobqueue.submit_many(%s::jsonb)", json.dumps([{"kind": "echo", **job} for job in jobs]))
        )

    def _cancel(self, *jobs: Any) -> None:
        for job in jobs:
            assert self._database.value("SELECT jobqueue.cancel(%s)", job) is not None

    def _wait_for(self, condition: str, what: str) -> None:
        wait_for(lambda: self._database.rows(f"SELECT {condition}") == [(True,)], what, 60)

    def _wait_until_all_ended(self) -> None:
        unfinished = "NOT EXISTS (SELECT FROM jobqueue.jobs WHERE state IN ('pending', 'blocked', 'scheduled', 'inflight'))"
        self._wait_for(unfinished, "all jobs have ended")


def _kill(node: ServiceProcess) -> None:
    """Kill a node and its keeper, as when their machine is lost."""
    for pid in children_of(node.process.pid):
        os.kill(pid, signal.SIGKILL)
    node.kill()


def _dump(url: str) -> bytes:
    """Return the text of pg_dump without its random keys."""
    text = subprocess.run([BINARIES / "pg_dump", "--no-owner", "--dbname", url], capture_output=True, check=True).stdout
    return b"".join(line for line in text.splitlines(keepends=True) if not line.startswith((b"\\restrict", b"\\unrestrict")))


if __name__ == "__main__":
    main()
