"""Read the token file, and add tokens to it."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from pathlib import Path

import structlog

from jobqueue import tokens
from jobqueue.errors import SettingsError, UnusableFile
from jobqueue.tokens import Token

MAX_FILE_BYTES = 1 << 20
"""Maximum size of a token file, in bytes."""

log = structlog.get_logger()


def read(path: str) -> list[Token]:
    """Read the tokens of a file. Log a warning if other users can read plain secrets in it.

    Raises:
        UnusableFile: the file is missing, has no token, or has an invalid line. The message contains no secret.
    """
    try:
        data, mode = _read(path)
        found = tokens.parse_lines(data.decode("utf-8-sig"), path)
    except (SettingsError, UnicodeDecodeError) as error:
        raise UnusableFile(f"the token file cannot be used: {_reason(error)}") from None
    except OSError as error:
        raise UnusableFile(f"the token file {path} cannot be read: {error.strerror}; {_makes(path)}") from None
    if not found:
        raise UnusableFile(f"the token file {path} contains no token; {_makes(path)}")
    if mode & 0o077 and any(token.plain for token in found):
        log.warning(
            "other users can read the secrets in the token file: run chmod 600, or store them as sha256",
            file=path,
            mode=f"{mode:o}",
        )
    return found


def append(path: str, token: Token) -> None:
    """Add a token to a file, and create the file if it is missing. The write is atomic, even in a crash.

    Raises:
        UnusableFile: the file cannot be written, or is already invalid.
    """
    target = Path(path).resolve()
    try:
        directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UnusableFile(f"the token file {path} cannot be written: {error.strerror}: {target.parent}") from None
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)  # without the lock, one of two simultaneous calls would lose its token
        data = b""
        owner = None
        if target.exists():
            data, _ = _read(str(target))
            owner = target.stat()
            tokens.gather([*tokens.parse_lines(data.decode("utf-8-sig"), path), token])
        whole = data + (b"" if data.endswith(b"\n") or not data else b"\n") + token.entry.encode() + b"\n"
        _replace(target, whole, owner)
        os.fsync(directory)
    except (SettingsError, UnicodeDecodeError) as error:
        raise UnusableFile(f"nothing was written: {_reason(error)}") from None
    except OSError as error:
        raise UnusableFile(f"the token file {path} cannot be written: {error.strerror}") from None
    finally:
        os.close(directory)


def _read(path: str) -> tuple[bytes, int]:
    # O_NONBLOCK is for a path that is a pipe: without this flag, the call would wait for a writer.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123 - a descriptor
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise SettingsError(f"{path} is not a regular file")
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise SettingsError(f"{path} has more than {MAX_FILE_BYTES} bytes")
    return data, stat.S_IMODE(status.st_mode)


def _replace(target: Path, data: bytes, owner: os.stat_result | None) -> None:
    """Replace a file atomically. Keep the owner and mode of an existing file. If the file is new, only its owner can read it."""
    descriptor, unfinished = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
            if owner is not None:
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(owner.st_mode))
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        Path(unfinished).replace(target)
    except BaseException:
        Path(unfinished).unlink(missing_ok=True)
        raise


def _makes(path: str) -> str:
    return f"create one with `jobqueue token create --role admin --file {path}`"


def _reason(error: Exception) -> str:
    return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
