"""Every command gives the same results over HTTP and on the database, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from uuid import uuid4

import httpx
import pytest

from tests.support import postgres
from tests.support.command_line import UUID, CommandLine
from tests.support.postgres import Database, ServerPool
from tests.support.running import HANDLERS
from tests.support.service import Service

NOBODY = "0190a0b0-0000-7000-8000-00000000ffff"
TOKEN = "s3cret"


@pytest.fixture(scope="module")
def database(servers: ServerPool) -> Iterator[Database]:
    with postgres.database(servers.url("embedded")) as url:
        opened = Database(url)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def node(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    effects = tmp_path_factory.mktemp("node") / "effects"
    service = Service(
        [HANDLERS, "--port", "0", "--database-url", database.url, "--token", f"admin:{TOKEN}"], {"EFFECTS": str(effects)}
    )
    yield service
    service.kill()


@pytest.fixture
def jobqueue(node: Service, database: Database) -> CommandLine:
    """Commands on one queue, in turn over HTTP and on the database."""
    return CommandLine(["--url", node.url, "--token", TOKEN], ["--database-url", database.url])


@pytest.fixture
def queue() -> str:
    """The name of a queue of this test, which no node works."""
    return f"q-{uuid4().hex[:8]}"


def fill(jobqueue: CommandLine, queue: str, jobs: int, **fields: object) -> list[str]:
    lines = "\n".join(json.dumps({"payload": {"n": n}, **fields}) for n in range(jobs))
    return [line["id"] for line in jobqueue.lines("submit", "steps", "--queue", queue, "--file", "-", stdin=lines)]


def test_submit_prints_the_id_and_show_prints_all_fields(jobqueue: CommandLine, node: Service) -> None:
    text = jobqueue.text("submit", "steps", '{"steps": 1, "seconds": 0}', "--priority", "3", "--group", "tenant")
    job_id = text.strip()
    assert UUID.fullmatch(job_id)
    assert jobqueue("jobs", "wait", job_id, "--timeout", "60").stdout == f'{job_id}  succeeded  "walked"\n'

    job = jobqueue.json("jobs", "show", job_id)
    assert job == httpx.get(f"{node.url}/jobs/{job_id}", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60).json()
    assert (job["state"], job["priority"], job["payload"]) == ("succeeded", 3, {"steps": 1, "seconds": 0})

    shown = jobqueue.text("jobs", "show", job_id)
    for said in (job_id, "succeeded", "steps", "tenant", '"walked"', '"seconds": 0', "submitted", "attempt 1 claimed by node"):
        assert said in shown


def test_submit_and_wait_prints_the_result_and_fails_as_the_job_does(jobqueue: CommandLine) -> None:
    done = jobqueue("submit", "steps", '{"steps": 0}', "--wait")
    assert done.stdout == '"walked"\n'
    assert UUID.fullmatch(done.stderr.strip())
    job = jobqueue.json("submit", "steps", '{"steps": 0}', "--wait=60")
    assert (job["state"], job["result"]) == ("succeeded", "walked")

    failed = jobqueue("submit", "fan-out", '{"fail": 3}', "--wait", code=1)
    assert failed.stdout == ""
    assert "is dead: attempt 1 of 1 failed: 3 errors" in failed.stderr
    dead_id = UUID.search(failed.stderr)
    assert dead_id is not None
    shown = jobqueue.text("jobs", "show", dead_id[0])
    assert "ValueError: child 1" in shown
    assert "attempt 1 failed after" in shown
    assert jobqueue.json("submit", "fan-out", '{"fail": 3}', "--wait", code=1)["state"] == "dead"


def test_a_payload_is_read_from_standard_input(jobqueue: CommandLine, queue: str) -> None:
    job_id = jobqueue.text("submit", "steps", "-", "--queue", queue, stdin='{"from": "stdin"}').strip()
    assert jobqueue.json("jobs", "show", job_id)["payload"] == {"from": "stdin"}


def test_every_field_of_a_job_has_an_option(jobqueue: CommandLine, queue: str) -> None:
    options = ["--max-retries", "7", "--timeout", "2m", "--expires-in", "1d"]
    options += ["--weight", "2", "--group", "g", "--concurrency-key", "c"]
    keys = ["--unique", "--unique-key", "u", "--idempotency-key", f"{queue}-1", "--delay", "2h"]
    job = jobqueue.json("jobs", "show", jobqueue.text("submit", "steps", "--queue", queue, *options, *keys).strip())
    assert (job["max_retries"], job["timeout"], job["state"]) == (7, 120, "scheduled")
    assert job["options"].items() >= {"group": "g", "weight": 2, "concurrency_key": "c", "unique_key": "u"}.items()
    again = jobqueue.text("submit", "steps", "--queue", queue, *options, *keys).strip()
    assert again == job["id"]
    at = jobqueue.text("submit", "steps", "--queue", queue, "--run-at", "2099-01-31T08:00:00+02:00").strip()
    assert jobqueue.json("jobs", "show", at)["run_at"].startswith("2099-01-31T06:00:00")
    jobqueue("jobs", "cancel", at, job["id"])


def test_each_failure_has_an_exit_code_and_a_reason(jobqueue: CommandLine, queue: str) -> None:
    waiting = jobqueue.text("submit", "steps", "--queue", queue, "--delay", "1h").strip()
    for code, said, arguments in (
        (1, "priority must be an integer from 0", ["submit", "steps", "--priority", "-1"]),
        (1, "only dead jobs can be", ["jobs", "retry", waiting]),
        (2, "not a JSON document", ["submit", "steps", "{"]),
        (2, "give the KIND", ["submit"]),
        (2, "no jobs selected", ["jobs", "cancel"]),
        (2, "not both", ["jobs", "cancel", waiting, "--queue", queue]),
        (2, "nothing to change", ["jobs", "change", waiting]),
        (3, f"job {NOBODY} not found", ["jobs", "show", NOBODY]),
        (3, f"job {NOBODY} not found", ["jobs", "wait", NOBODY]),
        (3, "schedule 'nothing' not found", ["schedules", "show", "nothing"]),
        (5, "has not ended within 0.1 s", ["jobs", "wait", waiting, "--timeout", "100ms"]),
    ):
        failed = jobqueue(*arguments, code=code)
        assert said in failed.stderr.splitlines()[-1], arguments
        assert failed.stdout == ""
    jobqueue("jobs", "cancel", waiting)


def test_jobs_are_listed_by_filter_and_page_by_page(jobqueue: CommandLine, queue: str) -> None:
    ids = fill(jobqueue, queue, 7)
    listed = jobqueue.json("jobs", "list", "--queue", queue, "--limit", "3")
    assert [job["id"] for job in listed["jobs"]] == ids[:3:-1]
    more = jobqueue.json("jobs", "list", "--queue", queue, "--limit", "30", "--after", listed["next"])
    assert ([job["id"] for job in more["jobs"]], more["next"]) == (ids[3::-1], None)
    assert [job["id"] for job in jobqueue.lines("jobs", "--queue", queue, "--all")] == ids[::-1]
    assert jobqueue.json("jobs", "list", "--queue", queue, "--state", "dead", "--state", "inflight")["jobs"] == []
    assert jobqueue.json("jobs", "list", "--queue", queue, "--created-before", "1h")["jobs"] == []
    assert len(jobqueue.json("jobs", "list", "--queue", queue, "--created-after", "1h")["jobs"]) == 7

    some = jobqueue("jobs", "--queue", queue, "--limit", "2")
    head, *rows = some.stdout.splitlines()
    assert head.split()[:3] == ["ID", "STATE", "KIND"]
    assert [row.split()[:3] for row in rows] == [[job_id, "pending", "steps"] for job_id in ids[:4:-1]]
    assert "--after" in some.stderr
    every = jobqueue.text("jobs", "--queue", queue, "--all")
    assert [row.split()[0] for row in every.splitlines()[1:]] == ids[::-1]


def test_jobs_are_cancelled_by_id_and_by_filter(jobqueue: CommandLine, queue: str) -> None:
    ids = fill(jobqueue, queue, 5)
    some = jobqueue("jobs", "cancel", ids[0], NOBODY, ids[1], code=3)
    assert some.stdout == f"{ids[0]}  cancelled\n{ids[1]}  cancelled\n"
    assert NOBODY in some.stderr
    assert [job["state"] for job in jobqueue.lines("jobs", "cancel", ids[2])] == ["cancelled"]

    assert jobqueue.text("jobs", "cancel", "--queue", queue, "--dry-run") == "2 jobs would be cancelled\n"
    refused = jobqueue("jobs", "cancel", "--queue", queue, code=2)
    assert "2 jobs would be cancelled. Give --yes to confirm" in refused.stderr
    assert len(jobqueue.json("jobs", "--queue", queue, "--state", "pending")["jobs"]) == 2
    assert jobqueue.json("jobs", "cancel", "--queue", queue, "--yes") == {"jobs": 2}
    assert jobqueue.text("jobs", "cancel", "--queue", queue, "--kind", "steps") == "0 jobs cancelled\n"


def test_a_waiting_job_is_changed(jobqueue: CommandLine, queue: str) -> None:
    [job_id] = fill(jobqueue, queue, 1)
    assert jobqueue.text("jobs", "change", job_id, "--priority", "9") == f"{job_id}  pending, priority 9\n"
    assert jobqueue.json("jobs", "change", job_id, "--delay", "1h")["state"] == "scheduled"
    assert "scheduled, priority 9, due 2" in jobqueue.text("jobs", "change", job_id, "--run-at", "2099-01-01")
    jobqueue("jobs", "cancel", job_id)
    assert "cancelled" in jobqueue("jobs", "change", job_id, "--priority", "1", code=1).stderr


def test_dead_letters_are_listed_run_again_and_deleted(jobqueue: CommandLine) -> None:
    group = f"g-{uuid4().hex[:8]}"
    dead = [
        jobqueue("submit", "fan-out", '{"fail": 3}', "--group", group, "--wait", code=1).stderr.partition("\n")[0] for _ in range(3)
    ]
    listed = jobqueue.json("dead", "--group", group)
    assert ([job["id"] for job in listed["jobs"]], listed["next"]) == (dead[::-1], None)
    table = jobqueue.text("dead", "list", "--group", group, "--reason", "3 errors")
    assert [row.split()[0] for row in table.splitlines()[1:]] == dead[::-1]
    assert jobqueue.json("dead", "--group", group, "--died-before", "1h")["jobs"] == []
    assert [job["id"] for job in jobqueue.json("jobs", "list", "--group", group, "--text", "3 ERRORS")["jobs"]] == dead[::-1]
    [only] = [cause for cause in jobqueue.json("dead", "causes", "--kind", "fan-out")["causes"] if cause["example"] == dead[-1]]
    assert only["cause"] in jobqueue.text("dead", "causes", "--limit", "100")
    assert jobqueue.json("dead", "--group", group, "--cause", "nothing")["jobs"] == []
    assert jobqueue.json("dead", "discard", "--group", group, "--cause", only["cause"], "--dry-run") == {"jobs": 3}

    assert jobqueue.text("dead", "discard", dead[0]) == f"{dead[0]}  discarded\n"
    assert jobqueue.json("dead", "retry", "--group", group, "--dry-run") == {"jobs": 2}
    assert jobqueue.text("jobs", "retry", "--group", group, "--yes") == "2 jobs rerun\n"
    jobqueue("jobs", "wait", *dead[1:], code=1)  # they fail again
    assert "2 jobs would be deleted" in jobqueue("dead", "discard", "--group", group, code=2).stderr
    assert jobqueue.text("dead", "discard", "--group", group, "-y") == "2 jobs deleted\n"
    assert jobqueue.json("dead", "--group", group)["jobs"] == []


def test_queues_are_shown_limited_paused_and_resumed(jobqueue: CommandLine, queue: str) -> None:
    fill(jobqueue, queue, 2, delay=3600)
    settings = jobqueue.json("queues", "configure", queue, "--max-running", "5", "--rate", "2.5", "--aging-interval", "3")
    assert (settings["max_running"], settings["rate"], settings["aging_interval"]) == (5, 2.5, 3)
    assert "2.5" in jobqueue.text("queues", "configure", queue, "--max-running", "none")
    assert jobqueue.text("queues", "pause", queue) == f"{queue}  paused\n"

    shown = jobqueue.json("queues", "show", queue)
    assert (shown["paused"], shown["max_running"], shown["rate"]) == (True, None, 2.5)
    assert "paused          yes" in jobqueue.text("queues", "show", queue)
    [listed] = [one for one in jobqueue.json("queues", "list") if one["name"] == queue]
    assert listed["paused"] is True
    [row] = [line for line in jobqueue.text("queues").splitlines() if line.startswith(f"{queue} ")]
    assert row.split()[-1] == "paused"

    assert jobqueue.json("queues", "resume", queue) == {"queue": queue, "paused": False}
    assert jobqueue.json("queues", "show", queue)["paused"] is False
    assert "NUMBER" in jobqueue("queues", "configure", "--help").stdout
    assert "must be a number or none" in jobqueue("queues", "configure", queue, "--rate", "fast", code=2).stderr
    assert jobqueue("queues", "show", "nobody-knows", code=3).stdout == ""


def test_nodes_lists_services_and_not_commands(jobqueue: CommandLine, database: Database) -> None:
    nodes = jobqueue.json("nodes")
    assert [node["id"] for node in nodes] == [str(row) for [row] in database.rows("SELECT id FROM jobqueue_internal.nodes")]
    [row] = jobqueue.text("nodes").splitlines()[1:]
    assert row.startswith(nodes[0]["id"])
    assert row.split()[-2:] == ["default", "0/16"]


def test_schedules_are_created_shown_paused_triggered_and_deleted(jobqueue: CommandLine) -> None:
    name = f"s-{uuid4().hex[:8]}"
    made = jobqueue.json("schedules", "put", name, "30 2 * * *", '{"steps": 0}', "--kind", "steps", "--timezone", "Europe/Berlin")
    assert (made["kind"], made["timezone"], made["payload"]) == ("steps", "Europe/Berlin", {"steps": 0})
    assert "30 2 * * * (Europe/Berlin)" in jobqueue.text("schedules", "show", name)
    assert jobqueue.text("schedules", "pause", name) == f"{name}  paused\n"
    [row] = [line for line in jobqueue.text("schedules").splitlines() if line.startswith(name)]
    assert row.split()[-1] == "paused"
    assert jobqueue.json("schedules", "resume", name)["paused"] is False
    [triggered] = jobqueue.lines("schedules", "trigger", name)
    assert jobqueue.json("jobs", "show", triggered["id"])["kind"] == "steps"
    assert jobqueue.text("schedules", "delete", name) == f"{name}  deleted\n"
    assert jobqueue("schedules", "show", name, code=3).stdout == ""
    assert "cron" in jobqueue("schedules", "put", name, "never", code=1).stderr


def test_a_job_with_a_concurrency_key_runs_after_submission_over_http_and_sql(jobqueue: CommandLine) -> None:
    for _ in range(2):
        assert jobqueue.json("submit", "steps", '{"steps": 0}', "--concurrency-key", "k", "--wait=60")["state"] == "succeeded"
