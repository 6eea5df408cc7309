"""The dump of a version 1 database loads into each server, and has every kind of row."""

from __future__ import annotations

import pytest

from tests.support.postgres import Database

FINGERPRINT = "schema.sql 546d84d51f5b88dd852fa9134a570edc, objects c77ad831c64695bda5f1c330bfef32f1"
"""The digests of version 1 in the comment of the table schema_version."""

ROWS = {
    "scheduled by run_at": "scheduled_jobs WHERE claims = 0",
    "scheduled by a retry": "scheduled_jobs WHERE errors <> '[]' AND saved IS NOT NULL",
    "scheduled by a snooze": "scheduled_jobs WHERE claims = 1 AND attempt = 0 AND errors = '[]'",
    "scheduled with an expiry time": "scheduled_jobs WHERE options ? 'expires_at'",
    "scheduled with a group and a key": "scheduled_jobs WHERE options ?& '{group,concurrency_key}'",
    "blocked": "blocked_jobs",
    "blocked with an expiry time": "blocked_jobs WHERE options ? 'expires_at'",
    "pending": "pending_jobs WHERE options IS NULL AND max_retries IS NULL",
    "pending with a priority": "pending_jobs WHERE priority > 0 AND options IS NULL",
    "pending with max_retries and a timeout": "pending_jobs WHERE max_retries > 0 AND timeout > 0",
    "pending after a failed attempt": "pending_jobs WHERE errors <> '[]' AND saved IS NOT NULL AND claims > 1",
    "pending and admitted": "pending_jobs WHERE admitted AND options ? 'concurrency_key'",
    "pending with a trace": "pending_jobs WHERE options ?& '{traceparent,tracestate}'",
    "pending and expired": "pending_jobs WHERE to_timestamp((options -> 'expires_at')::float) < now()",
    "pending with a later expiry time": "pending_jobs WHERE to_timestamp((options -> 'expires_at')::float) > now()",
    "pending with a deep payload": "pending_jobs WHERE payload @? 'strict $.**{99}'",
    "pending with a large payload": "pending_jobs WHERE pg_column_size(payload) > 8192",
    "pending with Unicode": "pending_jobs WHERE queue ~ '🐘' AND kind ~ 'ö'",
    "pending in a queue that ages slowly": "pending_jobs JOIN jobqueue.queues ON name = queue WHERE aging_interval = '10 s'",
    "pending by a schedule": "pending_jobs WHERE options ?& '{schedule,scheduled_for}'",
    "pending by a triggered schedule": "pending_jobs WHERE options ? 'schedule' AND NOT options ? 'scheduled_for'",
    "pending of an unknown kind": "pending_jobs WHERE kind = 'unknown'",
    "inflight": "inflight_jobs JOIN jobqueue.nodes AS n ON n.id = node_id WHERE lease_until < now() AND saved ? 'progress'",
    "inflight under the limit of its queue": "inflight_jobs WHERE limited AND options IS NULL",
    "inflight under the limit of its key": "inflight_jobs WHERE limited AND options ? 'concurrency_key'",
    "inflight with a cancel mark": "inflight_jobs WHERE cancel_requested_at IS NOT NULL",
    "inflight with a cancel request": "inflight_jobs JOIN jobqueue.cancel_requests ON job_id = id",
    "inflight after it blocked its node": "inflight_jobs WHERE blame IS NOT NULL",
    "succeeded": "succeeded_jobs WHERE result IS NOT NULL AND saved IS NOT NULL",
    "succeeded after a failed attempt": "succeeded_jobs WHERE errors <> '[]'",
    "succeeded on a day without a partition": "succeeded_jobs_default",
    "succeeded days before": "succeeded_jobs WHERE finished_at < (SELECT min(finished_at) FROM jobqueue.succeeded_jobs_default)",
    "cancelled": "cancelled_jobs WHERE claims = 0",
    "cancelled while it ran": "cancelled_jobs WHERE claims > 0",
    "cancelled on a day without a partition": "cancelled_jobs_default",
    **{
        f"dead: {reason}": f"dead_jobs WHERE reason LIKE '%{reason}%' AND cause IS NOT NULL"
        for reason in (
            "each attempt fails",
            "the address is gone",
            "timed out after",
            "the result cannot be stored",
            "no handler for kind",
            "does not fit the handler",
            "expired",
            "lease lost",
            "blocked the node",
            "cannot move this row: integer out of range",
            "cannot be read: Expected",
            "cannot be read: nested too deeply",
        )
    },
    "dead after a redrive": "dead_jobs WHERE claims > attempt",
    "a paused queue": "queues WHERE paused",
    "a queue with limits": "queues WHERE max_running > 0 AND rate > 0 AND burst > 0",
    "a queue with limits of its keys": "queues WHERE key_max_running > 0 AND key_rate > 0 AND key_burst > 0",
    "a queue without limits": "queues WHERE num_nonnulls(max_running, rate, burst, key_max_running, key_rate, key_burst) = 0",
    "the state of limits": "queue_limits WHERE tokens IS NOT NULL AND counted_since IS NOT NULL",
    "lines that are served": "fair_queues WHERE common > 0 AND urgent > 0",
    "lines that were emptied": "fair_queues WHERE epoch > 0",
    "groups in turn": "fair_groups JOIN jobqueue.fair_queues USING (queue, epoch) WHERE fair_groups.common > fair_queues.common",
    "a key that waits for a token": "key_checks WHERE timed",
    "a key to check at once": "key_checks WHERE timed IS NULL",
    "starts of a key": "key_starts JOIN jobqueue.key_buckets USING (queue, key) WHERE check_at IS NOT NULL",
    "an idempotency key": "keys WHERE scope = 'idempotency' AND expires_at > now() AND fingerprint IS NOT NULL",
    "a unique key of a waiting job": "keys JOIN jobqueue.scheduled_jobs ON id = job_id WHERE scope = 'unique'",
    "a unique key of a finished job": "keys JOIN jobqueue.finished_jobs ON id = job_id WHERE scope = 'unique'",
    "a unique key by the content": "keys WHERE key LIKE 'sha256:%'",
    "a dead node": "nodes WHERE lease_until < now() AND activity IS NOT NULL",
    **{
        f"a schedule with {missed}": f"schedules WHERE missed = '{missed}' AND next_at < now()" for missed in ("one", "skip", "all")
    },
    "a paused schedule": "schedules WHERE paused",
    "a schedule with an error": "schedules WHERE error IS NOT NULL",
    "a declared schedule": "schedules WHERE source IS NOT NULL AND last_at IS NOT NULL",
    **{f"slots of {step} s": f"history WHERE step = {step} AND submitted > 0 AND depth IS NOT NULL" for step in (10, 60, 300)},
    "submissions in SQL": "sql_submissions",
}
"""The kinds of rows, by their names. Each value is a condition in SQL."""


@pytest.mark.no_schema
def test_the_dump_of_version_1_has_every_kind_of_row(version_1: Database) -> None:
    found = {kind: version_1.value(f"SELECT count(*) FROM jobqueue.{rows}") for kind, rows in ROWS.items()}
    assert [kind for kind, count in found.items() if not count] == []
    assert version_1.rows("SELECT version, obj_description('jobqueue.schema_version'::regclass) FROM jobqueue.schema_version") == [
        (1, FINGERPRINT)
    ]
