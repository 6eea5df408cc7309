"""Print the layout of a package: its modules, its import graph, its longest files and functions, and its repeated code.

``python -m tests.support.layout [DIRECTORY]`` describes the package ``jobqueue``, or the package in another directory, such as an
older checkout. `tests/project/test_layers.py` checks the same graph against the declared layers.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jobqueue

PACKAGE = Path(jobqueue.__file__).parent

REPEATED_LINES = 6
"""The minimum number of equal consecutive lines that count as repeated code."""

LONGEST = 10
"""The number of longest files and functions to print."""


class Function(NamedTuple):
    """A function with its length in lines, without decorators and docstring."""

    lines: int
    module: str
    name: str


Graph = Mapping[str, set[str]]
"""For each node, the nodes that it imports."""


def modules(package: Path) -> dict[str, Path]:
    """Return every module below a package by its dotted name, without the package's own ``__init__``."""
    names = {".".join(path.relative_to(package).with_suffix("").parts): path for path in sorted(package.rglob("*.py"))}
    return {name.removesuffix(".__init__"): path for name, path in names.items() if name != "__init__"}


def imports(path: Path, package: Path, known: Iterable[str]) -> Iterator[str]:
    """Yield the imports of a file from a package: modules by their names below it, and public names of the package itself.

    Raises:
        ValueError: an import is relative.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (below for alias in node.names if (below := _below(alias.name, package)) is not None)
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module is None:
                raise ValueError(f"{path}:{node.lineno}: make the import absolute")
            if (parent := _below(node.module, package)) is not None:
                for alias in node.names:
                    name = f"{parent}.{alias.name}".removeprefix(".")
                    yield parent if parent and name not in known else name


def _below(name: str, package: Path) -> str | None:
    top, _, below = name.partition(".")
    return below if top == package.name else None


def graph(package: Path) -> dict[str, set[str]]:
    """Return the import graph of a package's modules."""
    known = modules(package)
    return {name: set(imports(path, package, known)) & known.keys() - {name} for name, path in known.items()}


def room(module: str) -> str:
    """Return the room of a module: its top-level module or package, or its room inside ``http``."""
    return ".".join(module.split(".")[: 2 if module.startswith("http.") else 1])


def rooms(arrows: Graph) -> dict[str, set[str]]:
    """Merge the modules of each room into one node."""
    merged: dict[str, set[str]] = {}
    for module, used in arrows.items():
        merged.setdefault(room(module), set()).update(map(room, used))
    return {name: used - {name} for name, used in merged.items()}


def cycles(arrows: Graph) -> list[list[str]]:
    """Return the cycles of a graph: groups of nodes that all reach each other."""
    reached = {node: _reachable(node, arrows) for node in arrows}
    groups = {frozenset({node} | {other for other in reached[node] if node in reached[other]}) for node in arrows}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def _reachable(start: str, arrows: Graph) -> set[str]:
    found: set[str] = set()
    to_do = [start]
    while to_do:
        to_do += (new := arrows[to_do.pop()] - found)
        found |= new
    return found


def floors(arrows: Graph) -> list[list[str]]:
    """Return the nodes from the top floor down. Each node stands above all nodes that it imports; cycles share a floor."""
    together = {node: next((tuple(group) for group in cycles(arrows) if node in group), (node,)) for node in arrows}
    heights: dict[tuple[str, ...], int] = {}

    def height(group: tuple[str, ...]) -> int:
        if group not in heights:
            below = {together[used] for node in group for used in arrows[node]} - {group}
            heights[group] = 1 + max(map(height, below), default=-1)
        return heights[group]

    by_height = defaultdict(list)
    for node, group in together.items():
        by_height[height(group)].append(node)
    return [sorted(by_height[number]) for number in sorted(by_height, reverse=True)]


def functions(package: Path) -> Iterator[Function]:
    """Yield every function of a package."""
    for module, path in modules(package).items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                if body:
                    yield Function((node.end_lineno or 0) - body[0].lineno + 1, module, node.name)


def repeated(package: Path) -> list[tuple[str, str, int]]:
    """Return the pairs of places with equal code, each with the number of equal lines. Imports and comments do not count."""
    places = defaultdict(list)
    code = {module: list(_code(path)) for module, path in modules(package).items()}
    for module, lines in code.items():
        for start in range(len(lines) - REPEATED_LINES + 1):
            places[tuple(text for _, text in lines[start : start + REPEATED_LINES])].append((module, start))
    equal = {(one, other) for found in places.values() for one in found for other in found if one < other}
    pairs = []
    for (module, start), (other, there) in sorted(equal):
        if ((module, start - 1), (other, there - 1)) not in equal:
            more = 1
            while ((module, start + more), (other, there + more)) in equal:
                more += 1
            pairs.append((f"{module}:{code[module][start][0]}", f"{other}:{code[other][there][0]}", REPEATED_LINES + more - 1))
    return pairs


def _code(path: Path) -> Iterator[tuple[int, str]]:
    text = path.read_text(encoding="utf-8")
    ignored: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            ignored |= set(range(node.lineno, (node.end_lineno or 0) + 1))
    for number, line in enumerate(text.splitlines(), 1):
        bare = line.strip()
        if number not in ignored and any(map(str.isalnum, bare)) and not bare.startswith("#"):
            yield number, bare


def report(package: Path) -> Iterator[str]:
    """Yield the lines of the report on a package."""
    lines = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in modules(package).items()}
    yield f"{len(lines)} modules"
    for folder in (package.name, "tests", "benchmarks", "examples"):
        total = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in (package.parent / folder).rglob("*.py"))
        yield f"{total:8,} lines in {folder}/"
    yield "\nModules per folder"
    folders = Counter(path.parent.relative_to(package.parent).as_posix() for path in modules(package).values())
    yield from (f"{number:8} {folder}" for folder, number in sorted(folders.items()))
    arrows = graph(package)
    yield "\nFloors of the rooms, from the top down"
    yield from (f"    {', '.join(floor)}" for floor in floors(rooms(arrows)))
    for what, found in (("rooms", cycles(rooms(arrows))), ("modules", cycles(arrows))):
        yield f"\nCycles of {what}: {len(found)}"
        yield from (f"    {', '.join(group)}" for group in found)
    yield "\nLongest files, in lines"
    yield from (f"{number:8} {module}" for module, number in sorted(lines.items(), key=lambda item: -item[1])[:LONGEST])
    yield "\nLongest functions, in lines without docstrings"
    yield from (f"{one.lines:8} {one.module}.{one.name}" for one in sorted(functions(package), reverse=True)[:LONGEST])
    pairs = repeated(package)
    yield f"\nPairs of repeated code, of {REPEATED_LINES} lines or more: {len(pairs)}"
    yield from (f"{number:8} {one} and {other}" for one, other, number in pairs)


if __name__ == "__main__":
    print("\n".join(report(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else PACKAGE)))  # noqa: T201
