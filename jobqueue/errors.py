"""Every error of jobqueue: what a handler raises to steer its job, and what can go wrong around it."""

from __future__ import annotations


class JobQueueError(Exception):
    """The root of all errors that jobqueue raises itself."""


class SettingsError(JobQueueError):
    """A setting, an option or an environment variable has a value that cannot work."""


class UnusableFile(SettingsError):
    """A file that a setting names is not there, or not whole; a later look at it may do better."""


class HandlerError(JobQueueError):
    """A handler cannot be registered as written: its name is taken, or its signature cannot be filled from a payload."""


class InvalidJob(JobQueueError):
    """A submission is not of the form that jobs have.

    Args:
        reason: what is wrong, in words for the submitter.
        field: the field at fault, such as ``"priority"``; None when it is the document as a whole.
        index: the position of the job in its batch, from 0; None when it was submitted alone.
    """

    def __init__(self, reason: str, *, field: str | None = None, index: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.field = field
        self.index = index


class UnprocessableJob(InvalidJob):
    """A submission has the right form, but holds what cannot be stored or what no handler serves."""


class InvalidFilter(InvalidJob):
    """What jobs are asked for by is not of the form that filters have."""


class InvalidQuery(InvalidJob):
    """A parameter of a request's query is unknown, or has a value that cannot be."""


class InvalidPath(InvalidJob):
    """A part of a request's path is not of the form that it has there."""


class Missing(InvalidJob):
    """What a request's path names is not there."""


class ConflictingJob(InvalidJob):
    """A submission, or a redrive, is at odds with another one; when that has ended, it may be sent again."""


class BatchTooLarge(InvalidJob):
    """A submission holds more jobs than one transaction may."""


class PayloadTooLarge(InvalidJob):
    """A submission is larger than a job may be."""


class InvalidSchedule(InvalidJob):
    """A schedule is not of the form that schedules have; most of its fields are those of its jobs."""


class UnprocessableSchedule(InvalidSchedule):
    """A schedule has the right form, but means nothing, or holds what cannot be stored."""


class InvalidQueueSetting(InvalidJob):
    """A setting of a queue is unknown, or has a value that cannot work."""


class Unavailable(JobQueueError):
    """The request cannot be served now; nothing is wrong with it, and it may be sent again later."""


class Overloaded(Unavailable):
    """More work waits to be committed than the bound allows."""


class TooManyRequests(Unavailable):
    """More requests are in flight than the bound allows."""


class TooManyWatchers(Unavailable):
    """More requests wait for what becomes of jobs, or of all of them, than the bound allows."""


class ShuttingDown(Unavailable):
    """The service is stopping and takes no new work."""


class DatabaseUnavailable(Unavailable):
    """PostgreSQL cannot be reached, or refused the connection. Nothing was written."""


class StatementFailed(DatabaseUnavailable):
    """A statement failed for a reason that no value explains: a missing privilege or function, or an error inside PostgreSQL.

    It was rolled back.
    """


class ConnectionLost(DatabaseUnavailable):
    """The connection broke during a statement: nobody knows whether it was committed.

    Args:
        reason: what the driver said.
        backend: the server process that held the connection, as (pid, start time); behind a pooler (advisory lock, `POOLED`).
    """

    def __init__(self, reason: str, *, backend: tuple[int, str]) -> None:
        super().__init__(reason)
        self.backend = backend


class NoConnection(DatabaseUnavailable):
    """PostgreSQL gives a handler no connection for its transaction."""


class CommitInDoubt(JobQueueError):
    """The connection broke during the commit of a handler's transaction; whether it took effect is for the database to say."""


class UnreadableAnswer(ConnectionLost):
    """PostgreSQL carried out the statement, as far as anybody knows, but its answer cannot be read."""


class NotReplicated(ConnectionLost):
    """Committed on this server, but no synchronous standby confirmed it: a failover may still undo it."""


class RefusedData(JobQueueError):
    """PostgreSQL refused a value in the batch; the whole batch was rolled back.

    Args:
        reason: what PostgreSQL said.
        field: the field at fault, where a function of ours refused it by name.
    """

    def __init__(self, reason: str, *, field: str | None = None) -> None:
        super().__init__(reason)
        self.field = field


class RefusedKey(RefusedData):
    """What a key stands for is at odds with the job that was submitted with it.

    Args:
        reason: what PostgreSQL said, in words for the submitter.
        field: the field that holds the key.
        index: the position of the job in the batch that was written, from 0; None outside of one.
    """

    def __init__(self, reason: str, *, field: str, index: int | None = None) -> None:
        super().__init__(reason)
        self.field = field
        self.index = index


class KeyReused(RefusedKey):
    """An idempotency key was used before, for another job."""


class KeyInUse(RefusedKey):
    """A transaction that is not over yet has the key, or a job that is not finished has the unique key of one to be run again."""


class SchemaVersionError(JobQueueError):
    """The database has a schema that this version of jobqueue does not know."""


class EmbeddedPostgresError(JobQueueError):
    """The embedded PostgreSQL cannot be started, or ended by itself."""


class StageCrashed(JobQueueError):
    """A part of the service ended when it should not have; the service stops in order and exits with an error."""


class NodeFailed(JobQueueError):
    """A process of several cannot be started, or did not end as it should.

    Args:
        reason: the one that it gave, or how it ended.
        exit_code: its own, as a shell tells it: 128 and the number of a signal that ended it.
    """

    def __init__(self, reason: str, exit_code: int) -> None:
        super().__init__(reason)
        self.exit_code = exit_code


class Retry(Exception):
    """Raise it in a handler to fail this attempt and run again.

    Args:
        delay: seconds until the next attempt; None takes the handler's backoff.
        reason: kept in the job's error history.
    """

    def __init__(self, delay: float | None = None, reason: str = "the handler asked for a retry") -> None:
        super().__init__(reason)
        self.delay = delay
        self.reason = reason


class Snooze(Exception):
    """Raise it in a handler to run the job again later, without counting this attempt.

    Args:
        delay: seconds until the job is due again.
    """

    def __init__(self, delay: float) -> None:
        super().__init__(f"snoozed for {delay} s")
        self.delay = delay


class Discard(Exception):
    """Raise it in a handler to give the job up at once: it goes to the dead letters with this reason.

    Args:
        reason: what a person will read there.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
