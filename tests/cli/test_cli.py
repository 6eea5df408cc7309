"""The command line in general: commands, connections, failures, and output for people and for programs."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import click
import psycopg
import pytest

import jobqueue
from jobqueue.cli import COMMANDS, cli, values
from jobqueue.cli.output import Failure, local, printable, seconds
from jobqueue.cli.serve import _example
from jobqueue.storage.embedded.binaries import LAUNCHER
from tests.support import ROOT
from tests.support.command_line import call, environment
from tests.support.fork_server import ForkServer, fork_server
from tests.support.interference import interfering
from tests.support.postgres import Database
from tests.support.running import free_port
from tests.support.service import Service
from tests.support.waiting import wait_for

OPTIONS = {
    "serve": set(),
    "migrate": set(),
    "adopt": {"--database-url"},
    "doctor": {"--json", "--database-url"},
    "token": {"--json"},
}
"""The options of the commands that do not operate on a queue."""


def leaves(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from leaves(command, (*path, name))
        else:
            yield (*path, name), command


LEAVES = dict(leaves(cli))


@pytest.fixture
def node(service: Callable[..., Service]) -> Service:
    return service("examples.quickstart", "--no-workers", "--token", "admin:s3cret")


def test_each_command_has_help_and_the_options_for_json_and_the_queue() -> None:
    assert {path[0] for path in LEAVES} == set(COMMANDS)
    for path, command in LEAVES.items():
        assert command.help, path
        assert "\\b" not in command.help, f"{path}: a literal backslash, where click expects a backspace"
        options = {name for parameter in command.params for name in parameter.opts}
        assert options >= OPTIONS.get(path[0], {"--json", "--url", "--token", "--database-url"}), path


@pytest.mark.slow
def test_unknown_commands_are_rejected() -> None:
    assert "No such command" in call("nonsense", code=2).stderr
    assert "No such command" in call("queues", "nonsense", code=2).stderr


def test_without_a_known_token_a_command_fails_with_a_remedy(node: Service) -> None:
    for given in [(), ("--token", "wrong")]:
        assert "give one with --token, or set JOBQUEUE_TOKEN" in call("nodes", "--url", node.url, *given, code=1).stderr


@pytest.mark.slow
def test_without_a_service_a_command_fails_with_a_remedy() -> None:
    failed = call("nodes", "--url", f"http://127.0.0.1:{free_port()}", code=4)
    assert "Start a service with `jobqueue serve`, or give its URL with --url" in failed.stderr
    assert "needs http or https and a host" in call("nodes", "--url", "127.0.0.1:8080", code=2).stderr


@pytest.mark.no_schema
def test_without_a_database_or_schema_a_command_fails_with_a_remedy(database_url: str, database: Database) -> None:
    failed = call("nodes", "--database-url", "postgresql://127.0.0.1:1/x", code=4)
    assert "cannot connect to PostgreSQL" in failed.stderr
    for unreadable in ("postgresql//user:secret@host", "postgresql://user:secret@.../name"):
        failed = call("nodes", "--database-url", unreadable, code=2)
        assert "the database URL cannot be read" in failed.stderr
        assert "secret" not in failed.stderr
    assert (
        "has no jobqueue schema: check the database URL, or run `jobqueue migrate` to create the schema"
        in call("nodes", "--database-url", database_url, code=4).stderr
    )
    assert database.rows("SELECT 1 FROM pg_namespace WHERE nspname = 'jobqueue'") == []
    call("migrate", "--database-url", database_url)
    assert call("nodes", "--database-url", database_url, "--json").stdout == "[]\n"
    database.rows("UPDATE jobqueue_internal.schema_version SET version = 999, oldest_node = 999 RETURNING 1")
    assert "schema version 999 or newer" in call("nodes", "--database-url", database_url, code=4).stderr


def test_environment_variables_select_the_queue(node: Service, database_url: str) -> None:
    service = {"JOBQUEUE_URL": node.url, "JOBQUEUE_TOKEN": "s3cret"}
    nowhere = "postgresql://127.0.0.1:1/x"
    [found] = json.loads(call("nodes", "--json", env=service).stdout)
    assert json.loads(call("nodes", "--json", env={"DATABASE_URL": database_url}).stdout)[0]["id"] == found["id"]
    # A service takes precedence over a database, and options take precedence over variables.
    assert found["id"] in call("nodes", env={**service, "DATABASE_URL": nowhere}).stdout
    assert found["id"] in call("nodes", "--url", node.url, "--token", "s3cret", env={"DATABASE_URL": nowhere}).stdout
    assert (
        found["id"] in call("nodes", "--database-url", database_url, env={**service, "JOBQUEUE_URL": "http://127.0.0.1:1"}).stdout
    )
    both = call("nodes", "--database-url", database_url, "--url", node.url, code=2)
    assert "do not combine it with --url or --token" in both.stderr


def test_a_missing_or_wrong_token_is_rejected(node: Service) -> None:
    assert "token" in call("nodes", "--url", node.url, code=1).stderr
    assert "token" in call("queues", "--url", node.url, "--token", "wrong", code=1).stderr


def test_a_command_on_a_database_opens_no_listening_socket(database_url: str) -> None:
    traced = "import socket; socket.socket.listen = None; from jobqueue.cli import main; main()"
    command = [sys.executable, "-c", traced, "submit", "default", "--database-url", database_url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment({}))
    assert done.returncode == 0, done.stderr


def test_ctrl_c_exits_with_130(node: Service) -> None:
    job_id = call("submit", "default", "--url", node.url, "--token", "s3cret").stdout.strip()
    with interfering(node.url) as between:
        waiting = fork_server().start(["jobs", "wait", job_id, "--url", between.url, "--token", "s3cret"], environment({}))
        wait_for(lambda: between.passed, "the command waits")
        waiting.send_signal(signal.SIGINT)
        assert waiting.communicate(60) == ("", "\nInterrupted.\n")
    assert waiting.returncode == 130


@pytest.mark.slow
def test_ctrl_c_reaches_a_command_even_if_the_tests_ignore_it() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a command that a shell starts in the background
    try:
        server = ForkServer()
        ask = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
        launched = [sys.executable, "-c", LAUNCHER, str(os.getpid()), sys.executable, "-c", ask]
        assert subprocess.run(launched, capture_output=True, check=True).stdout == b"True\n"
    finally:
        signal.signal(signal.SIGINT, before)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        command = server.start(["jobs", "list", "--url", f"http://127.0.0.1:{silent.getsockname()[1]}"], environment({}))
        with silent.accept()[0]:
            command.send_signal(signal.SIGINT)
            assert command.communicate(60) == ("", "\nInterrupted.\n")
    server.close()


def test_a_closed_output_pipe_causes_no_traceback(database_url: str) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    command = [sys.executable, "-m", "jobqueue", "nodes", "--database-url", database_url]
    done = subprocess.run(command, cwd=ROOT, env=environment({}), stdout=theirs, stderr=subprocess.PIPE, check=False)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (1, b"")


def on_a_terminal(columns: int, *arguments: str, answer: bytes = b"") -> tuple[int, str]:
    """Run a command on a terminal with that many columns; return its exit code and its output."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    env = environment({"TERM": "dumb", "NO_COLOR": "1"})
    for name in ("COLUMNS", "LINES"):
        env.pop(name, None)
    shown = subprocess.Popen(
        [sys.executable, "-m", "jobqueue", *arguments], cwd=ROOT, env=env, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    os.write(ours, answer)
    seen = b""
    while True:
        try:
            seen += os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
    os.close(ours)
    return shown.wait(60), seen.decode().replace("\r\n", "\n")


def test_a_terminal_gets_tables_that_fit_and_a_prompt_before_many_changes(node: Service, database: Database) -> None:
    way = ["--url", node.url, "--token", "s3cret"]
    lines = '{"kind": "a-kind-whose-name-is-far-too-long-for-it-all-to-fit", "queue": "a-queue-with-a-long-name-too"}\n' * 3
    ids = [json.loads(line)["id"] for line in call("submit", "--file", "-", "--json", *way, stdin=lines).stdout.splitlines()]
    for arguments in (["jobs"], ["queues"], ["nodes"]):
        code, seen = on_a_terminal(80, *arguments, *way)
        assert code == 0
        assert max(map(len, seen.splitlines())) <= 80, seen
    _, seen = on_a_terminal(80, "jobs", *way)
    assert [line.split()[0] for line in seen.splitlines()[1:]] == ids[::-1]
    assert "a-kind-whos" in seen
    assert "…" in seen
    assert json.loads(on_a_terminal(80, "jobs", "--json", *way)[1])["jobs"][0]["id"] == ids[-1]

    code, seen = on_a_terminal(80, "jobs", "cancel", "--all", *way, answer=b"n\n")
    assert code == 1
    assert "3 jobs would be cancelled. Continue? [y/N]" in seen
    assert database.states() == {"pending": 3}
    code, seen = on_a_terminal(80, "jobs", "cancel", "--all", *way, answer=b"y\n")
    assert code == 0
    assert "3 jobs cancelled" in seen
    assert database.states() == {"cancelled": 3}


def test_control_characters_of_submitters_do_not_reach_the_terminal(node: Service) -> None:
    way = ["--url", node.url, "--token", "s3cret"]
    job_id = call("submit", "\x1b]0;mine\x07", '"\x9b31m"', "--queue", "q\x1b[2J", *way).stdout.strip()
    for arguments in (["jobs", "show", job_id], ["jobs"], ["queues"]):
        seen = call(*arguments, *way).stdout
        assert "\\x1b" in seen
        assert not set("\x1b\x07\x9b") & set(seen)
    assert json.loads(call("jobs", "show", job_id, "--json", *way).stdout)["kind"] == "\x1b]0;mine\x07"


def test_failures_show_no_control_characters() -> None:
    assert Failure("\x1b[2J").message == "\\x1b[2J"
    assert printable("a\tb\nc\x00") == "a\tb\nc\\x00"


@pytest.mark.parametrize(
    ("text", "expected"), [("90", 90), ("1.5", 1.5), ("250ms", 0.25), ("10m", 600), ("10 min", 600), ("2h", 7_200), ("7d", 604_800)]
)
def test_durations(text: str, expected: float) -> None:
    assert values.duration(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "-1", "1w", "1h30", "inf", "1e3", "٣"])
def test_invalid_durations_are_rejected(text: str) -> None:
    with pytest.raises(click.BadParameter, match="not a duration"):
        values.duration(text)


def test_times_without_a_zone_are_local() -> None:
    assert datetime.fromisoformat(values.time("2030-01-31T08:00:00Z")) == datetime(2030, 1, 31, 8, tzinfo=UTC)
    assert datetime.fromisoformat(values.time("2030-01-31T08:00")) == datetime(2030, 1, 31, 8).astimezone()
    ago = datetime.now(UTC) - datetime.fromisoformat(values.time_or_age("2h"))
    assert 7_199 < ago.total_seconds() < 7_260
    for wrong in ("yesterday", "99999999999d", ""):
        with pytest.raises(click.BadParameter, match="not a time"):
            values.time_or_age(wrong)


@pytest.mark.slow
def test_how_times_and_durations_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [seconds(value) for value in (None, 0.0471, 3, 90, 600, 7_500, 180_000)] == [
        "", "0.047 s", "3 s", "90 s", "10 min", "2 h 5 min", "2 d 2 h"
    ]  # fmt: skip
    monkeypatch.setenv("TZ", "Europe/Berlin")
    code = "from jobqueue.cli.output import local; t = '2026-01-31T07:00:00.5+00:00'; print(local(t)); print(local(t, short=True))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2026-01-31 08:00:00 CET\n2026-01-31 CET\n"
    assert local(None) == ""


@pytest.mark.slow
def test_the_version_option_imports_click_alone() -> None:
    code = "import runpy, sys; sys.argv[1:] = ['--version']; runpy.run_module('jobqueue', run_name='__main__')"
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert loaded & {"click", "trio", "rich", "httpx", "quart", "psycopg"} == {"click"}


def test_the_banner_names_the_required_fields_of_a_payload() -> None:
    app = jobqueue.App()

    @app.handler("greet")
    async def greet(job: jobqueue.Job, name: str, times: int = 1) -> None: ...

    @app.handler("pay")
    def pay(conn: psycopg.Connection, amount: int, to: str) -> None: ...

    @app.handler("tidy")
    def tidy(days: int = 7) -> None: ...

    assert [_example(handler) for handler in app.handlers.values()] == [
        '{"kind": "greet", "payload": {"name": ...}}',
        '{"kind": "pay", "payload": {"amount": ..., "to": ...}}',
        '{"kind": "tidy"}',
    ]
