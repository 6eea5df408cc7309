"""Requests of the tests wait long enough for a loaded machine."""

import ast
from collections.abc import Iterator
from pathlib import Path

SECONDS = 30
"""The shortest timeout for a request. The default of httpx is 5 s, which a node on a loaded machine may exceed."""

CALLS = {"Client", "AsyncClient", "get", "post", "put", "patch", "delete", "stream", "request"}


def impatient(code: str) -> Iterator[str]:
    """Yield each call of httpx over the network without a timeout, or with one that is too short."""
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="httpx"), attr=name)) if name in CALLS:
                named = {keyword.arg: keyword.value for keyword in node.keywords}
                timeout = named.get("timeout", ast.Constant(5))
                if "transport" not in named and isinstance(timeout, ast.Constant) and (timeout.value or 0) < SECONDS:
                    yield f"line {node.lineno}: {ast.unparse(node)}"


def test_impatient_requests_are_found() -> None:
    found = impatient("httpx.get(a)\nhttpx.Client(timeout=20)\nhttpx.Client(timeout=30)\nhttpx.post(a, timeout=PATIENCE)")
    assert list(found) == ["line 1: httpx.get(a)", "line 2: httpx.Client(timeout=20)"]


def test_requests_of_the_tests_are_patient() -> None:
    here = Path(__file__).parents[1]
    files = [path for path in sorted(here.rglob("*.py")) if path != Path(__file__)]
    assert not [f"{path.relative_to(here)}, {found}" for path in files for found in impatient(path.read_text(encoding="utf-8"))]
