from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from jobqueue.admission import admit
from jobqueue.documents import MAX_DEPTH
from jobqueue.errors import InvalidJob, PayloadTooLarge, UnprocessableJob
from jobqueue.job import MAX_PAYLOAD_BYTES, Submission


def nested(levels: int) -> Any:
    value: Any = []
    for _ in range(levels - 1):
        value = [value]
    return value


def test_ids_are_uuids_of_version_7_in_order() -> None:
    ids = admit([Submission() for _ in range(1000)]).ids
    assert {UUID(job_id).version for job_id in ids} == {7}
    assert len(set(ids)) == 1000
    assert ids == sorted(ids)


def test_kinds_queues_and_counts() -> None:
    now = datetime.now(UTC)
    jobs = admit(
        [
            Submission(kind="a"),
            Submission(kind="b", delay=0),
            Submission(kind="b", run_at=now - timedelta(days=1)),
            Submission(kind="b", queue="later", delay=1),
            Submission(kind="b", queue="later", run_at=now + timedelta(days=1)),
        ]
    )
    assert jobs.kinds == {"a", "b"}
    assert jobs.queues == {"default": 3}
    assert jobs.counts == {("default", "a"): 1, ("default", "b"): 2, ("later", "b"): 2}


def test_a_large_job_weighs_as_much_as_many_small_ones() -> None:
    assert admit([Submission(), Submission()]).weight == 2
    assert admit([Submission(), Submission(payload="x" * (5 << 14)), Submission()]).weight == 1 + 5 + 1


def test_the_payload_bound_from_both_sides() -> None:
    fits = "x" * (MAX_PAYLOAD_BYTES - 2)
    assert len(admit([Submission(payload=fits)]).ids) == 1
    with pytest.raises(PayloadTooLarge) as refused:
        admit([Submission(payload=fits + "x")])
    assert refused.value.field == "payload"


def test_the_depth_bound_from_both_sides() -> None:
    assert len(admit([Submission(payload=nested(MAX_DEPTH))]).ids) == 1
    with pytest.raises(UnprocessableJob, match="nested") as refused:
        admit([Submission(payload=nested(MAX_DEPTH + 1))])
    assert refused.value.field == "payload"


@pytest.mark.parametrize(
    ("submission", "field"),
    [
        (Submission(kind="a\0b"), "kind"),
        (Submission(queue="\0"), "queue"),
        (Submission(payload={"a": ["\0"]}), "payload"),
        (Submission(payload={"\0": 1}), "payload"),
        (Submission(payload="\ud800"), "payload"),
        (Submission(kind="\udfff"), "kind"),
        (Submission(payload=object()), "payload"),
        (Submission(payload=nested(100_000)), "payload"),
    ],
    ids=[
        "NUL in kind",
        "NUL in queue",
        "NUL in payload",
        "NUL in key",
        "surrogate",
        "surrogate in kind",
        "not JSON",
        "100,000 levels",
    ],
)
def test_the_error_for_an_unstorable_job_names_field_and_index(submission: Submission, field: str) -> None:
    with pytest.raises(UnprocessableJob) as refused:
        admit([Submission(), submission])
    assert (refused.value.field, refused.value.index) == (field, 1)


def test_an_escaped_backslash_before_u0000_is_accepted() -> None:
    assert len(admit([Submission(payload="\\u0000")]).ids) == 1


def test_run_at_and_delay_exclude_each_other() -> None:
    with pytest.raises(InvalidJob, match="exclude") as refused:
        admit([Submission(run_at=datetime.now(UTC), delay=1)])
    assert refused.value.field == "delay"


def test_only_a_job_of_a_batch_has_an_index() -> None:
    with pytest.raises(UnprocessableJob) as refused:
        admit([Submission(payload="\0")], many=False)
    assert refused.value.index is None


def test_dates_at_the_ends_of_the_calendar() -> None:
    dates = [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)]
    assert admit([Submission(run_at=date) for date in dates]).queues == {"default": 1}
