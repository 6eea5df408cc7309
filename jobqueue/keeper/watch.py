"""Check a node once per second from outside, and keep its lease if necessary.

States:

- *idle*: the node's loop runs. The keeper only watches.
- *late*: the loop does not run. The keeper renews the node's lease and finds the job that blocks
  the node.
- *surrendered*: the loop was late for too long. The keeper has handed the node's jobs back and no
  longer renews the lease.

A node that runs again is *idle*; after a surrender it has a new id.
"""

from __future__ import annotations

import functools
import json
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from jobqueue.keeper import threads

if TYPE_CHECKING:
    from jobqueue.keeper.node_state import Mark, NodeState
    from jobqueue.storage.lane import Lane

REPORT_AFTER = 3.0
"""Seconds for which the interpreter is held before the keeper reports it."""

LOOK_CLOSELY_AFTER = 1.5
"""Seconds without a beat of the loop before the keeper samples the node's threads."""

REPORT_INTERVAL = 30.0
"""Seconds between two reports of the same problem."""

RENEWAL_INTERVAL = 2.0
"""Maximum interval between two renewals, in seconds."""

SHORT_LEASE = 10.0
"""If the lease is shorter than this many seconds, the keeper loads the database driver at its start.

Loading takes over a second on a busy machine.
"""

REPLY_TIMEOUT = 4.0
"""Timeout of a statement, in seconds."""

MAX_NAMED = 10
"""Maximum number of jobs that a log line names."""

END_LEASE_SECONDS = 10.0
"""Seconds for which the keeper tries to end the lease of a dead node. If it fails, the lease ends after the visibility timeout."""

END = b"end\n"
"""The command that ends a keeper."""

RENEW = "UPDATE jobqueue_internal.nodes SET lease_until = now() + %s * interval '1 second' WHERE id = %s RETURNING id"
"""This does not set `heartbeat_at` and `activity`: only the node writes these, so its late heartbeat stays visible."""


class Config(NamedTuple):
    """The settings that a node sends its keeper at the start.

    Attributes:
        database_url: the database with the lease. It may contain a password.
        schema: the name of the queue's schemas.
        pid: the node's process id.
        file: the inherited descriptor of the `NodeState`.
        slots: the number of slots of the `NodeState`.
        lease: the visibility timeout, in seconds.
        stall_limit: seconds that the loop may be late before the keeper hands the node's jobs back.
        log_level: the node's log level.
        log_fields: fields of each line in the node's log.
    """

    database_url: str
    schema: str
    pid: int
    file: int
    slots: int
    lease: float
    stall_limit: float
    log_level: str
    log_fields: dict[str, Any]


class Suspects(NamedTuple):
    """The jobs that may block the node, and since when on the monotonic clock. Usually, this is a single job.

    If there is none, the service's own code or a thread without a handler blocks the node.
    """

    marks: list[Mark]
    since: float


class Keeper:
    """Keeps the lease of one node.

    Attributes:
        interval: seconds between two checks.
    """

    def __init__(self, config: Config, state: NodeState) -> None:
        self._config = config
        self._state = state
        self._late_after = min(3.0, config.lease / 4)
        self.interval = min(1.0, config.lease / 12)
        self._lane: Lane | None = None
        self._sample: threads.Sample | None = None
        self._suspects: Suspects | None = None
        self._renew_at = 0.0
        self._reported: list[Mark] = []
        self._reported_at = 0.0
        self._failure_reported_at = 0.0
        self._surrendered = ""
        if config.lease < SHORT_LEASE:
            _lane(config)

    def look(self) -> None:
        """Check the node once and do the work that is due."""
        self._try(self._look)

    def _look(self) -> None:
        late = self._state.since_beat
        if late < min(LOOK_CLOSELY_AFTER, self._late_after):
            self._rest()
            return
        if threads.stopped(self._config.pid):
            # A stopped process runs no handler, so let its lease expire like the lease of a dead process.
            self._sample = self._suspects = None
            return
        self._find_suspects(late)
        if late >= self._late_after and self._state.node != self._surrendered:
            if late >= self._config.stall_limit:
                self._try(self._surrender, late)
            elif time.monotonic() >= self._renew_at:
                self._try(self._renew)
        self._report(late)

    def end_lease(self) -> None:
        """End the lease of the node, whose process has died, so that other nodes take its jobs at once."""
        deadline = time.monotonic() + END_LEASE_SECONDS
        while not self._try(self._ask, "SELECT jobqueue_internal.lose_node(%s)", self._state.node):
            if time.monotonic() >= deadline:
                return
            time.sleep(1.0)

    def _rest(self) -> None:
        if self._state.reported:
            self._report_end()
        self._sample = self._suspects = None
        if self._lane is not None:
            self._lane.close_here()
            self._lane = None

    # -- suspects

    def _find_suspects(self, late: float) -> None:
        sample = threads.sample(self._config.pid)
        activity = None
        if sample is not None:
            if self._sample is None:
                self._sample = sample
                return
            activity = threads.Activity(self._sample, sample)
            if not activity.known:
                return
            self._sample = sample
        marks = _suspects(self._state, activity)
        before = self._suspects
        now = time.monotonic()
        if before is None:
            self._suspects = Suspects(marks, now - late)
        elif marks and (not before.marks or set(marks).issubset(before.marks)):
            self._suspects = Suspects(marks, before.since)
        elif marks != before.marks:  # another handler took the lock before the loop could run
            self._suspects = Suspects(marks, now)

    # -- the lease

    def _renew(self) -> None:
        self._renew_at = time.monotonic() + min(RENEWAL_INTERVAL, self._config.lease / 6)
        self._ask(RENEW, self._config.lease, self._state.node)

    def _surrender(self, late: float) -> None:
        from jobqueue.retry import DEFAULT_BACKOFF  # noqa: PLC0415 - rarely needed

        node, (marks, since) = self._state.node, self._suspects or Suspects([], time.monotonic() - late)
        blamed = [
            {
                "id": mark.job_id,
                "claims": mark.claims,
                "error": _reason(mark, time.monotonic() - since, self._config.stall_limit, others=len(marks) - 1),
                "delay": DEFAULT_BACKOFF.delay(mark.attempt),
            }
            for mark in marks
        ]
        handed_back = self._ask("SELECT jobqueue_internal.surrender(%s, %s::jsonb)", node, json.dumps(blamed))
        self._surrendered = node
        self._log().error(
            "the node is stuck: its jobs are handed back",
            **_fields(marks),
            node=node,
            seconds=round(late, 1),
            jobs_handed_back=handed_back,
        )

    def _ask(self, sql: str, *params: object) -> object:
        def work(connection: Any) -> object:
            row = connection.execute(sql, params).first()
            return None if row is None else row[0]

        if self._lane is None:
            self._lane = _lane(self._config)
        return self._lane.run_here(work)

    def _try(self, act: Any, *args: object) -> bool:
        """Call `act`; return whether it succeeded. If it raises an error, log the error; a later check tries again."""
        try:
            act(*args)
        except Exception as error:  # noqa: BLE001 - the keeper must survive: a blocked node cannot start another one
            if time.monotonic() - self._failure_reported_at >= REPORT_INTERVAL:
                self._failure_reported_at = time.monotonic()
                self._log().warning("the keeper cannot maintain the lease", error=str(error), node=self._state.node)
            return False
        return True

    # -- reports

    def _report(self, late: float) -> None:
        """Report that the interpreter is held. If other threads run, the node's watchdog reports the blocked loop instead."""
        held = min(late, self._state.since_thread)
        if held < REPORT_AFTER:
            if self._state.reported:
                self._report_end()
            return
        if self._suspects is None:
            return
        marks, since = self._suspects
        now = time.monotonic()
        if self._state.reported and marks == self._reported and now - self._reported_at < REPORT_INTERVAL:
            return
        self._state.reported = True
        self._reported, self._reported_at = marks, now
        event = "a handler holds the interpreter" if marks else "the interpreter is held"
        self._log().warning(event, **_fields(marks), node=self._state.node, seconds=round(now - since, 1))

    def _report_end(self) -> None:
        self._state.reported = False
        marks, since = self._suspects or Suspects([], time.monotonic())
        self._log().warning(
            "the interpreter is free again", **_fields(marks), node=self._state.node, seconds=round(time.monotonic() - since, 1)
        )

    def _log(self) -> Any:
        return _logger(self._config.log_level, tuple(self._config.log_fields.items()))


def _suspects(state: NodeState, activity: threads.Activity | None) -> list[Mark]:
    """Return the jobs that may block the node. Usually, this is a single job."""
    if activity is None:
        return state.on_loop + state.in_threads
    if not activity.waits(state.loop_thread):
        return state.on_loop  # the loop itself computes or sleeps
    running = [mark for mark in state.in_threads if not activity.waits(mark.thread)]
    # Prefer busy threads: a thread that holds the lock rarely sleeps.
    return [mark for mark in running if activity.busy(mark.thread)] or running


def _reason(mark: Mark, seconds: float, limit: float, *, others: int) -> str:
    which = f" (or one of {others} other jobs did)" if others else ""
    return f"its handler ({mark.kind}) blocked the node for {seconds:.0f} s{which}, longer than --stall-limit ({limit:g} s) allows"


def _fields(marks: list[Mark]) -> dict[str, object]:
    """Return the log fields for the job, or for the first `MAX_NAMED` of several candidates."""
    jobs: list[dict[str, object]] = [
        {"job_id": mark.job_id, "kind": mark.kind, "queue": mark.queue, "attempt": mark.attempt} for mark in marks[:MAX_NAMED]
    ]
    if len(marks) == 1:
        return jobs[0]
    return {"one_of": jobs} if jobs else {}


def _lane(config: Config) -> Lane:
    from jobqueue.storage.lane import Lane  # noqa: PLC0415 - uses 20 MiB that a keeper rarely needs

    return Lane(config.database_url, "keeper", reply_timeout=REPLY_TIMEOUT, schema=config.schema)


@functools.cache
def _logger(level: str, fields: tuple[tuple[str, Any], ...]) -> Any:
    import structlog  # noqa: PLC0415 - uses 18 MiB that a keeper rarely needs

    from jobqueue import logs  # noqa: PLC0415

    logs.take_over(logs.Setup(level, dict(fields)))
    return structlog.get_logger()
