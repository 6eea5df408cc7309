"""Assemble a node: build its parts, start them in order, and stop them in order.

`serve` lists the startup steps from top to bottom, and `_shut_down` the shutdown steps.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import structlog
import trio
import trio_parallel

from jobqueue import logs
from jobqueue.concurrency.stages import Stages, open_stages
from jobqueue.concurrency.trouble import Trouble
from jobqueue.engine import keeping, maintenance, watchdog
from jobqueue.engine.cron import Cron
from jobqueue.engine.depths import Depths
from jobqueue.engine.dispatcher import Dispatcher
from jobqueue.engine.executor import Executor
from jobqueue.engine.handlers import App
from jobqueue.engine.history import HistoryWriter
from jobqueue.engine.hold import Hold
from jobqueue.engine.hooks import Hooks
from jobqueue.engine.job_watcher import JobWatcher
from jobqueue.engine.key_admission import KeyAdmission
from jobqueue.engine.leases import RENEWALS_PER_LEASE, Lease, expire_dead_neighbours
from jobqueue.engine.local_queue import LocalQueue
from jobqueue.engine.operations import Operations
from jobqueue.engine.outcomes import Outcomes
from jobqueue.engine.overview import OverviewWatcher
from jobqueue.engine.progress import ProgressWriter
from jobqueue.engine.promotion import Promoter
from jobqueue.engine.signals import Signals
from jobqueue.engine.submission import Submissions
from jobqueue.engine.task_tree import TaskTree
from jobqueue.engine.worker import Workers
from jobqueue.errors import DatabaseUnavailable
from jobqueue.exception_groups import leaves
from jobqueue.http import app, server
from jobqueue.http.access.credentials import Credentials
from jobqueue.http.express.lane import ExpressLane
from jobqueue.http.transport.listeners import open_listeners, urls
from jobqueue.keeper.node_state import NodeState
from jobqueue.metrics import Metrics
from jobqueue.settings import Settings
from jobqueue.storage.embedded import stage as embedded
from jobqueue.storage.handler_transactions import MAX_TRANSACTIONS, Transactions
from jobqueue.storage.notifications import Notifications
from jobqueue.storage.postgres.store import PostgresStore
from jobqueue.storage.roles import Store
from jobqueue.storage.schema import SCHEMA_VERSION

HTTP_DRAIN = 2.0
"""Seconds for requests in flight to get their responses when the service stops."""

HOOKS_DRAIN = 1.0
"""Seconds for running hooks to end when the service stops."""

MAX_THREADS_LEFT_BEHIND = 1_000
"""Maximum number of threads that still run after their timeout. Beyond it, sync handlers wait until one of these threads ends."""

SWITCH_INTERVAL = 0.0005
"""Seconds after which a computing thread yields the GIL: a tenth of Python's default. With the default, a thread that executes a
statement waits longer for the event loop than for PostgreSQL. The loop also waits this long for each handler that computes in a
thread."""

GARBAGE_THRESHOLD = 10_000
"""New objects between two garbage collections. A node creates few objects per job and almost no cycles. With Python's default of
700, garbage collection takes a fifth of the node's time."""

LEFT_BEHIND = 1.0
"""Seconds for the process to end once everything is stopped. After that, it exits despite threads that handlers left behind."""

SHUTDOWN_MARGIN = 5.0
"""Seconds that a shutdown may take in addition to the grace period. A node exits within the grace period plus this margin."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Serving:
    """The addresses of a started service and its database."""

    urls: list[str]
    database_url: str


class Engine:
    """The parts of a node, without HTTP. They are connected by `signals`.

    Args:
        app: the handlers.
        settings: the settings of the node.
        store: the database.
        processes: runs CPU-bound handlers.
        lives: whether the parts belong to a node that runs for long; False for the API of `direct`.
        node_state: the memory that the node shares with its keeper; None without a keeper.

    Attributes:
        troubles: the current errors of each part that keeps running after errors.
    """

    def __init__(
        self,
        app: App,
        settings: Settings,
        store: Store,
        processes: trio_parallel.WorkerContext,
        *,
        lives: bool,
        node_state: NodeState | None,
    ) -> None:
        self.app = app
        self.store = store
        self.signals = signals = Signals()
        self.metrics = metrics = Metrics()
        metrics.schema_version.set(SCHEMA_VERSION)
        self.hold = Hold(store, metrics)
        self.queues = {name: LocalQueue(name, width) for name, width in settings.worked_queues.items()}
        width = sum(settings.worked_queues.values())
        keep_finished = settings.keep_finished > 0
        self.lease = lease = Lease(
            store, metrics, signals, queues=settings.worked_queues, seconds=settings.visibility_timeout, node_state=node_state
        )
        self.depths = Depths(store)
        self.overview = OverviewWatcher(store, self.depths, lease)
        self.hooks = Hooks(store, metrics, signals, on_dead=app.dead_hooks, on_retry=app.retry_hooks)
        self.watcher = JobWatcher(store, signals, keep_finished=keep_finished)
        self.outcomes = Outcomes(store, lease, metrics, signals, keep_finished=keep_finished)
        self.dispatcher = Dispatcher(
            store,
            lease,
            self.outcomes,
            metrics,
            signals,
            queues=self.queues,
            handlers=app.handlers,
            poll_interval=settings.poll_interval,
        )
        self.key_admission = KeyAdmission(store, signals)
        self.promoter = Promoter(store, signals, poll_interval=settings.poll_interval)
        self.cron = Cron(store, metrics, signals, source=app.source, declared=app.schedules)
        self.submissions = Submissions(
            store,
            metrics,
            signals,
            kinds=app.handlers if settings.strict_kinds else None,
            dispatcher=self.dispatcher,
            key_ttl=settings.idempotency_ttl,
        )
        self.notes = ProgressWriter(store, signals)
        self.transactions = Transactions(
            store.url, most=max(1, min(width, MAX_TRANSACTIONS)), keep_finished=keep_finished, schema=store.schema
        )
        executor = Executor(
            app.handlers,
            metrics,
            threads=trio.CapacityLimiter(width + MAX_THREADS_LEFT_BEHIND),
            processes=processes,
            process_limiter=trio.CapacityLimiter(os.cpu_count() or 1),
            transactions=self.transactions,
            notes=self.notes,
            node_state=node_state,
        )
        self.workers = Workers(executor, self.outcomes, lease, metrics, signals, queues=self.queues.values(), node_state=node_state)
        self.history = HistoryWriter(store, metrics, steady=lives)
        self.tasks = TaskTree()
        self.recovery = maintenance.recovery(store, lease, signals, settings.visibility_timeout / RENEWALS_PER_LEASE)
        self.pruning = maintenance.pruning(
            store,
            keep_finished=settings.keep_finished,
            keep_cancelled=settings.keep_cancelled,
            keep_dead=settings.keep_dead,
        )
        # Each part that contains its errors has a `trouble`.
        self.troubles: list[Trouble] = [part.trouble for part in vars(self).values() if hasattr(part, "trouble")]
        self.troubles.append(self.outcomes.telling)
        metrics.contained = lambda: {trouble.part: trouble.errors for trouble in self.troubles}


async def serve(app: App, settings: Settings, on_serving: Callable[[Serving], None], *, supervised: bool = False) -> None:
    """Run a node until SIGTERM or SIGINT, then shut it down.

    Args:
        app: the handlers.
        settings: the settings of the node.
        on_serving: called once, when the node accepts work.
        supervised: whether the node is a process of `parent.supervise`. Such a node shares the port, and listens only after all
            other parts have started.

    Raises:
        SettingsError: a setting does not work on this machine.
        HandlerError: a schedule of the app has no kind, or another app has a schedule of the same name.
        SchemaVersionError: the database has a schema version that this jobqueue does not know.
        EmbeddedPostgresError: the embedded PostgreSQL does not start.
        DatabaseUnavailable: the database is unreachable at the start.
        StageCrashed: a part of the node failed. All other parts were shut down in order.
    """
    credentials = Credentials(settings)
    sys.setswitchinterval(SWITCH_INTERVAL)
    gc.set_threshold(GARBAGE_THRESHOLD)
    listeners = None if supervised else open_listeners(settings.host, settings.port)
    async with open_stages() as stages:
        last_resort = LastResort(settings.grace_period + SHUTDOWN_MARGIN)
        # A signal to the whole process group reaches a supervised node twice, so only the parent acts on a second signal.
        await stages.start("signals", watch_signals, stages, last_resort, None if supervised else logs.exit_now)
        width = sum(settings.worked_queues.values())
        node_state = NodeState.create(2 * width + MAX_THREADS_LEFT_BEHIND)
        await stages.start("watchdog", watchdog.run, node_state)
        server_health = embedded.ServerHealth()
        run_postgresql = partial(embedded.run, old_binaries=settings.upgrade_data_dir)
        url = settings.database_url or await stages.start(
            "postgresql", run_postgresql, settings.data_dir or embedded.default_data_dir(), 1, server_health
        )
        async with open_engine(app, settings, PostgresStore(url, settings.schema), node_state=node_state) as engine:
            trio.lowlevel.add_instrument(keeping.Pulse(node_state, engine.workers.excuse))
            await stages.start("keeper", keeping.run, node_state, url, os.getpid(), settings)
            await start_engine(engine, stages, url, adopt=settings.adopt)
            listeners = listeners or open_listeners(settings.host, settings.port, shared=True)
            http_stopping = trio.Event()
            await stages.start("tasks", engine.tasks.run)
            await stages.start("credentials", credentials.run)
            serve_http = partial(_serve_http, credentials=credentials, server_health=server_health)
            await stages.start("http", serve_http, engine, settings, stages, listeners, http_stopping)
            gc.freeze()  # these objects live until the end: exclude them from garbage collection
            on_serving(Serving(urls(listeners, settings.scheme), url))
            await stages.stopping.wait()
            last_resort.arm()  # a signal has already armed the timer, but a crash has not
            await _shut_down(engine, settings, stages, http_stopping)
        last_resort.disarm()
        await stages.stop("postgresql", within=30)
        log.info("stopped")
        # All jobs are released. A handler that swallows its cancellation, or a thread left behind, must not keep the process alive.
        _exit_after(LEFT_BEHIND, code=0 if stages.failure is None else 1)


@asynccontextmanager
async def open_engine(
    app: App, settings: Settings, store: Store, *, lives: bool = True, node_state: NodeState | None = None
) -> AsyncIterator[Engine]:
    """Build the parts of a node; see `Engine`. Close the store at the end."""
    async with _open_processes() as processes:
        engine = Engine(app, settings, store, processes, lives=lives, node_state=node_state)
        try:
            yield engine
        finally:
            engine.transactions.close()
            with trio.move_on_after(SHUTDOWN_MARGIN, shield=True):
                await store.aclose()


@asynccontextmanager
async def _open_processes() -> AsyncIterator[trio_parallel.WorkerContext]:
    """Open the pool for CPU-bound handlers. When the pool closes, no job runs, so a killed process causes only a warning."""
    try:
        async with trio_parallel.open_worker_context(init=partial(_prepare_process, logs.setup), grace_period=1.0) as processes:
            yield processes
    except* trio_parallel.BrokenWorkerError as group:
        # Here, the error can only come from leaving the context. `executor._judge` handles this error for a handler's process.
        log.warning("killed worker processes that did not end", error=str(next(leaves(group))))


async def start_engine(engine: Engine, stages: Stages, url: str | None, *, adopt: bool = False) -> None:
    """Start the parts as stages.

    Args:
        url: the database whose notifications the node receives; None receives none.
        adopt: if the database is a copy, let its queue run.
    """
    await engine.store.migrate()
    for queue, said in engine.app.queues.items():
        await engine.store.configure(queue, said)
    await engine.cron.reconcile()
    await expire_dead_neighbours(engine.store)
    await engine.lease.join()
    await engine.hold.begin(adopt=adopt)
    await stages.start("hold", engine.hold.run)
    if engine.hooks.any:
        await stages.start("hooks", engine.hooks.run)
    await stages.start("heartbeat", engine.lease.run)
    await stages.start("schema", maintenance.watch_schema, engine.store)
    await stages.start("recovery", engine.hold.then, engine.recovery.run)
    await stages.start("pruning", engine.hold.then, engine.pruning.run)
    await stages.start("submissions", engine.submissions.run)
    await stages.start("outcomes", engine.outcomes.run)
    await stages.start("notes", engine.notes.run)
    await stages.start("watcher", engine.watcher.run)
    await stages.start("overview", engine.overview.run)
    await stages.start("history", engine.history.run)
    await stages.start("workers", engine.workers.run)

    if url is not None:
        listeners = engine.signals.of_notifications()
        notifications = Notifications(url, listeners, engine.signals.listening.publish, schema=engine.store.schema)
        engine.troubles.extend([notifications.trouble, notifications.unreadable])
        await stages.start("notifications", notifications.run)
    await stages.start("key admission", engine.hold.then, engine.key_admission.run)
    await stages.start("promotion", engine.hold.then, engine.promoter.run)
    await stages.start("cron", engine.hold.then, engine.cron.run)
    await stages.start("dispatcher", engine.hold.then, engine.dispatcher.run)


def operations(
    engine: Engine, settings: Settings, *, stopping: Callable[[], bool], server_health: embedded.ServerHealth | None = None
) -> Operations:
    """Make the operations of the HTTP API from the parts of a node."""
    server = server_health or embedded.ServerHealth()
    return Operations(
        engine.store,
        engine.lease,
        engine.submissions,
        engine.outcomes,
        engine.metrics,
        hold=engine.hold,
        troubles=engine.troubles,
        watcher=engine.watcher,
        depths=engine.depths,
        overview=engine.overview,
        tasks=engine.tasks,
        queues=engine.queues.values(),
        keep_cancelled=settings.keep_cancelled > 0,
        stopping=stopping,
        server_trouble=lambda: server.trouble,
    )


async def _serve_http(
    engine: Engine,
    settings: Settings,
    stages: Stages,
    listeners: list[trio.SocketListener],
    stopping: trio.Event,
    *,
    credentials: Credentials,
    server_health: embedded.ServerHealth,
    task_status: trio.TaskStatus[None],
) -> None:
    node = operations(engine, settings, stopping=stages.stopping.is_set, server_health=server_health)
    await server.run(
        app.build(node, credentials.authorizer),
        ExpressLane(node, credentials.authorizer),
        listeners,
        stopping=stopping,
        drain_timeout=HTTP_DRAIN,
        tls=credentials.tls,
        task_status=task_status,
    )


async def _shut_down(engine: Engine, settings: Settings, stages: Stages, http_stopping: trio.Event) -> None:
    """Stop new requests, new claims, the workers, their outcomes and the lease, in this order. Each step has a timeout."""
    log.info("shutting down", grace_period=settings.grace_period)
    grace_ends = trio.current_time() + settings.grace_period
    engine.watcher.close()  # requests that wait for a job get a response now
    engine.overview.close()
    await stages.stop("http", within=HTTP_DRAIN + 0.5, gently=http_stopping.set)
    await stages.stop("credentials", within=0.2)

    await stages.stop("schema", within=0.2)
    await stages.stop("hold", within=0.2)
    await stages.stop("watcher", within=0.2)
    await stages.stop("overview", within=0.2)
    await stages.stop("dispatcher", within=1)
    await stages.stop("promotion", within=1)
    await stages.stop("key admission", within=1)
    await stages.stop("cron", within=1)
    await stages.stop("notifications", within=1)
    with trio.move_on_after(1):
        for queue in engine.queues.values():
            await engine.outcomes.release(queue.ready.close())

    with trio.move_on_at(grace_ends):
        await engine.workers.drained()
    if interrupted := engine.workers.interrupt():
        log.warning("grace period over, jobs interrupted", jobs=interrupted)
        with trio.move_on_after(1):
            await engine.workers.drained()
    await stages.stop("workers", within=0.5)

    with trio.move_on_after(1):
        await engine.submissions.flush()
        await engine.outcomes.flush()
    await stages.stop("submissions", within=0.2)
    await stages.stop("outcomes", within=0.2)
    await stages.stop("notes", within=0.2)
    await stages.stop("recovery", within=0.2)
    await stages.stop("pruning", within=0.2)
    await stages.stop("hooks", within=HOOKS_DRAIN, gently=engine.hooks.close)
    # From here on, nothing happens that the history counts.
    await stages.stop("history", within=0.2)
    if engine.lease.trouble.reason is None:  # during an outage, flush would only wait
        with trio.move_on_after(1):
            await engine.history.flush()

    # End the lease last: other nodes may claim the jobs once it has ended, and outcomes must be written before that.
    await stages.stop("heartbeat", within=0.2)
    await stages.stop("keeper", within=2 * keeping.END_SECONDS)
    try:
        with trio.move_on_after(1):
            await engine.lease.leave()
    except DatabaseUnavailable as error:
        log.warning("could not end the lease: other nodes can claim its jobs after the visibility timeout", error=str(error))


async def watch_signals(
    stages: Stages, last_resort: LastResort, at_once: Callable[[int], object] | None, *, task_status: trio.TaskStatus[None]
) -> None:
    """Start the shutdown at the first SIGTERM or SIGINT. At later signals, call `at_once` (unless None) with the exit code."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            name = signal.Signals(number).name
            if stages.stopping.is_set():
                if at_once is not None:
                    log.warning("second signal: exiting at once", signal=name)
                    at_once(128 + number)
                continue
            log.info("signal received", signal=name)
            last_resort.arm()
            stages.stopping.set()


class LastResort:
    """A timer that ends the process if its shutdown takes longer than `seconds` after `arm`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timer: threading.Timer | None = None

    def arm(self) -> None:
        if self._timer is None:
            self._timer = _exit_after(self._seconds)

    def disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def _exit_after(seconds: float, *, code: int = 70) -> threading.Timer:
    """Exit the process after `seconds`, because a thread or a database call that never returns cannot be cancelled."""

    def give_up() -> None:
        log.error("the process did not end in time: exiting", seconds=seconds, code=code)
        logs.exit_now(code)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    return timer


def _prepare_process(setup: logs.Setup | None) -> None:
    """Prepare a worker process: ignore SIGTERM, which is for the service, log like the service, and end when the service ends."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_service, daemon=True).start()
    if setup is not None:
        logs.take_over(setup, patient=True)  # patient, because a timeout of the handler kills the process


def _end_with_the_service() -> None:
    # If the process continued, its job would run while another node runs the next attempt, and its result would be lost.
    service = multiprocessing.parent_process()
    if service is not None:
        service.join()
        logs.exit_now(1)
