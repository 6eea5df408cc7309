"""Run the chaos test: start, inflict faults under load, heal, wait for the last job, stop, and check the rules."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import click
import msgspec
import psycopg
import trio
from rich.console import Console

from benchmarks.chaos import effects, plan, upgrade
from benchmarks.chaos.checker import Evidence, read_rows
from benchmarks.chaos.database import connect
from benchmarks.chaos.faults import Saboteur
from benchmarks.chaos.load import Load
from benchmarks.chaos.machines import CURRENT, Node, Postgres, Software, start_nodes
from benchmarks.chaos.report import Report
from jobqueue import logs
from tests.support.clock import Clock

GAP = 5.0
"""Mean time between two faults, in seconds. With ``--short`` the mean is lower, so that more faults overlap."""

SHORT_KINDS = [kind for kind in plan.FAULTS if kind not in plan.SLOW]

SHORT = {"faults": len(SHORT_KINDS), "jobs": 3_000, "gap": 2.2}

KINDS = {kind.name.lower().replace("_", "-"): kind for kind in plan.FAULTS}

AFTERMATH = 12.0
"""How long the load continues after the last fault, in seconds. Every node must recover within this time."""

SLOWEST_DRAIN = 40.0
"""Assumed rate of the nodes, in jobs per second. The run uses it to decide how long to wait for the last jobs."""

ALLOWANCE = 90.0
"""Minimum time to wait for the last jobs, including starts and stops of processes, in seconds."""


class Run:
    """One run.

    Args:
        seed: the seed of plan and load.
        faults: the plan.
        jobs: the number of jobs.
        directory: the directory for data and logs. PostgreSQL's user must be able to enter it.
        software: the version of the nodes at the start.
    """

    def __init__(self, seed: int, faults: Sequence[plan.Fault], jobs: int, directory: Path, software: Software = CURRENT) -> None:
        self._software = software
        self._seed = seed
        self._plan = faults
        self._jobs = jobs
        self._seconds = max((fault.over_at for fault in self._plan), default=0.0) + AFTERMATH / 2
        self._drain_timeout = ALLOWANCE + jobs / SLOWEST_DRAIN
        self._directory = directory
        self._postgres = Postgres(directory / "data", clock=self._clock())

    async def run(self) -> Report:
        """Do the run, and leave no process behind."""
        began = time.monotonic()
        try:
            with trio.fail_after(self._seconds + AFTERMATH + self._drain_timeout + ALLOWANCE):
                await self._postgres.start()
                evidence, saboteur = await self._disturb()
        finally:
            self._postgres.stop()
        return Report.of(self._seed, time.monotonic() - began, evidence, saboteur)

    def _clock(self) -> Clock | None:
        """Return a clock for the server if the plan contains clock steps and libfaketime is installed."""
        if not any(fault.kind is plan.Kind.STEP_CLOCK for fault in self._plan):
            return None
        library = Clock.find_library()
        return None if library is None else Clock(library, self._directory / "clock")

    async def _disturb(self) -> tuple[Evidence, Saboteur]:
        async with trio.open_nursery() as nursery:
            nodes = await start_nodes(nursery, self._postgres, self._directory, plan.NODES, self._software)
            saboteur = Saboteur(self._postgres, nodes, self._software)
            load = Load(
                self._seed,
                jobs=self._jobs,
                seconds=self._seconds,
                urls=[node.url for node in nodes],
                database_url=self._postgres.url,
            )
            await _break_and_load(saboteur, load, self._plan)
            await self._drain()
            async with trio.open_nursery() as stopping:
                for node in nodes:
                    stopping.start_soon(node.retire)
        with connect(self._postgres.url) as connection:
            evidence = self._collect(connection, load, nodes, saboteur)
        return evidence, saboteur

    async def _drain(self) -> None:
        """Wait until every job has ended, or until the timeout."""
        with trio.move_on_after(self._drain_timeout):
            while not await trio.to_thread.run_sync(_all_ended, self._postgres.url):  # noqa: ASYNC110 - another process's state
                await trio.sleep(0.5)

    def _collect(self, connection: psycopg.Connection, load: Load, nodes: Sequence[Node], saboteur: Saboteur) -> Evidence:
        row = connection.execute("SELECT count(*) FROM jobqueue_internal.nodes").fetchone()
        return Evidence(
            submits=[*load.submits, *saboteur.submits],
            rows=read_rows(connection),
            effects=effects.read(connection),
            exits=[one for node in nodes for one in node.exits],
            nodes_left=row[0] if row else 0,
            written=effects.read_written(connection),
            poisoned=saboteur.poisoned,
            cancelled=saboteur.cancelled,
            inflicted=saboteur.inflicted,
            looks=load.looks,
            upgrade_faults=saboteur.upgrade_faults,
        )


async def _break_and_load(saboteur: Saboteur, load: Load, faults: Sequence[plan.Fault]) -> None:
    """Submit jobs while faults are inflicted, and for some time afterwards."""
    async with trio.open_nursery() as probing:
        probing.start_soon(load.probe)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(saboteur.run, faults)
            nursery.start_soon(load.run)
        await trio.sleep(AFTERMATH)
        load.end_probes()


def _all_ended(url: str) -> bool:
    """Return whether every job has ended; False if PostgreSQL cannot be reached."""
    sql = """
        SELECT NOT EXISTS (SELECT FROM jobqueue_internal.pending_jobs) AND NOT EXISTS (SELECT FROM jobqueue_internal.scheduled_jobs)
           AND NOT EXISTS (SELECT FROM jobqueue_internal.inflight_jobs) AND NOT EXISTS (SELECT FROM jobqueue_internal.blocked_jobs)
    """
    with suppress(psycopg.OperationalError), connect(url) as connection:
        row = connection.execute(sql).fetchone()
        assert row is not None
        return bool(row[0])
    return False


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--seed", type=int, default=1, help="The same seed gives the same plan and the same jobs.")
@click.option("--faults", type=click.IntRange(min=0), default=50, help="Number of faults.")
@click.option("--jobs", type=click.IntRange(min=1), default=20_000, help="Number of jobs to submit meanwhile.")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(list(KINDS)),
    help="Inflict only faults of this kind; repeatable.  [default: all kinds]",
    show_default=False,
)
@click.option("--short", is_flag=True, help=f"{SHORT['faults']} faults and {SHORT['jobs']:,} jobs, in about a minute.")
@click.option(
    "--upgrade", "upgrading", is_flag=True, help="Start with the previous version, and upgrade the nodes one after another."
)
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Also write the report to this file.")
@click.option("--keep", is_flag=True, help="Keep the logs even if the run passes.")
def main(
    *, seed: int, faults: int, jobs: int, only: tuple[str, ...], short: bool, upgrading: bool, json_file: Path | None, keep: bool
) -> None:
    """Inflict faults on a cluster of three nodes, and account for every job. Exit with 1 if a rule was broken."""
    logs.configure("warning")
    gap = GAP
    if short:
        faults, jobs, gap = int(SHORT["faults"]), int(SHORT["jobs"]), SHORT["gap"]
    kinds = [KINDS[name] for name in only] or (SHORT_KINDS if short else plan.FAULTS)
    software = CURRENT
    if upgrading:
        software = upgrade.install_previous()
        kinds = [kind for kind in kinds if kind not in plan.OF_THIS_VERSION]
    drawn = plan.make(seed, faults, gap=gap, only=kinds)
    if upgrading:
        drawn += plan.upgrade(seed, drawn)
    directory = Path(tempfile.mkdtemp(prefix="jobqueue-chaos-"))
    directory.chmod(0o711)
    kept = True
    try:
        report = trio.run(Run(seed, drawn, jobs, directory, software).run)
        kept = keep or not report.passed
        report.print(Console(width=132))
        if json_file is not None:
            json_file.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    finally:
        _clean_up(directory, kept=kept)
    if not report.passed:
        raise SystemExit(1)


def _clean_up(directory: Path, *, kept: bool) -> None:
    """Remove the data, and also the logs unless they are kept."""
    data = directory / "data"
    if kept and (data / "postgresql.log").exists():
        shutil.copy(data / "postgresql.log", directory)
    shutil.rmtree(data, ignore_errors=True)
    if kept:
        click.echo(f"the logs are in {directory}")
    else:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
