"""Run loads in child processes: HTTP with wrk or `benchmarks.generator`, SQL statements with pgbench or psycopg."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import psycopg

from benchmarks import harness
from benchmarks.generator import TIMEOUT, Load, Sent
from benchmarks.harness.node import ROOT

WRK, PGBENCH = shutil.which("wrk"), shutil.which("pgbench")

WRK_SCRIPT = """
wrk.method, wrk.path = "POST", "{path}"
wrk.headers["Content-Type"] = "{content_type}"
wrk.body = [==[{body}]==]
function done(summary, latency)
  local e = summary.errors
  io.write(string.format('RESULT [%f,%d,%d,%f,%f,%f]\\n', summary.duration / 1e6, summary.requests,
    e.connect + e.read + e.write + e.status + e.timeout, latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
"""


class Answered(msgspec.Struct, frozen=True):
    """The responses to a load.

    Attributes:
        requests: the number of successful requests.
    """

    seconds: float
    requests: int
    failures: int
    p50_ms: float
    p99_ms: float
    p999_ms: float

    @classmethod
    def of(cls, seconds: float, latencies: Sequence[float], failures: int = 0) -> Answered:
        """Summarize latencies, which are given in seconds."""
        if not latencies:
            raise RuntimeError(f"no request succeeded, {failures} failed")
        p50, p99, p999 = (harness.percentile(latencies, share) * 1e3 for share in (0.5, 0.99, 0.999))
        return cls(seconds, len(latencies), failures, p50, p99, p999)

    @property
    def rate(self) -> float:
        """Successful requests per second."""
        return self.requests / self.seconds


def http(load: Load) -> Answered:
    """Run an HTTP load with `benchmarks.generator`."""
    command = [sys.executable, "-m", "benchmarks.generator"]
    output = subprocess.run(command, input=msgspec.msgpack.encode(load), stdout=subprocess.PIPE, cwd=ROOT, check=True).stdout
    sent = msgspec.msgpack.decode(output, type=Sent)
    return Answered.of(sent.seconds, sent.latencies, sent.failures)


def wrk(load: Load) -> Answered:
    """Run a closed loop of one small request. Use wrk if it is installed, because wrk uses very little CPU.

    wrk corrects its percentiles for requests that it could not send during stalls (coordinated omission). So these percentiles are
    slightly higher.
    """
    if WRK is None:
        return http(load)
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(WRK_SCRIPT.format(path=load.path, content_type=load.content_type, body=load.body.decode()))
        script.flush()
        command = [WRK, "-t1", f"-c{load.connections}", f"-d{max(1, round(load.seconds))}s", "-s", script.name]
        command += [
            f"--timeout={TIMEOUT:.0f}s",
            load.url,
        ]  # wrk counts slower responses as errors, not in its percentiles
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"RESULT (\[.*\])", output)
    if found is None:
        raise RuntimeError(f"wrk failed:\n{output}")
    seconds, requests, failures, *percentiles = msgspec.json.decode(found[1])
    p50, p99, p999 = (microseconds / 1e3 for microseconds in percentiles)
    return Answered(seconds, requests - failures, failures, p50, p99, p999)


def statements(database: harness.Database, statement: str, connections: int, seconds: float) -> Answered:
    """Run one statement repeatedly, each time in its own transaction, with pgbench if it is installed."""
    if PGBENCH is None:
        return _by_threads(database, statement, connections, seconds)
    with tempfile.TemporaryDirectory() as directory:
        script = Path(directory, "script.sql")
        script.write_text(f"{statement};\n")
        command = [PGBENCH, "--no-vacuum", f"--client={connections}", f"--time={max(1, round(seconds))}", f"--file={script}"]
        command += ["--log", f"--log-prefix={directory}/log", database.url]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        lines = [line.split() for log in Path(directory).glob("log.*") for line in log.read_text().splitlines()]
    rate = re.search(r"tps = ([\d.]+)", output)
    if rate is None:
        raise RuntimeError(f"pgbench failed:\n{output}")
    return Answered.of(len(lines) / float(rate[1]), [int(fields[2]) / 1e6 for fields in lines])


def _by_threads(database: harness.Database, statement: str, connections: int, seconds: float) -> Answered:
    latencies: list[float] = []
    started = time.perf_counter()

    def work() -> None:
        with psycopg.connect(database.url, autocommit=True) as connection:
            while (began := time.perf_counter()) < started + seconds:
                connection.execute(statement.encode(), prepare=False)
                latencies.append(time.perf_counter() - began)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Answered.of(time.perf_counter() - started, latencies)
