"""The signals between the parts of a node: each part publishes its events, and the parts that need an event subscribe to it.

::

    signals = Signals()
    signals.jobs_available.subscribe(dispatcher.wake)         # done by the part that needs the event, in its constructor
    signals.jobs_available.publish({"default": best_rank})    # calls dispatcher.wake

A signal has no queue and no task. `publish` calls the subscribers at once, in the order in which the parts were built. If a
subscriber raises an exception, `publish` raises it, and later subscribers are not called. A subscriber must be short and must not
wait: usually it only records that there is work to do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVarTuple

from jobqueue.job import ClaimedJob, Outcome
from jobqueue.storage.claims import Expired
from jobqueue.storage.roles.run import Ranks, Recovered, RunId

Event = TypeVarTuple("Event")

Documents = Mapping[str, bytes]
"""Encoded JSON documents by name: ``progress``, ``checkpoint``."""


class Finished(NamedTuple):
    """The outcome of a run, and the id of the node that claimed it.

    Attributes:
        in_doubt: whether the handler's own transaction may have completed the job.
    """

    job: ClaimedJob
    outcome: Outcome
    node_id: str
    in_doubt: bool = False


class Signal(Generic[*Event]):
    """One kind of event.

    Attributes:
        publish: calls each subscriber with the values of the event. With one subscriber, it is this subscriber, so that publishing
            costs as much as a direct call.
    """

    __slots__ = ("_subscribers", "publish")

    def __init__(self) -> None:
        self._subscribers: list[Callable[[*Event], None]] = []
        self.publish: Callable[[*Event], None] = self._publish

    def subscribe(self, subscriber: Callable[[*Event], None]) -> None:
        """Call the subscriber at each event from now on."""
        self._subscribers.append(subscriber)
        self.publish = subscriber if len(self._subscribers) == 1 else self._publish

    def _publish(self, *event: *Event) -> None:
        for subscriber in self._subscribers:
            subscriber(*event)


class Signals:
    """All signals of a node.

    Attributes: each signal, its publishers -> its subscribers, and the event.
        jobs_available: submissions, promoter, key admission, cron, notifications -> dispatcher. Jobs are pending in these queues.
            The value is the best rank in each queue.
        jobs_due: outcomes, notifications -> promoter. A scheduled job is due in this many seconds.
        checks_due: submissions, outcomes, promoter, notifications -> key admission. A check of a concurrency key is due in this
            many seconds.
        schedules_changed: notifications -> cron.
        queues_freed: outcomes, notifications -> dispatcher. Jobs of these queues ended, or their limits changed.
        queue_paused: notifications -> dispatcher.
        workers_hungry: workers -> dispatcher. Workers will soon run out of jobs.
        lease_held: lease -> dispatcher. The lease is valid again. The node claimed no jobs while it was not valid.
        lease_lost: lease -> workers. Other nodes have this node's jobs. The node has not joined again yet.
        runs_unwanted: lease, notifications -> workers. Runs are to be cancelled. Each renewal repeats the unfinished ones.
        cancel_requested: notifications -> lease. The next renewal returns runs that are to be cancelled.
        node_lost: notifications -> recovery. The jobs of a node can be recovered.
        listening: notifications -> dispatcher, promoter, cron. The node listens again. Notifications may have been lost before.
        outcomes_written: outcomes -> hooks (if the app has any), job watcher. A batch of outcomes is committed.
        jobs_expired: dispatcher, promoter -> hooks. Jobs died before they started.
        jobs_recovered: recovery -> hooks. Jobs of lost nodes are pending again or dead.
        notes_saved: progress writer -> job watcher. A run saved a note. The value has the latest note of each name.
    """

    def __init__(self) -> None:
        self.jobs_available: Signal[Ranks] = Signal()
        self.jobs_due: Signal[float] = Signal()
        self.checks_due: Signal[float] = Signal()
        self.schedules_changed: Signal[()] = Signal()
        self.queues_freed: Signal[Collection[str]] = Signal()
        self.queue_paused: Signal[str] = Signal()
        self.workers_hungry: Signal[()] = Signal()
        self.lease_held: Signal[()] = Signal()
        self.lease_lost: Signal[()] = Signal()
        self.runs_unwanted: Signal[Iterable[RunId]] = Signal()
        self.cancel_requested: Signal[()] = Signal()
        self.node_lost: Signal[()] = Signal()
        self.listening: Signal[()] = Signal()
        self.outcomes_written: Signal[Sequence[Finished]] = Signal()
        self.jobs_expired: Signal[Sequence[Expired]] = Signal()
        self.jobs_recovered: Signal[Sequence[Recovered]] = Signal()
        self.notes_saved: Signal[ClaimedJob, Documents] = Signal()

    def of_notifications(self) -> Mapping[str, Callable[[str], None]]:
        """Return the functions that convert the payload of a notification and publish its signal, by channel."""
        return {
            "jobqueue": self._notify_of_jobs,
            "jobqueue_scheduled": lambda _: self.jobs_due.publish(0),
            "jobqueue_schedules": lambda _: self.schedules_changed.publish(),
            "jobqueue_cancel": self._notify_of_cancel,
            "jobqueue_keys": lambda _: self.checks_due.publish(0),
            "jobqueue_lost": lambda _: self.node_lost.publish(),
            "jobqueue_freed": lambda queue: self.queues_freed.publish([queue]),
            "jobqueue_paused": self.queue_paused.publish,
        }

    def _notify_of_jobs(self, payload: str) -> None:
        rank, _, queue = payload.partition(" ")
        if math.isnan(best := float(rank)):
            raise ValueError("the rank is not a number")
        self.jobs_available.publish({queue: best})

    def _notify_of_cancel(self, payload: str) -> None:
        job_id, _, claims = payload.partition(" ")
        if payload:
            self.runs_unwanted.publish([(job_id, int(claims))])
        else:
            self.cancel_requested.publish()
