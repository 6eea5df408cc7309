"""Load dumps of databases of earlier versions, and upgrade them."""

from __future__ import annotations

from pathlib import Path

import psycopg

from jobqueue.storage import schema
from jobqueue.storage.connection import connect

VERSION_1_SQL = Path(__file__).with_name("version_1.sql")
"""A database of version 1 with every kind of row. Its last node died a day before `make_version_1` made the dump."""


def load(url: str, dump: Path) -> None:
    """Run a plain dump of pg_dump in an empty database, without psql."""
    with psycopg.connect(url) as connection, dump.open(encoding="utf-8", newline="\n") as lines:
        statements: list[str] = []
        for line in lines:
            if not (line.startswith("COPY ") and line.endswith(" FROM stdin;\n")):
                statements.append(line)
                continue
            connection.execute("".join(statements).encode())
            statements = []
            with connection.cursor().copy(line.removesuffix(";\n").encode()) as copy:
                while (row := next(lines)) != "\\.\n":
                    copy.write(row)
        connection.execute("".join(statements).encode())


def upgrade(url: str) -> None:
    """Run the *before* steps."""
    with connect(url, "migrate") as connection:
        schema.migrate(connection)


def finish(url: str) -> None:
    """Run the *after* steps."""
    with connect(url, "migrate") as connection:
        schema.finish(connection)
