"""All errors of jobqueue. Handlers raise some of them to control their jobs; jobqueue raises the others."""

from __future__ import annotations


class JobQueueError(Exception):
    """The base class of all errors that jobqueue raises."""


class SettingsError(JobQueueError):
    """A setting, an option or an environment variable has an invalid value."""


class UnusableFile(SettingsError):
    """A file that a setting names is missing or incomplete; it may be usable later."""


class HandlerError(JobQueueError):
    """A handler cannot be registered: its kind already has a handler, or a payload cannot fill its signature."""


class InvalidJob(JobQueueError):
    """A submission does not have the form of a job.

    Args:
        reason: the message for the submitter.
        field: the field at fault, such as ``"priority"``; None if it is the whole document.
        index: the position of the job in its batch, from 0; None if it was submitted alone.
    """

    def __init__(self, reason: str, *, field: str | None = None, index: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.field = field
        self.index = index


class UnprocessableJob(InvalidJob):
    """A submission has the right form, but contains a value that cannot be stored, or a kind that no handler serves."""


class InvalidFilter(InvalidJob):
    """A filter of jobs does not have the form of a filter."""


class InvalidQuery(InvalidJob):
    """A query parameter of a request is unknown or has an invalid value."""


class InvalidPath(InvalidJob):
    """A part of a request's path has an invalid form."""


class Missing(InvalidJob):
    """The object that a request's path names does not exist."""


class ConflictingJob(InvalidJob):
    """A submission or a redrive conflicts with another transaction or job. Try again after that transaction or job has ended."""


class BatchTooLarge(InvalidJob):
    """A submission has more jobs than one transaction may have."""


class PayloadTooLarge(InvalidJob):
    """A payload exceeds the size limit."""


class InvalidSchedule(InvalidJob):
    """A schedule does not have the form of a schedule; most of its fields are fields of its jobs."""


class UnprocessableSchedule(InvalidSchedule):
    """A schedule has the right form, but has no ticks, or contains a value that cannot be stored."""


class InvalidQueueSetting(InvalidJob):
    """A setting of a queue is unknown or has an invalid value."""


class Unavailable(JobQueueError):
    """The service cannot process the request now. The request is valid, and may be repeated later."""


class Overloaded(Unavailable):
    """More jobs wait to be committed than the limit allows."""


class TooManyRequests(Unavailable):
    """More requests are in flight than the limit allows."""


class TooManyWatchers(Unavailable):
    """More requests wait for events or outcomes of jobs than the limit allows."""


class ShuttingDown(Unavailable):
    """The service is stopping and accepts no new work."""


class DatabaseUnavailable(Unavailable):
    """PostgreSQL cannot be reached, or rejected the connection. Nothing was written."""


class StatementFailed(DatabaseUnavailable):
    """A statement failed for a reason other than a value: a missing privilege or function, or an error inside PostgreSQL.

    PostgreSQL rolled the statement back.
    """


class ConnectionLost(DatabaseUnavailable):
    """The connection broke during a statement, so it is unknown whether the statement was committed.

    Args:
        reason: the message of the driver.
        backend: the server process of the connection, as (pid, start time); behind a pooler, (advisory lock, `POOLED`).
    """

    def __init__(self, reason: str, *, backend: tuple[int, str]) -> None:
        super().__init__(reason)
        self.backend = backend


class NoConnection(DatabaseUnavailable):
    """A handler cannot get a connection for its transaction."""


class CommitInDoubt(JobQueueError):
    """The connection broke during the commit of a handler's transaction; only the database can show whether it took effect."""


class UnreadableAnswer(ConnectionLost):
    """PostgreSQL probably executed the statement, but its response cannot be read."""


class NotReplicated(ConnectionLost):
    """The transaction is committed on this server, but no synchronous standby confirmed it: a failover may still undo it."""


class RefusedData(JobQueueError):
    """PostgreSQL rejected a value in the batch; the whole batch was rolled back.

    Args:
        reason: the message of PostgreSQL.
        field: the field at fault, if a function of jobqueue named it.
    """

    def __init__(self, reason: str, *, field: str | None = None) -> None:
        super().__init__(reason)
        self.field = field


class RefusedKey(RefusedData):
    """A key conflicts with the job that was submitted with it.

    Args:
        reason: the message of PostgreSQL, for the submitter.
        field: the field with the key.
        index: the position of the job in the batch that was written, from 0; None outside a batch.
    """

    def __init__(self, reason: str, *, field: str, index: int | None = None) -> None:
        super().__init__(reason)
        self.field = field
        self.index = index


class KeyReused(RefusedKey):
    """An idempotency key was used for another job before."""


class KeyInUse(RefusedKey):
    """An open transaction holds the key, or an unfinished job has the unique key of a dead job that was to be redriven."""


class SchemaVersionError(JobQueueError):
    """The database has a schema version that this version of jobqueue does not support, or none."""


class EmbeddedPostgresError(JobQueueError):
    """The embedded PostgreSQL cannot be started, or stopped unexpectedly."""


class StageCrashed(JobQueueError):
    """A part of the service ended unexpectedly; the service shuts down and exits with an error."""


class NodeFailed(JobQueueError):
    """One of several processes cannot be started, or ended with an error.

    Args:
        reason: the message of the process, or how it ended.
        exit_code: its exit code as in a shell: 128 plus the number of the signal that ended it.
    """

    def __init__(self, reason: str, exit_code: int) -> None:
        super().__init__(reason)
        self.exit_code = exit_code


class Retry(Exception):
    """Raise this error in a handler to fail the attempt and run the job again.

    Args:
        delay: seconds until the next attempt; None for the handler's backoff.
        reason: text for the job's error history.
    """

    def __init__(self, delay: float | None = None, reason: str = "the handler asked for a retry") -> None:
        super().__init__(reason)
        self.delay = delay
        self.reason = reason


class Snooze(Exception):
    """Raise this error in a handler to run the job again later, without counting the attempt.

    Args:
        delay: seconds until the job is due again.
    """

    def __init__(self, delay: float) -> None:
        super().__init__(f"snoozed for {delay} s")
        self.delay = delay


class Discard(Exception):
    """Raise this error in a handler to give up the job at once: it becomes a dead letter with this reason.

    Args:
        reason: text for the people who read the dead letter.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
