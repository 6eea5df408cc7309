"""docs/troubleshooting.md has an entry for each message with which ``jobqueue serve`` can end, and for no other."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from typing import NamedTuple

from tests.support import ROOT

PACKAGE = ROOT / "jobqueue"
PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")

ERRORS = {
    "SettingsError",
    "UnusableFile",
    "SchemaVersionError",
    "EmbeddedPostgresError",
    "HandlerError",
    "NodeFailed",
    "StageCrashed",
}
"""The errors with which a node can end at its start or later."""

OF_THE_DATABASE = dict.fromkeys(("storage/connection.py", "storage/lane.py"), "DatabaseUnavailable")
"""Other parts of a node raise this error only while the node runs, and the node keeps running."""

OTHER_COMMANDS = {("http/access/token_file.py", "append")}
"""Functions that `serve` does not call."""

LEAST_LETTERS = 8
"""A message with fewer letters only repeats another error."""

VALUE = "\0"


class Message(NamedTuple):
    place: str
    pattern: re.Pattern[str]


@functools.cache
def messages() -> list[Message]:
    """Return each message that a start-up error is raised with, up to the part that says what to do."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name.startswith(("testing/", "client/", "storage/doctor/")):
            continue
        for function, call in calls(ast.parse(path.read_text(encoding="utf-8"))):
            assert isinstance(call.func, ast.Name)
            if (call.func.id in ERRORS or OF_THE_DATABASE.get(name) == call.func.id) and (name, function) not in OTHER_COMMANDS:
                head = problem(text(call.args[0]))
                if len(re.findall(r"[a-z]", head)) >= LEAST_LETTERS:
                    found.append(Message(f"{name}: {head.replace(VALUE, '...')}", pattern(head)))
    return found


def calls(tree: ast.AST, function: str = "") -> Iterator[tuple[str, ast.Call]]:
    """Yield the calls of plain names that have an argument, each with the name of its function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
            yield function, node
        inside = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else function
        yield from calls(node, inside)


def text(argument: ast.expr) -> str:
    """Return the text of a message, with `VALUE` for each value in it."""
    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
        return argument.value
    if isinstance(argument, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else VALUE for part in argument.values)
    return VALUE


def problem(message: str) -> str:
    """Return the first part of a message that has words: what is wrong, without what to do."""
    head, *parts = re.split(r"(?<=[:;,.])\s", message)
    while parts and len(re.findall(r"[a-z]", head)) < LEAST_LETTERS:
        head = f"{head} {parts.pop(0)}"
    return head.rstrip(":;,. ")


def pattern(head: str) -> re.Pattern[str]:
    return re.compile(".+".join(re.escape(part) for part in re.split(f"{VALUE}+", head)))


def entries() -> list[str]:
    """Return the messages in the tables below the heading about errors."""
    section = PAGE.partition('## The node ends with "Error: ..."')[2].partition("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


def test_the_messages_are_found() -> None:
    assert len(messages()) > 60
    assert len({message.place.partition("/")[0] for message in messages()}) > 5


def test_each_message_has_an_entry() -> None:
    lost = [message.place for message in messages() if not any(message.pattern.search(entry) for entry in entries())]
    assert lost == [], "messages without an entry in docs/troubleshooting.md"


def test_each_entry_is_about_a_message() -> None:
    stale = [entry for entry in entries() if not any(message.pattern.search(entry) for message in messages())]
    assert stale == [], "entries of docs/troubleshooting.md that no error has"
