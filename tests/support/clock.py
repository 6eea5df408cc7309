"""A simulated clock for PostgreSQL."""

from __future__ import annotations

from pathlib import Path


class Clock:
    """A simulated clock that only PostgreSQL uses. It shows the real time or a time some seconds earlier.

    The library is in Debian's package libfaketime.

    Args:
        library: the library's path.
        file: the file from which the library reads the offset. PostgreSQL's user must be able to read it.
    """

    LIBRARIES = ("lib/*/faketime", "lib64/faketime", "lib/faketime", "local/lib/faketime")

    def __init__(self, library: str, file: Path) -> None:
        self._library = library
        self._file = file
        self.set(0)

    @classmethod
    def find_library(cls) -> str | None:
        """Return the path of libfaketime; None when it is not installed."""
        # Do not use the library's variant for threads: PostgreSQL's signal handlers read the clock, so its mutex would deadlock.
        found = (path for directory in cls.LIBRARIES for path in Path("/usr").glob(f"{directory}/libfaketime.so.1"))
        return next((str(path) for path in found), None)

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment variables with which a process uses this clock."""
        return {
            "LD_PRELOAD": self._library,
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",  # otherwise processes would notice a step at different times
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def set(self, offset: float) -> None:
        """Set the clock's offset from the real time, in seconds."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{offset:+.3f}\n")
        new.chmod(0o644)
        new.rename(self._file)

    def forget(self, pid: int) -> None:
        """Remove the shared memory that the library created for a process that was killed."""
        for name in (f"faketime_shm_{pid}", f"sem.faketime_sem_{pid}"):
            Path("/dev/shm", name).unlink(missing_ok=True)
