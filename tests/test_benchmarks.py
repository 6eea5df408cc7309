"""The benchmarks run as their help says: in their quick form, on the real thing, to a table, a JSON file and a plot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import run_module

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("module", "arguments", "rows"),
    [
        ("limit", (), ["claim 2,000", "finish 2,000", "drain"]),
        ("drain", ("--only", "async"), ["async"]),
        ("idle", (), ["idle"]),
        ("kills", (), ["50 kills a second"]),
        ("soak", (), ["minute 3"]),
        ("groups", (), ["equal weights, groups"]),
        ("dashboard", (), ["10,000 jobs, 10 streams"]),
        ("listing", ("--jobs", "20000"), ["deep page, a rare kind"]),
    ],
)
def test_a_quick_run_leaves_a_table_a_json_and_a_plot(
    module: str, arguments: tuple[str, ...], rows: list[str], tmp_path: Path
) -> None:
    ended = run_module(f"benchmarks.{module}", "--quick", "--out", str(tmp_path), *arguments)
    assert ended.returncode == 0, ended.stderr
    written = (tmp_path / f"{module}.json").read_text()
    for row in rows:
        assert row in ended.stdout
        assert row in written
    assert json.loads(written)["machine"]["cores"] >= 1
    assert (tmp_path / f"{module}.png").read_bytes().startswith(PNG)
