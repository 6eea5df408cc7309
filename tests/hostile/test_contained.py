"""The next call of a part fails with an unforeseen error: the node lives, reports it, and works again afterwards."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
import pytest
import trio
from psycopg import errors as pg

from jobqueue import service
from jobqueue.engine import maintenance, overview
from jobqueue.engine.operations import Operations
from jobqueue.errors import JobQueueError
from jobqueue.storage.postgres.store import PostgresStore
from tests.support.nodes import AGAIN, echo_node, ended, submit
from tests.support.postgres import Database
from tests.support.waiting import until

ERRORS: list[Callable[[], Exception]] = [
    lambda: pg.UndefinedFunction("function jobqueue_internal.claim(uuid) does not exist"),
    lambda: pg.InsufficientPrivilege("permission denied for table pending_jobs"),
    lambda: pg.FeatureNotSupported("cached plan must not change result type"),
    lambda: pg.DiskFull("could not extend file: No space left on device"),
    lambda: pg.InternalError_("cache lookup failed for relation 16385"),
    lambda: pg.InvalidTextRepresentation("invalid input syntax for type json"),
    lambda: pg.RaiseException("a trigger of somebody's"),
    lambda: psycopg.NotSupportedError("the driver cannot do this"),
    lambda: psycopg.InterfaceError("cursor is closed"),
    lambda: NotImplementedError("cannot parse date with DateStyle 'SQL, DMY'"),
    lambda: OSError(28, "No space left on device"),
    lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    lambda: RecursionError("maximum recursion depth exceeded"),
    MemoryError,
    lambda: KeyError("queue"),
    lambda: ValueError("could not convert string to float: '\udcff'"),
]

PARTS = {
    "submissions": "submit",
    "claims": "claim",
    "outcomes": "finish",
    "heartbeat": "heartbeat",
    "promotion": "promote",
    "admission": "admit",
    "recovery": "recover",
    "cron": "due_schedules",
    "pruning": "maintain",
    "notes": "note",
    "history": "record",
    "watcher": "look",
    "overview": "nodes",
}
"""Each part of a node that uses the database, and a verb of the store that it calls."""

VITAL = {"submissions", "claims", "outcomes", "heartbeat", "promotion", "admission", "recovery", "cron"}


class Sabotaged(PostgresStore):
    """A store with a verb that raises a given error, which nothing maps to another one.

    Attributes:
        error: makes the error; None lets the verb work.
        verb: the name of the verb.
        failed: how often it has failed.
    """

    error: Callable[[], Exception] | None = None
    verb = ""
    failed = 0

    def __getattribute__(self, name: str) -> Any:
        if name in PARTS.values() and name == self.verb and self.error is not None:
            return self._fail
        return super().__getattribute__(name)

    async def _fail(self, *_: object, **__: object) -> None:
        await trio.lowlevel.checkpoint()
        assert self.error is not None
        self.failed += 1
        raise self.error()


@pytest.mark.parametrize("part", PARTS)
async def test_a_part_whose_calls_fail_in_any_way_says_so_and_works_again(
    part: str, database_url: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "PRUNE_PAUSE", 1.0)
    monkeypatch.setattr(overview, "LOOK_INTERVAL", overview.SHORTEST_INTERVAL)
    store = Sabotaged(database_url)
    async with echo_node(store) as (engine, node, stages), trio.open_nursery() as nursery:
        names = stages.names()
        [trouble] = [trouble for trouble in engine.troubles if trouble.part == part]
        with node.overview.watch(900):
            for error in ERRORS:
                store.verb, store.error, store.failed = PARTS[part], error, 0
                nursery.start_soon(provoke, engine, node)
                await until(lambda: store.failed > 0 and trouble.reason is not None, f"{part} fails", AGAIN)
                assert stages.names() == names
                if part in VITAL:
                    await until(lambda: any(part in reason for reason in node.troubles()), "the node says so", AGAIN)
                store.error = None
                nursery.start_soon(provoke, engine, node)
                await until(lambda: trouble.reason is None, f"{part} works again", AGAIN)
                if part in VITAL:
                    await until(lambda: not node.troubles(), "the node is ready", AGAIN)
                    await ended(database, await submit(node), AGAIN)
        assert stages.names() == names
        assert f'jobqueue_contained_errors_total{{part="{part}"}}'.encode() in (await node.metrics())[0]
        nursery.cancel_scope.cancel()
    states = database.states()
    assert states.keys() <= {"succeeded", "scheduled", "pending"}, states


async def provoke(engine: service.Engine, node: Operations) -> None:
    """Give every part something to do. Some would otherwise run once an hour."""
    engine.signals.checks_due.publish(0)
    engine.signals.schedules_changed.publish()
    engine.signals.cancel_requested.publish()
    engine.signals.node_lost.publish()
    engine.pruning.due_in(0)
    engine.history._routine.due_in(0)
    with suppress(JobQueueError, Exception):
        job_id = await submit(node, payload={"text": "here"})
        with node.watcher.watch(job_id):
            await trio.sleep(1)


CHANNELS = [
    "jobqueue",
    "jobqueue_scheduled",
    "jobqueue_schedules",
    "jobqueue_cancel",
    "jobqueue_keys",
    "jobqueue_freed",
    "jobqueue_paused",
]

PAYLOADS = [
    "x",
    "nan default",
    "inf default",
    "-inf default",
    "1e400 default",
    "٣ default",
    "1 2 3",
    " ",
    "",
    "9" * 7_900,
    "0193d9a0-0000-7000-8000-000000000000 " + "9" * 7_000,
    "0193d9a0-0000-7000-8000-000000000000 ٣",
    "0193d9a0-0000-7000-8000-000000000000 -1",
    "no-uuid 1",
    "😀\u2028 \x7f",
    '{"queue": null}',
]


async def test_no_notification_ends_a_node(database_url: str, database: Database) -> None:
    dice = random.Random(1)
    store = PostgresStore(database_url)
    async with echo_node(store) as (engine, node, stages):
        names = stages.names()
        for channel in CHANNELS:
            for payload in [*PAYLOADS, *("".join(chr(dice.randrange(1, 0xD7FF)) for _ in range(9)) for _ in range(20))]:
                database.rows("SELECT pg_notify(%s, %s)", channel, payload)
        await ended(database, await submit(node), AGAIN)
        assert stages.names() == names
        [unreadable] = [trouble for trouble in engine.troubles if trouble.part == "reading a notification"]
        assert unreadable.errors > len(PAYLOADS)
        assert node.troubles() == []


async def test_a_forged_node_harms_no_start(database_url: str, database: Database) -> None:
    async with echo_node(PostgresStore(database_url)):
        [[process]] = database.rows("SELECT process FROM jobqueue_internal.nodes")
    here = ":".join(process.split(":")[:2])
    for forged in (
        "",
        "x",
        here,
        f"{here}:",
        f"{here}:x:1",
        f"{here}:-1:1",
        f"{here}:{'9' * 5_000}:1",
        f"{here}:٣:1",
        f"{here}:0:1",
    ):
        database.rows(
            "INSERT INTO jobqueue_internal.nodes (id, host, pid, process, version, queues, lease_until) "
            "VALUES (gen_random_uuid(), '', 0, %s, '', '[]', now() + interval '1 hour')",
            forged,
        )
    async with echo_node(PostgresStore(database_url)) as (_, node, _stages):
        await ended(database, await submit(node), AGAIN)
