from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, NamedTuple

import outcome
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from jobqueue.concurrency.group_commit import GroupCommit, GroupCommitStatistics
from jobqueue.errors import Overloaded, ShuttingDown

pytestmark = pytest.mark.slow


class Refused(Exception):
    """An error that one bad item causes, so the batch may be split."""


class Broken(Exception):
    """An error of the whole batch."""


class Table:
    """The destination of the batches: rejects bad items, fails on request, and can be held during a write."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.bad: set[int] = set()
        self.failure: Exception | None = None
        self.open = trio.Event()
        self.open.set()

    async def write(self, items: Sequence[int]) -> list[str]:
        self.batches.append(list(items))
        await self.open.wait()
        if self.failure is not None:
            raise self.failure
        if self.bad & set(items):
            raise Refused(f"bad: {sorted(self.bad & set(items))}")
        return [f"row {item}" for item in items]

    def hold(self) -> None:
        """Block all writes until `release`."""
        self.open = trio.Event()

    def release(self) -> None:
        self.open.set()

    def step(self) -> None:
        """Finish the held write, and hold the next one."""
        self.release()
        self.hold()


Group = GroupCommit[int, str]


class Calls:
    """Calls of ``commit`` in separate tasks, with the outcome of each."""

    def __init__(self, group: Group, nursery: trio.Nursery) -> None:
        self.outcomes: dict[int, outcome.Maybe[str]] = {}
        self._group = group
        self._nursery = nursery

    async def start(self, *items: int, weight: int = 1) -> None:
        """Start a call for each item, in this order."""
        for item in items:
            self._nursery.start_soon(self._commit, item, weight)
            await wait_all_tasks_blocked()

    async def _commit(self, item: int, weight: int) -> None:
        self.outcomes[item] = await outcome.acapture(self._group.commit, item, weight=weight)

    def errors(self) -> dict[int, type[BaseException]]:
        return {item: type(came.error) for item, came in self.outcomes.items() if isinstance(came, outcome.Error)}

    def results(self) -> dict[int, str]:
        return {item: came.value for item, came in self.outcomes.items() if isinstance(came, outcome.Value)}


@pytest.fixture
def table() -> Table:
    return Table()


def group_on(write: Callable[[Sequence[int]], Awaitable[Sequence[str]]], *, max_weight: int = 100, max_waiting: int = 100) -> Group:
    return GroupCommit(write, max_weight=max_weight, max_waiting=max_waiting, splits_on=Refused)


@pytest.fixture
def writer() -> trio.CancelScope:
    """The scope of the writer of `group`."""
    return trio.CancelScope()


@pytest.fixture
async def group(table: Table, writer: trio.CancelScope, nursery: trio.Nursery) -> Group:
    """A running group commit on the table."""
    group = group_on(table.write)

    async def run(task_status: trio.TaskStatus[None]) -> None:
        with writer:
            await group.run(task_status=task_status)

    await nursery.start(run)
    return group


@pytest.fixture
def calls(group: Group, nursery: trio.Nursery) -> Calls:
    return Calls(group, nursery)


def rows(*items: int) -> dict[int, str]:
    return {item: f"row {item}" for item in items}


# ------------------------------------------------------------------------------------------------------------------------ gathering


async def test_a_single_item_is_written_at_once(group: Group, table: Table, autojump_clock: MockClock) -> None:
    assert await group.commit(1) == "row 1"
    assert await group.commit(2) == "row 2"
    assert table.batches == [[1], [2]]
    assert autojump_clock.current_time() == 0


async def test_while_one_batch_is_written_the_next_one_gathers(table: Table, calls: Calls) -> None:
    table.hold()
    await calls.start(*range(50))
    assert table.batches == [[0]]
    table.release()
    await wait_all_tasks_blocked()
    assert table.batches == [[0], list(range(1, 50))]


async def test_each_caller_gets_the_result_of_its_own_item(table: Table, calls: Calls) -> None:
    table.hold()
    await calls.start(3, 1, 2)
    table.release()
    await wait_all_tasks_blocked()
    assert calls.results() == rows(1, 2, 3)


async def test_a_caller_returns_only_after_its_batch_was_written(table: Table, calls: Calls) -> None:
    table.hold()
    await calls.start(1, 2)
    assert calls.outcomes == {}
    table.release()
    await wait_all_tasks_blocked()
    assert calls.results() == rows(1, 2)


async def test_batches_stay_within_the_weight_and_a_heavier_item_is_written_alone(table: Table, nursery: trio.Nursery) -> None:
    group = group_on(table.write, max_weight=10)
    await nursery.start(group.run)
    calls = Calls(group, nursery)
    table.hold()
    await calls.start(0)
    for item, weight in enumerate([4, 6, 1, 9, 1, 11, 10, 1], start=1):
        await calls.start(item, weight=weight)
    table.release()
    await wait_all_tasks_blocked()
    assert table.batches == [[0], [1, 2], [3, 4], [5], [6], [7], [8]]


async def test_statistics_count_weights_and_batches(group: Group, table: Table, calls: Calls) -> None:
    table.hold()
    await calls.start(1, weight=5)
    await calls.start(2, 3, weight=2)
    assert group.statistics() == GroupCommitStatistics(waiting=4, writing=5, batches=1)
    table.release()
    await wait_all_tasks_blocked()
    assert group.statistics() == GroupCommitStatistics(waiting=0, writing=0, batches=2)


# --------------------------------------------------------------------------------------------------------------------- backpressure


async def test_a_call_is_refused_beyond_the_bound_and_not_before(table: Table, nursery: trio.Nursery) -> None:
    group = group_on(table.write, max_waiting=10)
    await nursery.start(group.run)
    calls = Calls(group, nursery)
    table.hold()
    await calls.start(0, weight=50)
    await calls.start(1, weight=7)
    await calls.start(2, weight=4)
    assert calls.errors() == {2: Overloaded}
    await calls.start(3, weight=3)
    await calls.start(4)
    assert calls.errors() == {2: Overloaded, 4: Overloaded}
    table.release()
    await wait_all_tasks_blocked()
    assert calls.results() == rows(0, 1, 3)


async def test_one_item_over_the_bound_is_accepted_when_nothing_else_waits(table: Table, nursery: trio.Nursery) -> None:
    group = group_on(table.write, max_waiting=10)
    await nursery.start(group.run)
    assert await group.commit(1, weight=11) == "row 1"


async def test_put_waits_for_room(table: Table, nursery: trio.Nursery) -> None:
    group = group_on(table.write, max_waiting=10)
    await nursery.start(group.run)
    handed_over: list[int] = []

    async def put(item: int) -> None:
        await group.put(item, weight=5)
        handed_over.append(item)

    table.hold()
    for item in range(6):
        nursery.start_soon(put, item)
        await wait_all_tasks_blocked()
    assert handed_over == [0, 1, 2]
    table.release()
    await wait_all_tasks_blocked()
    assert sorted(handed_over) == list(range(6))
    assert sorted(item for batch in table.batches for item in batch) == list(range(6))


# --------------------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("bad", [{0}, {6}, {13}, {3, 4}, {0, 7, 13}, set(range(14))], ids=str)
async def test_bad_items_fail_alone_and_their_neighbours_are_committed(bad: set[int], table: Table, calls: Calls) -> None:
    table.bad = bad
    table.hold()
    await calls.start(99, *range(14))
    table.release()
    await wait_all_tasks_blocked()
    assert calls.errors() == dict.fromkeys(bad, Refused)
    assert calls.results() == rows(99, *(set(range(14)) - bad))
    assert {str(calls.outcomes[item].error) for item in bad} == {f"bad: [{item}]" for item in bad}


async def test_any_other_error_is_raised_to_every_caller_of_the_batch(table: Table, calls: Calls) -> None:
    table.hold()
    await calls.start(0, 1, 2, 3)
    table.failure = Broken()
    table.release()
    await wait_all_tasks_blocked()
    assert calls.errors() == dict.fromkeys(range(4), Broken)
    assert table.batches == [[0], [1, 2, 3]]


async def test_a_failed_batch_does_not_end_the_writer(group: Group, table: Table) -> None:
    table.failure = Broken()
    with pytest.raises(Broken):
        await group.commit(1)
    table.failure = None
    assert await group.commit(2) == "row 2"


async def test_the_item_of_a_cancelled_caller_is_still_written(group: Group, table: Table, calls: Calls) -> None:
    table.hold()
    await calls.start(1)
    with trio.move_on_after(0) as impatient:
        await group.commit(2)
    assert impatient.cancelled_caught
    await calls.start(3)
    table.release()
    await wait_all_tasks_blocked()
    assert table.batches == [[1], [2, 3]]
    assert calls.results() == rows(1, 3)


# -------------------------------------------------------------------------------------------------------------------------- the end


async def test_after_close_calls_are_rejected_and_waiting_items_are_written(group: Group, table: Table, calls: Calls) -> None:
    table.hold()
    await calls.start(1, 2)
    group.close()
    await calls.start(3)
    table.release()
    await wait_all_tasks_blocked()
    assert calls.results() == rows(1, 2)
    assert calls.errors() == {3: ShuttingDown}


async def test_flush_waits_for_all_items(group: Group, table: Table, nursery: trio.Nursery) -> None:
    await group.flush()
    table.hold()
    await group.put(1)
    await wait_all_tasks_blocked()
    await group.put(2)
    flushed = trio.Event()

    async def flush() -> None:
        await group.flush()
        flushed.set()

    nursery.start_soon(flush)
    await wait_all_tasks_blocked()
    assert not flushed.is_set()
    table.release()
    await flushed.wait()
    assert table.batches == [[1], [2]]


async def test_flush_waits_for_an_item_that_the_writer_has_not_taken(group: Group, table: Table) -> None:
    await wait_all_tasks_blocked()
    await group.put(1)
    await group.flush()
    assert table.batches == [[1]]


async def test_a_cancelled_writer_releases_all_callers_those_of_its_batch_and_those_still_gathering(
    table: Table, calls: Calls, writer: trio.CancelScope
) -> None:
    table.hold()
    await calls.start(1, 2, 3)
    writer.cancel()
    await wait_all_tasks_blocked()
    assert table.batches == [[1]]
    assert calls.errors() == dict.fromkeys([1, 2, 3], ShuttingDown)


async def test_a_writer_cancelled_in_a_split_releases_the_callers_of_both_halves(
    table: Table, calls: Calls, writer: trio.CancelScope
) -> None:
    table.bad = {4}
    table.hold()
    await calls.start(1, 2, 3, 4, 5)
    table.step()
    await wait_all_tasks_blocked()
    table.step()
    await wait_all_tasks_blocked()
    assert table.batches == [[1], [2, 3, 4, 5], [2, 3]]
    writer.cancel()
    await wait_all_tasks_blocked()
    assert calls.results() == rows(1)
    assert calls.errors() == dict.fromkeys([2, 3, 4, 5], ShuttingDown)


async def test_after_the_writer_ended_calls_are_rejected(calls: Calls, writer: trio.CancelScope) -> None:
    writer.cancel()
    await wait_all_tasks_blocked()
    await calls.start(1)
    assert calls.errors() == {1: ShuttingDown}


async def test_flush_does_not_wait_for_a_writer_that_ended(group: Group, table: Table, writer: trio.CancelScope) -> None:
    table.hold()
    await group.put(1)
    await wait_all_tasks_blocked()
    await group.put(2)
    writer.cancel()
    await wait_all_tasks_blocked()
    with trio.fail_after(60):
        await group.flush()


@pytest.mark.parametrize(("error", "told"), [(Broken, {2: Broken, 4: Broken}), (Refused, {4: ShuttingDown})])
async def test_an_item_without_a_caller_that_cannot_be_written_ends_the_writer(
    error: type[Exception], told: dict[int, type[Exception]], autojump_clock: MockClock
) -> None:
    raised: list[Exception] = []

    async def write(items: Sequence[int]) -> list[str]:
        await trio.sleep(1)
        if 3 in items:
            raise error
        return [f"row {item}" for item in items]

    group = group_on(write, max_waiting=3)

    async def run(task_status: trio.TaskStatus[None]) -> None:
        try:
            await group.run(task_status=task_status)
        except (Refused, Broken) as came:
            raised.append(came)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(run)
            calls = Calls(group, nursery)
            await group.put(1)
            await trio.sleep(0.5)
            await calls.start(2)
            await group.put(3)
            await calls.start(4)
            nursery.start_soon(group.put, 5)  # waits for room
            await group.flush()
            for item in range(6, 16):
                await group.put(item)
            await group.flush()
    assert [type(came) for came in raised] == [error], "the error is raised"
    assert calls.errors() == told
    assert autojump_clock.current_time() < 10


# ----------------------------------------------------------------------------------------------------------------- any interleaving


ENDLESS = 1_000.0


class Caller(NamedTuple):
    """One caller of a random schedule. Times are in seconds, and a write takes one second."""

    weight: int
    kind: Literal["good", "refused", "broken"]
    arrives: float
    patience: float


callers = st.builds(
    Caller,
    weight=st.integers(1, 6),
    kind=st.sampled_from(["good", "good", "good", "refused", "broken"]),
    arrives=st.sampled_from([0, 0.5, 1, 1.5, 2, 5]),
    patience=st.sampled_from([0, 0.5, 1, ENDLESS, ENDLESS]),
)


class Ledger:
    """Counts for each item how often it was committed, and how often it failed finally."""

    def __init__(self, schedule: Sequence[Caller], max_weight: int) -> None:
        self.committed: Counter[int] = Counter()
        self.failed: Counter[int] = Counter()
        self._schedule = schedule
        self._max_weight = max_weight

    async def write(self, items: Sequence[int]) -> list[str]:
        assert len(items) == 1 or sum(self._schedule[item].weight for item in items) <= self._max_weight
        await trio.sleep(1)
        kinds = {self._schedule[item].kind for item in items}
        if "broken" in kinds:
            self.failed.update(items)
            raise Broken
        if "refused" in kinds:
            if len(items) == 1:
                self.failed.update(items)
            raise Refused
        self.committed.update(items)
        return [f"row {item}" for item in items]


@given(st.lists(callers, max_size=20), st.integers(1, 12))
def test_every_item_is_settled_exactly_once_and_reported_to_its_caller(schedule: list[Caller], max_weight: int) -> None:
    ledger = Ledger(schedule, max_weight)
    told: dict[int, str | Refused | Broken] = {}

    async def call(group: Group, item: int) -> None:
        await trio.sleep(schedule[item].arrives)
        with trio.move_on_after(schedule[item].patience):
            try:
                told[item] = await group.commit(item, weight=schedule[item].weight)
            except (Refused, Broken) as error:
                told[item] = error

    async def main() -> None:
        group = group_on(ledger.write, max_weight=max_weight, max_waiting=1_000)
        async with trio.open_nursery() as nursery:
            await nursery.start(group.run)
            async with trio.open_nursery() as calling:
                for item in range(len(schedule)):
                    calling.start_soon(call, group, item)
            await group.flush()
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))

    assert ledger.committed + ledger.failed == Counter(range(len(schedule)))
    for item, answer in told.items():
        if isinstance(answer, str):
            assert answer == f"row {item}"
            assert item in ledger.committed
        else:
            assert isinstance(answer, Broken) or schedule[item].kind == "refused"
            assert item in ledger.failed
    assert all(item in told for item, caller in enumerate(schedule) if caller.patience == ENDLESS)
