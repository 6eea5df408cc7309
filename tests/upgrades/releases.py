"""The files of earlier versions, from git."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

from tests.support import ROOT

VERSION_1 = "fb162da"
"""The commit whose schema.sql is version 1."""

HANDLERS = "tests.handlers.upgraded"
"""The handlers of the jobs in ``version_1.sql``."""


def check_out(path: Path) -> None:
    """Write the files of version 1, and the handlers of the dump's jobs."""
    with tarfile.open(fileobj=io.BytesIO(_git("archive", VERSION_1))) as files:
        files.extractall(path, filter="tar")
    handlers = Path(*HANDLERS.split(".")).with_suffix(".py")
    (path / handlers).write_bytes((ROOT / handlers).read_bytes())


def schema_of(commit: str) -> str:
    """Return the schema.sql of a commit before version 2, which was one file."""
    return _git("show", f"{commit}:schema.sql").decode()


def _git(*arguments: str) -> bytes:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"git {' '.join(arguments)}: {done.stderr.decode().strip()}: these tests need a full clone of the repository"
        )
    return done.stdout
