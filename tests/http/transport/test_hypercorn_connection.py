"""The names of hypercorn and h11 that the service uses without documentation, and that it changes nothing in these packages."""

from __future__ import annotations

from inspect import isfunction, signature

import h11
import hypercorn.protocol
import pytest
import trio

from jobqueue.http.transport import hypercorn_connection
from tests.support.http import serving
from tests.support.http2 import Client

OWN = {"_discard"}
"""Methods of the subclasses that override nothing."""


def test_hypercorn_keeps_its_protocol_classes() -> None:
    chosen = (hypercorn.protocol.H11Protocol, hypercorn.protocol.H2Protocol)  # type: ignore[attr-defined] # imported, not exported
    assert [kind.__module__ for kind in chosen] == ["hypercorn.protocol.h11", "hypercorn.protocol.h2"]


@pytest.mark.parametrize("kind", [hypercorn_connection._Requests, hypercorn_connection._H11, hypercorn_connection._H2])
def test_each_overridden_method_exists_with_the_same_parameters(kind: type) -> None:
    overriding = {name: method for name, method in vars(kind).items() if isfunction(method) and name not in OWN}
    assert overriding
    for name, method in overriding.items():
        assert list(signature(method).parameters) == list(signature(getattr(kind.__base__, name)).parameters), name


async def test_a_client_upgrades_to_http_2_without_tls() -> None:
    async with serving() as served, await served.connect() as stream:
        client = Client(stream)
        settings = client.h2.initiate_upgrade_connection() or b""
        upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: %b\r\n\r\n" % settings
        await stream.send_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + upgrade)
        received = b""
        with trio.fail_after(60):
            while b"\r\n\r\n" not in received:
                received += await stream.receive_some()
        head, _, frames = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101")
        client.take(frames)
        await client.until(lambda: 1 in client.ended)
        assert client.statuses == {1: 200}


def test_h11_holds_received_bytes_in_a_buffer_that_can_be_shortened() -> None:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"\r\nGET")
    connection._receive_buffer.maybe_extract_at_most(2)
    assert connection.trailing_data == (b"GET", False)
