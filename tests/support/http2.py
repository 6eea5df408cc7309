"""An HTTP/2 client that sends single frames."""

from __future__ import annotations

from collections.abc import Callable

import h2.connection
import h2.events
import pytest
import trio


class Client:
    """An HTTP/2 client on one connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.h2 = h2.connection.H2Connection()
        self.statuses: dict[int, int] = {}
        self.ended: set[int] = set()
        self.terminated: h2.events.ConnectionTerminated | None = None

    async def start(self) -> None:
        self.h2.initiate_connection()
        await self.send()
        with trio.fail_after(60):
            while not isinstance(self.h2.remote_settings.max_concurrent_streams, int) or not self.settings_came:
                await self._receive()

    settings_came = False

    def begin(self, path: str, method: str = "GET", *, ends: bool = True, **headers: str) -> int:
        number = self.h2.get_next_available_stream_id()
        pseudo = {":method": method, ":path": path, ":scheme": "http", ":authority": "localhost"}
        self.h2.send_headers(number, [*pseudo.items(), *((name.replace("_", "-"), value) for name, value in headers.items())], ends)
        return number

    async def send(self) -> None:
        await self.stream.send_all(self.h2.data_to_send())

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(60):
            while not condition():
                await self._receive()

    async def _receive(self) -> None:
        data = await self.stream.receive_some()
        if not data:
            pytest.fail(f"closed: {self.statuses}, {self.terminated}")
        self.take(data)
        await self.send()

    def take(self, data: bytes) -> None:
        """Process received bytes."""
        for event in self.h2.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                assert event.stream_id is not None
                self.statuses[event.stream_id] = int(dict(event.headers or [])[b":status"])
            elif isinstance(event, h2.events.StreamEnded):
                assert event.stream_id is not None
                self.ended.add(event.stream_id)
            elif isinstance(event, h2.events.RemoteSettingsChanged):
                self.settings_came = True
            elif isinstance(event, h2.events.ConnectionTerminated):
                self.terminated = event
