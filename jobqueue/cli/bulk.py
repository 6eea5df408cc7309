"""``jobqueue submit --file``: submit any number of jobs over an unreliable network, each exactly once.

The idempotency key of each job is a hash of the run id and the line number. The service therefore recognizes a job that is sent
again, both after a network failure and in a second run with the same ``--run-id``. No other state is needed.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterator
from hashlib import sha256
from typing import Any, BinaryIO
from uuid import uuid4

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from jobqueue.cli.output import Failure, Output
from jobqueue.client import Client, RequestRefused
from jobqueue.errors import InvalidJob

PATIENCE = 60.0
"""Seconds for which the client retries a chunk before the command fails."""


async def submit_lines(client: Client, output: Output, file: BinaryIO, defaults: dict[str, Any], run_id: str | None) -> None:
    """Submit the jobs of a file, and print their ids (as JSON) or their number.

    Args:
        defaults: values for fields that a job does not set.
        run_id: the id of an earlier run of the same file; None starts a new run.

    Raises:
        Failure: a line is not a job, or the service rejects the job. All chunks before the chunk of this line are committed.
    """
    run_id = run_id or uuid4().hex[:12]
    lines = _Lines(file, defaults, run_id)
    submitted = existing = 0
    ignored: set[str] = set()
    console = Console(stderr=True)
    if not console.is_terminal:
        output.note(f"run {run_id}")  # print it now: a process that is killed cannot print it at the end
    try:
        with _progress(console) as progress:
            task = progress.add_task(f"run {run_id}", total=_size(file))
            async for chunk in client.submit_chunks(lines):
                there = set(chunk.existing)
                numbers = lines.take(len(chunk.ids))
                if output.as_json:
                    output.lines(
                        {"line": number, "id": job_id, "existing": place in there}
                        for place, (number, job_id) in enumerate(zip(numbers, chunk.ids, strict=True))
                    )
                submitted += len(chunk.ids)
                existing += len(there)
                ignored.update(chunk.ignored)
                progress.update(task, completed=lines.bytes_taken, description=f"{submitted:,} jobs, run {run_id}")
    except BaseException as error:
        output.note(f"{submitted:,} jobs submitted. To submit the rest, run the same command with --run-id {run_id}")
        if isinstance(error, RequestRefused | InvalidJob) and error.index is not None:
            reason = error.problem.get("detail") if isinstance(error, RequestRefused) else error.reason
            raise Failure(f"line {lines.number_of(error.index - submitted)}: {reason}") from None
        raise
    if ignored:
        output.note(f"Ignored unknown job fields: {', '.join(sorted(ignored))}")
    summary = f"{submitted:,} jobs submitted" + (f", {existing:,} of them already existed" if existing else "")
    if output.as_json:
        output.note(summary)
    else:
        output.show(None, lambda: summary)


class _Lines:
    """The jobs of a file, with the line numbers of the jobs that are not committed yet."""

    def __init__(self, file: BinaryIO, defaults: dict[str, Any], run_id: str) -> None:
        self._file = file
        self._defaults = defaults
        self._run_id = run_id
        self._uncommitted: deque[tuple[int, int]] = deque()
        self.bytes_taken = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        end = 0
        for number, line in enumerate(self._file, 1):
            end += len(line)
            if line.isspace():
                continue
            job = self._job(number, line)
            self._uncommitted.append((number, end))
            yield job

    def take(self, jobs: int) -> list[int]:
        """Mark the next `jobs` jobs as committed; return their line numbers."""
        taken = [self._uncommitted.popleft() for _ in range(jobs)]
        self.bytes_taken = taken[-1][1]
        return [number for number, _ in taken]

    def number_of(self, place: int) -> int:
        """Return the line number of an uncommitted job, by its position among the uncommitted jobs."""
        return self._uncommitted[place][0]

    def _job(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            fields = msgspec.json.decode(line, type=dict[str, Any])
        except (ValueError, RecursionError) as error:
            raise Failure(f'line {number} is not a JSON object such as {{"kind": "default"}}: {error}') from None
        job = {**self._defaults, **fields}
        if "idempotency_key" not in job and "idempotencyKey" not in job:
            job["idempotency_key"] = sha256(f"{self._run_id} {number}".encode()).hexdigest()
        return job


def _size(file: BinaryIO) -> int | None:
    """Return the size of a regular file in bytes; None for anything else, such as a pipe."""
    status = os.fstat(file.fileno())
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
