"""Select the jobs of a command, by ids or by a filter."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar, get_args

import click

from jobqueue.cli import values
from jobqueue.cli.connection import failure_of
from jobqueue.cli.exits import Exit
from jobqueue.cli.output import Failure, Output
from jobqueue.errors import JobQueueError
from jobqueue.job import JobState, UnfinishedState

UNFINISHED = get_args(UnfinishedState)
STATES = get_args(JobState)

Command = TypeVar("Command", bound=Callable[..., Any])
Option = Callable[[Command], Command]

_OF_ALL: list[Option[Any]] = [
    click.option("--queue", help="Only jobs of this queue."),
    click.option("--kind", help="Only jobs of this kind."),
    click.option("--group", help="Only jobs of this group."),
]
_OF_JOBS: list[Option[Any]] = [
    *_OF_ALL,
    click.option("--text", help="Only jobs whose last error or reason contains this text, or whose id begins with it."),
    click.option("--concurrency-key", help="Only jobs with this concurrency key."),
    click.option("--created-after", type=values.time_or_age, help="Only jobs submitted after this time: a time, or an age (2h)."),
    click.option("--created-before", type=values.time_or_age, help="Only jobs submitted before this time: a time, or an age (2h)."),
]
_OF_DEAD: list[Option[Any]] = [
    *_OF_ALL,
    click.option("--cause", help="Only jobs with this cause, as `jobqueue dead causes` prints it."),
    click.option("--reason", help="Only jobs whose reason contains this text."),
    click.option("--died-after", type=values.time_or_age, help="Only jobs that died after this time: a time, or an age (2h)."),
    click.option("--died-before", type=values.time_or_age, help="Only jobs that died before this time: a time, or an age (2h)."),
]
_BY_FILTER: list[Option[Any]] = [
    click.option("--all", "everything", is_flag=True, help="Select all jobs."),
    click.option("--yes", "-y", is_flag=True, help="Do not ask for confirmation."),
    click.option("--dry-run", is_flag=True, help="Count the jobs that the filter selects, and change nothing."),
]


def of_jobs(states: Iterable[str]) -> Option[Any]:
    """Add the filter options for jobs in these states: ``state``, ``queue``, ``kind`` and so on."""
    state = click.option("--state", multiple=True, type=click.Choice(list(states)), help="Only jobs in this state. Repeatable.")
    return lambda function: _with([state, *_OF_JOBS], function)


def of_dead(function: Command) -> Command:
    """Add the filter options for dead letters."""
    return _with(_OF_DEAD, function)


def by_filter(function: Command) -> Command:
    """Add the parameters of a command that changes jobs: ``ids``, ``everything``, ``yes``, ``dry_run``."""
    return click.argument("ids", nargs=-1, metavar="[ID]...")(_with(_BY_FILTER, function))


def wanted(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that the user gave, with tuples as lists."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items() if value not in (None, ())}


class CountedVerb(Protocol):
    """A client call that changes all jobs of a filter, and returns their number."""

    def __call__(self, *, dry_run: bool = ..., **wanted: Any) -> Awaitable[int]: ...


class Verb(NamedTuple):
    """An operation on jobs.

    Attributes:
        one: applies the operation to one job, by id; returns the job.
        many: applies the operation to all jobs of a filter; returns their number.
        done: the past participle of the operation's name, such as "cancelled".
    """

    one: Callable[[str], Awaitable[dict[str, Any]]]
    many: CountedVerb
    done: str


async def apply(
    verb: Verb, output: Output, *, ids: tuple[str, ...], everything: bool, yes: bool, dry_run: bool, **given: Any
) -> None:
    """Apply a verb to the jobs that the command line selects.

    Raises:
        click.UsageError: the command line selects no jobs, or selects them by ids and by a filter.
        Failure: as in `each`, or the user did not confirm.
    """
    conditions = wanted(given)
    if ids:
        if conditions or everything or dry_run:
            raise click.UsageError("give ids or a filter, not both")
        await each(ids, verb.one, output, lambda job: f"{job['id']}  {job['state']}")
        return
    if not conditions and not everything:
        raise click.UsageError("no jobs selected: give ids, a filter such as --queue mail, or --all")
    if everything and conditions:
        raise click.UsageError("--all selects all jobs: do not combine it with filters")
    conditions = conditions or {"all": True}
    if not dry_run and not yes and (count := await verb.many(dry_run=True, **conditions)):
        _confirm(count, verb.done)
    jobs = await verb.many(dry_run=dry_run, **conditions)
    output.show({"jobs": jobs}, lambda: f"{_jobs(jobs)} {'would be ' * dry_run}{verb.done}")


async def each(
    ids: tuple[str, ...], act: Callable[[str], Awaitable[dict[str, Any]]], output: Output, readable: Callable[[dict[str, Any]], Any]
) -> None:
    """Call `act` with each id, and show each result; with ``--json``, one line per job. If a call fails, continue with the next id.

    Raises:
        Failure: at the end, with the exit code of the first failure; at once if the service is unreachable.
    """
    failed: Exit | None = None
    for job_id in ids:
        try:
            job = await act(job_id)
        except (JobQueueError, TimeoutError, Failure) as error:
            failure = error if isinstance(error, Failure) else failure_of(error)
            if failure is None or failure.exit_code == Exit.UNREACHABLE or len(ids) == 1:
                raise
            output.note(f"Error: {job_id}: {failure.message}")
            failed = failed or Exit(failure.exit_code)
        else:
            output.show(job, lambda job=job: readable(job))  # type: ignore[misc] # binds this job
    if failed is not None:
        raise Failure("at least one of them failed: see the errors above", failed)


def _confirm(jobs: int, done: str) -> None:
    what = f"{_jobs(jobs)} would be {done}"
    if not sys.stdin.isatty():
        raise click.UsageError(f"{what}. Give --yes to confirm: standard input is not a terminal")
    if not click.confirm(f"{what}. Continue?", err=True):
        raise Failure("cancelled: nothing was changed")


def _jobs(number: int) -> str:
    return f"{number:,} job{'s' * (number != 1)}"


def _with(options: list[Option[Any]], function: Command) -> Command:
    for option in reversed(options):
        function = option(function)
    return function
