"""Install the previous version, and run the steps of an upgrade from it while faults happen."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import click
import structlog
import trio

from benchmarks.chaos.machines import CURRENT, ROOT, Software

log = structlog.get_logger()

PREVIOUS = "fb162da483b245855871ccccfd102390a305d8c6"
"""The commit of the previous version. Its nodes run at the start."""

PATIENCE = 90.0
"""Maximum time for a step while other faults interrupt it, in seconds."""

PAUSE = 0.5
"""Seconds between two tries of a step."""

START_TIMEOUT = 60.0
"""Maximum time of a command, in seconds. After the upgrade, a node of the previous version must refuse to start within it."""


def install_previous() -> Software:
    """Install the previous version from git into its own virtual environment. Later calls find it in the temporary directory.

    Raises:
        click.ClickException: the repository does not have the commit.
    """
    directory = Path(tempfile.gettempdir()) / f"jobqueue-{PREVIOUS[:12]}"
    software = Software(str(directory / "venv" / "bin" / "python"), directory / "source")
    if directory.exists():
        return software
    made = Path(tempfile.mkdtemp(prefix=f"{directory.name}-"))
    made.chmod(0o755)
    archive = made / "source.tar"
    archived = subprocess.run(
        ["git", "archive", f"--output={archive}", PREVIOUS], cwd=ROOT, capture_output=True, check=False, text=True
    )
    if archived.returncode:
        raise click.ClickException(f"commit {PREVIOUS} is not in this repository, so clone all of it: {archived.stderr.strip()}")
    with tarfile.open(archive) as files:
        files.extractall(made / "source", filter="data")
    subprocess.run([sys.executable, "-m", "venv", made / "venv"], check=True)
    subprocess.run([made / "venv" / "bin" / "python", "-m", "pip", "install", "-q", made / "source"], check=True)
    archive.unlink()
    made.rename(directory)
    return software


async def migrate(url: str) -> list[str]:
    """Run the *before* steps with the command of this version. Return what went wrong."""
    return await _insist(lambda: _failure(_run(CURRENT, "migrate", url)))


async def finish(url: str, previous: Software) -> list[str]:
    """Run the *after* steps, then start a node of the previous version, which must refuse to start. Return what went wrong."""
    finished = await _insist(lambda: _failure(_run(CURRENT, "migrate", url, "--finish")))
    return finished + await _insist(lambda: _start_previous(url, previous))


async def _insist(step: Callable[[], str]) -> list[str]:
    """Call a step in a thread until it returns no error. Other faults can interrupt it."""
    give_up_at = trio.current_time() + PATIENCE
    while error := await trio.to_thread.run_sync(step):
        log.warning("step of the upgrade failed", error=error)
        if trio.current_time() > give_up_at:
            return [error]
        await trio.sleep(PAUSE)
    return []


def _failure(ended: subprocess.CompletedProcess[str]) -> str:
    return ended.stderr if ended.returncode else ""


def _start_previous(url: str, previous: Software) -> str:
    try:
        ended = _run(previous, "serve", url, "--port", "0", "--no-workers")
    except subprocess.TimeoutExpired:
        return f"a node of the previous version did not refuse to start within {START_TIMEOUT:.0f} s after the upgrade"
    refused = ended.returncode and "upgrade jobqueue" in ended.stderr
    return "" if refused else f"a node of the previous version ended with {ended.returncode} after the upgrade: {ended.stderr}"


def _run(software: Software, command: str, url: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [software.python, "-m", "jobqueue", command, "--database-url", url, *options],
        check=False,
        cwd=software.directory,
        env=software.environment,
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT,
    )
