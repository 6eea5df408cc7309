"""The whole service, as a user runs it: a real process with real HTTP, signals, and PostgreSQL."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections import Counter

import httpx
import psycopg
import pytest

from jobqueue.storage import schema
from tests.handlers.plain import note_start
from tests.support.command_line import run_jobqueue
from tests.support.postgres import Database
from tests.support.service import Effects, Start, submit
from tests.support.waiting import wait_for

# ---------------------------------------------------------------------------------------------------- submit, run, look, measure


def test_a_job_goes_from_submit_to_done_with_payload_and_result(start: Start, client: httpx.Client, database: Database) -> None:
    node = start()
    answer = client.post(f"{node.url}/submit", json={"kind": "echo", "payload": {"n": [1, "ä", None]}, "priority": 5})
    assert answer.status_code == 201
    job_url = node.url + answer.headers["Location"]
    wait_for(lambda: client.get(job_url).json()["state"] == "succeeded", "the job succeeds")
    assert client.get(job_url).json()["result"] == {"n": [1, "ä", None]}
    assert node.stop() == 0
    assert database.states() == {"succeeded": 1}


def test_the_seeds_own_requests_work(start: Start, client: httpx.Client) -> None:
    node = start(module="examples.quickstart")
    assert client.post(f"{node.url}/submit", json={"priority": 5, "max_retries": 3}).status_code == 201
    answer = client.post(f"{node.url}/submit", json={"id": "job-7", "priority": 2, "payload": "work 7", "maxRetries": 4})
    assert answer.status_code == 201
    job = client.get(f"{node.url}/jobs/{answer.json()['id']}").json()
    assert (job["payload"], job["max_retries"], answer.json()["ignored"]) == ("work 7", 4, ["id"])
    assert client.post(f"{node.url}/submit", json={"priority": -1}).status_code == 400
    assert client.get(f"{node.url}/submit").status_code == 405


def test_an_array_and_ndjson_are_all_or_nothing(start: Start, client: httpx.Client, database: Database) -> None:
    node = start("--no-workers")
    assert len(submit(client, node, [{"kind": "echo"}] * 5)) == 5
    ndjson = b'{"kind":"echo"}\n{"kind":"echo","priority":3}\n'
    assert client.post(f"{node.url}/submit", content=ndjson, headers={"Content-Type": "application/x-ndjson"}).status_code == 201
    refused = client.post(f"{node.url}/submit", json=[{"kind": "echo"}, {"kind": "echo", "payload": "\0"}])
    assert (refused.status_code, refused.json()["index"], refused.json()["field"]) == (422, 1, "payload")
    assert database.states() == {"pending": 7}


def test_submissions_of_many_clients_share_transactions_and_none_is_lost(
    start: Start, database: Database, client: httpx.Client
) -> None:
    node = start("--no-workers")
    script = (
        "import sys, httpx\n"
        "with httpx.Client(timeout=120) as client:\n"
        "  for _ in range(25): assert client.post(sys.argv[1], json={}).status_code == 201"
    )
    senders = [subprocess.Popen([sys.executable, "-c", script, f"{node.url}/submit"]) for _ in range(8)]
    assert [sender.wait(120) for sender in senders] == [0] * 8
    assert database.states() == {"pending": 200}
    metrics = client.get(f"{node.url}/metrics").text
    assert 'jobqueue_jobs_submitted_total{kind="default",queue="default"} 200.0' in metrics


def test_metrics_count_what_happened(start: Start, client: httpx.Client, database: Database) -> None:
    node = start()
    submit(client, node, [{"kind": "echo"}, {"kind": "fail"}, {"kind": "echo", "delay": 3600}])
    wait_for(lambda: database.states() == {"succeeded": 1, "dead": 1, "scheduled": 1}, "all have ended or wait")
    wait_for(
        lambda: 'jobs_dead_total{kind="fail",queue="default"} 1.0' in client.get(f"{node.url}/metrics").text, "the dead are counted"
    )
    lines = client.get(f"{node.url}/metrics").text.splitlines()
    for line in (
        'jobqueue_jobs_completed_total{kind="echo",queue="default"} 1.0',
        'jobqueue_attempts_failed_total{kind="fail",queue="default"} 2.0',
        'jobqueue_jobs_retried_total{kind="fail",queue="default"} 1.0',
        'jobqueue_job_run_seconds_count{kind="fail",queue="default"} 2.0',
        'jobqueue_workers{queue="default"} 16.0',
        "jobqueue_inflight_jobs 0.0",
        "jobqueue_schema_version 2.0",
    ):
        assert line in lines


def test_jobs_that_succeeded_are_not_kept_where_none_is_to_be(start: Start, client: httpx.Client, database: Database) -> None:
    service = start("--keep-finished", "0")
    ids = [client.post(f"{service.url}/submit", json={"kind": kind, "max_retries": 0}).json()["id"] for kind in ("echo", "fail")]
    wait_for(lambda: database.states() == {"dead": 1}, "one is done and gone, one is dead")
    assert [client.get(f"{service.url}/jobs/{job_id}").status_code for job_id in ids] == [404, 200]


def test_queues_pause_and_resume_on_the_running_node(start: Start, client: httpx.Client, database: Database) -> None:
    node = start("--poll-interval", "0.1")
    assert client.post(f"{node.url}/queues/default/pause").status_code == 200
    submit(client, node, {"kind": "echo"})
    time.sleep(0.5)
    assert database.states() == {"pending": 1}
    assert client.post(f"{node.url}/queues/default/resume").status_code == 200
    wait_for(lambda: database.states() == {"succeeded": 1}, "the queue goes on")


def test_a_job_for_an_idle_node_is_claimed_in_the_transaction_that_submits_it(
    start: Start, client: httpx.Client, database: Database
) -> None:
    node = start("--queue", "default=4", "--queue", "narrow=1")
    for queue in ("default", "narrow"):
        for _ in range(5):
            submit(client, node, {"kind": "echo", "queue": queue})
            wait_for(lambda: set(database.states()) == {"succeeded"}, "it is done")
    at_once = dict(
        database.rows(
            "SELECT queue, bool_or(claimed_at = created_at AND finished_at > created_at)"
            " FROM jobqueue_internal.finished_jobs GROUP BY queue"
        )
    )
    assert at_once == {"default": True, "narrow": False}, "with one worker, the node cannot know whether it claimed all jobs"


def test_priority_decides_who_runs_first(start: Start, client: httpx.Client, effects: Effects, database: Database) -> None:
    submitter = start("--no-workers")
    ids = submit(client, submitter, [{"kind": "echo", "priority": priority} for priority in (0, 50, 10, 100)])
    start("--queue", "default=1")
    wait_for(lambda: database.states() == {"succeeded": 4}, "all four are done")
    assert effects.ids("ran") == [ids[3], ids[1], ids[2], ids[0]]


def test_sql_submit_is_picked_up_by_notification_and_without_one_by_polling(start: Start, database: Database) -> None:
    start("--poll-interval", "0.3")
    database.value("SELECT jobqueue.submit('echo')")
    database.rows('SELECT jobqueue_internal.submit_batch(\'[{"kind": "echo"}]\', wake => false)')
    wait_for(lambda: database.states() == {"succeeded": 2}, "both are done")


def test_a_kind_without_a_handler_is_a_failed_attempt_unless_kinds_are_strict(start: Start, client: httpx.Client) -> None:
    node = start()
    job_id = submit(client, node, {"kind": "nobody", "max_retries": 0})
    wait_for(lambda: client.get(f"{node.url}/jobs/{job_id}").json()["state"] == "dead", "the job dies")
    assert "no handler for kind 'nobody'" in client.get(f"{node.url}/jobs/{job_id}").json()["reason"]
    assert 'jobqueue_jobs_unhandled_total{kind="nobody",queue="default"} 1.0' in client.get(f"{node.url}/metrics").text
    strict = start("--strict-kinds")
    refused = client.post(f"{strict.url}/submit", json={"kind": "nobody"})
    assert (refused.status_code, refused.json()["field"]) == (422, "kind")
    submit(client, strict, {"kind": "echo"})


# --------------------------------------------------------------------------------------------------------------- ordered shutdown


def test_sigterm_among_200_running_jobs_hands_all_of_them_back(
    start: Start, client: httpx.Client, database: Database, effects: Effects
) -> None:
    node = start("--queue", "default=200", "--grace-period", "1")
    kinds = ["sleep"] * 80 + ["thread"] * 80 + ["cpu"] * 40
    ids = submit(client, node, [{"kind": kind, "payload": {"seconds": 600}} for kind in kinds])
    # All 200 jobs have a worker. Of those in processes, two at a time run.
    wait_for(lambda: database.states() == {"inflight": 200} and len(effects.ids("began")) >= 161, "200 jobs run")
    assert node.stop() == 0, node.log
    assert database.states() == {"pending": 200}
    assert database.value("SELECT count(*) FROM jobqueue_internal.pending_jobs WHERE attempt = 0 AND claims = 1") == 200
    assert database.rows("SELECT id::text FROM jobqueue.jobs ORDER BY id") == [(job_id,) for job_id in sorted(ids)]
    assert database.rows("SELECT * FROM jobqueue_internal.nodes") == []


def test_the_clock_of_a_cpu_job_starts_when_it_has_a_process(start: Start, client: httpx.Client, database: Database) -> None:
    node = start()
    submit(client, node, [{"kind": "cpu", "payload": {"seconds": 1.5}, "timeout": 10, "max_retries": 0}] * 16)
    wait_for(lambda: sum(database.states().get(state, 0) for state in ("succeeded", "dead")) == 16, "all have ended")
    assert database.states() == {"succeeded": 16}


def test_sigterm_lets_short_jobs_finish(start: Start, client: httpx.Client, database: Database, effects: Effects) -> None:
    node = start("--queue", "default=4")
    submit(client, node, [{"kind": kind, "payload": {"seconds": 0.8}} for kind in ("sleep", "thread", "cpu")])
    wait_for(lambda: len(effects.ids("began")) == 3, "three jobs run")
    assert node.stop() == 0
    assert database.states() == {"succeeded": 3}
    assert "jobs interrupted" not in node.log


def test_shutdown_leaves_the_backlog_alone(start: Start, client: httpx.Client, database: Database, effects: Effects) -> None:
    node = start("--queue", "default=2")
    submit(client, node, [{"kind": "sleep", "payload": {"seconds": 0.3}}] * 1000)
    wait_for(lambda: len(effects.ids("began")) >= 4, "it works on them")
    assert node.stop() == 0
    states = database.states()
    assert states["pending"] > 900
    assert set(states) == {"pending", "succeeded"}


def test_a_submit_during_shutdown_is_503(start: Start, client: httpx.Client, effects: Effects) -> None:
    node = start()
    submit(client, node, {"kind": "sleep", "payload": {"seconds": 6}})
    wait_for(lambda: bool(effects.ids("began")), "a job runs, so that the shutdown takes a while")
    host, port = node.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(
            b"POST /submit HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{"
        )
        time.sleep(0.3)
        node.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "shutting down" in node.log, "the shutdown begins")
        connection.sendall(b"}")
        answer = connection.recv(65_536)
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"retry-after:" in answer.lower()
    assert node.wait() == 0


def test_a_second_signal_exits_at_once(start: Start, client: httpx.Client, effects: Effects) -> None:
    node = start("--grace-period", "3600")
    submit(client, node, {"kind": "sleep", "payload": {"seconds": 3600}})
    wait_for(lambda: bool(effects.ids("began")), "a job runs")
    node.process.send_signal(signal.SIGTERM)
    wait_for(lambda: "shutting down" in node.log, "the shutdown begins")
    node.process.send_signal(signal.SIGINT)
    assert node.wait() == 128 + signal.SIGINT, "and not after the grace period"


def test_a_function_that_is_missing_stops_the_work_and_not_the_node(start: Start, client: httpx.Client, database: Database) -> None:
    node = start("--poll-interval", "0.1")
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute("DROP FUNCTION jobqueue_internal.claim")
        submit(client, node, [{"kind": "echo"}])
        wait_for(lambda: "jobqueue_internal.claim" in client.get(f"{node.url}/health/ready").text, "it says what is missing")
        assert client.get(f"{node.url}/health/ready").status_code == 503
        connection.execute(schema.script().encode())
    wait_for(lambda: database.states() == {"succeeded": 1}, "the job is done")
    wait_for(lambda: client.get(f"{node.url}/health/ready").status_code == 200, "the node is ready")
    assert 'jobqueue_contained_errors_total{part="claims"}' in client.get(f"{node.url}/metrics").text
    assert node.stop() == 0


# --------------------------------------------------------------------------------------------------------------- crash recovery


def test_sigkill_in_the_middle_then_restart_and_all_are_done(
    start: Start, client: httpx.Client, database: Database, effects: Effects
) -> None:
    node = start("--queue", "default=50", "--visibility-timeout", "3600")
    jobs = [{"kind": kind, "payload": {"seconds": 0.1}} for kind in ("sleep", "thread", "sleep", "thread", "cpu")] * 100
    ids = submit(client, node, jobs)
    wait_for(lambda: 50 <= len(effects.ids("ended")) < 450, "some are done, some run, some wait")
    node.kill()
    states = database.states()
    assert states.get("inflight", 0) > 0
    start("--queue", "default=50")
    wait_for(lambda: database.states() == {"succeeded": 500}, "all are done, long before the lease of the dead node runs out")
    assert set(effects.ids("ended")) == set(ids)
    assert database.value("SELECT max(attempt) FROM jobqueue.jobs") == 2


def test_a_dead_nodes_jobs_are_taken_over_by_a_running_one_at_once(
    start: Start, client: httpx.Client, database: Database, effects: Effects
) -> None:
    doomed = start("--visibility-timeout", "3600", "--queue", "default=5")
    submit(client, doomed, [{"kind": "sleep", "payload": {"seconds": 3600, "again": 0.01}}] * 5)
    wait_for(lambda: len(effects.ids("began")) == 5, "it runs all five")
    survivor = start("--visibility-timeout", "3600", "--queue", "default=5")
    doomed.kill()
    wait_for(lambda: database.states() == {"succeeded": 5}, "the other node does them")
    assert 'jobqueue_jobs_recovered_total{kind="sleep",queue="default"} 5.0' in client.get(f"{survivor.url}/metrics").text
    assert Counter(attempt for _, attempt in effects.lines("ended")) == {2: 5}


def test_a_node_that_slept_past_its_lease_drops_what_it_ran_and_joins_again(
    start: Start, client: httpx.Client, database: Database, effects: Effects
) -> None:
    sleeper = start("--visibility-timeout", "4", "--queue", "default=5")
    payload = {"seconds": 30, "again": 0.01}  # longer than a loaded machine takes to start all of them
    submit(client, sleeper, [{"kind": kind, "payload": payload} for kind in ("sleep", "thread", "sleep", "thread", "cpu")])
    wait_for(lambda: len(effects.ids("began")) == 5, "it runs all five")
    sleeper.process.send_signal(signal.SIGSTOP)
    old_node = database.value("SELECT id FROM jobqueue_internal.nodes")
    other = start("--queue", "default=5")
    wait_for(lambda: len(effects.ids("began")) == 10, "the other node has taken them over")
    sleeper.process.send_signal(signal.SIGCONT)
    wait_for(lambda: database.states() == {"succeeded": 5}, "all are done")
    wait_for(lambda: database.value("SELECT count(*) FROM jobqueue_internal.nodes") == 2, "the sleeper is back")
    assert database.value("SELECT count(*) FROM jobqueue_internal.nodes WHERE id = %s", old_node) == 0
    wait_for(lambda: "lease lost" in sleeper.log, "the log says so")
    assert database.rows("SELECT DISTINCT attempt, claims FROM jobqueue_internal.finished_jobs") == [(2, 2)]
    submit(client, sleeper, {"kind": "echo"})
    wait_for(lambda: database.states() == {"succeeded": 6}, "both go on working")
    assert [sleeper.stop(), other.stop()] == [0, 0]


def test_a_job_that_kills_its_process_runs_out_of_attempts(
    start: Start, client: httpx.Client, effects: Effects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFECTS", str(effects.path))
    node = start()
    job_id = submit(client, node, {"kind": "kill", "max_retries": 2})
    for _ in range(2):
        note_start()
        assert node.wait() == 9
        node = start()
    note_start()
    assert node.wait() == 9
    survivor = start()
    job = client.get(f"{survivor.url}/jobs/{job_id}").json()
    assert (job["state"], job["attempt"]) == ("dead", 3)
    assert "killing its process" in job["reason"]
    assert len(effects.ids("ran")) == 3


def test_a_retrys_backoff_survives_a_restart(start: Start, client: httpx.Client, database: Database, effects: Effects) -> None:
    node = start()
    job_id = submit(client, node, {"kind": "fail-slowly"})
    wait_for(lambda: database.states() == {"scheduled": 1}, "its retry is scheduled")
    due = database.value("SELECT run_at FROM jobqueue_internal.scheduled_jobs")
    node.kill()
    start()
    assert database.rows("SELECT run_at FROM jobqueue_internal.scheduled_jobs") in ([(due,)], []), "none if it has run already"
    wait_for(lambda: database.states() == {"succeeded": 1}, "it runs when it is due")
    assert database.value("SELECT claimed_at >= %s FROM jobqueue_internal.finished_jobs", due)
    assert effects.lines("ran") == [(job_id, 1), (job_id, 2)]


def test_a_job_is_in_exactly_one_state_at_every_moment(start: Start, client: httpx.Client, database: Database) -> None:
    node = start()
    submit(client, node, [{"kind": "flaky"}] * 200)
    seen = set()
    deadline = time.monotonic() + 120
    while database.states() != {"succeeded": 200}:
        assert time.monotonic() < deadline
        seen.add(database.rows("SELECT count(*), count(DISTINCT id) FROM jobqueue.jobs")[0])
    assert seen == {(200, 200)}


def test_a_cancelled_job_is_never_run(start: Start, client: httpx.Client, database: Database, effects: Effects) -> None:
    node = start("--queue", "default=1")
    submit(client, node, {"kind": "sleep", "payload": {"seconds": 8}})
    wait_for(lambda: bool(effects.ids("began")), "the only worker is busy")
    waiting = submit(client, node, {"kind": "echo"})
    assert client.post(f"{node.url}/jobs/{waiting}/cancel").json()["state"] == "cancelled"
    wait_for(lambda: database.states() == {"succeeded": 1, "cancelled": 1}, "the first is done")
    submit(client, node, {"kind": "echo"})
    wait_for(lambda: database.states() == {"succeeded": 2, "cancelled": 1}, "the worker went on")
    assert waiting not in effects.ids("ran")


def test_two_nodes_share_the_work_and_nothing_runs_twice(
    start: Start, client: httpx.Client, database: Database, effects: Effects
) -> None:
    nodes = [start("--queue", "default=8") for _ in range(2)]
    ids = submit(client, nodes[0], [{"kind": "echo"}] * 1000 + [{"kind": "sleep"}] * 1000)
    wait_for(lambda: database.states() == {"succeeded": 2000}, "all are done")
    assert sorted(effects.ids("ran") + effects.ids("ended")) == sorted(ids)
    assert database.value("SELECT count(DISTINCT node_id) FROM jobqueue_internal.finished_jobs") == 2


def test_connections_that_are_cut_lose_nothing(start: Start, client: httpx.Client, database: Database, effects: Effects) -> None:
    node = start("--queue", "default=8")
    ids = submit(client, node, [{"kind": "sleep", "payload": {"seconds": 0.02}}] * 1000)
    while database.states().get("succeeded", 0) < 900:
        database.rows("""
            SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE application_name LIKE 'jobqueue %' AND datname = current_database()
        """)
        ids.append(submit(client, node, {"kind": "echo"}))
        time.sleep(0.1)
    wait_for(lambda: set(database.states()) == {"succeeded"}, "all are done")
    assert database.states() == {"succeeded": len(ids)}
    assert set(effects.ids("ended") + effects.ids("ran")) == set(ids)
    assert node.stop() == 0, node.log


# ------------------------------------------------------------------------------------------------------------- the command line


def run_cli(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return run_jobqueue(*arguments, env={"JOBQUEUE_PORT": "0", **(env or {})})


@pytest.mark.slow
def test_version_and_help_with_every_option_its_variable_and_its_default() -> None:
    assert run_cli("--version").stdout.startswith("jobqueue, version 0.")
    text = " ".join(run_cli("serve", "--help").stdout.split())
    for option, variable, default in (
        ("--database-url", "DATABASE_URL", None),
        ("--port", "JOBQUEUE_PORT", "8080"),
        ("--queue", "JOBQUEUE_QUEUES", "default=16"),
        ("--grace-period", "JOBQUEUE_GRACE_PERIOD", "20.0"),
        ("--visibility-timeout", "JOBQUEUE_VISIBILITY_TIMEOUT", "30.0"),
        ("--stall-limit", "JOBQUEUE_STALL_LIMIT", "600.0"),
    ):
        assert option in text
        assert variable in text
        assert default is None or default in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["serve", "no.such.module"], "module 'no.such.module' not found in"),
        (["serve", "json"], "has no jobqueue.App named 'app'"),
        (["serve", "examples.quickstart:nothing"], "has no jobqueue.App named 'nothing'"),
        (["serve"], "give MODULE"),
        (["serve", "examples.quickstart", "--queue", "default"], "NAME=CONCURRENCY"),
        (["serve", "examples.quickstart", "--port", "70000"], "port (--port) must be from 0 to 65535"),
        (["serve", "examples.quickstart", "--host", "0.0.0.0"], "token"),
        (
            ["serve", "examples.quickstart", "--port", "0", "--database-url", "postgresql://127.0.0.1:1/x"],
            "cannot connect to PostgreSQL",
        ),
    ],
)
def test_an_error_in_the_arguments_is_reported_in_one_line(arguments: list[str], reason: str) -> None:
    done = run_cli(*arguments)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    assert reason in last


@pytest.mark.no_schema
def test_migrate_applies_the_schema_once_and_psql_may_have_done_it(database_url: str, database: Database) -> None:
    assert run_cli("migrate", "--database-url", database_url).stdout == "schema version 2: applied\n"
    assert run_cli("migrate", env={"DATABASE_URL": database_url}).stdout == "schema version 2: up to date\n"
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(schema.script().encode())
    assert database.rows("SELECT version, oldest_node FROM jobqueue_internal.schema_version") == [(2, 2)]


def test_a_database_of_a_newer_version_is_refused(database_url: str, database: Database) -> None:
    database.rows("UPDATE jobqueue_internal.schema_version SET version = 999, oldest_node = 999 RETURNING 1")
    done = run_cli("serve", "examples.quickstart", "--port", "0", "--database-url", database_url)
    assert done.returncode == 1
    assert "schema version 999 or newer" in done.stderr.strip().splitlines()[-1]
    with psycopg.connect(database_url, autocommit=True) as connection, pytest.raises(psycopg.errors.RaiseException, match="999"):
        connection.execute(schema.script().encode())


def test_tokens_are_asked_for_and_never_logged(service: Start, client: httpx.Client) -> None:
    node = service("examples.quickstart", "--host", "127.0.0.1", env={"JOBQUEUE_TOKENS": "submit:open-sesame"})
    assert client.post(f"{node.url}/submit", json={}).status_code == 401
    assert client.get(f"{node.url}/health").status_code == 200
    assert client.post(f"{node.url}/submit", json={}, headers={"Authorization": "Bearer open-sesame"}).status_code == 201
    assert node.stop() == 0
    assert "open-sesame" not in node.log + "".join(node.banner)
