"""``jobqueue token``: tokens are made here, and only their SHA-256 is kept."""

from __future__ import annotations

import json

import click

from jobqueue import tokens
from jobqueue.errors import SettingsError
from jobqueue.http import token_file
from jobqueue.tokens import Role


@click.group("token")
def command() -> None:
    """Make tokens for those who may ask a service."""


@command.command("create")
@click.option(
    "--role",
    type=click.Choice(tokens.ROLES),
    required=True,
    help="submit: submit jobs and follow them. read: look at everything. admin: everything.",
)
@click.option("--name", default="", help="Whose token it is, for who reads the file.")
@click.option(
    "--file",
    "path",
    type=click.Path(),
    help="Add it to this file, as `jobqueue serve --token-file` reads it; made for its owner alone where there is none.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def create(role: Role, *, name: str, path: str | None, as_json: bool) -> None:
    """Make a token and print its secret, which is shown only now, and the line that the service has to know.

    The line goes into the file of --token-file, or (without the name) into JOBQUEUE_TOKENS; with --file it is written for you.
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
    click.echo("The token is for the client, and is not shown again. ", nl=False, err=True)
    click.echo(f"The line was added to {path}." if path else "The line is for --token-file or JOBQUEUE_TOKENS.", err=True)
