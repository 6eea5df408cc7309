"""``jobqueue doctor``: check a database for problems, and advise how to fix them."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import click
from rich.console import Group
from rich.table import Table
from rich.text import Text

from jobqueue import logs
from jobqueue.cli.connection import json_option
from jobqueue.cli.exits import Exit
from jobqueue.cli.options import schema_option
from jobqueue.cli.output import Failure, Output, printable
from jobqueue.errors import DatabaseUnavailable, SettingsError
from jobqueue.storage import doctor
from jobqueue.storage.doctor import Finding
from jobqueue.storage.doctor.finding import Verdict, count
from jobqueue.storage.embedded.cluster import address
from jobqueue.storage.embedded.stage import default_data_dir

STYLES: dict[Verdict, str] = {"problem": "bold red", "warning": "yellow", "unknown": "magenta", "ok": "green"}

PLURALS: dict[Verdict, str] = {"problem": "problems", "warning": "warnings", "unknown": "unknown", "ok": "ok"}

READABLE_WIDTH = 132
"""Width in columns at which findings wrap when the output is not a terminal."""


@click.command("doctor")
@click.option("--database-url", envvar="DATABASE_URL", show_envvar=True, help="libpq URL of the database to check.")
@schema_option
@click.option(
    "--data-dir",
    envvar="JOBQUEUE_DATA_DIR",
    show_envvar=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Without a URL: check the embedded PostgreSQL that runs in this directory.  [default: the user's data directory]",
)
@json_option
def command(*, database_url: str | None, schema: str, data_dir: Path | None, as_json: bool) -> None:
    """Check the database for wrong settings, blocked cleanup and stuck jobs, and advise how to fix them.

    Changes nothing. Exits with 1 if there is a problem, and with 4 if the database cannot be reached.
    """
    logs.configure("error")
    code = Exit.DONE
    try:
        findings = doctor.examine(database_url or address(data_dir or default_data_dir()), schema)
        if any(finding.verdict == "problem" for finding in findings):
            code = Exit.REFUSED
    except DatabaseUnavailable as error:
        findings = [Finding("database", "problem", str(error), "start it, or correct --database-url; see its log for the reason")]
        code = Exit.UNREACHABLE
    except SettingsError as error:
        raise Failure(str(error), Exit.USAGE) from None
    Output(as_json=as_json).show(_document(findings), lambda: _report(findings))
    sys.exit(code)


def _document(findings: list[Finding]) -> dict[str, Any]:
    return {"verdict": findings[0].verdict, "findings": findings}


def _report(findings: list[Finding]) -> Group:
    """Make a table of the findings, with the advice under each."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    made.add_column(no_wrap=True)
    made.add_column(no_wrap=True)
    made.add_column(overflow="fold", max_width=READABLE_WIDTH)
    for finding in findings:
        said = Text(printable(finding.finding))
        if finding.advice is not None:
            said.append(f"\n→ {printable(finding.advice)}", style="bold" if finding.verdict == "problem" else "")
        made.add_row(Text(finding.verdict, STYLES[finding.verdict]), finding.check, said)
    counted = Counter(finding.verdict for finding in findings)
    return Group(
        made, Text(", ".join(count(counted[verdict], verdict, PLURALS[verdict]) for verdict in STYLES if counted[verdict]))
    )
