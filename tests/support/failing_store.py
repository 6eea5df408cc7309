"""A store whose calls fail on request, before or after they take effect."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import trio

from jobqueue.errors import ConnectionLost, DatabaseUnavailable
from jobqueue.storage.roles import Store

Fault = Literal["before", "after"]
"""The call fails before it takes effect (no connection), or afterwards (the response is lost)."""


WAYS: dict[str, list[Fault]] = {
    "one is refused": ["before"],
    "one answer is lost": ["after"],
    "an answer is lost, then one is refused": ["after", "before"],
    "an outage begins": ["after", "after", "before", "before"],
    "an outage lasts": ["before"] * 12,
}
"""The faults of the Nth call and of the following ones: single failures, and the start of an outage."""


LATENCY = 0.001


VERBS = {name for name, _ in inspect.getmembers(Store, inspect.iscoroutinefunction)} - {"aclose", "migrate"}


LANES = {"submit": "submit", "submit_again": "submit", "claim": "claim", "held": "claim", "finish": "finish"} | dict.fromkeys(
    ("join", "heartbeat", "leave"), "heartbeat"
)
"""The connection of each verb. All other verbs use the housekeeping connection."""


class FailingStore:
    """A store in which the Nth call, counted over all verbs, and its successors fail in the given ways.

    Args:
        store: receives all calls except those that fail before they take effect.
        first: the number of the first call that fails, from 1.
        ways: the faults of this call and of its successors.
    """

    def __init__(self, store: Store, first: int, ways: Sequence[Fault]) -> None:
        self._store = store
        self._faults: Mapping[int, Fault] = dict(enumerate(ways, first))
        self.calls: list[str] = []
        self.submit_trouble: str | None = None

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self._store, name)
        return partial(self._call, name, verb) if name in VERBS else verb

    async def _call(self, name: str, verb: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        self.calls.append(name)
        fault = self._faults.get(len(self.calls))
        if LANES.get(name) == "submit":
            self.submit_trouble = None if fault is None else f"{name} failed"
        if fault == "before":
            await trio.sleep(LATENCY)
            raise DatabaseUnavailable(f"call {len(self.calls)}, {name}, fails before it took effect")
        result = await verb(*args, **kwargs)
        with trio.CancelScope(shield=True):  # like a thread, the call reports its result to a cancelled caller too
            await trio.sleep(LATENCY)
            if fault == "after":
                raise ConnectionLost(f"the answer to {name} is lost", backend=await self._break_connection(name))
        return result

    async def _break_connection(self, name: str) -> tuple[int, str]:
        lane = getattr(self._store, f"_{LANES.get(name, 'housekeeping')}", None)
        if lane is None:
            return (1, "2000-01-01")
        backend: tuple[int, str] = lane._session.backend
        await lane.aclose()
        return backend
