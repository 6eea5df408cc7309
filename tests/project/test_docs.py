"""Run the code of README.md and of every page of docs/, and compare the output with the page.

The convention, for authors. Blocks are fenced and name their language. A section is the text below a
heading of level two, or the text above the first one.

- ``python``: a module that begins with ``# name.py``, ``import jobqueue`` or ``from jobqueue``. The
  test writes it to a file next to the modules of the page's earlier sections, and imports it with
  warnings as errors. A block that begins otherwise continues the section's module before it. A module
  that contains the name of the database, ``user=jobqueue dbname=jobqueue host=... port=5432``, or of
  the service, ``http://localhost:8080``, is a script. It runs in its turn, against the section's
  database and service. pytest runs a module whose name begins with ``test_``.
- ``console``: a line that begins with ``$ curl`` or ``$ jobqueue``, also behind a pipe, is a command. A
  backslash continues it. The lines up to the next prompt are its output. Each section has a
  separate service, on an empty database, with the handlers of the section's last module that has an
  ``app``, or with ``examples.quickstart``. A JSON response must have at least the
  fields shown, of the same types, with the same ``state``, ``status`` and ``field``; ``...`` stands for
  more. Printed lines must come in the order shown, with the same words and any numbers and ids; a line
  that ends in ``...`` only has to begin like that. A command must succeed, unless ``Error:`` is shown. A
  command that changes nothing is repeated until its output is as shown. ``jobqueue=#`` begins a
  statement in SQL, and ``jobqueue-#`` continues it. A table that is shown must have its columns.
- ``sql``: a script for the section's database. The table ``orders (id int)`` exists.
- ``json``, ``yaml`` and ``toml`` must parse. Blocks of other languages are only shown.
- The ids shown stand for the ids that came: a later command or statement may use them.

Other commands (``$ psql``, ``$ jobqueue serve``) are for people. A block of Python, SQL or a console in
which nothing runs has a line before it with the reason: ``<!-- not run: REASON -->``.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
import tomllib
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
import yaml

from tests.support import ROOT
from tests.support.fork_server import fork_server
from tests.support.service import Service

pytestmark = pytest.mark.slow

PATIENCE = 60.0
"""Seconds for a response to become the one shown."""

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
SAME = {"state", "status", "field"}
"""Fields whose value counts, not only its type."""

DATABASE = "user=jobqueue dbname=jobqueue host=... port=5432"
SERVICE = "http://localhost:8080"
"""The names of the database and of the service in the pages."""

SENDS = re.compile(r"\s(-d|--data\S*|--json|-X|--request|-T)\b")
CHANGES = re.compile(r"\b(submit|cancel|retry|discard|change|pause|resume|configure|put|delete|trigger)\b")
"""curl and jobqueue commands that must not be repeated until the output is as shown."""

COMMAND = re.compile(r"\$ (curl|(.* \| )?jobqueue (?!serve|token|top|doctor))")
PROMPT = re.compile(r"^(?=\$ |jobqueue=# )", re.MULTILINE)
MODULE = re.compile(r"# (\w+)\.py\b|import jobqueue\b|from jobqueue\b")
NOT_RUN = re.compile(r"<!-- not run: (.+) -->$")

SHOWN = {"text", "ini", "nginx", "dockerfile"}
"""Languages of blocks that nothing checks."""

PARSED: dict[str, Callable[[str], Any]] = {"json": json.loads, "toml": tomllib.loads, "yaml": yaml.safe_load}


class Module(NamedTuple):
    name: str
    text: str


class Script(NamedTuple):
    """A module that calls the database or the service while it is imported."""

    name: str
    text: str


class Curl(NamedTuple):
    command: str
    output: str


class Command(NamedTuple):
    """A jobqueue command."""

    command: str
    output: str


class Sql(NamedTuple):
    statement: str
    output: str


Example = Module | Script | Curl | Command | Sql


class Block(NamedTuple):
    """A fenced block, with the reason why nothing runs it, if a line before it gives one."""

    language: str
    text: str
    reason: str | None


class Section(NamedTuple):
    page: str
    heading: str
    blocks: list[Block]

    @property
    def examples(self) -> list[Example]:
        """The examples in their order. A script runs in the place of its first block."""
        found: list[Example] = []
        for block in self.blocks:
            if block.reason is None and block.language == "python":
                python(block.text, found)
            elif block.reason is None and block.language == "console":
                found += commands(block.text)
            elif block.reason is None and block.language == "sql":
                found.append(Sql(block.text, ""))
        return found


def sections(page: str, text: str) -> Iterator[Section]:
    """Yield the text above the first heading of level two, and the text below each heading."""
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    for heading, below in zip(["", *parts[1::2]], parts[::2], strict=True):
        yield Section(page, heading, list(blocks(below)))


def blocks(text: str) -> Iterator[Block]:
    """Yield the fenced blocks, without their indentation. Directives of MyST are not blocks."""
    before = ""
    lines = iter(text.splitlines())
    for line in lines:
        fence = re.match(r"( *)(`{3,})(.*)$", line)
        if fence:
            indentation, marks, language = fence.groups()
            inside: list[str] = []
            for one in lines:
                if one.strip() == marks:
                    break
                inside.append(one.removeprefix(indentation))
            if not language.startswith("{"):
                reason = NOT_RUN.match(before)
                yield Block(language, "\n".join(inside), reason[1] if reason else None)
        before = line.strip()


def python(code: str, found: list[Example]) -> None:
    """Add a module to the examples, or continue the last one."""
    header = MODULE.match(code)
    if header:
        name = header[1] or f"example_{zlib.crc32(code.encode())}"
        place = len(found)
    else:
        places = [place for place, example in enumerate(found) if isinstance(example, Module | Script)]
        assert places, f"this block continues no module: {code}"
        place = places[-1]
        name, before = found.pop(place)
        code = f"{before}\n\n{code}"
    found.insert(place, (Script if DATABASE in code or SERVICE in code else Module)(name, code))


def commands(block: str) -> Iterator[Example]:
    """Yield the commands and the statements of a console, each with the output shown."""
    for part in PROMPT.split(block):
        if COMMAND.match(part):
            lines = part.splitlines()
            last = next(place for place, line in enumerate(lines) if not line.endswith("\\"))
            form = Curl if part.startswith("$ curl") else Command
            yield form("\n".join(lines[: last + 1]).removeprefix("$ "), "\n".join(lines[last + 1 :]).strip("\n"))
        elif part.startswith("jobqueue=# "):
            statement, _, output = part.removeprefix("jobqueue=# ").replace("\njobqueue-# ", "\n").partition(";")
            yield Sql(statement, output.strip("\n"))


PAGES = [ROOT / "README.md", *(path for path in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in path.parts)]
SECTIONS = [
    section
    for path in PAGES
    for section in sections(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    if section.blocks
]


def modules(section: Section) -> list[Module]:
    return [example for example in section.examples if isinstance(example, Module)]


def modules_above(section: Section) -> list[Module]:
    """Return the modules of the page's earlier sections."""
    above = SECTIONS[: SECTIONS.index(section)]
    return [module for other in above if other.page == section.page for module in modules(other)]


def named(section: Section) -> str:
    return f"{section.page}: {section.heading}" if section.heading else section.page


class Session:
    """One service and one connection to its database, with the real ids for the ids shown."""

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
        check = self._responds if isinstance(example, Curl) else self._prints
        while not check(example):
            only_asks = not (CHANGES.search(example.command) if isinstance(example, Command) else SENDS.search(example.command))
            assert only_asks and time.monotonic() < deadline, f"not what is shown:\n{example.command}\n{self._last}"  # noqa: PT018
            time.sleep(0.1)

    def _responds(self, example: Curl) -> bool:
        command = self._named(example.command).replace("localhost:8080", self._url.removeprefix("http://"))
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        self._last = done.stdout
        shown = loads(example.output)
        if not example.output:
            return not re.search("urn:jobqueue:(?!missing)", done.stdout)  # the page may show a job that never was
        if shown is None:
            return self._shows(example.output, done.stdout)
        came = loads(done.stdout)
        if not alike(shown, came):
            return False
        self._came.update(zip(UUID.findall(json.dumps(shown)), UUID.findall(json.dumps(only(came, shown))), strict=False))
        return True

    def _prints(self, example: Command) -> bool:
        command = self._named(example.command).replace("\\\n", " ")
        before, _, line = command.rpartition(" | ")
        given = subprocess.run(["bash", "-c", before], capture_output=True, text=True, timeout=60, check=True).stdout
        arguments = shlex.split(line)[1:]
        env = {**os.environ, "JOBQUEUE_URL": self._url, "DATABASE_URL": self._database_url, "TZ": "UTC"}
        done = fork_server().run(arguments, env, stdin=given, stderr=subprocess.STDOUT, timeout=60)
        self._last = done.stdout
        if not self._shows(example.output, done.stdout):
            return False
        assert (done.returncode != 0) == bool(re.search("^Error: ", example.output, re.MULTILINE)), f"{command}\n{done.stdout}"
        return True

    def _shows(self, shown: str, printed: str) -> bool:
        """Return whether the lines shown come in their order, and keep their ids if so."""
        came = iter(printed.splitlines())
        for line in shown.splitlines():
            found = next((other for other in came if looks_like(line, other)), None)
            if found is None:
                return False
            self._came.update(zip(UUID.findall(line), UUID.findall(found), strict=False))
        return True

    def _run_sql(self, example: Sql) -> None:
        cursor = self._connection.execute(self._named(example.statement).encode())
        if not example.output or cursor.description is None:
            return
        rows = cursor.fetchall()
        head, _, body = example.output.partition("\n")
        if re.match(r"\s*-+(\+-+)*\s*$", body.partition("\n")[0]):
            assert [name.strip() for name in head.split("|")] == [column.name for column in cursor.description]
        shown, came = UUID.findall(example.output), UUID.findall(str(rows))
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
            # The example is cut short: close the open object.
            return json.loads(re.sub(r",?\s*\.\.\.\s*$", "", text.rstrip()) + "}")
        except ValueError:
            return None


def alike(shown: Any, came: Any) -> bool:
    """Return whether a response has the fields shown, their types, and the values that count."""
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
    """Return whether a printed line has the words shown, with any ids and numbers."""
    words, others = (re.sub(r"\d[\d.,]*", "0", UUID.sub("ID", line)).split() for line in (shown, came))
    if words and words[-1].endswith("..."):
        return " ".join(others).startswith(" ".join(words).removesuffix("..."))
    return words == others


def only(came: Any, shown: Any) -> Any:
    """Return the part of a response that is shown, in its order, so that ids have the same places."""
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


def test_every_form_is_found_in_the_readme() -> None:
    forms = {type(example) for section in SECTIONS if section.page == "README.md" for example in section.examples}
    assert forms >= {Module, Script, Curl, Command, Sql}


@pytest.mark.parametrize("section", SECTIONS, ids=named)
def test_every_block_runs_or_gives_a_reason(section: Section) -> None:
    for block in section.blocks:
        where = f"{named(section)}: a block of {block.language or 'no language'}\n{block.text}"
        if block.language in PARSED:
            assert PARSED[block.language](block.text) is not None, where
        elif block.language not in SHOWN:
            assert block.language in {"python", "console", "sql"}, f"unknown language: {where}"
            assert block.reason or block.language != "console" or any(commands(block.text)), f"needs a reason not to run: {where}"


@pytest.mark.parametrize("section", [section for section in SECTIONS if modules(section)], ids=named)
def test_the_modules_of_a_section_work(section: Section, tmp_path: Path) -> None:
    own = modules(section)
    write([*modules_above(section), *own], tmp_path)
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
    "section",
    [section for section in SECTIONS if any(not isinstance(example, Module) for example in section.examples)],
    ids=named,
)
def test_the_commands_of_a_section_respond_as_shown(
    section: Section, tmp_path: Path, service: Callable[..., Service], database_url: str
) -> None:
    own = modules(section)
    write([*modules_above(section), *own], tmp_path)
    apps = [module.name for module in own if re.search(r"^app = ", module.text, re.MULTILINE)]
    served = service(apps[-1] if apps else "examples.quickstart", env={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE orders (id int)")
        session = Session(served.url, database_url, connection, tmp_path)
        for example in section.examples:
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
def test_a_response_must_have_the_fields_shown(shown: str, came: str, expected: bool) -> None:
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
def test_a_line_must_have_the_words_shown(shown: str, came: str, expected: bool) -> None:
    assert looks_like(shown, came) is expected


def test_blocks_become_examples() -> None:
    text = f"""
```python
import jobqueue

app = jobqueue.App()
```

Words.

```python
@app.handler("greet")
def greet(): ...
```

```console
$ curl -s localhost:8080/health \\
    -X GET
{{"status": "ok"}}
$ jobqueue serve myjobs
$ jobqueue jobs cancel \\
    --all
0 jobs cancelled
$ echo | jobqueue submit --file -
$ psql
jobqueue=# SELECT 5,
jobqueue-#   6;
 5
```

- In a list:

  ```sql
  SELECT 1; SELECT
    2
  ```

```python
# orders.py
connect("{DATABASE}")
```

```python
more("{SERVICE}")
```

<!-- not run: it never ends -->
```sql
SELECT 3
```

```{{toctree}}
index
```

## Next

```text
shown
```
"""
    above, below = sections("page.md", text)
    greet, health, cancel, echo, statement, script, orders = above.examples
    assert isinstance(greet, Module)
    assert greet.text == 'import jobqueue\n\napp = jobqueue.App()\n\n@app.handler("greet")\ndef greet(): ...'
    assert health == Curl("curl -s localhost:8080/health \\\n    -X GET", '{"status": "ok"}')
    assert cancel == Command("jobqueue jobs cancel \\\n    --all", "0 jobs cancelled")
    assert echo == Command("echo | jobqueue submit --file -", "")
    assert statement == Sql("SELECT 5,\n  6", " 5")
    assert script == Sql("SELECT 1; SELECT\n  2", "")
    assert orders == Script("orders", f'# orders.py\nconnect("{DATABASE}")\n\nmore("{SERVICE}")')
    assert above.blocks[-1] == Block("sql", "SELECT 3", "it never ends")
    assert below == Section("page.md", "Next", [Block("text", "shown", None)])
