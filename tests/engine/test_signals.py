"""Signals call their subscribers in order, and each signal of a node has a subscriber."""

from __future__ import annotations

import inspect

import pytest

from jobqueue import App
from jobqueue.engine.signals import Signal, Signals
from jobqueue.service import open_engine
from jobqueue.settings import Settings
from jobqueue.testing.memory_store import MemoryStore


def test_subscribers_are_called_in_the_order_in_which_they_subscribed() -> None:
    called: list[tuple[str, int]] = []
    signal: Signal[int] = Signal()
    signal.publish(0)
    signal.subscribe(lambda value: called.append(("first", value)))
    signal.publish(1)
    signal.subscribe(lambda value: called.append(("second", value)))
    signal.publish(2)
    assert called == [("first", 1), ("first", 2), ("second", 2)]


def test_an_error_reaches_the_publisher_and_ends_the_calls() -> None:
    called: list[int] = []
    signal: Signal[int] = Signal()
    signal.subscribe(lambda value: called.append(1 // value))
    signal.subscribe(called.append)
    with pytest.raises(ZeroDivisionError):
        signal.publish(0)
    assert called == []


async def test_each_signal_of_a_node_has_a_subscriber_and_is_listed() -> None:
    app = App()
    app.on_dead(print)
    async with open_engine(app, Settings(), MemoryStore()) as engine:
        assert [name for name, signal in vars(engine.signals).items() if not signal._subscribers] == []
        assert [name for name in vars(engine.signals) if f"\n    {name}: " not in str(inspect.getdoc(Signals))] == []
