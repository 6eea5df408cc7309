"""What is logged, and what never is."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
import structlog

from jobqueue import logs


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def restored() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
@pytest.mark.usefixtures("restored")
def test_a_traceback_says_where_and_shows_no_values(stream: io.StringIO) -> None:
    logs.configure("info", stream)
    payload = {"password": "correct-horse"}
    try:
        [][len(payload)]
    except IndexError as error:
        structlog.get_logger().error("a hook failed", exc_info=error)
    written = stream.getvalue()
    assert "correct-horse" not in written
    assert "IndexError" in written
    assert "test_logs.py" in written
    if not stream.isatty():
        [line] = written.splitlines()
        assert json.loads(line)["event"] == "a hook failed"


def test_a_node_loads_nothing_that_only_the_other_commands_need() -> None:
    code = "import jobqueue.cli.serve, sys; print([name for name in ('rich', 'pygments', 'httpx', 'anyio') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
