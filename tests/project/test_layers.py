"""Imports point only downward: the table below shows which modules each module may use. Tests share code through tests/support."""

import pytest

from tests.support import ROOT
from tests.support.layout import PACKAGE, cycles, floors, graph, imports, modules, report, room, rooms

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
    ["schema"],
    ["storage"],
    ["concurrency"],
    ["client"],
    ["in_transaction"],
    [
        "errors",
        "exception_groups",
        "fields",
        "job",
        "job_filters",
        "queue_settings",
        "retry",
        "documents",
        "durations",
        "admission",
        "timetable",
        "schema_names",
        "settings",
        "tokens",
        "metrics",
        "log_writer",
        "logs",
        "tracing",
        "spans",
        "_version",
    ],
]
"""The layers, from the top down. Each name is a module, or a package with all its modules. The rooms of `http` are layers too."""

SHOWN = {"client", "engine.handlers", "in_transaction", *LAYERS[-1]}
"""The modules from which ``jobqueue/__init__.py`` may import names. It is outside of the layers."""

FLOORS = {name: floor for floor, names in enumerate(LAYERS) for name in names}

MODULES = {name: path for name, path in modules(PACKAGE).items() if name != "http"}
"""Every module of the package, by its dotted name below ``jobqueue``. The package `http` has rooms instead."""


def test_every_module_has_its_place_and_every_place_is_taken() -> None:
    assert {room(module) for module in MODULES} == set(FLOORS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_only_downward(module: str) -> None:
    used = set(imports(MODULES[module], PACKAGE, MODULES))
    assert {name for name in used if FLOORS.get(room(name), -1) < FLOORS[room(module)]} == set()


def test_the_public_face_shows_handlers_clients_and_values() -> None:
    assert set(imports(PACKAGE / "__init__.py", PACKAGE, MODULES)) <= SHOWN


def test_the_mechanisms_of_concurrency_know_nothing_of_jobs() -> None:
    used = {used for module, path in MODULES.items() if room(module) == "concurrency" for used in imports(path, PACKAGE, MODULES)}
    assert {module for module in used if room(module) != "concurrency"} <= {"errors", "exception_groups", "retry"}


def test_no_room_and_no_module_is_part_of_a_cycle() -> None:
    arrows = graph(PACKAGE)
    assert cycles(arrows) == []
    assert cycles(rooms(arrows)) == []


def test_no_test_imports_another_test_and_only_tests_of_benchmarks_import_benchmarks() -> None:
    tests = modules(ROOT / "tests")
    for name, path in tests.items():
        used = set(imports(path, ROOT / "tests", tests))
        assert not {module for module in used if module.rpartition(".")[2].startswith(("test_", "conftest"))}, path
        assert name.startswith("benchmarks.") or not set(imports(path, ROOT / "benchmarks", [])), path


def test_cycles_and_floors_of_a_graph() -> None:
    arrows = {"a": {"b"}, "b": {"c", "d"}, "c": {"b"}, "d": set()}
    assert cycles(arrows) == [["b", "c"]]
    assert floors(arrows) == [["a"], ["b", "c"], ["d"]]


def test_the_report_describes_the_package() -> None:
    text = "\n".join(report(PACKAGE))
    assert f"{len(modules(PACKAGE))} modules" in text
    assert "Cycles of modules: 0" in text
