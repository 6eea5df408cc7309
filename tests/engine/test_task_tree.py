"""The tree of a loop's tasks: its contents, where each task waits and since when, and its bounds."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from jobqueue.engine import task_tree
from jobqueue.engine.task_tree import RUNNING, TaskState, TaskTree
from jobqueue.testing.process import ServiceProcess
from tests.support.command_line import UUID
from tests.support.service import Start, submit
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow


def walked(task: TaskState) -> Iterator[TaskState]:
    yield task
    for nursery in task.nurseries:
        for child in nursery:
            yield from walked(child)


def named(tree: task_tree.Tree, name: str) -> TaskState:
    [task] = [task for task in walked(tree.root) if task.name == name]
    return task


async def wait_in(event: trio.Event) -> None:
    await event.wait()


async def hold(*, task_status: trio.TaskStatus[None]) -> None:
    async with trio.open_nursery() as outer, trio.open_nursery() as inner:
        outer.start_soon(trio.sleep_forever, name="outer child")
        inner.start_soon(trio.sleep_forever, name="inner child 2")
        inner.start_soon(trio.sleep_forever, name="inner child 10")
        task_status.started()


async def nested(levels: int, name: str, *, task_status: trio.TaskStatus[None]) -> None:
    if levels == 0:
        task_status.started()
        await trio.sleep_forever()
    async with trio.open_nursery() as nursery:
        await nursery.start(nested, levels - 1, name, name=f"{name} {levels - 1}")
        task_status.started()


async def deep(frames: int) -> None:
    if frames:
        await deep(frames - 1)
    else:
        await trio.sleep_forever()


@pytest.fixture
async def nursery() -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as opened:
        yield opened
        opened.cancel_scope.cancel()


async def test_each_task_is_where_it_is_and_says_what_it_waits_on(nursery: trio.Nursery) -> None:
    event = trio.Event()
    nursery.start_soon(wait_in, event, name="waiter")
    await nursery.start(hold, name="holder")
    await wait_all_tasks_blocked()
    tree = TaskTree().look()
    assert tree.tasks == len(list(walked(tree.root)))
    assert tree.root.name == "<init>"
    line = inspect.getsourcelines(wait_in)[1] + 1
    waiter = named(tree, "waiter")
    assert waiter.stack[0] == f"wait_in (tests/engine/test_task_tree.py:{line})"
    assert waiter.waits_on.startswith("Event.wait (trio/_sync.py:")
    assert waiter.waits_on in waiter.stack
    assert (waiter.run, waiter.nurseries, waiter.more, waiter.since) == (None, [], 0, None)
    assert [[child.name for child in children] for children in named(tree, "holder").nurseries] == [
        ["outer child"],
        ["inner child 2", "inner child 10"],
    ]
    assert named(tree, "inner child 2").waits_on.startswith("sleep_forever (trio/_timeouts.py:")
    [asking] = [task for task in walked(tree.root) if task.waits_on == RUNNING]
    assert asking.since is None


@pytest.mark.parametrize("wrap", [lambda function: function, functools.partial])
async def test_a_task_that_waits_for_a_thread_says_for_which_function(nursery: trio.Nursery, wrap: Callable[[Any], Any]) -> None:
    go_on, begun = threading.Event(), threading.Event()

    def compute() -> None:
        begun.set()
        go_on.wait()

    nursery.start_soon(trio.to_thread.run_sync, wrap(compute), name="caller")
    await trio.to_thread.run_sync(begun.wait)
    try:
        waits_on = named(TaskTree().look(), "caller").waits_on
        name = "test_a_task_that_waits_for_a_thread_says_for_which_function.<locals>.compute"
        assert waits_on.startswith(f"to_thread_run_sync of {name} (trio/_threads.py:")
    finally:
        go_on.set()


async def test_since_counts_from_the_look_at_which_a_task_was_first_where_it_is(mock_clock: MockClock) -> None:
    tree = TaskTree()
    async with trio.open_nursery() as nursery:
        event = trio.Event()
        nursery.start_soon(wait_in, event, name="still")
        nursery.start_soon(wait_in, event, name="also still")
        moving = trio.Event()

        async def moves() -> None:
            await moving.wait()
            await trio.sleep_forever()

        nursery.start_soon(moves, name="moving")
        await wait_all_tasks_blocked()
        assert {task.since for task in walked(tree.look().root)} == {None}
        mock_clock.jump(7)
        assert named(tree.look(), "still").since == named(tree.look(), "moving").since == 7
        moving.set()
        await wait_all_tasks_blocked()
        mock_clock.jump(3)
        looked = tree.look()
        assert (named(looked, "still").since, named(looked, "moving").since) == (10, None)
        mock_clock.jump(2)
        assert named(tree.look(), "moving").since == 2
        nursery.start_soon(trio.sleep_forever, name="new")
        await wait_all_tasks_blocked()
        assert named(tree.look(), "new").since is None
        nursery.cancel_scope.cancel()


async def test_the_stage_notes_what_waits_before_anybody_looks(autojump_clock: MockClock) -> None:
    tree = TaskTree()
    began = autojump_clock.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever, name="still")
        await wait_all_tasks_blocked()
        await nursery.start(tree.run)
        await trio.sleep(task_tree.NOTE_SECONDS * 2.5)
        assert named(tree.look(), "still").since == autojump_clock.current_time() - began == task_tree.NOTE_SECONDS * 2.5
        nursery.cancel_scope.cancel()


async def test_a_trio_that_does_not_count_leaves_out_since_alone(
    nursery: trio.Nursery, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = trio.lowlevel.current_task()
    before = task_tree.times_suspended(task)
    await trio.lowlevel.checkpoint()
    assert before is not None, "this Trio counts how often a task is suspended"
    assert (task_tree.times_suspended(task) or 0) > before
    monkeypatch.setattr(task_tree, "times_suspended", lambda _: None)
    nursery.start_soon(trio.sleep_forever, name="still")
    await wait_all_tasks_blocked()
    tree = TaskTree()
    tree.look()
    mock_clock.jump(5)
    looked = tree.look()
    assert {task.since for task in walked(looked.root)} == {None}
    assert named(looked, "still").waits_on


async def test_the_tree_is_bounded_and_says_what_it_leaves_out(nursery: trio.Nursery) -> None:
    for number in range(50):
        nursery.start_soon(trio.sleep_forever, name=f"child {number}")
    await nursery.start(nested, 5, "level", name="level 5")
    await wait_all_tasks_blocked()
    tree = TaskTree()
    whole = tree.look()
    assert sum(task.more for task in walked(whole.root)) == 0
    for most in (whole.tasks, whole.tasks - 1, 20, 1):
        bounded = tree.look(most=most)
        shown = list(walked(bounded.root))
        assert (len(shown), bounded.tasks) == (most, whole.tasks)
        assert (sum(task.more for task in shown) > 0) == (most < whole.tasks)
    assert tree.look(most=1).root.more == sum(map(len, whole.root.nurseries))

    def depth(task: TaskState) -> int:
        return 1 + max((depth(child) for children in task.nurseries for child in children), default=-1)

    for most in (depth(whole.root), depth(whole.root) - 1, 1, 0):
        bounded = tree.look(depth=most)
        assert depth(bounded.root) == most
        assert (sum(task.more for task in walked(bounded.root)) > 0) == (most < depth(whole.root))


async def test_long_stacks_and_names_are_cut(nursery: trio.Nursery) -> None:
    for frames in (20, 100):
        nursery.start_soon(deep, frames, name=f"{frames} frames")
    nursery.start_soon(trio.sleep_forever, name="n\0\ud800" + "x" * 1_000)
    await wait_all_tasks_blocked()
    tree = TaskTree().look()
    assert not any("left out" in text for text in named(tree, "20 frames").stack)
    stack = named(tree, "100 frames").stack
    assert len(stack) == task_tree.MAX_FRAMES + 1
    [place] = [place for place, text in enumerate(stack) if "frames omitted" in text]
    assert place == task_tree.MAX_FRAMES // 3
    assert stack[0].startswith("deep (tests/engine/test_task_tree.py:")
    assert "wait_task_rescheduled" in " ".join(stack[-2:])
    [name] = [task.name for task in walked(tree.root) if task.name.startswith("n\\0")]
    assert len(name.encode()) <= 2 * task_tree.MAX_NAME


def test_a_node_shows_its_tasks_and_what_its_workers_run(service: Start, tmp_path: Path) -> None:
    node: ServiceProcess = service("tests.handlers.running", env={"EFFECTS": str(tmp_path / "effects")})
    with httpx.Client(base_url=node.url, timeout=60) as client:
        job_id = submit(client, node, {"kind": "sleeping-children"})

        def family() -> list[dict[str, Any]]:
            found = client.get("/tasks")
            assert found.status_code == 200
            shown = found.json()
            assert UUID.fullmatch(shown["node"])
            assert shown["node"] in {node["id"] for node in client.get("/nodes").json()}
            to_do, all_tasks = [shown["root"]], []
            while to_do:
                task = to_do.pop()
                all_tasks.append(task)
                to_do += [child for nursery in task["nurseries"] for child in nursery["tasks"]]
            assert shown["tasks"] == len(all_tasks)
            assert {f"stage {name}" for name in ("dispatcher", "workers", "http", "tasks")} <= {task["name"] for task in all_tasks}
            return [task for task in all_tasks if task["job"] is not None]

        wait_for(lambda: len(family()) == 1 and family()[0]["nurseries"], "the job has children")
        [worker] = family()
        assert worker["job"] == {"id": job_id, "kind": "sleeping-children", "queue": "default"}
        assert worker["name"].startswith("worker default ")
        assert [bool(nursery["tasks"]) for nursery in worker["nurseries"]] == [True]
