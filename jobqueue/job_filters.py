"""Filters that select jobs and dead letters."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

import msgspec

from jobqueue.job import MAX_NAME_LENGTH, Instant, JobState, Name, PathName

Text = Annotated[
    Name,
    msgspec.Meta(
        description=f"a string of 1 to {MAX_NAME_LENGTH} characters: the start of an id, or a part of the error or the reason"
    ),
]
Cause = Annotated[
    Name, msgspec.Meta(description=f"a string of 1 to {MAX_NAME_LENGTH} characters: a cause that GET /dead/causes returns")
]
Part = Annotated[Name, msgspec.Meta(description=f"a string of 1 to {MAX_NAME_LENGTH} characters: a part of the reason")]
All = Annotated[Literal[True], msgspec.Meta(description="true")]


class DeadConditions(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Conditions on dead jobs; all of them must hold.

    Attributes:
        cause: the cause of the failure: the last error, or else the reason, without its variable parts.
        reason: a part of the reason.
        died_before: the latest time of death, exclusive, by the database's clock.
        died_after: the earliest time of death, exclusive, by the database's clock.
    """

    queue: PathName | None = None
    kind: Name | None = None
    group: Name | None = None
    cause: Cause | None = None
    reason: Part | None = None
    died_before: Instant | None = None
    died_after: Instant | None = None


class DeadFilter(DeadConditions):
    """A filter of dead jobs. ``{}`` is rejected where jobs are moved or deleted.

    Attributes:
        all: true selects all jobs, without any condition.
    """

    all: All | None = None


class JobConditions(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Conditions on jobs in any state; all of them must hold.

    Attributes:
        text: a whole id, the start of an id, or a part of the last error's message or of the reason, ignoring case.
        created_after: the earliest time of submission, exclusive, by the database's clock. The time in the job's id must match too,
            with a tolerance of a minute.
        created_before: the latest time of submission, exclusive. The time in the job's id must match too, as for `created_after`.
    """

    queue: PathName | None = None
    kind: Name | None = None
    group: Name | None = None
    concurrency_key: Name | None = None
    text: Text | None = None
    created_after: Instant | None = None
    created_before: Instant | None = None


class JobFilter(JobConditions):
    """A filter of jobs. ``{}`` is rejected.

    Attributes:
        state: the states to select.
        all: true selects all jobs, without any condition.
    """

    state: Annotated[list[JobState], msgspec.Meta(min_length=1, description=f"of {', '.join(get_args(JobState))}")] | None = None
    all: All | None = None
