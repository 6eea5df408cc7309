"""``jobqueue token``: create tokens. Only their SHA-256 is stored."""

from __future__ import annotations

import json

import click

from jobqueue import tokens
from jobqueue.errors import SettingsError
from jobqueue.http.access import token_file
from jobqueue.tokens import Role


@click.group("token")
def command() -> None:
    """Create bearer tokens for the clients of a service."""


@command.command("create")
@click.option(
    "--role",
    type=click.Choice(tokens.ROLES),
    required=True,
    help="submit can submit jobs and read their state, read can read everything, admin can do everything.",
)
@click.option("--name", default="", help="Name of the owner, as a note in the token file.")
@click.option(
    "--file",
    "path",
    type=click.Path(),
    help="Add the token to this file, for `jobqueue serve --token-file`. Only the owner can read a new file.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def create(role: Role, *, name: str, path: str | None, as_json: bool) -> None:
    """Create a token. Print its secret, which is not shown again, and the line that the service needs.

    Put the line into the file of --token-file or, without the name, into JOBQUEUE_TOKENS. With --file, the command writes the line.
    """
    try:
        secret, token = tokens.create(role, tokens.check_name(name, "--name"))
        if path is not None:
            token_file.append(path, token)
    except SettingsError as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        said = {"token": secret, "role": token.role, "name": token.name, "line": token.entry, "file": path}
        click.echo(json.dumps(said))
        return
    click.echo(f"  token  {secret}")
    click.echo(f"  line   {token.entry}")
    click.echo("Give the token to the client: it is not shown again. ", nl=False, err=True)
    click.echo(f"The line was added to {path}." if path else "Put the line into the token file or JOBQUEUE_TOKENS.", err=True)
