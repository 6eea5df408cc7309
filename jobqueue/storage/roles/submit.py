"""The store's verbs to submit jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from jobqueue.storage.claims import Claimed
from jobqueue.storage.roles.run import Claim, Ranks


class Submitted(NamedTuple):
    """The result of `SubmitStore.submit`.

    Attributes:
        best: the best rank of each queue that received pending jobs.
        claimed: the claimed jobs; None if nothing was claimed.
        ids: the ids of all jobs; None if no job has a key. If a job with the same key existed, the list has that job's id instead.
    """

    best: Ranks
    claimed: Claimed | None = None
    ids: list[str] | None = None


class SubmitStore(Protocol):
    """Submit jobs."""

    @property
    def submit_trouble(self) -> str | None:
        """The error of the last submission, if submissions have failed for over `OUTAGE_AFTER` seconds; else None."""

    async def submit(
        self, jobs: Sequence[bytes], *, wake: bool, along: Claim | None = None, key_ttl: float | None = None
    ) -> Submitted:
        """Commit new jobs, all or none.

        Args:
            jobs: encoded `NewJob` documents.
            wake: whether to notify the other nodes.
            along: a claim to make in the same transaction, after the jobs are stored. The submission succeeds even if the claim
                fails.
            key_ttl: seconds for which an idempotency key is kept. None if no job has a key; then `Submitted.ids` is None.

        Raises:
            RefusedKey: the key of a job belongs to another job, or another transaction is using it.
            RefusedData: PostgreSQL rejected a value in a job.
        """

    async def submit_again(self, jobs: Sequence[bytes], *, backend: tuple[int, str], key_ttl: float | None = None) -> Submitted:
        """Commit jobs whose first commit is in doubt. Jobs that already exist, in any state, are not changed.

        Args:
            jobs: the same documents as in the first call.
            backend: the `backend` of the `ConnectionLost` that the first call raised.
            key_ttl: the same as in the first call. If a job's key shows that it was committed, it is not committed again, even if
                the job no longer exists.
        """
