"""What must never be in a log."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest
import structlog

from jobqueue import logs


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_a_traceback_in_the_log_does_not_show_the_values_of_variables(stream: type[io.StringIO]) -> None:
    written = stream()
    before = structlog.get_config()
    logs.configure("info", written)
    token, body = "".join(["TO", "KEN"]), "".join(["pay", "load"])  # the text of a traceback's lines may be there
    try:
        fail(token, body)
    except ValueError:
        structlog.get_logger().exception("a request failed")
    finally:
        structlog.configure(**before)
    text = written.getvalue()
    assert "in fail" in text or json.loads(text)["exception"][0]["frames"][-1]["name"] == "fail"
    assert token not in text
    assert body not in text


def fail(authorization: str, body: str) -> None:
    raise ValueError(len(authorization) + len(body))


def test_a_node_loads_nothing_that_only_the_other_commands_need() -> None:
    code = "import jobqueue.cli.serve, sys; print([name for name in ('rich', 'pygments', 'httpx', 'anyio') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
