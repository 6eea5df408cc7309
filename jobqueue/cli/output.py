"""Print results: as JSON for programs, or readable for people. Everything that is not a result goes to stderr."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, Literal

import click
import msgspec
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from jobqueue.cli.exits import Exit

WIDE = 110
"""Minimum width of a terminal at which tables show their optional columns, in characters."""

PIPED_WIDTH = 1_000
"""Width of an output that is not a terminal, in characters: so large that nothing is cut off."""


GAP = 2
"""Spaces between the columns of a table."""

MIN_WIDTH = 8
"""Minimum width of a column whose cells are cut off, in characters."""

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """Escape control characters. Otherwise, a terminal would execute them in kinds, reasons and errors that other users wrote."""
    return _UNPRINTABLE.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


class Failure(click.ClickException):
    """An error message and the exit code of the command."""

    def __init__(self, message: str, code: Exit = Exit.REFUSED) -> None:
        super().__init__(printable(message))
        self.exit_code = code  # type: ignore[misc] # click's own subclasses do the same


class Output:
    """The output of a command.

    Attributes:
        as_json: whether to print JSON.
        console: standard output, for people.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        terminal = sys.stdout.isatty()
        # Rich would interpret markup in kinds, reasons and payloads.
        self.console = Console(width=None if terminal else PIPED_WIDTH, markup=False, highlight=False, emoji=False)

    @property
    def wide(self) -> bool:
        """Whether the optional columns of tables fit."""
        return self.console.width >= WIDE

    def show(self, document: Any, readable: Callable[[], RenderableType]) -> None:
        """Print a document as JSON, or the result of `readable` for people."""
        if self.as_json:
            text = msgspec.json.encode(document)
            if self.console.is_terminal:
                text = msgspec.json.format(text, indent=2)
            sys.stdout.write(text.decode() + "\n")
            sys.stdout.flush()
            return
        shown = readable()
        if isinstance(shown, str):
            shown = Text(printable(shown))
        if self.console.is_terminal:
            self.console.print(shown)
            return
        with self.console.capture() as captured:
            self.console.print(shown)
        # Remove the spaces with which Rich pads the last column.
        sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().removesuffix("\n").split("\n")))
        sys.stdout.flush()

    def lines(self, documents: Iterable[Any]) -> None:
        """Print documents as JSON, one per line."""
        for document in documents:
            sys.stdout.write(compact(document) + "\n")
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """Print a message to stderr."""
        click.echo(printable(text), err=True)


def pretty(document: Any) -> Text:
    """Format a document as indented JSON."""
    return Text(printable(msgspec.json.format(msgspec.json.encode(document), indent=2).decode()))


def compact(document: Any) -> str:
    """Format a document as JSON in one line."""
    return msgspec.json.encode(document).decode()


class table:  # noqa: N801 - used like a function
    """A table without borders, one line per row, suitable for copying and grep.

    Args:
        columns: the names of the columns; ">" before a name aligns the column to the right.
        rows: the cells; None is an empty cell.
        cut: the columns to cut off if the table is too wide.
    """

    def __init__(self, columns: Iterable[str], rows: Iterable[Iterable[object]], *, cut: Iterable[str] = ()) -> None:
        self._columns = list(columns)
        self._rows = [["" if value is None else printable(str(value)) for value in row] for row in rows]
        self._cut = [place for place, name in enumerate(self._columns) if name in set(cut)]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        made = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
        names = [name.removeprefix(">") for name in self._columns]
        widths = [max(map(cell_len, column)) for column in zip(names, *self._rows, strict=True)]
        excess = sum(widths) + GAP * (len(widths) - 1) - options.max_width
        for place in sorted(self._cut, key=lambda place: -widths[place]):
            narrower = max(MIN_WIDTH, widths[place] - max(0, excess))
            excess -= max(0, widths[place] - narrower)
            widths[place] = min(widths[place], narrower)
        for name, column, width in zip(names, self._columns, widths, strict=True):
            justify: Literal["left", "right"] = "right" if column.startswith(">") else "left"
            made.add_column(name, justify=justify, no_wrap=True, overflow="ellipsis", min_width=width, max_width=width)
        for row in self._rows:
            made.add_row(*map(Text, row))
        yield made


def local(text: str | None, *, short: bool = False) -> str:
    """Format a time in the local time zone, such as ``2026-01-31 08:00:00 CET``.

    Args:
        text: a time in RFC 3339 with its UTC offset; None returns an empty string.
        short: return only the time if it is today, and only the date otherwise.
    """
    if text is None:
        return ""
    time = datetime.fromisoformat(text).astimezone()
    if not short:
        return time.strftime("%Y-%m-%d %H:%M:%S %Z")
    today = datetime.now().astimezone().date()
    return time.strftime("%H:%M:%S %Z" if time.date() == today else "%Y-%m-%d %Z")


def seconds(value: float | None) -> str:
    """Format a duration in seconds: ``0.25 s``, ``90 s``, ``2 h 5 min``."""
    if value is None:
        return ""
    if value < 10:  # noqa: PLR2004 - fractions matter below 10
        return f"{value:.2g} s"
    for size, unit, smaller, name in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (600, "min", 1, "s")):
        if value >= size:
            size = 60 if unit == "min" else size  # noqa: PLW2901
            whole, rest = divmod(int(value), size)
            return f"{whole} {unit} {rest // smaller} {name}" if rest // smaller else f"{whole} {unit}"
    return f"{value:.0f} s"


def number(value: float | None) -> str:
    """Format a number with two digits or without a fraction: ``0.25``, ``1,520``."""
    return "" if value is None else f"{value:.2g}" if value < 10 else f"{value:,.0f}"  # noqa: PLR2004 - fractions matter below 10


def facts(rows: Iterable[tuple[str, object]]) -> Table:
    """Make a list with a name and a value per line. Rows whose value is None are left out."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows:
        if value is not None:
            made.add_row(name, Text(printable(str(value))))
    return made
