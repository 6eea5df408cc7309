"""Imports point only downward: the table below shows which modules each module may use."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import jobqueue

PACKAGE = Path(jobqueue.__file__).parent

LAYERS = [
    ["testing", "pytest_plugin"],
    ["cli", "__main__"],
    ["processes"],
    ["service", "direct"],
    ["http.app", "http.server"],
    ["http.express"],
    ["http.resources", "http.access"],
    ["http.api"],
    ["http.bodies", "http.transport"],
    ["http.responses", "http.limits"],
    ["engine"],
    ["keeper"],
    ["storage"],
    ["concurrency"],
    ["client"],
    ["in_transaction"],
    [
        "errors",
        "fields",
        "job",
        "job_filters",
        "queue_settings",
        "retry",
        "documents",
        "durations",
        "admission",
        "timetable",
        "settings",
        "tokens",
        "metrics",
        "log_writer",
        "logs",
        "tracing",
        "spans",
    ],
]
"""The layers, from the top down. Each name is a module, or a package with all its modules. The rooms of `http` are layers too."""

SHOWN = {"client", "engine.handlers", "in_transaction", *LAYERS[-1]}
"""The modules from which ``jobqueue/__init__.py`` may import names. It is outside of the layers."""

FLOORS = {room: floor for floor, rooms in enumerate(LAYERS) for room in rooms}

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path not in {PACKAGE / "__init__.py", PACKAGE / "http" / "__init__.py"}
}
"""Every module of the package, by its dotted name below ``jobqueue``."""


def room(module: str) -> str:
    return ".".join(module.split(".")[: 2 if module.startswith("http.") else 1])


def imports(path: Path) -> Iterator[str]:
    """Yield the imports of a file from ``jobqueue``: modules by their names below it, and public names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (below for alias in node.names if (below := below_package(alias.name)) is not None)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            assert node.module is not None
            if (package := below_package(node.module)) is not None:
                for alias in node.names:
                    name = f"{package}.{alias.name}".removeprefix(".")
                    yield package if package and name not in MODULES else name


def below_package(name: str) -> str | None:
    top, _, below = name.partition(".")
    return below if top == PACKAGE.name else None


def test_every_module_has_its_place_and_every_place_is_taken() -> None:
    assert {room(module) for module in MODULES} == set(FLOORS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_only_downward(module: str) -> None:
    used = set(imports(MODULES[module])) - {"__version__"}
    assert {name for name in used if FLOORS.get(room(name), -1) < FLOORS[room(module)]} == set()


def test_the_public_face_shows_handlers_clients_and_values() -> None:
    assert set(imports(PACKAGE / "__init__.py")) <= SHOWN


def test_the_mechanisms_of_concurrency_know_nothing_of_jobs() -> None:
    used = {used for module, path in MODULES.items() if room(module) == "concurrency" for used in imports(path)}
    assert {module for module in used if room(module) != "concurrency"} <= {"errors"}
