"""Move the data of the embedded PostgreSQL to a new major version with pg_upgrade.

pg_upgrade copies the data into a cluster in a temporary directory. When this cluster is complete and synced, a rename makes it the
data of the new version. The old data stays unchanged, so an interrupted upgrade can begin again.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import IO

import structlog
import trio

from jobqueue.errors import EmbeddedPostgresError
from jobqueue.storage.embedded.binaries import Programs, kill_in
from jobqueue.storage.embedded.cluster import DATABASE, POLL_SECONDS, PORT, ROLE, Cluster, initdb_options

UPGRADE_PORT = PORT + 1  # not PORT: nodes must not reach the servers that pg_upgrade starts
EXTRA_ROOM = 128 << 20  # bytes for the WAL and the system catalogs of the new cluster
OLD_PROGRAMS = ("postgres", "pg_ctl", "pg_controldata", "pg_resetwal")
"""The programs of the old version that pg_upgrade needs."""

# One line, because in single-user mode the end of a line ends a statement.
ADOPT = (
    "DO $$ DECLARE found regclass; BEGIN FOR found IN SELECT c.oid FROM pg_class AS c WHERE c.relname = 'identity'"
    " AND c.relnamespace::regnamespace::text LIKE '%\\_internal' LOOP EXECUTE format('UPDATE %s SET system_identifier ="
    " (SELECT system_identifier FROM pg_control_system()) WHERE system_identifier = {}', found); END LOOP; END $$\n"
)
"""Store the system identifier of the new cluster, unless the old cluster was itself a copy that nobody had adopted."""

log = structlog.get_logger()


def require_programs(binaries: Path) -> None:
    """Check that a directory has the programs that an upgrade needs of the old version.

    Raises:
        EmbeddedPostgresError: some are missing.
    """
    if missing := [name for name in OLD_PROGRAMS if not (binaries / name).is_file()]:
        raise EmbeddedPostgresError(
            f"{binaries} (--upgrade-data-dir) does not contain {', '.join(missing)}: give the directory of all programs of the old"
            " PostgreSQL, such as /usr/lib/postgresql/17/bin"
        )


async def upgrade(old: Cluster, new: Cluster) -> None:
    """Copy the data of `old` to the major version of `new`. The old data stays unchanged.

    Args:
        old: a locked cluster after a clean shutdown of its server.
        new: a cluster in the same data directory that has no data yet.

    Raises:
        EmbeddedPostgresError: the disk has too little room, or a program failed. The server's log has the output of the program.
    """
    begun = time.monotonic()
    log.info("upgrading the embedded postgresql", data=str(old.pgdata), to=new.programs.version, log=str(old.log_path))
    checksums, identifier = await trio.to_thread.run_sync(_prepare, old, new)
    work = new.programs.fresh_directory(new.pgdata)
    data = work / "data"
    for socket in old.run_dir.glob(f".s.PGSQL.{UPGRADE_PORT}*"):
        socket.unlink()  # a killed server of an interrupted upgrade left it
    with old.open_log() as output, tempfile.TemporaryFile() as script:
        run = functools.partial(_run, new.programs, directory=work, output=output)
        await run("initdb", "-D", data, *initdb_options(new.programs.major), checksums)
        clusters: list[str | Path] = ["-b", old.programs.binaries, "-d", old.pgdata, "-B", new.programs.binaries, "-D", data]
        port = str(UPGRADE_PORT)
        await run("pg_upgrade", *clusters, "-U", ROLE, "-s", old.run_dir, "-p", port, "-P", port, "--no-sync")
        script.write(ADOPT.format(identifier).encode())
        script.seek(0)
        await run("postgres", "--single", "-c", "exit_on_error=on", "-D", data, DATABASE, script=script)
        await run("initdb", "--sync-only", "-D", data)  # pg_upgrade syncs before it starts the new server for the last time
    new.put_in_place(data)
    shutil.rmtree(work)
    log.info("upgraded the embedded postgresql", data=str(new.pgdata), seconds=round(time.monotonic() - begun, 3))


def _prepare(old: Cluster, new: Cluster) -> tuple[str, str]:
    """Check the room on the disk, and find the programs' user.

    Returns:
        The option of initdb for the checksums of the old cluster, and the system identifier of the old cluster.
    """
    files = [path for path in old.pgdata.rglob("*") if path.is_file() and "pg_wal" not in path.parts]
    needed, free = sum(path.stat().st_size for path in files) + EXTRA_ROOM, shutil.disk_usage(old.data_dir).free
    if free < needed:
        raise EmbeddedPostgresError(
            f"the disk of {old.data_dir} has {free >> 20} MiB free, but the upgrade needs {needed >> 20} MiB: free more space"
        )
    new.programs.choose_account(old.pgdata, old.data_dir)
    new.programs.come_within_reach(old.data_dir)
    control = old.programs.invoke("pg_controldata", "-D", old.pgdata)
    facts = dict(re.findall(r"^([^:]+): +(.*)$", control.stdout, re.MULTILINE))
    if not facts:
        raise EmbeddedPostgresError(
            f"{old.programs.binaries / 'pg_controldata'} cannot read {old.pgdata}: {control.stderr.strip()}"
        )
    checksums = "--no-data-checksums" if facts["Data page checksum version"] == "0" else "--data-checksums"
    return checksums, facts["Database system identifier"]


async def _run(
    programs: Programs, program: str, *arguments: str | Path, directory: Path, output: IO[bytes], script: IO[bytes] | None = None
) -> None:
    process = programs.spawn(program, *arguments, output=output, environment={}, cwd=directory, script=script)
    try:
        while process.poll() is None:  # noqa: ASYNC110 - another process's state
            await trio.sleep(POLL_SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        kill_in(directory)  # servers leave the process group
        process.wait()
    if process.returncode != 0:
        raise EmbeddedPostgresError(f"{program} ended with status {process.returncode}")
