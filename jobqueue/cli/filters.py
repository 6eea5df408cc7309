"""Which jobs a command is meant for: those of the ids that it is given, or all that a filter finds."""

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
    click.option("--text", help="Only jobs with this in their last error or reason, or whose id begins with it."),
    click.option("--concurrency-key", help="Only jobs with this concurrency key."),
    click.option("--created-after", type=values.time_or_age, help="Only jobs submitted later: a time, or how long ago (2h)."),
    click.option("--created-before", type=values.time_or_age, help="Only jobs submitted earlier: a time, or how long ago (2h)."),
]
_OF_DEAD: list[Option[Any]] = [
    *_OF_ALL,
    click.option("--cause", help="Only jobs that died of this, as `jobqueue dead causes` has it."),
    click.option("--reason", help="Only jobs with this in their reason."),
    click.option("--died-after", type=values.time_or_age, help="Only jobs that died later: a time, or how long ago (2h)."),
    click.option("--died-before", type=values.time_or_age, help="Only jobs that died earlier: a time, or how long ago (2h)."),
]
_BY_FILTER: list[Option[Any]] = [
    click.option("--all", "everything", is_flag=True, help="All of them."),
    click.option("--yes", "-y", is_flag=True, help="Do not ask."),
    click.option("--dry-run", is_flag=True, help="Count the jobs that a filter finds, and leave them as they are."),
]


def of_jobs(states: Iterable[str]) -> Option[Any]:
    """Add the filters of jobs that can be in these states: ``state``, ``queue``, ``kind`` and so on."""
    state = click.option("--state", multiple=True, type=click.Choice(list(states)), help="Only in this state; may be given again.")
    return lambda function: _with([state, *_OF_JOBS], function)


def of_dead(function: Command) -> Command:
    """Add the filters of dead letters."""
    return _with(_OF_DEAD, function)


def by_filter(function: Command) -> Command:
    """Add what a command needs that changes jobs, of given ids or by a filter: ``ids``, ``everything``, ``yes``, ``dry_run``."""
    return click.argument("ids", nargs=-1, metavar="[ID]...")(_with(_BY_FILTER, function))


def wanted(given: Mapping[str, Any]) -> dict[str, Any]:
    """Take the conditions that were given."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items() if value not in (None, ())}


class CountedVerb(Protocol):
    """One of the client's calls by filter."""

    def __call__(self, *, dry_run: bool = ..., **wanted: Any) -> Awaitable[int]: ...


class Verb(NamedTuple):
    """What is to be done with jobs.

    Attributes:
        one: do it with one, by its id; returns the job.
        many: do it with all that a filter finds; returns how many.
        done: what has become of them, as a participle.
    """

    one: Callable[[str], Awaitable[dict[str, Any]]]
    many: CountedVerb
    done: str


async def apply(
    verb: Verb, output: Output, *, ids: tuple[str, ...], everything: bool, yes: bool, dry_run: bool, **given: Any
) -> None:
    """Do something with the jobs that a command line means.

    Raises:
        click.UsageError: it names none, or in two ways.
        Failure: see `each`; or nobody said yes.
    """
    conditions = wanted(given)
    if ids:
        if conditions or everything or dry_run:
            raise click.UsageError("give ids, or a filter: not both")
        await each(ids, verb.one, output, lambda job: f"{job['id']}  {job['state']}")
        return
    if not conditions and not everything:
        raise click.UsageError("which jobs? Give ids, a filter such as --queue mail, or --all")
    if everything and conditions:
        raise click.UsageError("--all has no conditions beside it")
    conditions = conditions or {"all": True}
    if not dry_run and not yes and (count := await verb.many(dry_run=True, **conditions)):
        _confirm(count, verb.done)
    jobs = await verb.many(dry_run=dry_run, **conditions)
    output.show({"jobs": jobs}, lambda: f"{_jobs(jobs)} {'would be ' * dry_run}{verb.done}")


async def each(
    ids: tuple[str, ...], act: Callable[[str], Awaitable[dict[str, Any]]], output: Output, readable: Callable[[dict[str, Any]], Any]
) -> None:
    """Do something with each of some jobs, and show what comes of it: one line of JSON a job. One that fails holds up no other.

    Raises:
        Failure: the first one's, at the end; what cannot be reached ends it at once.
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
            output.show(job, lambda job=job: readable(job))  # type: ignore[misc] # the job of this turn
    if failed is not None:
        raise Failure("not all of it could be done", failed)


def _confirm(jobs: int, done: str) -> None:
    what = f"{_jobs(jobs)} would be {done}"
    if not sys.stdin.isatty():
        raise click.UsageError(f"{what}. Nobody is here to ask: say --yes")
    if not click.confirm(f"{what}. Go on?", err=True):
        raise Failure("nothing was done")


def _jobs(number: int) -> str:
    return f"{number:,} job{'s' * (number != 1)}"


def _with(options: list[Option[Any]], function: Command) -> Command:
    for option in reversed(options):
        function = option(function)
    return function
