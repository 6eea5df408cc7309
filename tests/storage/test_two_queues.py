"""Two queues in one database: the same names in both, and no effect of one on the other."""

from __future__ import annotations

from collections.abc import AsyncIterator

import psycopg
import pytest
import trio

import jobqueue
from jobqueue import documents
from jobqueue.errors import SchemaVersionError, SettingsError
from jobqueue.job import Options, Outcome
from jobqueue.queue_settings import QueueSettings
from jobqueue.schema_names import DEFAULT
from jobqueue.storage import doctor, schema
from jobqueue.storage.connection import connect
from jobqueue.storage.handler_transactions import HandlerConnection, Transactions
from jobqueue.storage.postgres.store import PostgresStore
from jobqueue.storage.schema import catalog
from jobqueue.timetable import CronSchedule
from tests.support.postgres import Database, as_role, role
from tests.support.storage import Driver, joined

pytestmark = pytest.mark.slow


@pytest.fixture
async def mail(any_database_url: str) -> AsyncIterator[Driver]:
    store = PostgresStore(any_database_url, "mail")
    await store.migrate()
    yield await joined(store)
    await store.aclose()


def migrate(url: str, name: str = DEFAULT) -> schema.Migration:
    with connect(url, "migrate", schema=name) as connection:
        return schema.migrate(connection)


def objects(url: str, name: str) -> catalog.Catalog:
    with connect(url, "test", schema=name) as connection:
        return catalog.look(connection, schema.script(name))


def test_both_schemas_have_the_same_objects(sql: Database) -> None:
    assert migrate(sql.url, "mail") == schema.Migration(applied=True, repaired=[])
    assert migrate(sql.url, "mail") == schema.Migration(applied=False, repaired=[])
    labels = {thing.label for thing in objects(sql.url, DEFAULT)}
    assert {thing.label.replace(" mail", " jobqueue") for thing in objects(sql.url, "mail")} == labels
    counts = "SELECT count(*) FROM pg_class WHERE relnamespace = %s::regnamespace"
    assert sql.value(counts, "mail_internal") == sql.value(counts, "jobqueue_internal")
    grants = (
        "SELECT count(*) FROM pg_proc WHERE pronamespace = %s::regnamespace AND has_function_privilege('public', oid, 'EXECUTE')"
    )
    assert sql.value(grants, "mail") == sql.value(grants, "jobqueue")


def test_a_migration_of_one_queue_leaves_the_other_unchanged(sql: Database) -> None:
    before = sql.rows("SELECT oid, xmin::text FROM pg_proc WHERE pronamespace::regnamespace::text LIKE 'jobqueue%%' ORDER BY oid")
    migrate(sql.url, "mail")
    sql.rows("DROP FUNCTION mail_internal.promote")
    assert migrate(sql.url, "mail").repaired == ["function mail_internal.promote"]
    after = sql.rows("SELECT oid, xmin::text FROM pg_proc WHERE pronamespace::regnamespace::text LIKE 'jobqueue%%' ORDER BY oid")
    assert after == before


@pytest.mark.no_schema
def test_a_queue_works_without_the_default_one_and_after_the_other_is_dropped(sql: Database) -> None:
    migrate(sql.url, "mail")
    assert sql.value("SELECT to_regnamespace('jobqueue') IS NULL AND to_regnamespace('jobqueue_internal') IS NULL")
    migrate(sql.url, "shop")
    sql.rows("SELECT mail.submit('greet'), shop.submit('greet')")
    sql.rows("DROP SCHEMA shop, shop_internal CASCADE")
    sql.rows("SELECT mail.submit('greet')")
    assert sql.value("SELECT count(*) FROM mail.jobs") == 2
    assert sql.value("SELECT jsonb_array_length(mail.list_jobs() -> 'jobs')") == 2


@pytest.mark.no_schema
def test_an_unfinished_upgrade_of_another_queue_is_finished(sql: Database) -> None:
    migrate(sql.url, "mail")
    sql.rows("UPDATE mail_internal.schema_version SET oldest_node = 1")
    with connect(sql.url, "migrate", schema="mail") as connection:
        assert not schema.is_finished(connection)
        schema.finish(connection)
        assert schema.is_finished(connection)


async def test_jobs_keys_limits_and_pauses_belong_to_one_queue(driver: Driver, mail: Driver) -> None:
    options = Options(unique_key="nightly", concurrency_key="account", group="tenant", idempotency_key="k")
    for one in (driver, mail):
        await one.store.configure("default", QueueSettings(max_running=1))
        await one.submit(options=options)
        await one.store.admit()
    ours, theirs = await driver.claim_one(), await mail.claim_one()
    assert ours.id != theirs.id
    await driver.submit()
    assert await driver.claim() == []  # the limit
    assert await driver.store.job(theirs.id) is None
    assert not await driver.finish(theirs, "succeeded")
    assert await mail.finish(theirs, "succeeded")
    assert await driver.state(ours.id) == "inflight"
    await driver.store.pause("default", paused=True)
    assert await mail.submit() == (await mail.claim_one()).id


async def test_schedules_and_leases_belong_to_one_queue(driver: Driver, mail: Driver) -> None:
    schedule = CronSchedule(name="nightly", cron="0 3 * * *", kind="report")
    for one in (driver, mail):
        assert await one.store.reconcile_schedules("app", [schedule]) == {}
    assert await mail.store.unschedule("nightly")
    assert [found.name for found in await driver.store.schedules()] == ["nightly"]
    await driver.submit()
    await driver.claim_one()
    await driver.end_lease()
    assert await mail.recover() == []
    assert len(await driver.recover()) == 1


def test_a_notification_reaches_only_the_nodes_of_its_queue(sql: Database) -> None:
    migrate(sql.url, "mail")
    with psycopg.connect(sql.url, autocommit=True) as listener:
        for channel in ("jobqueue", '"mail:jobqueue"'):
            listener.execute(f"LISTEN {channel}")
        sql.rows("SELECT mail.submit('greet')")
        assert [notify.channel for notify in listener.notifies(timeout=1, stop_after=1)] == ["mail:jobqueue"]
        sql.rows("SELECT jobqueue.submit('greet')")
        assert [notify.channel for notify in listener.notifies(timeout=1, stop_after=1)] == ["jobqueue"]


def test_the_queues_do_not_wait_for_the_locks_of_each_other(sql: Database) -> None:
    migrate(sql.url, "mail")
    locks = "SELECT classid, objid FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
    held: list[set[tuple[int, int]]] = []
    for name in ("jobqueue", "mail"):
        with psycopg.connect(sql.url) as session:
            session.execute(f"SELECT {name}_internal.reconcile_schedules('app', '[]'), {name}_internal.maintain(1e9, 1e9)")
            held.append(set(session.execute(locks).fetchall()))
    assert held[0]
    assert len(held[0]) == len(held[1])
    assert held[0].isdisjoint(held[1])


def test_submit_on_a_connection_names_the_queue(sql: Database) -> None:
    migrate(sql.url, "mail")
    with psycopg.connect(sql.url) as conn:
        jobqueue.submit(conn, "greet", schema="mail")
        jobqueue.submit_many(conn.cursor(), [{"kind": "greet"}, {"kind": "greet"}], schema="mail")
        jobqueue.submit(conn, "greet")
        with pytest.raises(SettingsError, match=r"mail\.jobs"):
            jobqueue.submit(conn, "greet", schema="mail.jobs")
    assert sql.value("SELECT count(*) FROM mail.jobs") == 3
    assert sql.value("SELECT count(*) FROM jobqueue.jobs") == 1


async def test_a_handlers_transaction_uses_the_queue_of_its_node(sql: Database, mail: Driver) -> None:
    await mail.submit()
    job = await mail.claim_one()
    pool = Transactions(sql.url, most=1, keep_finished=True, schema="mail")

    def work(connection: HandlerConnection) -> bytes:
        jobqueue.submit(connection, "next")
        jobqueue.submit(connection.cursor(), "next")
        jobqueue.submit(connection, "elsewhere", schema="jobqueue")
        return documents.encode(Outcome(id=job.id, claims=job.claims, outcome="succeeded"))

    async with pool.open() as transaction:
        assert await trio.to_thread.run_sync(transaction.run, mail.node, work)
    pool.close()
    assert await mail.state(job.id) == "succeeded"
    assert sql.rows("SELECT kind, state FROM mail.jobs ORDER BY 1") == [
        ("default", "succeeded"),
        ("next", "pending"),
        ("next", "pending"),
    ]
    assert sql.rows("SELECT kind FROM jobqueue.jobs") == [("elsewhere",)]


def test_a_missing_queue_is_named_and_a_keyword_is_rejected(sql: Database) -> None:
    with (
        connect(sql.url, "test", schema="mail") as connection,
        pytest.raises(SchemaVersionError, match=r'and the name "mail" \(--schema\)'),
    ):
        schema.require(connection)
    for name in ("order", "values"):
        with pytest.raises(SettingsError, match=f"'{name}' is a keyword of SQL"):
            migrate(sql.url, name)


def test_doctor_checks_one_queue_and_names_it_in_its_advice(sql: Database) -> None:
    migrate(sql.url, "mail")
    sql.rows("DROP FUNCTION jobqueue_internal.promote")
    sql.rows("SELECT jobqueue.submit('greet')")
    findings = {finding.check: finding for finding in doctor.examine(sql.url, "mail")}
    assert findings["objects"].verdict == findings["queues"].verdict == findings["privileges"].verdict == "ok"
    assert "jobqueue serve --schema mail" in str(findings["nodes"].advice)
    assert any(finding.verdict == "problem" for finding in doctor.examine(sql.url) if finding.check == "objects")
    with role(sql.url) as name:
        lacking = [finding.advice for finding in doctor.examine(as_role(sql.url, name), "mail") if finding.check == "privileges"]
    assert lacking == [f"as the owner of the schema, jobqueue migrate --schema mail --grant node={name}"]


async def test_the_store_of_a_pooler_and_of_a_newer_text_uses_the_name(mail: Driver) -> None:
    """Statements that are not prepared are rendered too."""
    with connect(mail.store.url, "test", schema="mail") as connection:
        connection.prepares = False
        assert connection.execute("SELECT count(*) FROM jobqueue_internal.nodes", prepare=True) == [(1,)]
