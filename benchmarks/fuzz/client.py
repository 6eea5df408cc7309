"""Send a case and read the responses."""

from __future__ import annotations

import re
import socket
import struct

import h2.exceptions
import hpack
import trio

from benchmarks.fuzz.cases import Case

PATIENCE = 1.0
"""How long a client waits for the next byte, in seconds. If none arrives, the service usually waits for the rest of a request."""

LONGEST = 5.0
"""Maximum time for a whole response, in seconds."""

PAUSE = 0.02
"""Seconds between two pieces of a request."""

RESET = struct.pack("ii", 1, 0)
"""The SO_LINGER value with which a close resets the connection."""

_status = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
_length = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)


async def send(address: tuple[str, int], case: Case) -> list[str]:
    """Send the case. Return the statuses of the responses, or how the connection ended without one."""
    client = trio.socket.socket()
    try:
        await client.connect(address)
        stream = trio.SocketStream(client)
        received, ended = await _exchange(stream, case)
        if case.ending == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    finally:
        client.close()
    return statuses(received) or [ended]


async def _exchange(stream: trio.SocketStream, case: Case) -> tuple[bytes, str]:
    received = bytearray()
    try:
        with trio.move_on_after(LONGEST):
            for number, piece in enumerate(case.pieces):
                if number:
                    await trio.sleep(PAUSE)
                await stream.send_all(piece)
            if case.ending in {"reset", "vanish"}:
                return b"", "left"
            if case.ending == "half":
                await stream.send_eof()
            one = case.kind not in {"pipelined", "HTTP/2", "HTTP/2 mutated", "upgrades"}
            while not (one and _is_whole(received)):
                with trio.move_on_after(PATIENCE) as patience:
                    data = await stream.receive_some(65_536)
                if patience.cancelled_caught:
                    return bytes(received), "gave up"
                if not data:
                    return bytes(received), "closed"
                received += data
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return bytes(received), "reset"
    return bytes(received), "gave up"


def _is_whole(received: bytearray) -> bool:
    """Return True if the first response is complete, or if its end may never arrive."""
    head = received.find(b"\r\n\r\n")
    if head < 0 or received.startswith(b"HTTP/1.1 1"):
        return False
    length = _length.search(received, 0, head + 2)
    # A response without a length, such as an event stream, may never end.
    return length is None or len(received) >= head + 4 + int(length[1])


def statuses(received: bytes) -> list[str]:
    """Return the response statuses in a server's data, for HTTP/1 and HTTP/2, without informational statuses."""
    if received.startswith(b"HTTP/1"):
        found = [status.decode() for status in _status.findall(received) if not status.startswith(b"1")]
        upgraded = received.find(b"\r\n\r\n", received.find(b"HTTP/1.1 101")) + 4 if b"HTTP/1.1 101" in received else None
        return found if upgraded is None else [*found, *statuses(received[upgraded:])]
    found, decoder, at = [], hpack.Decoder(), 0
    while at + 9 <= len(received):
        length, kind = int.from_bytes(received[at : at + 3], "big"), received[at + 3]
        if kind == 1:  # a HEADERS frame: the server sends all headers in one frame, without padding or priority
            try:
                fields = decoder.decode(received[at + 9 : at + 9 + length], raw=True)
            except (hpack.HPACKError, h2.exceptions.H2Error):
                break
            found += [bytes(value).decode() for name, value, *_ in fields if name == b":status"]
        at += 9 + length
    return found
