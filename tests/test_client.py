"""The client, on Trio and on asyncio, against real services."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from jobqueue.client import Client, JobCancelled, JobFailed, JobNotFound, RequestRefused, Unreachable
from tests.conftest import ROOT, Database, Service
from tests.running import Bench, free_port

BACKENDS = ["trio", "asyncio"]


@pytest.fixture
def bench(service: Callable[..., Service], database: Database, tmp_path: Path) -> Iterator[Bench]:
    opened = Bench(service, database, tmp_path / "effects")
    yield opened
    for node in opened.on_ports:
        node.kill()


def run(backend: str, main: Callable[[], Awaitable[Any]]) -> Any:
    return anyio.run(main, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_submit_look_wait_and_cancel(bench: Bench, backend: str) -> None:
    node = bench.start()

    async def main() -> None:
        async with Client(node.url) as client:
            job_id = await client.submit("steps", {"steps": 2, "seconds": 0.3}, priority=7)
            assert (await client.job(job_id))["priority"] == 7
            assert await client.result(job_id, timeout=20) == "walked"

            dead = await client.submit("fan-out", {"fail": 3})
            with pytest.raises(JobFailed, match=r"is dead: attempt 1 of 1 failed: 3 errors") as failed:
                await client.result(dead, timeout=20)
            assert failed.value.reason.startswith("attempt 1 of 1 failed")
            assert "ValueError: child 1" in failed.value.errors[0]["traceback"]
            assert failed.value.job["id"] == dead

            slow = await client.submit("sleep")
            with pytest.raises(TimeoutError):
                await client.result(slow, timeout=0.3)
            assert (await client.cancel(slow))["state"] in ("inflight", "cancelled")
            with pytest.raises(JobCancelled, match="was cancelled"):
                await client.result(slow)
            with pytest.raises(RequestRefused, match="409") as refused:
                await client.cancel(slow)
            assert refused.value.status == 409

    run(backend, main)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_refused_says_why(bench: Bench, backend: str) -> None:
    node = bench.start("--token", "secret")

    async def main() -> None:
        async with Client(node.url, token="secret") as client:
            with pytest.raises(RequestRefused, match="priority must be an integer") as refused:
                await client.submit("steps", priority=-1)
            assert refused.value.problem["field"] == "priority"
            with pytest.raises(JobNotFound):
                await client.result("0190a0b0-0000-7000-8000-00000000ffff", timeout=5)
        async with Client(node.url, token="wrong") as stranger:
            with pytest.raises(RequestRefused, match="401"):
                await stranger.result("0190a0b0-0000-7000-8000-00000000ffff", timeout=5)
        async with Client(f"http://127.0.0.1:{free_port()}", patience=0) as lost:
            with pytest.raises(Unreachable):
                await lost.submit("steps")
            with pytest.raises(TimeoutError):
                await lost.result("0190a0b0-0000-7000-8000-00000000ffff", timeout=0.5)

    run(backend, main)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_result_is_waited_for_over_a_restart(bench: Bench, backend: str, end: str) -> None:
    port = free_port()
    node = bench.start_on(port, "--grace-period", "0.1")

    async def main() -> Any:
        async with Client(f"http://127.0.0.1:{port}") as client:
            job_id = await client.submit("pages", {"hold_at": 2}, max_retries=5)
            await anyio.to_thread.run_sync(lambda: bench.until_effect(job_id, "holds"))
            restarting.append(threading.Thread(target=restart, args=(job_id,)))
            restarting[0].start()
            return await client.result(job_id, timeout=40)

    def restart(job_id: str) -> None:
        time.sleep(0.3)  # the client waits by then
        getattr(node, end)()
        bench.database.rows("UPDATE jobqueue.pending_jobs SET attempt = 1 WHERE id = %s", job_id)  # so that it does not hold again
        bench.start_on(port)
        over.wait(40)  # a service that this thread has started ends with it

    over = threading.Event()
    restarting: list[threading.Thread] = []
    result = run(backend, main)
    over.set()
    restarting[0].join(30)
    assert result[-1] == 4


def test_the_package_does_not_need_what_only_its_client_needs() -> None:
    code = "import sys, jobqueue; sys.exit('httpx' in sys.modules or 'anyio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ, check=False).returncode == 0
