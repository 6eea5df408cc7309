"""The image's entry point as PID 1 of a namespace: it reaps orphaned processes of handlers, and stops cleanly."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.support import ROOT
from tests.support.running import free_port
from tests.support.waiting import wait_for

HANDLERS = """
import subprocess
import jobqueue

app = jobqueue.App()

@app.handler("leave")
def leave() -> None:
    subprocess.run(["sh", "-c", "sleep 0.1 & sleep 0.1 &"], check=True)
"""


def entrypoint() -> list[str]:
    found = re.search(r"^ENTRYPOINT (\[.*\])$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert found is not None
    command: list[str] = json.loads(found[1])
    return command


def children(pid: int) -> dict[str, int]:
    """Count the child processes of a process by their state."""
    states: dict[str, int] = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, parent = (process / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(parent) == pid:
                states[state] = states.get(state, 0) + 1
    return states


def first_process(unshare: int) -> int | None:
    """Return the process that is PID 1 in the namespace that `unshare` made."""
    with suppress(OSError, ValueError):
        return int(Path(f"/proc/{unshare}/task/{unshare}/children").read_text().split()[0])
    return None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can create a PID namespace")
@pytest.mark.skipif(shutil.which("tini") is None, reason="tini is not installed: apt install tini")
def test_orphaned_processes_of_a_handler_are_reaped(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "leaving.py").write_text(HANDLERS)
    port, log = free_port(), tmp_path / "log"
    *init, program = entrypoint()
    assert program == "jobqueue"
    service = [sys.executable, "-m", "jobqueue", "serve", "leaving", "--database-url", database_url, "--port", port]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with log.open("wb") as output, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        unshare = subprocess.Popen(
            ["unshare", "--pid", "--fork", "--mount-proc", *init, *service],
            stdout=output,
            stderr=output,
            cwd=tmp_path,
            env=environment,
        )
        try:

            def ready() -> bool:
                with suppress(httpx.TransportError):
                    return client.get("/health/ready").status_code == 200
                return False

            wait_for(ready, "the service is ready")
            first = first_process(unshare.pid)
            assert first is not None
            ids = client.post("/submit", json=[{"kind": "leave"}] * 10).json()["ids"]
            wait_for(lambda: all(client.get(f"/jobs/{each}").json()["state"] == "succeeded" for each in ids), "all jobs succeed")
            wait_for(lambda: children(first) == {"S": 1}, "the service is the only child of init")
            os.kill(first, signal.SIGTERM)
            assert unshare.wait(60) == 0, log.read_text()
            assert '"event": "stopped"' in log.read_text()
        finally:
            unshare.kill()
            unshare.wait()
