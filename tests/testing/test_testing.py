"""jobqueue.testing, as users test their handlers with it. The fixtures run in a separate pytest."""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import EntryPoint
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import jobqueue
from jobqueue import pytest_plugin, testing
from jobqueue.errors import InvalidJob
from tests.support import ROOT

pytestmark = pytest.mark.slow

pytest_plugins = ["pytester"]

app = jobqueue.App()

FIXED = jobqueue.Backoff(base=60, cap=3600, jitter=0)


@dataclasses.dataclass
class Order:
    number: int
    placed: datetime


@app.handler("order")
async def order(job: jobqueue.Job, order: Order, notes: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"number": order.number, "at": order.placed, "notes": notes, "attempt": job.attempt, "last": job.max_retries + 1}


@app.handler("thread")
def in_thread() -> int:
    return threading.get_ident()


@app.handler("cpu", cpu=True)
def in_process() -> list[int]:
    return [os.getpid(), threading.get_ident()]


@app.handler("fail", max_retries=3, backoff=FIXED)
async def fail() -> None:
    raise ConnectionError("nobody there")


@app.handler("verdict")
async def verdict(which: str) -> None:
    raise {"retry": jobqueue.Retry(5, "busy"), "snooze": jobqueue.Snooze(7), "discard": jobqueue.Discard("no use")}[which]


@app.handler("slow")
def slow(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@app.handler("sleep")
async def sleep(seconds: float) -> float:
    before = trio.current_time()
    await trio.sleep(seconds)
    return trio.current_time() - before


@app.handler("unstorable")
def unstorable() -> object:
    return object()


@app.handler("ever", max_retries=0)
async def ever() -> None:
    raise jobqueue.Snooze(60)


# ---------------------------------------------------------------------------------------------------------------------- one attempt


async def test_the_payload_becomes_typed_arguments_and_the_result_comes_back_as_json() -> None:
    placed = datetime(2030, 1, 2, tzinfo=UTC)
    payload = {"order": {"number": 17, "placed": placed}, "notes": ("a", "b")}
    result = await testing.run(app, "order", payload, attempt=2, max_retries=5)
    assert result == {"number": 17, "at": "2030-01-02T00:00:00Z", "notes": ["a", "b"], "attempt": 2, "last": 6}


async def test_sync_handlers_run_in_a_thread_those_for_processes_too() -> None:
    here = threading.get_ident()
    assert await testing.run(app, "thread") != here
    pid, thread = await testing.run(app, "cpu")
    assert pid == os.getpid()
    assert thread != here


def test_the_sync_twin_does_the_same() -> None:
    assert testing.run_sync(app, "sleep", {"seconds": 0}) >= 0
    with pytest.raises(ConnectionError, match="nobody there"):
        testing.run_sync(app, "fail")


def test_an_async_def_in_a_decorator_that_is_a_plain_def_raises_what_it_raised() -> None:
    own = jobqueue.App()

    async def handler(fails: bool) -> int:
        if fails:
            raise ValueError("as asked")
        return 1

    @functools.wraps(handler)
    def wrapper(**values: Any) -> Any:
        return handler(**values)

    own.handler("wrapped")(wrapper)
    assert testing.run_sync(own, "wrapped", {"fails": False}) == 1
    with pytest.raises(ValueError, match="as asked"):
        testing.run_sync(own, "wrapped", {"fails": True})


@pytest.mark.parametrize(
    ("which", "error", "delay"),
    [("retry", jobqueue.Retry, 5), ("snooze", jobqueue.Snooze, 7), ("discard", jobqueue.Discard, None)],
)
async def test_verdicts_are_raised_as_they_are(which: str, error: type[Exception], delay: float | None) -> None:
    with pytest.raises(error) as raised:
        await testing.run(app, "verdict", {"which": which})
    assert getattr(raised.value, "delay", None) == delay


async def test_what_a_test_asserts_within_a_handler_fails_the_test() -> None:
    own = jobqueue.App()

    @own.handler("asserts")
    async def asserts() -> None:
        pytest.fail("as it should")

    with pytest.raises(pytest.fail.Exception, match="as it should"):
        await testing.run(own, "asserts")


@pytest.mark.parametrize(
    ("kind", "payload", "fields", "error", "message"),
    [
        ("order", {"order": {"number": "x"}}, {}, testing.PayloadMismatch, r"Expected `int`, got `str` - at `\$.order.number`"),
        ("order", {}, {}, testing.PayloadMismatch, "missing required field `order`"),
        ("odrer", {}, {}, LookupError, "no handler for kind 'odrer': the app has cpu, ever, fail, order"),
        ("order", {}, {"prio": 1}, InvalidJob, "prio"),
        ("order", {}, {"priority": -1}, InvalidJob, "priority must be"),
        ("order", {}, {"attempt": 0}, ValueError, "attempt must be at least 1"),
        ("order", {"order": object()}, {}, InvalidJob, "payload"),
        ("unstorable", {}, {}, testing.AttemptFailed, "the result cannot be stored as JSON"),
        ("slow", {"seconds": 2}, {"timeout": 0.05}, testing.AttemptFailed, "timed out after 0.05 s"),
        ("sleep", {"seconds": 60}, {"timeout": 0.05}, testing.AttemptFailed, "timed out after 0.05 s"),
    ],
)
async def test_what_cannot_work_says_why(
    kind: str, payload: Any, fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        await testing.run(app, kind, payload, **fields)


# ------------------------------------------------------------------------------------------------------------------------- a queue


@testing.in_virtual_time
async def test_retries_wait_their_backoff_in_virtual_time() -> None:
    began = time.monotonic()
    async with testing.Queue(app) as queue:
        job_id = await queue.submit("fail", delay=86_400)
        assert queue.job(job_id)["state"] == "scheduled"
        await queue.drain()
        assert queue.now == pytest.approx(86_400 + 60 + 120 + 240, abs=2)
        [dead] = queue.dead
    assert [error["attempt"] for error in dead["errors"]] == [1, 2, 3, 4]
    at = [datetime.fromisoformat(error["at"]) for error in dead["errors"]]
    waits = [(later - sooner) / timedelta(seconds=1) for sooner, later in pairwise(at)]
    assert waits == pytest.approx([60, 120, 240], abs=2)
    assert dead["reason"].startswith("attempt 4 of 4 failed: ConnectionError")
    assert time.monotonic() - began < 600  # and not a day


@testing.in_virtual_time
async def test_async_handlers_alone_take_no_time_at_all() -> None:
    async with testing.Queue(app) as queue:
        job_id = await queue.submit("sleep", {"seconds": 3_600})
        await queue.drain()
        assert queue.job(job_id)["result"] == pytest.approx(3_600, abs=2)
        assert queue.now == pytest.approx(3_600, abs=2)


@testing.in_virtual_time
async def test_time_does_not_jump_while_a_thread_works() -> None:
    async with testing.Queue(app) as queue:
        await queue.submit("slow", {"seconds": 0.2}, timeout=3_000)
        await queue.drain()
        [job] = queue.succeeded
        assert job["attempt"] == 1
        assert 0.1 < queue.now < 2_900


@testing.in_virtual_time
async def test_the_timeout_of_a_thread_is_of_real_time_and_that_of_the_loop_is_not() -> None:
    async with testing.Queue(app) as queue:
        await queue.submit("slow", {"seconds": 3}, timeout=0.1, max_retries=0)
        await queue.submit("sleep", {"seconds": 7_200}, timeout=3_600, max_retries=0)
        await queue.drain()
        assert sorted(job["errors"][0]["error"] for job in queue.dead) == ["timed out after 0.1 s", "timed out after 3600.0 s"]


@testing.in_virtual_time
async def test_time_does_not_jump_while_a_handler_waits_for_a_reply() -> None:
    own = jobqueue.App()

    @own.handler("ask")
    async def ask(port: int) -> str:
        with trio.fail_after(600):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                return (await stream.receive_some()).decode()

    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                time.sleep(0.2)  # a jump would be a minute
                connection.sendall(b"hello")

        thread = threading.Thread(target=answer)
        thread.start()
        async with testing.Queue(own) as queue:
            await queue.submit("ask", {"port": server.getsockname()[1]})
            await queue.drain()
            assert [job["result"] for job in queue.succeeded] == ["hello"]
        thread.join()


@testing.in_virtual_time
async def test_advance_lets_what_is_due_happen_and_no_more() -> None:
    async with testing.Queue(app) as queue:
        first = await queue.submit("sleep", {"seconds": 0}, delay=60)
        second = await queue.submit("sleep", {"seconds": 0}, delay=61)
        await queue.advance(60.5)
        assert (queue.job(first)["state"], queue.job(second)["state"]) == ("succeeded", "scheduled")
        assert queue.now == pytest.approx(60.5, abs=2)
        await queue.advance(7 * 86_400)
        assert len(queue.succeeded) == 2
        assert queue.now == pytest.approx(7 * 86_400 + 60.5, abs=2)


@testing.in_virtual_time
async def test_priorities_and_their_aging_decide_the_order() -> None:
    own, order = jobqueue.App(), []

    @own.handler("busy")
    async def busy(name: str) -> None:
        order.append(name)
        await trio.sleep(10)

    async with testing.Queue(own, queues={"default": 1}) as queue:
        await queue.submit("busy", {"name": "first"})
        await queue.submit("busy", {"name": "plain"})
        await queue.submit("busy", {"name": "urgent"}, priority=5)
        await queue.submit("busy", {"name": "late and urgent"}, priority=5, delay=8)  # the plain one has aged by 8 points
        await queue.drain()
    assert order == ["first", "urgent", "plain", "late and urgent"]


@testing.in_virtual_time
async def test_snoozes_do_not_count_as_attempts() -> None:
    own, runs = jobqueue.App(), []

    @own.handler("wait", max_retries=0)
    async def wait(job: jobqueue.Job) -> int:
        runs.append(trio.current_time())
        if len(runs) < 4:
            raise jobqueue.Snooze(3_600)
        return job.attempt

    async with testing.Queue(own) as queue:
        await queue.submit("wait")
        await queue.drain()
        assert [job["result"] for job in queue.jobs(kind="wait", state="succeeded")] == [1]
    assert [later - sooner for sooner, later in pairwise(runs)] == pytest.approx([3_600] * 3, abs=2)


@testing.in_virtual_time
async def test_what_never_ends_is_told_and_not_waited_for() -> None:
    async with testing.Queue(app) as queue:
        await queue.submit("order", queue="nobody's")
        with pytest.raises(testing.NotDrained, match=r"no worker runs .* of kind 'order' in queue \"nobody's\" \(pending\)"):
            await queue.drain()
    async with testing.Queue(app) as queue:
        await queue.submit("ever")
        with pytest.raises(testing.NotDrained, match=r"kind 'ever' .* has run more than 1001 times"):
            await queue.drain()


@testing.in_virtual_time
async def test_as_many_retries_as_a_job_may_have_are_drained() -> None:
    async with testing.Queue(app) as queue:
        await queue.submit("fail", max_retries=1_000)
        await queue.drain()
        assert [job["attempt"] for job in queue.dead] == [1_001]


@testing.in_virtual_time
async def test_what_the_test_raises_comes_out_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - where it is raised is the point
        async with testing.Queue(app) as queue:
            await queue.submit("sleep", {"seconds": 5})
            raise ZeroDivisionError
    with pytest.raises(KeyError):
        async with testing.Queue(app) as queue:
            queue.job("none")


async def test_without_virtual_time_a_queue_says_what_to_do(autojump_clock: MockClock) -> None:
    assert autojump_clock is not None
    with pytest.raises(TypeError, match=r"decorate the test with @testing\.in_virtual_time"):
        async with testing.Queue(app):
            pass


@pytest.fixture
def virtual_time() -> testing.Clock:
    return testing.Clock()


async def test_with_pytest_trio_a_fixture_that_returns_a_clock_does(virtual_time: testing.Clock) -> None:
    assert trio.lowlevel.current_clock() is virtual_time
    async with testing.Queue(app) as queue:
        await queue.submit("sleep", {"seconds": 5}, delay=600)
        await queue.drain()
        assert queue.now == pytest.approx(605, abs=2)


def test_the_sync_drain_returns_the_jobs_as_they_ended() -> None:
    ended = testing.drain(app, [("sleep", {"seconds": 100}), ("fail", None), ("sleep", {"seconds": "x"}), ("cpu", None)])
    assert [job["state"] for job in ended] == ["succeeded", "dead", "dead", "succeeded"]
    assert [job["attempt"] for job in ended] == [1, 4, 1, 1]
    assert "does not fit the handler" in ended[2]["reason"]
    assert ended[3]["result"][0] == os.getpid()


def test_a_thousand_jobs_drain_while_one_waits() -> None:
    assert all(job["state"] == "succeeded" for job in testing.drain(app, [("sleep", {"seconds": 1})] * 1_000))


def test_the_package_does_not_import_it() -> None:
    code = "import sys, jobqueue; print([name for name in sys.modules if name.startswith('jobqueue.testing')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# ------------------------------------------------------------------------------------------------------------------------- fixtures

HANDLERS = """
    import jobqueue

    app = jobqueue.App()

    @app.handler("double", cpu=True)
    def double(number: int) -> int:
        return 2 * number
"""


@pytest.fixture
def users_pytest(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.Pytester]:
    """The project of a user, with this plugin only."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p jobqueue.pytest_plugin -W error")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makepyfile(myjobs=HANDLERS)
    yield pytester
    for line in (pytester.path / "pids").read_text().split() if (pytester.path / "pids").exists() else []:
        assert not Path(f"/proc/{line}").exists(), "nothing is left behind"


NOTING = """
    import os, signal
    from pathlib import Path
    import psycopg, pytest

    def note(service):
        with psycopg.connect(service.database_url) as connection:
            [[backend]] = connection.execute("select pg_backend_pid()")
            [[data]] = connection.execute("show data_directory")
            postmaster = Path(f"/proc/{backend}/stat").read_text().rpartition(") ")[2].split()[1]
        with open("pids", "a") as file:
            print(postmaster, service._process.process.pid, file=file)
        Path("directory").write_text(data)
"""


def test_the_fixture_gives_a_real_service(users_pytest: pytest.Pytester) -> None:
    users_pytest.makepyfile(
        NOTING
        + """
    import myjobs

    def test_by_name(jobqueue_service):
        service = jobqueue_service("myjobs", queues={"default": 2, "mail": 1})
        note(service)
        job = service.wait(service.submit("double", {"number": 21}, queue="mail", priority=3), timeout=120)
        assert (job["state"], job["result"], job["queue"], job["priority"]) == ("succeeded", 42, "mail", 3)
        with psycopg.connect(service.database_url) as connection:
            assert connection.execute("select count(*) from jobqueue.jobs").fetchone() == (1,)
        assert service.stop() == 0

    def test_by_the_app_on_an_empty_database(jobqueue_service):
        service = jobqueue_service(myjobs.app)
        note(service)
        with pytest.raises(ValueError, match="priority must be an integer"):
            service.submit("double", priority=-1)
        with pytest.raises(TimeoutError, match="not ended within"):
            service.wait(service.submit("double", delay=60), timeout=0)
        with psycopg.connect(service.database_url) as connection:
            assert connection.execute("select count(*) from jobqueue.jobs").fetchone() == (1,)

    def test_that_fails(jobqueue_service):
        note(jobqueue_service("myjobs"))
        assert False

    def test_whose_service_dies(jobqueue_service):
        service = jobqueue_service("myjobs")
        note(service)
        os.kill(service._process.process.pid, signal.SIGKILL)
        assert service.stop() == -signal.SIGKILL

    def test_of_a_module_that_is_not_there(jobqueue_service):
        with pytest.raises(RuntimeError, match="module 'nojobs' not found"):
            jobqueue_service("nojobs")
"""
    )
    outcome = users_pytest.runpytest_subprocess()
    outcome.assert_outcomes(passed=4, failed=1)
    assert not Path((users_pytest.path / "directory").read_text()).exists()


def test_a_pytest_that_is_killed_leaves_no_process(users_pytest: pytest.Pytester) -> None:
    test = users_pytest.makepyfile(
        NOTING
        + """
    def test_that_is_killed(jobqueue_service):
        note(jobqueue_service("myjobs"))
        os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    assert users_pytest.run(sys.executable, "-m", "pytest", test).ret == -signal.SIGKILL
    pids = (users_pytest.path / "pids").read_text().split()
    assert len(pids) == 2
    deadline = time.monotonic() + 120
    while any(map(_runs, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (users_pytest.path / "pids").unlink()
    subprocess.run(["rm", "-rf", Path((users_pytest.path / "directory").read_text()).parent], check=True)


def _runs(pid: str) -> bool:
    try:
        return not Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except OSError:
        return False


def test_the_plugin_is_registered_and_loads_nothing_until_it_is_used(users_pytest: pytest.Pytester) -> None:
    [(name, value)] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"].items()
    assert EntryPoint(name, value, "pytest11").load() is pytest_plugin
    users_pytest.makepyfile("""
    import sys

    def test_that_uses_nothing():
        loaded = [name for name in ("trio", "psycopg", "jobqueue.testing", "jobqueue.service") if name in sys.modules]
        assert loaded == []
""")
    users_pytest.runpytest_subprocess().assert_outcomes(passed=1)
