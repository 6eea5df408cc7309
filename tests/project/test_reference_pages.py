"""The reference tables of docs/ list every option, command, metric, and SQL function, with the right names and types."""

from __future__ import annotations

import re

import click
import pytest

from jobqueue.cli import COMMANDS, cli
from jobqueue.http.responses import problems
from jobqueue.metrics import Metrics
from tests.support import ROOT
from tests.support.postgres import Database

DOCS = ROOT / "docs"


def rows(page: str) -> list[list[str]]:
    """Return the cells of all tables of a page."""
    lines = (DOCS / page).read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def code(page: str, column: int) -> list[str]:
    """Return what is written as code in one column of the tables of a page."""
    return [text for row in rows(page) if len(row) > column for text in re.findall(r"`([^`]+)`", row[column])]


def command(name: str) -> click.Command:
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    return found


def test_every_option_of_serve_has_its_row() -> None:
    options = [option for option in command("serve").params if isinstance(option, click.Option) and not option.hidden]
    shown = {option.partition(" ")[0] for option in code("configuration.md", 0)}
    variables = set(code("configuration.md", 1))
    assert {name for option in options for name in option.opts} == {name for name in shown if name.startswith("--")}
    assert {option.envvar for option in options} == {name for name in variables if name.isupper()}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_row(name: str) -> None:
    table = "\n".join(cells[0] for cells in rows("cli.md") if len(cells) == 2)
    found = command(name)
    assert f"`{name}" in table
    for inner in found.commands if isinstance(found, click.Group) else ():
        if (name, inner) not in {("jobs", "list"), ("dead", "list"), ("queues", "list"), ("schedules", "list")}:
            assert re.search(rf"{name}.*\b{inner}\b", table), f"{name} {inner}"


def test_every_metric_has_its_row() -> None:
    metrics = Metrics()
    metrics.of("default", "default")
    types = dict(re.findall(r"^# TYPE (jobqueue_\w+) (\w+)$", metrics.render().decode(), re.MULTILINE))
    shown = {row[0].strip("`"): row[1] for row in rows("observability.md") if row[0].startswith("`jobqueue_")}
    assert shown == types


def test_every_status_of_a_problem_has_its_row() -> None:
    shown = {status for row in rows("http-api.md") for status in re.findall(r"\b\d{3}\b", row[0])}
    known = {str(status) for status in range(400, 600) if problems.kinds(status)}
    assert known <= shown


def test_functions_have_the_signatures_shown(database: Database) -> None:
    shown = [re.fullmatch(r"(\w+)\((.*)\)", text) for text in code("sql-api.md", 0)]
    signatures = {found[1]: arguments(found[2], r" = ") for found in shown if found}
    assert len(signatures) >= 17
    functions = database.rows(
        """
        SELECT proname, pg_get_function_arguments(oid) FROM pg_proc
         WHERE pronamespace = 'jobqueue'::regnamespace AND proname = ANY (%s)
        """,
        list(signatures),
    )
    assert signatures == {name: arguments(text, " DEFAULT ") for name, text in functions}


def arguments(text: str, default: str) -> list[tuple[str, str, str | None]]:
    """Return the name, the type, and the default of each argument; None where the default is NULL."""
    found = []
    for argument in re.split(r", (?=\"?\w+\"? )", text):
        declared, _, value = argument.partition(default)
        name, _, kind = declared.partition(" ")
        value = re.sub(r"::[\w \[\]]+$", "", value)
        found.append((name.strip('"'), kind.replace("timestamp with time zone", "timestamptz"), value if value != "NULL" else None))
    return [(name, kind, value or None) for name, kind, value in found]
