"""The documents name modules, tests and benchmarks that exist, and ARCHITECTURE.md links to pages that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from tests.support import ROOT

pytestmark = pytest.mark.slow

INTERNALS = ROOT / "docs" / "internals"
TABLES = ["invariants.md", "faults.md"]
"""Pages whose last column names the tests that hold a row."""

TEST = re.compile(r"`(?:tests/)?((?:\w+/)*test_\w+)(?:\.py)?(?:::([\w*]+))?`")
FOLDERS = {path.parent.name for root in ("jobqueue", "tests", "benchmarks") for path in (ROOT / root).rglob("__init__.py")}
PATH = re.compile(rf"(?<![\w./-])((?:{'|'.join(sorted(FOLDERS))})/[\w./-]*\w)")
BENCHMARK = re.compile(r"`benchmarks\.(\w+)`")
LINK = re.compile(r"\]\(([\w./-]+)(?:#[\w-]+)?\)")


def defined_in(module: str) -> Iterator[str]:
    """Yield the names of a module's tests: functions, methods, and classes."""
    for node in ast.walk(ast.parse((ROOT / "tests" / f"{module}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name


@pytest.mark.parametrize("page", sorted(INTERNALS.glob("*.md")), ids=lambda page: page.stem)
def test_the_tests_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for module, name in TEST.findall(text):
        assert (ROOT / "tests" / f"{module}.py").exists(), module
        assert not name or any(fnmatchcase(test, name) for test in defined_in(module)), f"{module}::{name}"
    for name in BENCHMARK.findall(text):
        assert (ROOT / "benchmarks" / f"{name}.py").exists() or (ROOT / "benchmarks" / name).is_dir(), name


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")], ids=lambda page: page.name)
def test_the_modules_that_a_document_names_exist(page: Path) -> None:
    named = PATH.findall(page.read_text(encoding="utf-8"))
    roots = ROOT, ROOT / "jobqueue", ROOT / "tests"
    assert [path for path in named if not any((root / f"{path}{end}").exists() for root in roots for end in ("", ".py"))] == []


@pytest.mark.parametrize("page", TABLES)
def test_every_row_names_a_test(page: str) -> None:
    rows = [line for line in (INTERNALS / page).read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    rows = [row for row in rows if not re.match(r"\|[-|]+$|\| (invariant|fault) \|", row)]
    assert rows
    assert [row for row in rows if not TEST.search(row.split("|")[-2])] == []


def test_every_link_of_the_architecture_leads_to_a_file() -> None:
    links = LINK.findall((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_decision_has_its_number_and_is_in_the_list() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("0*.md"))
    listed = re.findall(r"^(0\S+)$", (ROOT / "docs" / "decisions" / "index.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert listed == [page.stem for page in pages]
    for number, page in enumerate(pages, 1):
        assert page.stem.startswith(f"{number:04d}-")
        assert page.read_text(encoding="utf-8").startswith(f"# {number}. ")
