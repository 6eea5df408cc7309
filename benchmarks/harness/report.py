"""Report figures as a table on the terminal, a JSON file and a plot."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click
import msgspec
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks.harness.figures import Spread
from benchmarks.harness.machine import Machine

RESULTS = Path(__file__).parent.parent / "results"

PANEL_WIDTH = 4.5
ROW_HEIGHT = 0.32
LEAST_HEIGHT = 2.6
"""Minimum height of the plot, in inches, like the two lengths above."""

LOG_WIDTH = 180
"""Line width in characters if the output is not a terminal."""

Value = Spread | float | str | None

Command = TypeVar("Command", bound=Callable[..., Any])


def options(command: Command) -> Command:
    """Add the options of all benchmarks: ``quick`` and ``out``."""
    command = click.option("--quick", is_flag=True, help="Small sizes and one repetition, for a rough result.")(command)
    directory = click.Path(path_type=Path, file_okay=False)
    return click.option("--out", type=directory, default=RESULTS, show_default=True, help="Directory for the JSON and the PNG.")(
        command
    )


class Line(NamedTuple):
    """A line in a panel of the plot."""

    panel: str
    name: str
    points: Sequence[tuple[float, float]]


class Report:
    """The rows of figures and the plotted lines of one benchmark.

    Args:
        name: the name of its files, without extension.
        title: the title of table and plot.
        machine: the machine that ran it.
        out: the directory for its files.
        notes: explains the columns.
        plotted: the columns that the plot shows as bars, one panel each.
    """

    def __init__(self, name: str, title: str, machine: Machine, out: Path, *, notes: str = "", plotted: Sequence[str] = ()) -> None:
        self._name = name
        self._title = title
        self._machine = machine
        self._out = out
        self._notes = notes
        self._plotted = plotted
        self._rows: dict[str, Mapping[str, Value]] = {}
        self._lines: list[Line] = []
        self._began_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

    def add(self, row: str, figures: Mapping[str, Value]) -> None:
        """Add a row of figures, by column. A row need not have all columns."""
        self._rows[row] = figures

    def draw(self, panel: str, line: str, points: Sequence[tuple[float, float]]) -> None:
        """Add a line to a panel of the plot. The panel's name describes the axes, such as ``ms by minute``."""
        self._lines.append(Line(panel, line, points))

    def write(self) -> None:
        """Print the table, and write ``NAME.json`` and ``NAME.png``."""
        self._out.mkdir(parents=True, exist_ok=True)
        document = {
            "benchmark": self._name,
            "title": self._title,
            "notes": self._notes,
            "began_at": self._began_at,
            "machine": self._machine,
            "rows": self._rows,
            "lines": [line._asdict() for line in self._lines],
        }
        (self._out / f"{self._name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
        self._plot().savefig(self._out / f"{self._name}.png", dpi=110)
        console = Console(width=None if sys.stdout.isatty() else LOG_WIDTH)
        console.print(self._table())
        console.print(f"{self._notes}\n{self._machine}\n[dim]{self._out / self._name}.json, .png[/dim]", highlight=False)

    def _columns(self) -> list[str]:
        return list(dict.fromkeys(column for figures in self._rows.values() for column in figures))

    def _table(self) -> Table:
        table = Table(title=self._title, title_justify="left")
        table.add_column("", no_wrap=True)
        columns = self._columns()
        for column in columns:
            table.add_column(column, justify="right")
        for row, figures in self._rows.items():
            table.add_row(row, *(shown(figures.get(column)) for column in columns))
        return table

    def _plot(self) -> Figure:
        panels = list(dict.fromkeys(line.panel for line in self._lines))
        count = max(1, len(self._plotted) + len(panels))
        height = max(LEAST_HEIGHT, 1 + ROW_HEIGHT * len(self._rows))
        figure = Figure(figsize=(1.5 + PANEL_WIDTH * count, height), layout="constrained")
        axes = figure.subplots(1, count, squeeze=False)[0]
        for axis, column in zip(axes, self._plotted, strict=False):
            self._draw_bars(axis, column)
        for axis, panel in zip(axes[len(self._plotted) :], panels, strict=False):
            for line in self._lines:
                if line.panel == panel:
                    axis.plot(*zip(*line.points, strict=True), label=line.name, marker=".")
            axis.set_title(panel, fontsize="medium")
            axis.set_ylim(bottom=0)
            axis.legend(fontsize="small")
        figure.suptitle(f"{self._title}\n{str(self._machine).splitlines()[0]}", fontsize="small")
        return figure

    def _draw_bars(self, axis: Axes, column: str) -> None:
        spreads = {row: _spread(figures.get(column)) for row, figures in self._rows.items()}
        bars = {row: spread for row, spread in spreads.items() if spread is not None}
        errors = [[bar.median - bar.low for bar in bars.values()], [bar.high - bar.median for bar in bars.values()]]
        axis.barh(list(bars), [bar.median for bar in bars.values()], xerr=errors, capsize=2, color="tab:blue", alpha=0.8)
        axis.invert_yaxis()
        axis.tick_params(labelsize="small")
        axis.set_title(column, fontsize="medium")


def shown(value: Value) -> str:
    """Format a figure with its significant digits. If it was measured repeatedly, add the spread."""
    match value:
        case None:
            return "-"
        case str():
            return value
        case Spread(median=median, low=low, high=high) if low != high:
            return f"{_number(median)} ({_number(low)} to {_number(high)})"
        case Spread(median=median):
            return _number(median)
        case _:
            return _number(value)


def _number(value: float) -> str:
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _spread(value: Value) -> Spread | None:
    if isinstance(value, int | float):
        return Spread.of([value])
    return value if isinstance(value, Spread) else None
