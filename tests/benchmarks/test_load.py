"""The load script: how it reads responses and computes its figures, and a whole run against the real service."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from benchmarks import load
from benchmarks.client import Answer, LoadError
from benchmarks.client import _read_answer as read_one_answer
from tests.support.command_line import run_module
from tests.support.service import Service

pytestmark = pytest.mark.slow

ServiceFactory = Callable[..., Service]


async def read_answer(*pieces: bytes) -> tuple[Answer, bool]:
    """Let the load script read a response that arrives in these pieces, followed by the end of the connection."""
    service, client = trio.testing.memory_stream_pair()
    async with service, client, trio.open_nursery() as nursery:

        async def send() -> None:
            for piece in pieces:
                await service.send_all(piece)
                await trio.testing.wait_all_tasks_blocked()
            await service.send_eof()

        nursery.start_soon(send)
        return await read_one_answer(client)


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_load_reads_answers_however_they_are_cut(size: int) -> None:
    text = b'HTTP/1.1 201 \r\ncontent-type: application/json\r\nContent-Length: 11\r\n\r\n{"id": "x"}'
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    assert await read_answer(*pieces) == (Answer(201, {"id": "x"}), True)


async def test_load_reads_the_end_of_a_connection() -> None:
    text = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbusy"
    assert await read_answer(text) == (Answer(503, None), False)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", LoadError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{} and more", LoadError),
        (b"SSH-2.0\r\n\r\n", LoadError),
        (b"x" * 20_000, LoadError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{}", trio.BrokenResourceError),
        (b"", trio.BrokenResourceError),
    ],
)
async def test_load_refuses_what_it_cannot_read(text: bytes, error: type[Exception]) -> None:
    with pytest.RaisesGroup(error):
        await read_answer(text)


def test_load_takes_percentiles_by_nearest_rank() -> None:
    assert load.Latency.of(number / 1000 for number in range(100, 0, -1)) == load.Latency(50, 90, 99, 100)
    assert load.Latency.of([0.25]) == load.Latency(250, 250, 250, 250)
    assert load.Latency.of([]) is None


def test_load_makes_payloads_of_the_size_that_was_asked_for() -> None:
    one = load.Load(url="", jobs=1, clients=1, kind="default", payload_bytes=100, token=None, timeout=1)
    assert len(json.dumps(json.loads(one.body(7))["payload"], separators=(",", ":"))) == 100


def test_load_accounts_for_every_job(service: ServiceFactory, tmp_path: Path) -> None:
    running = service("examples.quickstart", "--queue", "default=32")
    figures = tmp_path / "figures.json"
    ran = run_module("benchmarks.load", "--url", running.url, "--jobs", "200", "--clients", "10", "--json", str(figures))
    dead = run_module("benchmarks.load", "--url", running.url, "--jobs", "3", "--kind", "nobody's", "--timeout", "5")
    assert running.stop() == 0

    assert ran.returncode == 0, ran.stdout + ran.stderr
    for row in ("200 jobs, 10 clients", "200 in ", "p99", "succeeded", "retried", "unaccounted for"):
        assert row in ran.stdout
    report = msgspec.json.decode(figures.read_bytes())
    assert (report["acknowledged"], report["ended"], report["unaccounted"]) == (200, {"succeeded": 200}, {})
    assert report["submit_rate"] > 0
    assert 0 < report["submit_latency"]["p50"] <= report["submit_latency"]["p99"] <= report["submit_latency"]["max"]
    assert 0 < report["drain_rate"] < 200 / 0.05

    assert dead.returncode == 1, dead.stdout + dead.stderr
    assert "unaccounted for" in dead.stdout
    assert "scheduled" in dead.stdout


def test_load_reports_refused_submits(service: ServiceFactory) -> None:
    running = service("examples.quickstart", "--strict-kinds", "--token", "admin:s3cret")
    stranger = run_module("benchmarks.load", "--url", running.url)
    refused = run_module("benchmarks.load", "--url", running.url, "--token", "s3cret", "--jobs", "5", "--kind", "nobody's")
    assert running.stop() == 0
    assert stranger.returncode == 1
    assert stranger.stderr.strip().splitlines()[-1].startswith(f"Error: {running.url} cannot be used: it responded with 401")
    assert refused.returncode == 1
    assert "5 (422" in refused.stdout


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "https://127.0.0.1", "http://127.0.0.1:x"])
def test_load_says_in_one_line_that_there_is_no_service(url: str) -> None:
    ran = run_module("benchmarks.load", "--url", url)
    assert ran.returncode == 1
    [line] = [line for line in ran.stderr.splitlines() if line]
    assert line.startswith("Error: ")
