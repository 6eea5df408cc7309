"""The parts of schema.sql in their order, with the numbered steps among them.

All parts run in one transaction, except those whose name ends in ``.autocommit.sql``. The statements of such a part run after that
transaction, each in its own transaction.
"""

from __future__ import annotations

import re
from importlib.resources import files
from typing import NamedTuple

SOURCE = files(__package__)
"""The directory of the parts."""

_INCLUDE = re.compile(r"^\\ir jobqueue/storage/schema/(\S+)$", re.MULTILINE)
_LOCK = re.compile(r"^-- Lock:\s([A-Z ]+) on (.+), (.+):\s(.+)$", re.MULTILINE)
_STEP = re.compile(r"upgrades/(\d{4})_(before|after)_\w+(\.autocommit)?\.sql")
_TOKEN = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|(\$\w*\$).*?\1|;|[^-/'$;]+|.", re.DOTALL)


class Lock(NamedTuple):
    """A lock that a part takes and that statements of nodes or users wait for, as a comment of the part declares it.

    Attributes:
        mode: PostgreSQL's name of the lock.
        on: the table or view.
        held: how long the lock is held.
        waits: the statements that wait.
    """

    mode: str
    on: str
    held: str
    waits: str


class Part(NamedTuple):
    """A part of schema.sql.

    Attributes:
        name: its path in `SOURCE`.
        text: its SQL.
    """

    name: str
    text: str

    @property
    def version(self) -> int | None:
        """The version to which this step leads; None if the part is not a step."""
        step = _STEP.fullmatch(self.name)
        return int(step[1]) if step else None

    @property
    def autocommit(self) -> bool:
        """Whether each statement runs in its own transaction."""
        return self.name.endswith(".autocommit.sql")

    @property
    def locks(self) -> list[Lock]:
        return [Lock(*found) for found in _LOCK.findall(self.text)]


def upgrading(from_version: int = 0) -> list[Part]:
    """Return the parts that create the schema or upgrade it from `from_version`. They change nothing if they run again."""
    parts = map(_read, _INCLUDE.findall(SOURCE.joinpath("schema.sql").read_text(encoding="utf-8")))
    return [part for part in parts if part.version is None or part.version > from_version]


def finishing() -> list[Part]:
    """Return the parts that end the support for nodes of the previous version."""
    names = sorted(f"upgrades/{step.name}" for step in SOURCE.joinpath("upgrades").iterdir() if "_after_" in step.name)
    return list(map(_read, ["prepare.sql", *names, "compatibility.sql", "end.sql", "unrecord.autocommit.sql"]))


def statements(text: str) -> list[str]:
    """Split SQL into its statements, with the comments before each."""
    found = [""]
    for token in _TOKEN.finditer(text):
        found[-1] += token[0]
        if token[0] == ";":
            found.append("")
    return [statement.strip() for statement in found[:-1]]


def _read(name: str) -> Part:
    return Part(name, SOURCE.joinpath(name).read_text(encoding="utf-8"))
