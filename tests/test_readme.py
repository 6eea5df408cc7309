"""What the README shows is run, as it stands there.

The convention, for who writes it (blocks are indented by four spaces, or fenced; a section is what follows a heading of level two):

- A block that begins with ``# name.py``, ``import jobqueue`` or ``from jobqueue`` is a module. It is written to a file beside those
  of the sections before, and imported: what needs a database or a service stands in a function, or names it as the tour does for
  psql, ``user=jobqueue dbname=jobqueue host=... port=5432``, or for curl, ``http://localhost:8080``: then it is run in its turn,
  on the section's database, to the section's service. One whose name begins with ``test_`` is run by pytest.
- A line that begins with ``$ curl`` is a command (with those after it, while they end in a backslash), and what follows it up to
  the next command, prompt or statement is its answer. It is sent to a service of the section's own, on an empty database, with the
  handlers of the section's last module that has an ``app`` (else those of ``examples.quickstart``). An answer in JSON must have at
  least the fields that are shown, of the same types, and the same ``state``, ``status``, ``field``; a line ``...`` says that there
  is more. A GET is asked again until it does. Without an answer shown, it must not be a problem.
- A line that begins with ``$ jobqueue``, or has it behind a pipe, is a command too, for the same service. Each line that is shown
  must come, in that order: its words, with any numbers and ids for those that are shown; a line that ends in ``...`` only has to
  begin like that. It must succeed, unless ``Error:`` is shown. (``serve``, ``migrate``, ``token``, ``top`` and ``doctor`` are for
  people: they ask no service, or never end.)
- ``jobqueue=#`` begins a statement in SQL (``jobqueue-#`` continues it), on one connection to the same database; a block, or a
  paragraph of one, that begins with ``SELECT`` is of statements too. They must work; a table that is shown below must have its
  columns, an id must be one. The table ``orders (id int)`` exists.
- The ids that are shown stand for those that came: a later command or statement may name them.

Other commands (``$ psql``) are for people.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest

from tests.conftest import ROOT, Service

PATIENCE = 20.0
"""Seconds for an answer to become what is shown."""

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
SAME = {"state", "status", "field"}
"""Fields whose value counts, and not only its type."""

DATABASE = "user=jobqueue dbname=jobqueue host=... port=5432"
"""How the tour names the database."""

SERVICE = "http://localhost:8080"
"""How it names the service."""

SENDS = re.compile(r"\s(-d|--data\S*|--json|-X|--request|-T)\b")
"""Of curl: the same."""

PROMPT = re.compile(r"^(?=\$ |jobqueue=# )|(?<=\n\n)(?=SELECT\b)", re.MULTILINE)
"""Where the next command, or the next statements begin."""


OURS = re.compile(r"\$ (.* \| )?jobqueue (?!serve|migrate|token|top|doctor)")
CHANGES = re.compile(r"\b(submit|cancel|retry|discard|change|pause|resume|configure|put|delete|trigger)\b")
"""Commands that are not to be run a second time, to see whether the answer has become what is shown."""


class Module(NamedTuple):
    name: str
    text: str


class Script(NamedTuple):
    """A module that speaks to the database or to the service while it is imported."""

    name: str
    text: str


class Curl(NamedTuple):
    command: str
    answer: str


class Command(NamedTuple):
    """A command of our own command line."""

    command: str
    answer: str


class Sql(NamedTuple):
    statement: str
    answer: str


Example = Module | Script | Curl | Command | Sql


def sections(text: str) -> dict[str, str]:
    """The text below each heading of level two."""
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def blocks(text: str) -> Iterator[str]:
    """The indented and the fenced blocks, without their indentation."""
    block: list[str] = []
    fenced = False
    for line in [*text.splitlines(), "end"]:
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    ") or (block and not line.strip()):
            block.append(line if fenced else line[4:])
            continue
        if block:
            yield "\n".join(block).strip("\n")
        block = []


def examples(text: str) -> Iterator[Example]:
    """What there is to run in a section, in its order."""
    for block in blocks(text):
        if re.match(r"# \w+\.py\b|import jobqueue\b|from jobqueue\b", block):
            # A command may follow a module in the same block: a blank line is no end of an indented one.
            code, *rest = PROMPT.split(block, maxsplit=1)
            name = re.match(r"# (\w+)\.py", code)
            form = Script if DATABASE in code or SERVICE in code else Module
            yield form(name[1] if name else f"example_{zlib.crc32(code.encode())}", code)
            yield from commands("".join(rest))
        else:
            yield from commands(block)


def commands(block: str) -> Iterator[Example]:
    """The curl commands and the statements of a block, each with what is shown as its answer."""
    for part in PROMPT.split(block):
        if OURS.match(part) or part.startswith("$ curl"):
            lines = part.splitlines()
            last = next(place for place, line in enumerate(lines) if not line.endswith("\\"))
            form = Curl if part.startswith("$ curl") else Command
            yield form("\n".join(lines[: last + 1]).removeprefix("$ "), "\n".join(lines[last + 1 :]).strip("\n"))
        elif part.startswith("jobqueue=# "):
            statement, _, answer = part.removeprefix("jobqueue=# ").replace("\njobqueue-# ", "\n").partition(";")
            yield Sql(statement, answer.strip("\n"))
        elif re.match(r"SELECT\b", part):
            yield from (Sql(statement.strip(), "") for statement in part.split(";") if statement.strip())


README = {heading: list(examples(text)) for heading, text in sections((ROOT / "README.md").read_text()).items()}
BEFORE = {
    heading: [example for before in list(README)[:place] for example in README[before] if isinstance(example, Module)]
    for place, heading in enumerate(README)
}


class Session:
    """One service and one connection, and which ids came for those that are shown."""

    def __init__(self, url: str, database_url: str, connection: psycopg.Connection[Any], directory: Path) -> None:
        self._url = url
        self._database_url = database_url
        self._directory = directory
        self._connection = connection
        self._came: dict[str, str] = {}
        self._last = ""

    def run(self, example: Script | Curl | Command | Sql) -> None:
        if isinstance(example, Script):
            text = example.text.replace(DATABASE, self._database_url).replace(SERVICE, self._url)
            write([Module(example.name, text)], self._directory)
            done = run_python(self._directory, f"{example.name}.py")
            assert done.returncode == 0, f"{example.text}\n{done.stdout}\n{done.stderr}"
            return
        if isinstance(example, Sql):
            self._run_sql(example)
            return
        deadline = time.monotonic() + PATIENCE
        answers = self._answers if isinstance(example, Curl) else self._prints
        while not answers(example):
            only_asks = not (CHANGES.search(example.command) if isinstance(example, Command) else SENDS.search(example.command))
            assert only_asks and time.monotonic() < deadline, f"not what is shown:\n{example.command}\n{self._last}"  # noqa: PT018
            time.sleep(0.1)

    def _answers(self, example: Curl) -> bool:
        command = self._named(example.command).replace("localhost:8080", self._url.removeprefix("http://"))
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        self._last = done.stdout
        shown = loads(example.answer)
        if shown is None:
            return not re.search("urn:jobqueue:(?!missing)", done.stdout)  # a job that is only shown is missing
        came = loads(done.stdout)
        if not alike(shown, came):
            return False
        self._came.update(zip(UUID.findall(json.dumps(shown)), UUID.findall(json.dumps(only(came, shown))), strict=False))
        return True

    def _prints(self, example: Command) -> bool:
        command = self._named(example.command).replace("jobqueue ", f"{sys.executable} -m jobqueue ")
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {command}"],
            cwd=ROOT,
            env={**os.environ, "JOBQUEUE_URL": self._url, "TZ": "UTC"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        self._last = done.stdout
        came = iter(done.stdout.splitlines())
        for line in example.answer.splitlines():
            found = next((other for other in came if looks_like(line, other)), None)
            if found is None:
                return False
            self._came.update(zip(UUID.findall(line), UUID.findall(found), strict=False))
        assert (done.returncode != 0) == bool(re.search("^Error: ", example.answer, re.MULTILINE)), f"{command}\n{done.stdout}"
        return True

    def _run_sql(self, example: Sql) -> None:
        cursor = self._connection.execute(self._named(example.statement).encode())
        if not example.answer or cursor.description is None:
            return
        rows = cursor.fetchall()
        head, _, body = example.answer.partition("\n")
        if re.match(r"\s*-+(\+-+)*\s*$", body.partition("\n")[0]):
            assert [name.strip() for name in head.split("|")] == [column.name for column in cursor.description]
        shown, came = UUID.findall(example.answer), UUID.findall(str(rows))
        assert bool(shown) == bool(came), f"{example.statement}\n{rows}"
        self._came.update(zip(shown, came, strict=False))

    def _named(self, text: str) -> str:
        return UUID.sub(lambda shown: self._came.get(shown[0], shown[0]), text)


def loads(text: str) -> Any:
    """Read JSON, with lines ``...`` and the commas before them left out; None if it is none."""
    try:
        return json.loads(re.sub(r",?\s*\n?\s*\.\.\.\s*(?=[}\]]|$)", "", text))
    except ValueError:
        try:
            # What the example cuts short: close what is open.
            return json.loads(re.sub(r",?\s*\.\.\.\s*$", "", text.rstrip()) + "}")
        except ValueError:
            return None


def alike(shown: Any, came: Any) -> bool:
    """Whether an answer has what is shown: fields, types, and the values that count."""
    if isinstance(shown, dict) and isinstance(came, dict):
        return all(
            name in came and alike(value, came[name]) and (name not in SAME or value == came[name]) for name, value in shown.items()
        )
    if isinstance(shown, list) and isinstance(came, list):
        return len(came) >= len(shown) and all(map(alike, shown, came))
    if shown is None or came is None:
        return True
    numbers = (int, float)
    return type(shown) is type(came) or (isinstance(shown, numbers) and isinstance(came, numbers))


def looks_like(shown: str, came: str) -> bool:
    """Whether a printed line has the words that are shown: ids and numbers are what they are."""
    words, others = (re.sub(r"\d[\d.,]*", "0", UUID.sub("ID", line)).split() for line in (shown, came))
    if words and words[-1].endswith("..."):
        return " ".join(others).startswith(" ".join(words).removesuffix("..."))
    return words == others


def only(came: Any, shown: Any) -> Any:
    """The part of an answer that is shown, in its order: so that ids stand in the same places."""
    if isinstance(shown, dict):
        return {name: only(came[name], value) for name, value in shown.items()}
    if isinstance(shown, list):
        return [only(one, other) for one, other in zip(came, shown, strict=False)]
    return came


def write(modules: list[Module], directory: Path) -> None:
    for module in modules:
        (directory / f"{module.name}.py").write_text(module.text)


def run_python(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": f"{directory}:{ROOT}", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_readme_has_examples_of_every_form() -> None:
    forms = {type(example) for found in README.values() for example in found}
    assert forms >= {Module, Curl, Command, Sql}
    assert len(README["A tour of five minutes"]) >= 9


@pytest.mark.parametrize("heading", [heading for heading, found in README.items() if any(isinstance(one, Module) for one in found)])
def test_the_modules_of_a_section_work(heading: str, tmp_path: Path) -> None:
    own = [example for example in README[heading] if isinstance(example, Module)]
    write([*BEFORE[heading], *own], tmp_path)
    for module in own:
        if module.name.startswith("test_"):
            done = run_python(tmp_path, "-m", "pytest", "-W", "error", "-p", "jobqueue.pytest_plugin", f"{module.name}.py")
        else:
            registers = (
                "app" not in module.text or "assert any(map(len, (module.app.handlers, module.app.queues, module.app.dead_hooks)))"
            )
            done = run_python(tmp_path, "-W", "error", "-c", f"import {module.name} as module; {registers}")
        assert done.returncode == 0, f"{module.text}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize(
    "heading",
    [heading for heading, found in README.items() if any(isinstance(one, Script | Curl | Command | Sql) for one in found)],
)
def test_the_commands_of_a_section_answer_as_shown(
    heading: str, tmp_path: Path, service: Callable[..., Service], database_url: str
) -> None:
    own = [example for example in README[heading] if isinstance(example, Module)]
    write([*BEFORE[heading], *own], tmp_path)
    apps = [module.name for module in own if re.search(r"^app = ", module.text, re.MULTILINE)]
    served = service(apps[-1] if apps else "examples.quickstart", env={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE orders (id int)")
        session = Session(served.url, database_url, connection, tmp_path)
        for example in README[heading]:
            if not isinstance(example, Module):
                session.run(example)


@pytest.mark.parametrize(
    ("shown", "came", "expected"),
    [
        ('{"id": "a", ...\n}', '{"id": "b", "more": 1}', True),
        ('{\n  "id": "a",\n  ...', '{"id": "b"}', True),
        ('{"id": "a"}', '{"ids": ["b"]}', False),
        ('{"state": "dead"}', '{"state": "succeeded"}', False),
        ('{"result": {"seen": 1}}', '{"result": {"seen": 2.5}}', True),
        ('{"result": {"seen": 1}}', '{"result": {"seen": "x"}}', False),
        ('{"ids": ["a", "b"]}', '{"ids": ["c"]}', False),
    ],
)
def test_an_answer_must_have_what_is_shown(shown: str, came: str, expected: bool) -> None:
    assert alike(loads(shown), loads(came)) is expected


@pytest.mark.parametrize(
    ("shown", "came", "expected"),
    [
        ("ID  STATE", "ID     STATE   ", True),
        ("01a209ba-188d-7241-b752-38e62b10c811  dead", "02a209ba-188d-7241-b752-38e62b10c812   dead", True),
        ("01a209ba-188d-7241-b752-38e62b10c811  dead", "02a209ba-188d-7241-b752-38e62b10c812   pending", False),
        ("5,000 jobs in 0.3 s", "7 jobs in 12 s", True),
        ("5,000 jobs", "7 jobs in 12 s", False),
        ("attempt 1 ...", "attempt 2 failed", True),
        ("attempt 1 ...", "a trial", False),
    ],
)
def test_a_line_must_have_the_words_that_are_shown(shown: str, came: str, expected: bool) -> None:
    assert looks_like(shown, came) is expected


def test_forms_are_told_apart() -> None:
    text = f"""
    import jobqueue

    app = jobqueue.App()

    $ curl -s localhost:8080/health \\
        -X GET
    {{"status": "ok"}}

    SELECT 1; SELECT
      2;

Words, SELECT 3.

    import jobqueue

    connect("{DATABASE}")

More words.

    import jobqueue

    with jobqueue.SyncClient("{SERVICE}"):
        ...

```sql
SELECT 4
```

    $ jobqueue serve myjobs
    $ jobqueue jobs cancel \\
        --all
    0 jobs cancelled
    $ echo | jobqueue submit --file -
    $ psql
    jobqueue=# SELECT 5,
    jobqueue-#   6;
     5
"""
    found = list(examples(text))
    assert [type(example) for example in found] == [Module, Curl, Sql, Sql, Script, Script, Sql, Command, Command, Sql]
    assert [one for one in found if isinstance(one, Command)] == [
        Command("jobqueue jobs cancel \\\n    --all", "0 jobs cancelled"),
        Command("echo | jobqueue submit --file -", ""),
    ]
    assert found[1] == Curl("curl -s localhost:8080/health \\\n    -X GET", '{"status": "ok"}')
    assert [one.statement for one in found if isinstance(one, Sql)] == ["SELECT 1", "SELECT\n  2", "SELECT 4", "SELECT 5,\n  6"]
    assert found[-1] == Sql("SELECT 5,\n  6", " 5")
