"""The benchmarks run in their quick form, on real services, and produce a table, a JSON file, and a plot.

All of them take two minutes on two cores. Most run only with JOBQUEUE_TEST_SOAK=1, in a separate step of CI.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import SOAK
from tests.support.command_line import run_module

pytestmark = pytest.mark.slow

PNG = b"\x89PNG\r\n\x1a\n"


BENCHMARKS: list[tuple[str, tuple[str, ...], str]] = [
    ("limit", (), "claim 2,000"),
    ("drain", ("--only", "async"), "async"),
]
"""Modules, with arguments in addition to --quick, and one row of their tables."""

LONGER: list[tuple[str, tuple[str, ...], str]] = [
    ("idle", (), "idle"),
    ("kills", (), "50 kills a second"),
    ("upgrade", (), "both versions"),
    ("soak", (), "minute 3"),
    ("groups", (), "equal weights, groups"),
    ("dashboard", (), "10,000 jobs, 10 streams"),
    ("listing", ("--jobs", "20000"), "deep page, a rare kind"),
]


@pytest.mark.parametrize(("module", "arguments", "row"), [*BENCHMARKS, *(LONGER if SOAK else [])])
def test_a_quick_run_prints_a_table_and_writes_json_and_a_plot(
    module: str, arguments: tuple[str, ...], row: str, tmp_path: Path
) -> None:
    ended = run_module(f"benchmarks.{module}", "--quick", "--out", str(tmp_path), *arguments, timeout=900)
    assert ended.returncode == 0, ended.stderr
    written = (tmp_path / f"{module}.json").read_text()
    assert row in ended.stdout
    assert row in written
    assert json.loads(written)["machine"]["cores"] >= 1
    assert (tmp_path / f"{module}.png").read_bytes().startswith(PNG)
