"""Show the tree of the live Trio tasks, with each task's wait, its duration, and its job.

Trio provides the tasks and where each is suspended, but not since when. An instrument that recorded
the time would slow down every step of every task. Instead, a stage reads how often each task has been
suspended, every `NOTE_SECONDS`. If the count of a task is unchanged, the task has not run in between.

The tree shows names of functions and places in the code, never values of variables.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from types import FrameType
from typing import NamedTuple

import trio

from jobqueue.concurrency.routine import Routine
from jobqueue.concurrency.trouble import Trouble
from jobqueue.documents import storable
from jobqueue.engine.executor import Run, run_of

NOTE_SECONDS = 15.0
"""Seconds between two reads of the suspension counts."""

MAX_TASKS = 2_000
MAX_DEPTH = 40
"""Maximum number of tasks, and of levels, that a tree shows. Omitted children are counted."""

MAX_FRAMES = 30
"""Maximum number of stack frames to show per task. A third of them are the outermost frames, the others the innermost."""

MAX_NAME = 200
"""Maximum length of a shown name of a task or a function, in characters."""

RUNNING = "running"
"""The `waits_on` of the running task. This is always the task that reads the tree."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskState:
    """The state of one task.

    Attributes:
        waits_on: the call in which the task is suspended, or `RUNNING`.
        stack: its frames, outermost first.
        since: the task has waited for at least this time, in seconds; None while unknown.
        run: a worker's current run.
        nurseries: the tasks in each of its nurseries, outermost first.
        more: number of children that are not shown.
    """

    name: str
    waits_on: str
    stack: list[str]
    since: float | None
    run: Run | None
    nurseries: list[list[TaskState]]
    more: int


class Tree(NamedTuple):
    """The root of the tree, and the number of all tasks."""

    root: TaskState
    tasks: int


class TaskTree:
    """Reads the tasks of the loop that runs it."""

    def __init__(self) -> None:
        self._noted: dict[trio.lowlevel.Task, _Note] = {}
        self.trouble = Trouble("task tree")
        self.run = Routine(self._note_now, self.trouble).run

    async def _note_now(self) -> float:
        """Record the suspension counts; return the seconds until the next record."""
        self._note(trio.current_time())
        return NOTE_SECONDS

    def look(self, *, most: int = MAX_TASKS, depth: int = MAX_DEPTH) -> Tree:
        """Return the current tree. Tasks that ran since the last read have no `TaskState.since` yet.

        Args:
            most: the maximum number of tasks to show; tasks next to the root come first.
            depth: the maximum number of levels to show below the root.
        """
        now = trio.current_time()
        self._note(now)
        shown = [_Node(_root(), 0)]
        left = most - 1
        for node in shown:  # the list grows during the loop
            for nursery in node.task.child_nurseries:
                children = sorted(nursery.child_tasks, key=_order)
                nodes = [_Node(child, node.level + 1) for child in (children[:left] if node.level < depth else ())]
                node.nurseries.append(nodes)
                node.more += len(children) - len(nodes)
                left -= len(nodes)
                shown += nodes
        for node in reversed(shown):  # visit children before their parents
            node.state = self._state(node, now)
        assert shown[0].state is not None  # noqa: S101 - the loop set it last
        return Tree(shown[0].state, len(self._noted))

    def _note(self, now: float) -> None:
        noted: dict[trio.lowlevel.Task, _Note] = {}
        for task in _all_tasks():
            suspended = times_suspended(task)
            before = self._noted.get(task)
            noted[task] = before if before is not None and before.suspended == suspended else _Note(suspended, now)
        self._noted = noted  # keeps references to ended tasks until the next read

    def _state(self, node: _Node, now: float) -> TaskState:
        task, note = node.task, self._noted[node.task]
        frames = [(frame, line, _module(frame)) for frame, line in task.iter_await_frames()]
        runs = bool(getattr(task.coro, "cr_running", False))
        waited = None if runs or note.suspended is None or note.at >= now else round(now - note.at, 3)
        return TaskState(
            name=_cut(task.name),
            waits_on=RUNNING if runs else _waits_on(frames),
            stack=_stack(frames),
            since=waited,
            run=run_of([frame for frame, _, _ in frames]),
            nurseries=[[child.state for child in nursery if child.state is not None] for nursery in node.nurseries],
            more=node.more,
        )


class _Note(NamedTuple):
    """A task's suspension count, and when this count was first seen."""

    suspended: int | None
    at: float


@dataclass(slots=True)
class _Node:
    """A task during the construction of the tree."""

    task: trio.lowlevel.Task
    level: int
    nurseries: list[list[_Node]] = field(default_factory=list)
    more: int = 0
    state: TaskState | None = None


def times_suspended(task: trio.lowlevel.Task) -> int | None:
    """Return how often a task has been suspended; None if this version of Trio does not count it.

    Without the count, only `TaskState.since` is missing. Trio counts suspensions for
    `trio.testing.assert_checkpoints`. The counter has no public name.
    """
    return getattr(task, "_schedule_points", None)


def _root() -> trio.lowlevel.Task:
    root = trio.lowlevel.current_root_task()
    assert root is not None  # noqa: S101 - this code runs on the loop
    return root


def _all_tasks() -> Iterator[trio.lowlevel.Task]:
    to_do = [_root()]
    while to_do:
        task = to_do.pop()
        yield task
        for nursery in task.child_nurseries:
            to_do.extend(nursery.child_tasks)


def _order(task: trio.lowlevel.Task) -> tuple[int, str]:
    return len(task.name), task.name  # sorts worker 9 before worker 10


# ------------------------------------------------------------------------------------------------------------------- stacks

Place = tuple[FrameType, int, str]
"""A frame of a task, its line, and the name of its module."""

_THREAD_CALL = inspect.unwrap(trio.to_thread.run_sync).__code__
_TRAPS = "trio._core._traps"
"""The Trio module where every wait ends."""


def _waits_on(frames: Sequence[Place]) -> str:
    """Return the call made by the innermost code outside of Trio; empty for a task that has just ended."""
    called = None
    for frame in reversed(frames):
        theirs = frame[2] == "trio" or frame[2].startswith("trio.")
        if called is None or (theirs and frame[2] != _TRAPS) or called[2] == _TRAPS:
            called = frame
        if not theirs:
            break
    if called is None:
        return ""
    if called[0].f_code is _THREAD_CALL:
        return _shown(called, of=f" of {_name(called[0].f_locals.get('sync_fn'))}")
    return _shown(called)


def _stack(frames: Sequence[Place]) -> list[str]:
    stack = [_shown(frame) for frame in frames[: MAX_FRAMES // 3]]
    inner = frames[MAX_FRAMES // 3 :]
    kept = inner[-(MAX_FRAMES - MAX_FRAMES // 3) :]
    if len(kept) < len(inner):
        stack.append(f"... {len(inner) - len(kept)} frames omitted ...")
    return stack + [_shown(frame) for frame in kept]


def _shown(place: Place, *, of: str = "") -> str:
    frame, line, module = place
    function, file = _told(frame.f_code.co_qualname, frame.f_code.co_filename, module)
    return f"{function}{of} ({file}:{line})"


def _module(frame: FrameType) -> str:
    name = frame.f_globals.get("__name__")
    return name if isinstance(name, str) else ""


def _name(function: object) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__qualname__", None)
    return _cut(name) if isinstance(name, str) else _cut(type(function).__qualname__)


def _cut(name: str) -> str:
    return storable(name[:MAX_NAME], MAX_NAME)


@functools.lru_cache(maxsize=2_000)
def _told(function: str, path: str, module: str) -> tuple[str, str]:
    """Return a function's shortened name, and the path of its file, starting with the top-level package."""
    parts = PurePath(path).parts
    levels = module.count(".") + (parts[-1:] == ("__init__.py",)) + 1
    return _cut(function), _cut("/".join(parts[-levels:]))
