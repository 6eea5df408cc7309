"""The store's verbs to change jobs, queues, and schedules for operators."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from jobqueue.job import Change
from jobqueue.job_filters import DeadFilter, JobFilter
from jobqueue.queue_settings import QueueSettings
from jobqueue.timetable import CronSchedule

DEAD_BATCH = 1_000
"""Maximum number of dead jobs that one call retries or deletes."""

CANCEL_BATCH = 1_000
"""Maximum number of jobs that one call cancels."""


class Cancelled(NamedTuple):
    """The result of `SteerStore.cancel_jobs`.

    Attributes:
        jobs: the number of jobs that this call cancelled.
        next: the id after which the next call continues; None if all jobs were visited.
    """

    jobs: int
    next: str | None


class SteerStore(Protocol):
    """Change jobs, queues, and schedules for operators."""

    async def cancel(self, job_id: str, *, keep: bool = True) -> bool:
        """Cancel a job. A waiting job is cancelled at once; a running job, as soon as its node notices the request.

        Args:
            job_id: the job.
            keep: whether a waiting job is kept, as cancelled, until its retention period ends.

        Returns:
            False if the job has ended or does not exist.
        """

    async def cancel_jobs(
        self, wanted: JobFilter, *, keep: bool = True, after: str | None = None, dry_run: bool = False
    ) -> Cancelled:
        """Cancel waiting and running jobs, the latest first, at most `CANCEL_BATCH`.

        Args:
            wanted: the filter.
            keep: whether waiting jobs are kept, as cancelled, until their retention period ends.
            after: the `Cancelled.next` of the previous call. Because of it, jobs submitted between the calls are not cancelled.
            dry_run: count the jobs without cancelling them; the count may exceed `CANCEL_BATCH`.
        """

    async def change(self, job_id: str, change: Change) -> bool:
        """Change the priority of a waiting job, or its time to run. Return False if it is not waiting.

        Raises:
            RefusedData: the priority is out of range.
        """

    async def retry(self, job_id: str) -> bool:
        """Run a dead job again, with its full number of attempts. Return False if it is not dead.

        Raises:
            KeyInUse: another unfinished job now has the job's unique key, or an open transaction is using that key.
        """

    async def discard(self, job_id: str) -> bool:
        """Delete a dead job permanently. Return False if it is not dead."""

    async def retry_dead(self, wanted: DeadFilter, *, dry_run: bool = False) -> int:
        """Redrive the oldest dead jobs, at most `DEAD_BATCH`. Return their number. A dry run only counts, without this limit."""

    async def discard_dead(self, wanted: DeadFilter, *, dry_run: bool = False) -> int:
        """Delete the oldest dead jobs, at most `DEAD_BATCH`. Return their number. A dry run only counts, without this limit."""

    async def pause(self, queue: str, *, paused: bool) -> None:
        """Pause or resume a queue on all nodes."""

    async def configure(self, queue: str, settings: QueueSettings) -> None:
        """Change the settings of a queue on all nodes."""

    async def put_schedule(self, schedule: CronSchedule) -> bool:
        """Create a schedule, or change the one with this name. Return whether it is new."""

    async def unschedule(self, name: str) -> bool:
        """Delete a schedule. Return False if it does not exist."""

    async def pause_schedule(self, name: str, *, paused: bool) -> bool:
        """Pause or resume a schedule. Return False if it does not exist."""

    async def trigger_schedule(self, name: str) -> str | None:
        """Submit a schedule's job now. Return the job's id, or None if the schedule does not exist."""
