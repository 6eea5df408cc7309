"""Listen on sockets, and limit the open connections."""

from __future__ import annotations

import errno
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import trio

from jobqueue.errors import SettingsError
from jobqueue.http import limits


def open_listeners(host: str, port: int, *, shared: bool = False) -> list[trio.SocketListener]:
    """Listen on every address of a host.

    Args:
        host: an address, or a name, which may have several addresses.
        port: from 0 to 65535; 0 selects a free port, the same for all addresses.
        shared: share the port with other processes (SO_REUSEPORT); the kernel distributes the connections.

    Raises:
        SettingsError: the server cannot listen on any address, or the port is in use on one.
    """
    listeners: list[trio.SocketListener] = []
    failures: list[OSError] = []
    try:
        for family, (name, _, *rest) in _addresses(host, port):
            try:
                listeners.append(_listen(family, (name, port, *rest), shared=shared))
            except OSError as error:
                # One usable address is enough: a name may also have an address of a family that this machine does not use.
                if error.errno not in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}:
                    raise
                failures.append(error)
            else:
                port = listeners[0].socket.getsockname()[1]
        if not listeners:
            raise failures[0]
    except (OSError, OverflowError) as error:
        for listener in listeners:
            listener.socket.close()
        raise _refusal(host, port, error) from error
    return listeners


@contextmanager
def reserved(host: str, port: int, scheme: str = "http") -> Iterator[tuple[int, list[str]]]:
    """Reserve a port for the service's own processes, which listen there with `open_listeners(..., shared=True)`.

    Args:
        host: an address, or a name, which may have several addresses.
        port: from 0 to 65535; 0 selects a free port.
        scheme: the scheme of the URLs.

    Returns:
        A context manager; its value is the port and the URLs that the processes will serve.

    Raises:
        SettingsError: the server cannot listen on any address, or the port is in use on one, shared or not.
    """
    listeners = open_listeners(host, port)  # not shared, so that this fails if any other process listens there
    found = [(listener.socket.family, listener.socket.getsockname()) for listener in listeners]
    served = urls(listeners, scheme)
    for listener in listeners:
        listener.socket.close()
    port = found[0][1][1]
    with ExitStack() as kept:
        try:
            for family, address in found:
                sock = kept.enter_context(_bind(family, address, shared=True))
                # bind() needed this option because of old connections in TIME_WAIT. From now on, the option would let other
                # processes bind here.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        except OSError as error:
            raise _refusal(host, port, error) from error
        yield port, served


def urls(listeners: list[trio.SocketListener], scheme: str = "http") -> list[str]:
    """Return the URL of each listener."""
    names = [(listener.socket.family, listener.socket.getsockname()) for listener in listeners]
    return [
        f"{scheme}://[{name[0]}]:{name[1]}" if family == socket.AF_INET6 else f"{scheme}://{name[0]}:{name[1]}"
        for family, name in names
    ]


def _addresses(host: str, port: int) -> Iterator[tuple[int, Any]]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return ((family, address) for family, _, _, _, address in found)


def _refusal(host: str, port: int, error: Exception) -> SettingsError:
    in_use = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
    hint = "another process listens there: stop it, or choose another port" if in_use else str(error)
    return SettingsError(f"cannot listen on {host} port {port}: {hint}")


def _listen(family: int, address: Any, *, shared: bool) -> trio.SocketListener:
    sock = _bind(family, address, shared=shared)
    try:
        sock.listen(limits.BACKLOG)
        return trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    except BaseException:
        sock.close()
        raise


def _bind(family: int, address: Any, *, shared: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Set these options here, because accepted sockets inherit them.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(limits.SEND_TIMEOUT * 1000))
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        return sock
    except BaseException:
        sock.close()
        raise


class BoundedListener(trio.abc.Listener[trio.SocketStream]):
    """A listener that accepts a connection only while there is a free slot. The kernel queues further connections."""

    def __init__(self, listener: trio.SocketListener, slots: trio.Semaphore) -> None:
        self._listener = listener
        self._slots = slots

    async def accept(self) -> trio.SocketStream:
        await self._slots.acquire()
        try:
            return await self._listener.accept()
        except BaseException:
            self._slots.release()
            raise

    async def aclose(self) -> None:
        await self._listener.aclose()


def max_connections() -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limits.MAX_CONNECTIONS if files == resource.RLIM_INFINITY else min(limits.MAX_CONNECTIONS, files // 2)
