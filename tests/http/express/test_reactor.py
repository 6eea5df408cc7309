import os
import socket
from collections.abc import Iterator

import pytest
import structlog.testing
import trio
from trio.testing import wait_all_tasks_blocked

from jobqueue.http.express.reactor import MAX_EVENTS, Reactor


@pytest.fixture
async def reactor(nursery: trio.Nursery) -> Reactor:
    reactor = Reactor()
    nursery.start_soon(reactor.run)
    return reactor


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


async def test_it_calls_while_there_is_something_to_read(reactor: Reactor, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    read: list[bytes] = []
    reactor.watch(ours.fileno(), lambda: read.append(os.read(ours.fileno(), 2)))
    await wait_all_tasks_blocked(0.01)
    assert read == []
    theirs.send(b"abc")
    await wait_all_tasks_blocked(0.01)
    assert read == [b"ab", b"c"]
    reactor.forget(ours.fileno())
    theirs.send(b"d")
    await wait_all_tasks_blocked(0.01)
    assert read == [b"ab", b"c"]


async def test_the_end_is_something_to_read(reactor: Reactor, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ended = trio.Event()

    def readable() -> None:
        reactor.forget(ours.fileno())
        ended.set()

    reactor.watch(ours.fileno(), readable)
    theirs.close()
    with trio.fail_after(60):
        await ended.wait()


async def test_a_callback_that_another_one_forgot_is_not_called(reactor: Reactor) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    called: list[int] = []
    for ours, theirs in pairs:
        theirs.send(b"x")

        def readable(fd: int = ours.fileno()) -> None:
            called.append(fd)
            for ours, _ in pairs:
                reactor.forget(ours.fileno())

        reactor.watch(ours.fileno(), readable)
    await wait_all_tasks_blocked(0.01)
    assert len(called) == 1
    for ours, theirs in pairs:
        ours.close()
        theirs.close()


async def test_a_descriptor_that_always_has_data_keeps_no_task_from_running(
    reactor: Reactor, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    calls: list[None] = []
    theirs.send(b"x")
    reactor.watch(ours.fileno(), lambda: calls.append(None))
    with trio.fail_after(60):
        while len(calls) < 2 * MAX_EVENTS:
            await trio.lowlevel.checkpoint()
    reactor.forget(ours.fileno())


async def test_soon_calls_in_order_and_after_the_caller_returns(reactor: Reactor) -> None:
    called: list[int] = []
    for number in range(3):
        reactor.soon(lambda number=number: called.append(number))  # type: ignore[misc]
    assert called == []
    await wait_all_tasks_blocked()
    assert called == [0, 1, 2]


async def test_a_call_that_fails_is_logged_and_the_others_are_made(
    reactor: Reactor, pair: tuple[socket.socket, socket.socket]
) -> None:
    def fail() -> None:
        raise RuntimeError("a bug")

    def readable() -> None:
        reactor.forget(ours.fileno())
        fail()

    ours, theirs = pair
    called: list[int] = []
    reactor.watch(ours.fileno(), readable)
    theirs.send(b"x")
    with structlog.testing.capture_logs() as logs:
        reactor.soon(fail)
        reactor.soon(lambda: called.append(1))
        await wait_all_tasks_blocked(0.01)
    assert called == [1]
    assert [line["event"] for line in logs] == ["a reactor callback failed"] * 2


async def test_after_its_end_nothing_is_watched(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    reactor = Reactor()
    reactor.watch(ours.fileno(), pytest.fail)
    with trio.move_on_after(0):
        await reactor.run()
    reactor.forget(ours.fileno())
    reactor.watch(ours.fileno(), pytest.fail)
