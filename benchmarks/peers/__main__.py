"""The command line: see the package."""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path

import click
import platformdirs
import psycopg
from rich.console import Console
from rich.markup import escape

from benchmarks import harness
from benchmarks.harness import Database, Spread, Value
from benchmarks.harness.report import RESULTS
from benchmarks.peers.catalog import MEASURES, PEERS, US, VARIANTS
from benchmarks.peers.environments import prepare
from benchmarks.peers.measures import Bench, Figures
from benchmarks.peers.program import ProgramError

COLUMNS = (
    *("drain/s", "single/s", "bulk/s", "p50 ms", "p99 ms", "RSS MiB"),
    *("worker us/job", "server us/job", "WAL B/job", "commits/job"),
)
PLOTTED = COLUMNS[:6]

NOTES = """drain: jobs per second of one worker, from the first handler's start until all are recorded as done. Handlers do nothing.
single, bulk: jobs per second from 16 callers, and from one caller with 1,000 jobs per call, by default. No worker runs.
p50, p99: from the start of a submission to the handler's start in an idle worker.
RSS, us of CPU, WAL and commits (transactions that wrote something): of the drain."""

Rounds = dict[str, list[Figures]]
"""The figures of each row, by round. Figures that could not be measured are missing."""


def compare(benches: dict[str, Bench], rounds: int, say: Console) -> tuple[Rounds, dict[str, str]]:
    """Measure all peers in turn. Return the figures, and the errors of peers that failed.

    A round runs each measure for all peers before the next measure, so that compared figures are only minutes apart. If a peer
    fails, it is skipped from then on.
    """
    measured: Rounds = defaultdict(list)
    errors: dict[str, str] = {}
    for number in range(rounds):
        for name in benches:
            measured[name].append({})
        for measure in MEASURES:
            for name, bench in benches.items():
                if measure not in bench.peer.measures or name in errors:
                    continue
                try:
                    figures = bench.measure(measure)
                except (ProgramError, psycopg.Error, OSError) as error:
                    errors[name] = f"{measure}: {error}"
                    say.print(f"{name}: {errors[name]}", style="red", highlight=False, markup=False)
                    continue
                measured[name][number] |= figures
                told = ", ".join(f"{column} {figure:,.5g}" for column, figure in figures.items())
                say.print(f"round {number + 1}, {measure}, {name}: {told}", highlight=False)
    return measured, errors


def medians(rounds: list[Figures]) -> dict[str, Value]:
    """Make a row from the figures of all rounds."""
    samples = {column: [figures[column] for figures in rounds if column in figures] for column in COLUMNS}
    return {column: Spread.of(values) for column, values in samples.items() if values}


def ratios(rounds: list[Figures], ours: list[Figures]) -> dict[str, Value]:
    """Make a row of medians, with each figure as a multiple of jobqueue's figure of the same round."""
    row: dict[str, Value] = {}
    for column in COLUMNS:
        pairs = zip(rounds, ours, strict=True)
        if values := [theirs[column] / us[column] for theirs, us in pairs if column in theirs and us.get(column)]:
            row[column] = Spread(statistics.median(values), min(values), max(values), values)
    return row


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--only", help=f"Peers to compare with, separated by commas: {', '.join(list(PEERS)[1:])}.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, help="Number of rounds; the report has the medians.")
@click.option("--scale", type=click.FloatRange(min=0, min_open=True), default=1.0, help="Factor on the numbers of jobs.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    default=platformdirs.user_cache_path("jobqueue-peers", appauthor=False),
    show_default="the user's cache directory",
    help="Where the peers are installed.",
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=RESULTS, help="Directory for the JSON and the PNG."
)
def main(only: str | None, rounds: int, scale: float, cache: Path, out: Path) -> None:
    """Measure jobqueue and other job queues on PostgreSQL, in turn."""
    chosen = list(PEERS) if only is None else [US, *only.split(",")]
    if unknown := set(chosen) - set(PEERS):
        raise click.UsageError(f"no adapter exists for {', '.join(sorted(unknown))}")
    say = Console(stderr=True)
    with harness.database() as server:
        benches, errors = _install([name for name in PEERS if name in chosen], server, scale, cache.resolve())
        measured, failed = compare(benches, rounds, say)
        versions = [
            f"{bench.environment.version} with {', '.join(bench.peer.packages)}"
            for bench in benches.values()
            if bench.peer.packages
        ]
        _report(server, out, measured, errors | failed, versions)


def _install(names: list[str], server: Database, scale: float, cache: Path) -> tuple[dict[str, Bench], dict[str, str]]:
    benches: dict[str, Bench] = {}
    errors: dict[str, str] = {}
    for name, peer in {**{name: PEERS[name] for name in names}, **VARIANTS}.items():
        try:
            benches[name] = Bench(peer, prepare(peer, cache), server, scale)
        except RuntimeError as error:
            errors[name] = f"cannot be installed: {error}"
    return benches, errors


def _report(server: Database, out: Path, measured: Rounds, errors: dict[str, str], versions: list[str]) -> None:
    failures = "".join(f"\n{name} failed: {escape(error)}" for name, error in errors.items())
    notes = f"{NOTES}\n{'; '.join(versions)}{failures}"
    figures = harness.Report(
        "peers", "Job queues on PostgreSQL, one worker process", server.machine, out, notes=notes, plotted=PLOTTED
    )
    relative = harness.Report(
        "peers-ratios",
        "The same, as multiples of jobqueue's figures of the same round",
        server.machine,
        out,
        notes=notes,
        plotted=PLOTTED,
    )
    for name, rounds in measured.items():
        figures.add(name, medians(rounds) | ({"failed": errors[name].partition(":")[0]} if name in errors else {}))
        relative.add(name, ratios(rounds, measured[US]))
    for name in errors.keys() - measured.keys():
        figures.add(name, {"failed": "not installed"})
    figures.write()
    relative.write()


if __name__ == "__main__":
    main()
