"""Two services with the same queues, keys, and schedules in one database, and the commands of docs/two-queues.md."""

from __future__ import annotations

import re
import shlex

import httpx
import pytest

from tests.support import ROOT
from tests.support.command_line import call
from tests.support.postgres import Database
from tests.support.service import Effects, Start, submit
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs" / "two-queues.md").read_text(encoding="utf-8")


def test_two_services_share_a_database_and_nothing_else(
    start: Start, client: httpx.Client, effects: Effects, database: Database
) -> None:
    shop = start("--poll-interval", "60")
    mail = start("--poll-interval", "60", "--schema", "mail")
    job = {"kind": "echo", "unique_key": "nightly", "idempotency_key": "k", "concurrency_key": "account"}
    ids = [submit(client, node, {**job, "payload": {"n": n}}) for n, node in enumerate((shop, mail))]
    wait_for(lambda: sorted(effects.ids("ran")) == sorted(ids))
    for node, own, other in ((shop, *ids), (mail, *reversed(ids))):
        assert client.get(f"{node.url}/jobs/{own}").status_code == 200
        assert client.get(f"{node.url}/jobs/{other}").status_code == 404
        assert len(client.get(f"{node.url}/nodes").json()) == 1
    assert client.post(f"{mail.url}/queues/default/pause").status_code == 200
    held, run = (submit(client, node, {"kind": "echo"}) for node in (mail, shop))
    wait_for(lambda: run in effects.ids("ran"))
    assert client.get(f"{mail.url}/jobs/{held}").json()["state"] == "pending"
    [scheduled] = database.rows("SELECT mail.submit('echo', run_at => now() + interval '1 second')")
    assert client.post(f"{mail.url}/queues/default/resume").status_code == 200
    wait_for(lambda: {held, str(scheduled[0])} <= set(effects.ids("ran")))  # by notifications: the next poll is far away
    assert shop.stop() == 0
    database.rows("DROP SCHEMA jobqueue, jobqueue_internal CASCADE")
    last = submit(client, mail, {"kind": "thread"})
    wait_for(lambda: last in effects.ids("ended"))
    assert mail.stop() == 0


def test_all_processes_of_a_service_use_its_schema(start: Start, database: Database) -> None:
    service = start("--processes", "2", "--schema", "mail")
    assert database.value("SELECT count(*) FROM mail.nodes") == 2
    assert database.value("SELECT count(*) FROM jobqueue.nodes") == 0
    assert service.stop() == 0


def test_the_keeper_of_a_killed_node_ends_its_lease(start: Start, database: Database) -> None:
    node = start("--schema", "mail")
    node.kill()
    # Without the keeper, the lease would end after the visibility timeout of 30 s.
    wait_for(lambda: database.value("SELECT count(*) FROM mail.nodes WHERE lease_until > now()") == 0, seconds=20)


@pytest.mark.no_schema
def test_the_commands_of_the_page_work(database: Database) -> None:
    env = {"DATABASE_URL": database.url, "TZ": "UTC"}
    lines = re.findall(r"^\$ jobqueue ((?!serve).*)$", PAGE, re.MULTILINE)
    codes = {"doctor": 1}  # fsync is off, and no node runs
    printed = [call(*shlex.split(line), code=codes.get(line.split()[0], 0), env=env).stdout for line in lines]
    assert [line.split()[0] for line in lines] == ["migrate", "submit", "jobs", "doctor"]
    assert printed[0] == "schema version 2: applied\n"
    assert printed[1].strip() in printed[2]
    *statements, drop = re.findall(r"```sql\n(.*?)\n```", PAGE, re.DOTALL)
    for statement in statements:
        database.rows(statement)
    assert database.value("SELECT count(*) FROM mail.jobs") == 1 + len(statements)
    database.rows(drop)
    assert database.value("SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'mail%%' OR nspname LIKE 'jobqueue%%'") == 0


def test_a_name_is_checked_and_needs_a_database() -> None:
    assert "the schema name (--schema) must be" in call("migrate", "--schema", "Mail", "--print", code=2).stderr
    assert "give --database-url" in call("queues", "--schema", "mail", code=2).stderr
    done = call(
        "queues", "--url", "http://127.0.0.1:9", env={"JOBQUEUE_SCHEMA": "mail"}, code=4
    )  # the variable is for other commands
    assert "give --database-url" not in done.stderr
