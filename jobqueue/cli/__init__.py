"""The command line: ``jobqueue COMMAND``.

Each command is the object ``command`` in the module of the same name. The module is imported when the command runs, so
``jobqueue serve`` does not load the modules of other commands. The decorator `connection.remote` makes commands that use a queue.
"""

from __future__ import annotations

import importlib
import sys

import click

from jobqueue._version import __version__
from jobqueue.cli.exits import Exit

COMMANDS = ("serve", "migrate", "adopt", "submit", "jobs", "dead", "queues", "nodes", "schedules", "top", "doctor", "token")
"""Every command, in the order of the help."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        found: click.Command = importlib.import_module(f"jobqueue.cli.{cmd_name}").command
        return found


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="jobqueue")
def cli() -> None:
    """A durable job queue on PostgreSQL and Trio."""


def main() -> None:
    """Run the command line and exit with a code of `Exit`."""
    try:
        code = cli.main(prog_name="jobqueue", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.Abort:  # click raises this for Ctrl-C
        click.echo("Interrupted.", err=True)
        code = Exit.INTERRUPTED
    sys.exit(code)
