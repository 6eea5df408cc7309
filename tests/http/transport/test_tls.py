"""TLS with a real certificate: HTTP/1.1, HTTP/2, and clients that never finish their handshake."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import httpx
import pytest
import trio
import trustme

from jobqueue.http import limits
from jobqueue.http.access.credentials import Credentials
from jobqueue.settings import Settings
from tests.support.http import Served, open_files, read_all, serving
from tests.support.service import Start
from tests.support.waiting import wait_for


class Certificates:
    """A certificate for loopback in two files, and a client that trusts it."""

    def __init__(self, directory: Path) -> None:
        self._ca = trustme.CA()
        self.certfile, self.keyfile = directory / "cert.pem", directory / "key.pem"
        self.client = ssl.create_default_context()
        self._ca.configure_trust(self.client)
        self.renew()

    @property
    def arguments(self) -> list[str]:
        return ["--certfile", str(self.certfile), "--keyfile", str(self.keyfile)]

    @property
    def server(self) -> ssl.SSLContext:
        context = Credentials(Settings(certfile=str(self.certfile), keyfile=str(self.keyfile))).tls()
        assert context is not None
        return context

    def renew(self, *, key: bool = True) -> None:
        issued = self._ca.issue_cert("127.0.0.1", "localhost")
        issued.cert_chain_pems[0].write_to_path(self.certfile)
        if key:
            issued.private_key_pem.write_to_path(self.keyfile)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_both_versions_of_http_over_tls(service: Start, certificates: Certificates, processes: str) -> None:
    node = service("examples.quickstart", "--processes", processes, *certificates.arguments, env={"JOBQUEUE_TOKENS": "admin:a"})
    assert node.url.startswith("https://127.0.0.1:")
    assert f"curl {node.url}/submit" in node.banner[-1]
    for http2, version in ((False, "HTTP/1.1"), (True, "HTTP/2")):
        with httpx.Client(base_url=node.url, verify=certificates.client, http2=http2, timeout=120) as client:
            assert client.post("/submit", json={}).status_code == 401
            client.headers["Authorization"] = "Bearer a"
            submitted = client.post("/submit", json={"payload": "x" * 900_000})
            assert (submitted.status_code, submitted.http_version) == (201, version)
            found = client.get(submitted.headers["location"], params={"wait": 60}).json()
            assert found["state"] == "succeeded"
            many = client.post("/submit", json=[{"delay": 60}] * 3_000)
            assert len(many.json()["ids"]) == 3_000
    assert node.stop() == 0
    assert "Traceback" not in node.log


async def connect(served: Served, certificates: Certificates, **options: bool) -> trio.SSLStream[trio.SocketStream]:
    stream = trio.SSLStream(await served.connect(), certificates.client, server_hostname="127.0.0.1", **options)
    await stream.do_handshake()
    return stream


async def test_connections_without_tls_end_cleanly(certificates: Certificates) -> None:
    before = open_files()
    assert certificates.server.minimum_version == ssl.TLSVersion.TLSv1_2
    async with serving(tls=certificates.server, verify=certificates.client) as served:
        for sent in (b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"x" * 1000, b"\0" * 100, b""):
            with trio.fail_after(60):
                async with await served.connect() as stream:
                    await stream.send_all(sent)
                    if not sent:
                        await stream.send_eof()
                    assert b"HTTP/" not in await read_all(stream)
        assert (await served.http.get("/health")).status_code == 200
    assert open_files() <= before


async def test_stalled_handshakes_stop_nobody_and_are_ended(certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    hello = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        certificates.client.wrap_bio(ssl.MemoryBIO(), hello, server_hostname="127.0.0.1").do_handshake()
    begun = hello.read()[:-1]
    async with serving(tls=certificates.server, verify=certificates.client) as served:

        async def stall() -> list[trio.SocketStream]:
            stalled = [await served.connect() for _ in range(50)]
            for stream in stalled[::2]:
                await stream.send_all(begun)
            return stalled

        monkeypatch.setattr(limits, "HANDSHAKE_TIMEOUT", 3600.0)
        patient = await stall()
        with trio.fail_after(60):
            assert (await served.http.get("/health")).status_code == 200
        monkeypatch.setattr(limits, "HANDSHAKE_TIMEOUT", 1.0)
        stalled = await stall()
        with trio.fail_after(60):
            for stream in stalled:
                assert await read_all(stream) == b""
                await stream.aclose()
        for stream in patient:
            await stream.aclose()


async def test_a_stop_does_not_wait_for_a_handshake(certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HANDSHAKE_TIMEOUT", 3600.0)
    server = serving(drain_timeout=3600, tls=certificates.server, verify=certificates.client)
    async with server as served, await served.connect() as stalled:
        served.stopping.set()
        with trio.fail_after(60):
            assert await read_all(stalled) == b""
            await served.stopped.wait()


async def test_the_end_of_a_connection_is_announced_in_tls(certificates: Certificates) -> None:
    async with serving(tls=certificates.server, verify=certificates.client) as served:
        # Without https_compatible, an end that the server did not announce raises an error here.
        stream = await connect(served, certificates)
        await stream.send_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        with trio.fail_after(60):
            assert (await read_whole(stream)).endswith(b'{"status":"ok"}')
            await stream.aclose()


async def test_an_answer_before_the_body_arrives(certificates: Certificates) -> None:
    async with serving(tls=certificates.server, verify=certificates.client) as served:
        stream = await connect(served, certificates, https_compatible=True)
        head = b"POST /submit HTTP/1.1\r\nHost: evil.example\r\nContent-Type: application/json\r\nContent-Length: 9000000\r\n\r\n"
        with trio.fail_after(60):
            await stream.send_all(head + b"x" * 100_000)
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 403")
            await stream.transport_stream.aclose()


async def read_whole(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([bytes(part) async for part in stream])


def test_a_renewed_certificate_is_for_the_next_connection(service: Start, certificates: Certificates) -> None:
    node = service("examples.quickstart", *certificates.arguments)
    port = int(node.url.rsplit(":", 1)[1])

    def served() -> str:
        with (
            socket.create_connection(("127.0.0.1", port), 60) as plain,
            certificates.client.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
        ):
            found = secure.getpeercert()
            assert found is not None
            return str(found["serialNumber"])

    first = served()
    with httpx.Client(base_url=node.url, verify=certificates.client, timeout=60) as kept:
        assert kept.get("/health").status_code == 200
        certificates.renew(key=False)
        wait_for(lambda: "cannot reload files" in node.log, "a certificate without its key is refused")
        assert served() == first
        certificates.renew()
        wait_for(lambda: served() != first, "the new one is in use")
        assert kept.get("/health").status_code == 200
    assert node.stop() == 0
