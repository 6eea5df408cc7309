"""The upgrade of the embedded PostgreSQL's data to a new major version, with real programs of two versions."""

# ruff: noqa: ASYNC240 - the tests watch other processes and their files

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import httpx
import psycopg
import pytest
import trio

from jobqueue.errors import EmbeddedPostgresError
from jobqueue.storage import schema
from jobqueue.storage.connection import connect
from jobqueue.storage.embedded import stage as embedded
from jobqueue.storage.embedded import upgrade
from jobqueue.storage.embedded.cluster import Cluster
from tests.support import ROOT, postgres
from tests.support.service import Service
from tests.support.waiting import until, wait_for

OLD_BINARIES = max(Path("/usr/lib/postgresql").glob("1[4-7]/bin"), default=Path("/usr/lib/postgresql/17/bin"))
MAJOR = OLD_BINARIES.parent.name
OLD = f"postgresql-{MAJOR}"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not OLD_BINARIES.exists(), reason="no older PostgreSQL is installed")]

SERVICE = """\
import functools, pathlib, sys, trio
from jobqueue.storage.embedded import stage

data_dir, old_binaries = map(pathlib.Path, sys.argv[1:])
trio.run(functools.partial(stage.run, data_dir, old_binaries=old_binaries))
"""

FORGET_COLUMN_VERSIONS = """
SET allow_system_table_mods = on;
UPDATE pg_attribute SET attoptions = nullif(array(SELECT o FROM unnest(attoptions) AS o WHERE o NOT LIKE 'pg_attver=%'), '{}')
"""
"""PostgreSQL 15.20 stores a version of each column. pg_upgrade 18.6 is older than 15.20 and cannot restore these versions."""

TABLES = """
SELECT format('%I.%I', nspname, relname) FROM pg_class JOIN pg_namespace AS n ON n.oid = relnamespace
WHERE relkind = 'r' AND nspname !~ '^pg_|^information_schema$' ORDER BY 1
"""


IDENTITY = "jobqueue_internal.identity"


def old_server(data_dir: Path) -> AbstractContextManager[str]:
    return postgres.server(OLD_BINARIES, data_dir)


def forget_column_versions(data_dir: Path) -> None:
    with old_server(data_dir) as url, psycopg.connect(url) as connection:
        connection.execute(FORGET_COLUMN_VERSIONS)


@pytest.fixture(scope="module")
def filled() -> Iterator[Path]:
    """A data directory of the older version with the schema and a job, for tests to copy."""
    with postgres.directory() as path:
        with old_server(path / "data") as url, connect(url, "migrate") as connection:
            schema.migrate(connection)
            connection.execute("SELECT jobqueue.submit('default')")
        forget_column_versions(path / "data")
        yield path / "data"


@pytest.fixture
def data_dir(filled: Path) -> Iterator[Path]:
    with postgres.directory() as path:
        subprocess.run(["cp", "-a", str(filled), str(path)], check=True)
        yield path / "data"


@asynccontextmanager
async def serving(data_dir: Path, old_binaries: Path | None = OLD_BINARIES) -> AsyncIterator[str]:
    async with trio.open_nursery() as nursery:
        yield await nursery.start(partial(embedded.run, data_dir, old_binaries=old_binaries))
        nursery.cancel_scope.cancel()


def content(url: str) -> dict[str, list[str]]:
    """Return all rows of all tables, and whether the queue belongs to this server."""
    with psycopg.connect(url) as connection:
        tables = [name for (name,) in connection.execute(TABLES)]
        own = [str(connection.execute("SELECT jobqueue_internal.copied_from()").fetchone())] if IDENTITY in tables else []
        rows = {name: sorted(str(row) for row in connection.execute(f"SELECT * FROM {name}".encode())) for name in tables}
        return {**rows, IDENTITY: own}  # pg_upgrade gives the server a new identifier


def version(url: str) -> str:
    with psycopg.connect(url) as connection:
        return connection.execute("SHOW server_version").fetchall()[0][0]


def programs_in(data_dir: Path) -> list[str]:
    """Return the programs whose working directory is in the data directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # the process may end meanwhile
            if (process / "cwd").readlink().is_relative_to(data_dir):
                found.append((process / "cmdline").read_text())
    return found


def has(data_dir: Path, pattern: str) -> Callable[[], bool]:
    return lambda: any(data_dir.glob(pattern))


async def test_the_data_moves_and_the_old_data_is_set_aside(data_dir: Path) -> None:
    with old_server(data_dir) as url:
        before = content(url)
    async with serving(data_dir) as url:
        assert version(url).startswith("18.")
        assert content(url) == before
    assert [rows for name, rows in before.items() if name.endswith(".pending_jobs") and rows]
    assert (data_dir / f"{OLD}.old" / "PG_VERSION").exists()
    assert not list(data_dir.glob("*.new-*"))
    async with serving(data_dir, Path("/removed/since")) as url:
        assert content(url) == before
    with pytest.raises(EmbeddedPostgresError, match=rf"holds postgresql-18, but PostgreSQL {MAJOR}.*install a version"):
        await embedded.run(data_dir, binaries=OLD_BINARIES)


async def test_data_of_a_killed_server_is_recovered_first(data_dir: Path) -> None:
    cluster = Cluster(data_dir, binaries=OLD_BINARIES)
    cluster.prepare()
    server = cluster.start()
    postgres.wait_until_ready(cluster)
    with psycopg.connect(cluster.url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    before = content(cluster.url)
    server.kill()
    server.wait()
    cluster.stop()
    await trio.to_thread.run_sync(forget_column_versions, data_dir)
    async with serving(data_dir) as url:
        assert content(url) == before


STAGES = [
    f"{OLD}/postmaster.pid",
    "postgresql-18.new-*/data/base",
    "postgresql-18.new-*/data/pg_upgrade_output.d",
    "postgresql-18.new-*/data/base/1[0-9][0-9][0-9][0-9]",  # the schema of the database jobqueue is there
    "postgresql-18.new-*/delete_old_cluster.sh",  # the new cluster is complete
]
"""The files that appear during an upgrade, in their order."""


def upgrade_and_kill(data_dir: Path, stage: str) -> None:
    """Run a service until a file of this upgrade appears, or the upgrade is complete. Then kill the service."""
    earlier = set(data_dir.glob("*.new-*"))
    process = subprocess.Popen([sys.executable, "-c", SERVICE, data_dir, OLD_BINARIES], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        while not (any(earlier.isdisjoint(path.parents) for path in data_dir.glob(stage)) or (data_dir / "postgresql-18").exists()):
            assert process.poll() is None
            time.sleep(0.001)
    finally:
        process.kill()
        process.wait()


async def test_killed_at_each_stage_and_started_again(data_dir: Path) -> None:
    with old_server(data_dir) as url:
        before = content(url)
    for stage in STAGES:
        await trio.to_thread.run_sync(upgrade_and_kill, data_dir, stage)
    async with serving(data_dir) as url:
        assert content(url) == before
    # An upgrade that is killed between its two renames leaves both directories.
    (data_dir / f"{OLD}.old").rename(data_dir / OLD)
    async with serving(data_dir, old_binaries=None) as url:
        assert content(url) == before
    assert not (data_dir / OLD).exists()
    await until(lambda: not programs_in(data_dir))


async def test_a_cancelled_upgrade_leaves_no_process(data_dir: Path) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(embedded.run, data_dir, old_binaries=OLD_BINARIES))
        await until(has(data_dir, STAGES[2]))
        nursery.cancel_scope.cancel()
    await until(lambda: not programs_in(data_dir))
    with old_server(data_dir) as url:
        assert version(url).startswith(MAJOR)


async def test_a_failed_upgrade_leaves_the_data_unchanged(data_dir: Path) -> None:
    with old_server(data_dir) as url, psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE unfit AS SELECT 'now'::regproc")  # pg_upgrade refuses this type
    with pytest.raises(
        EmbeddedPostgresError, match=rf"(?s){OLD} to PostgreSQL 18.* failed: pg_upgrade .* unchanged.*reg\* data types"
    ):
        await embedded.run(data_dir, old_binaries=OLD_BINARIES)
    assert not (data_dir / "postgresql-18").exists()
    with old_server(data_dir) as url, psycopg.connect(url) as connection:
        connection.execute("DROP TABLE unfit")
    await trio.to_thread.run_sync(forget_column_versions, data_dir)
    async with serving(data_dir) as url:
        assert version(url).startswith("18.")


async def test_too_little_room_on_the_disk(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upgrade, "EXTRA_ROOM", 1 << 60)
    with pytest.raises(EmbeddedPostgresError, match=r"MiB free, but the upgrade needs \d+ MiB"):
        await embedded.run(data_dir, old_binaries=OLD_BINARIES)
    assert not list(data_dir.glob("*.new-*"))


async def test_only_one_service_upgrades_the_data(data_dir: Path) -> None:
    with old_server(data_dir), pytest.raises(EmbeddedPostgresError, match="another jobqueue"):
        await embedded.run(data_dir, old_binaries=OLD_BINARIES)


async def test_without_the_option_the_error_names_the_programs(data_dir: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match=f"holds {OLD}, .* start jobqueue with --upgrade-data-dir {OLD_BINARIES}; or"):
        await embedded.run(data_dir)


async def test_a_directory_without_the_old_programs(data_dir: Path) -> None:
    (data_dir / "bin").mkdir()
    (data_dir / "bin" / "postgres").touch()
    with pytest.raises(EmbeddedPostgresError, match=r"data/bin \(--upgrade-data-dir\) does not contain pg_ctl, pg_controldata, "):
        await embedded.run(data_dir, old_binaries=data_dir / "bin")


async def test_programs_of_another_version_do_not_upgrade_the_data(data_dir: Path) -> None:
    (data_dir / OLD).rename(data_dir / "postgresql-12")
    with pytest.raises(EmbeddedPostgresError, match=r"holds postgresql-12, .* --upgrade-data-dir DIR, where DIR has the programs"):
        await embedded.run(data_dir, old_binaries=OLD_BINARIES)


async def test_the_option_does_not_prevent_a_first_start(data_dir: Path) -> None:
    async with serving(data_dir.with_name("new")) as url:
        assert version(url).startswith("18.")


@pytest.mark.parametrize("processes", ["1", "2"])
def test_the_command_in_the_docs_upgrades_the_data_and_runs_the_jobs(data_dir: Path, processes: str) -> None:
    page = (ROOT / "docs/upgrading.md").read_text(encoding="utf-8")
    command = re.search(r"^\$ jobqueue serve (\S+ --upgrade-data-dir \S+)$", page, re.MULTILINE)
    assert command is not None
    arguments = re.sub(r"/usr/lib/postgresql/\d+/bin", str(OLD_BINARIES), command[1]).split()
    node = Service([*arguments, "--data-dir", str(data_dir), "--port", "0", "--processes", processes], {})
    try:
        assert [line for line in node.log_lines if "upgraded the embedded postgresql" in line]
        url = f"{node.url}/jobs?state=succeeded"
        wait_for(lambda: httpx.get(url, timeout=60).json()["jobs"], "the job of the old data runs")
    finally:
        assert node.stop() == 0
