"""Run a real database and real nodes for a benchmark, measure their costs, and report the figures.

::

    @click.command()
    @harness.options
    def main(quick: bool, out: Path) -> None:
        with harness.database() as database:
            report = harness.Report("drain", "Drain rate", database, out)
            database.fill(100_000, queues={"default": "noop"})
            with harness.Node(database, "benchmarks.handlers") as node, database.span() as cost:
                ...
            report.add("one node", {"jobs/s": harness.Spread.of(rates)})
            report.write()

Compare only figures of the same call: see `interleave`.
"""

from benchmarks.harness.database import BUSY, Cost, Database, database, payload_of
from benchmarks.harness.figures import Spread, interleave, percentile
from benchmarks.harness.machine import Machine
from benchmarks.harness.node import Node
from benchmarks.harness.report import Report, Value, options
from tests.support.processes import Usage, usage_of

__all__ = [
    "BUSY",
    "Cost",
    "Database",
    "Machine",
    "Node",
    "Report",
    "Spread",
    "Usage",
    "Value",
    "database",
    "interleave",
    "options",
    "payload_of",
    "percentile",
    "usage_of",
]
