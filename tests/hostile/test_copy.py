"""A copy of a database: the statements of docs/deploying.md pause everything that a node would run on it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from tests.support import ROOT
from tests.support.postgres import Database
from tests.support.service import Service
from tests.support.waiting import wait_for

STATEMENTS = re.compile(r"## Start on a copy of a database\n.*?```sql\n(.*?)```", re.DOTALL)


def statements() -> list[str]:
    found = STATEMENTS.search((ROOT / "docs/deploying.md").read_text())
    assert found
    return [statement for statement in found[1].split(";") if statement.strip()]


def test_a_node_on_a_copy_runs_nothing_until_it_is_resumed(service: Callable[..., Service], database: Database) -> None:
    database.rows("SELECT jobqueue.schedule('tick', '* * * * * *', kind => 'default')")
    for more in ("", ", run_at => now() + interval '1 second'", ", concurrency_key => 'account 7'"):
        database.rows(f"SELECT jobqueue.submit('default'{more})")
    database.rows("SELECT jobqueue.submit('default', queue => 'mail')")  # a queue without a row, because no node has worked it
    # This job was running when the copy was made.
    node = database.value("SELECT gen_random_uuid()")
    database.rows("SELECT jobqueue_internal.join_node(%s, 'production', 1, 'p', '0', '{\"default\": 1}', 3600)", node)
    database.rows("SELECT jobqueue_internal.claim(%s, '{\"default\": [1, null]}')", node)
    database.rows("DELETE FROM jobqueue_internal.nodes")
    assert len(statements()) == 2
    for statement in statements():
        database.rows(statement)
    running = service("examples.quickstart", "--queue", "default=4", "--queue", "mail=4", "--poll-interval", "0.1")
    assert running.url
    wait_for(lambda: database.states() == {"pending": 4}, "all are taken back, promoted, and admitted")
    time.sleep(2)
    assert database.states() == {"pending": 4}
    database.rows("SELECT jobqueue.pause('mail', false)")
    wait_for(lambda: database.states() == {"pending": 3, "succeeded": 1}, "one queue is resumed")
    database.rows("SELECT jobqueue.pause('default', false)")
    database.rows("SELECT jobqueue.pause_schedule('tick', false)")
    wait_for(lambda: database.states()["succeeded"] > 5, "it ticks")
    assert running.stop() == 0
