"""The examples, with real receivers, real images, and the real service."""

from __future__ import annotations

import base64
import hashlib
import hmac
import importlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import httpx
import matplotlib as mpl
import pytest
from click.testing import CliRunner
from PIL import Image

import jobqueue
from examples import quickstart, thumbnails
from jobqueue import testing
from tests.support.command_line import run_module
from tests.support.service import Service

pytestmark = pytest.mark.slow

KEY = b"a key of at least 24 bytes"
SECRET = f"whsec_{base64.b64encode(KEY).decode()}"
IMAGES = Path(mpl.get_data_path())
ENDED = {"succeeded", "dead", "cancelled"}

ServiceFactory = Callable[..., Service]


def submit(service: Service, job: dict[str, Any]) -> str:
    job_id: str = httpx.post(f"{service.url}/submit", json=job, timeout=60).raise_for_status().json()["id"]
    return job_id


def wait_for(service: Service, job_id: str, within: float = 60) -> dict[str, Any]:
    """Wait for the end of a job, and return the job."""
    deadline = time.monotonic() + within
    while True:
        job: dict[str, Any] = httpx.get(f"{service.url}/jobs/{job_id}", timeout=60).raise_for_status().json()
        if job["state"] in ENDED:
            return job
        assert time.monotonic() < deadline, job
        time.sleep(0.05)


# ------------------------------------------------------------------------------------------------------------------- quickstart


def test_the_default_kind_returns_its_payload() -> None:
    assert testing.run_sync(quickstart.app, "default", {"hello": "world"}, attempt=2) == {"seen": {"hello": "world"}, "attempt": 2}


def test_the_flaky_kind_rejects_a_text_as_a_rate() -> None:
    with pytest.raises(testing.PayloadMismatch, match="failure_rate"):
        testing.run_sync(quickstart.app, "flaky", {"failure_rate": "often"})


@testing.in_virtual_time
async def test_the_flaky_kind_is_tried_eleven_times() -> None:
    async with testing.Queue(quickstart.app) as queue:
        doomed = await queue.submit("flaky", {"failure_rate": 1})
        lucky = await queue.submit("flaky", {"failure_rate": 0}, delay=60)
        await queue.drain()
        assert (queue.job(doomed)["state"], queue.job(doomed)["attempt"]) == ("dead", 11)
        assert (queue.job(lucky)["state"], queue.job(lucky)["result"]) == ("succeeded", "done")


# --------------------------------------------------------------------------------------------------------------------- webhooks


class Request(NamedTuple):
    headers: dict[str, str]
    body: bytes


class Receiver:
    """Responds to each POST with the next of the given (status, headers), then always with the last one. Records the requests."""

    def __init__(self, url: str, answers: list[tuple[int, dict[str, str]]]) -> None:
        self.url = url
        self.requests: list[Request] = []
        self._answers = answers

    def answer(self, request: Request) -> tuple[int, dict[str, str]]:
        self.requests.append(request)
        return self._answers[min(len(self.requests), len(self._answers)) - 1]


@contextmanager
def receiving(*answers: tuple[int, dict[str, str]]) -> Iterator[Receiver]:
    """Run a receiver of webhooks on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, headers = receiver.answer(Request({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(status)
            for name, value in {"Content-Length": "0", **headers}.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver = Receiver(f"http://127.0.0.1:{server.server_port}/hooks", list(answers))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()


def verify(request: Request) -> None:
    """Verify a Standard Webhook, as a receiver does."""
    signed = f"{request.headers['webhook-id']}.{request.headers['webhook-timestamp']}.".encode() + request.body
    version, _, signature = request.headers["webhook-signature"].partition(",")
    assert version == "v1"
    assert base64.b64decode(signature) == hmac.new(KEY, signed, hashlib.sha256).digest()
    assert abs(int(request.headers["webhook-timestamp"]) - time.time()) < 600


@pytest.fixture
def webhooks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
    return importlib.import_module("examples.webhooks")


@pytest.fixture
def job() -> jobqueue.Job:
    return jobqueue.Job(
        id="01936d9c-0000-7000-8000-000000000000",
        kind="webhook",
        queue="default",
        payload={},
        priority=0,
        attempt=1,
        max_retries=14,
        created_at=datetime(2030, 1, 31, 8, 0, tzinfo=UTC),
    )


async def test_webhook_is_delivered_with_a_signature_that_verifies(webhooks: ModuleType, job: jobqueue.Job) -> None:
    with receiving((204, {})) as receiver:
        result = await webhooks.webhook(job, receiver.url, "order.paid", {"order": 17})
    [request] = receiver.requests
    verify(request)
    assert request.headers["webhook-id"] == job.id
    assert request.headers["content-type"] == "application/json"
    assert json.loads(request.body) == {"type": "order.paid", "timestamp": "2030-01-31T08:00:00Z", "data": {"order": 17}}
    assert result["status"] == 204
    assert result["seconds"] >= 0


async def test_webhook_sends_the_same_request_on_every_attempt(webhooks: ModuleType, job: jobqueue.Job) -> None:
    with receiving((500, {}), (200, {})) as receiver:
        with pytest.raises(jobqueue.Retry) as raised:
            await webhooks.webhook(job, receiver.url, "order.paid", [1, 2])
        result = await webhooks.webhook(job, receiver.url, "order.paid", [1, 2])
    assert raised.value.delay is None  # the handler's backoff
    assert raised.value.reason == "the receiver returned 500"
    assert result["status"] == 200
    first, second = receiver.requests
    assert first.body == second.body
    assert first.headers["webhook-id"] == second.headers["webhook-id"]


@pytest.mark.parametrize(
    ("value", "delays"),
    [
        ("7", (7, 7)),
        ("0", (1, 1)),
        ("9" * 400, (6 * 3600, 6 * 3600)),
        (formatdate(time.time() + 3000, usegmt=True), (1000, 3000)),
        (time.strftime("%a %b %e %H:%M:%S %Y", time.gmtime(time.time() + 3000)), (1000, 3000)),
        (formatdate(0, usegmt=True), (1, 1)),
        (formatdate(time.time() + 10**9, usegmt=True), (6 * 3600, 6 * 3600)),
    ],
    ids=["seconds", "no seconds", "too many seconds", "date", "asctime date", "past date", "far date"],
)
@pytest.mark.parametrize("status", [429, 503])
async def test_webhook_honors_retry_after(
    webhooks: ModuleType, job: jobqueue.Job, status: int, value: str, delays: tuple[float, float]
) -> None:
    with receiving((status, {"Retry-After": value})) as receiver, pytest.raises(jobqueue.Retry) as raised:
        await webhooks.webhook(job, receiver.url, "order.paid")
    least, most = delays
    assert raised.value.delay is not None
    assert least <= raised.value.delay <= most


@pytest.mark.parametrize("value", ["", "soon", "-5", "1.5", "Fri, 31 Feb 2030 25:00:00 GMT", "Fri, 31 Jan 99999999 08:00:00 GMT"])
async def test_webhook_ignores_an_invalid_retry_after(webhooks: ModuleType, job: jobqueue.Job, value: str) -> None:
    with receiving((503, {"Retry-After": value})) as receiver, pytest.raises(jobqueue.Retry) as raised:
        await webhooks.webhook(job, receiver.url, "order.paid")
    assert raised.value.delay is None


@pytest.mark.parametrize(
    ("status", "reason"),
    [(410, "unsubscribe"), (400, "would not help"), (404, "would not help"), (308, "redirects are not followed")],
)
async def test_webhook_discards_jobs_that_no_retry_can_help(
    webhooks: ModuleType, job: jobqueue.Job, status: int, reason: str
) -> None:
    with receiving((status, {"Location": "/elsewhere"})) as receiver, pytest.raises(jobqueue.Discard, match=f"{status}.*{reason}"):
        await webhooks.webhook(job, receiver.url, "order.paid")
    assert len(receiver.requests) == 1


async def test_webhook_retries_when_nobody_listens(webhooks: ModuleType, job: jobqueue.Job) -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))  # without listen, so connections are refused
        with pytest.raises(jobqueue.Retry, match="ConnectError"):
            await webhooks.webhook(job, f"http://127.0.0.1:{unheard.getsockname()[1]}", "order.paid")


async def test_webhook_retries_when_the_receiver_is_silent(
    webhooks: ModuleType, job: jobqueue.Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "PATIENCE", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(jobqueue.Retry, match="ReadTimeout"):
        await webhooks.webhook(job, f"http://127.0.0.1:{silent.getsockname()[1]}", "order.paid")


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x", "no url", "http://", "http://[::1"])
async def test_webhook_discards_jobs_with_an_invalid_url(webhooks: ModuleType, job: jobqueue.Job, url: str) -> None:
    with pytest.raises(jobqueue.Discard):
        await webhooks.webhook(job, url, "order.paid")


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_c2hvcnQ=", "not base64!"])
def test_webhooks_do_not_start_without_a_good_secret(webhooks: ModuleType, secret: str) -> None:
    with pytest.raises(SystemExit, match="set WEBHOOK_SECRET"):
        webhooks.signing_key(secret)


def test_webhooks_through_the_service(service: ServiceFactory) -> None:
    running = service("examples.webhooks", env={"WEBHOOK_SECRET": SECRET})
    payload = {"event": "order.paid", "data": {"order": 17}}
    with receiving((500, {"Retry-After": "1"}), (200, {})) as receiver, receiving((410, {})) as unwilling:
        recovers = submit(running, {"kind": "webhook", "payload": {**payload, "url": receiver.url}})
        gone = submit(running, {"kind": "webhook", "payload": {**payload, "url": unwilling.url}})
        delivered, discarded = wait_for(running, recovers), wait_for(running, gone)
    for request in receiver.requests:
        verify(request)
    assert [request.headers["webhook-id"] for request in receiver.requests] == [recovers, recovers]
    assert (delivered["state"], delivered["attempt"], delivered["result"]["status"]) == ("succeeded", 2, 200)
    assert (discarded["state"], discarded["attempt"]) == ("dead", 1)
    assert "410" in discarded["reason"]
    assert running.stop() == 0


# ------------------------------------------------------------------------------------------------------------------- thumbnails


def test_thumbnail_of_a_photograph(tmp_path: Path) -> None:
    photograph = IMAGES / "sample_data" / "grace_hopper.jpg"  # 512 x 600
    result = thumbnails.thumbnail(str(photograph), 100, str(tmp_path / "out"))
    target = tmp_path / "out" / "grace_hopper.jpg.100.jpg"
    assert result == {"path": str(target), "width": 85, "height": 100, "bytes": target.stat().st_size}
    with Image.open(target) as made:
        assert (made.format, made.size) == ("JPEG", (85, 100))


def test_thumbnail_keeps_transparency_and_does_not_enlarge(tmp_path: Path) -> None:
    result = thumbnails.thumbnail(str(IMAGES / "images" / "home.png"), folder=str(tmp_path))
    assert (Path(result["path"]).suffix, result["width"], result["height"]) == (".png", 24, 24)
    with Image.open(result["path"]) as made:
        assert made.getextrema()[3] == (0, 255)


def test_thumbnail_is_stored_next_to_the_image_and_is_reproducible(tmp_path: Path) -> None:
    Image.new("RGB", (400, 300), "teal").save(tmp_path / "sea.png")
    first = thumbnails.thumbnail(str(tmp_path / "sea.png"))
    content = Path(first["path"]).read_bytes()
    assert thumbnails.thumbnail(str(tmp_path / "sea.png")) == first
    assert [path.read_bytes() for path in (tmp_path / "thumbnails").iterdir()] == [content]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_thumbnail_is_upright(tmp_path: Path, orientation: int) -> None:
    # The inverse of the operation that each of the eight EXIF orientations requires.
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = Image.new("RGB", (400, 200), "white")
    upright.paste("red", (0, 0, 200, 100))
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photograph.jpg", exif=exif)
    result = thumbnails.thumbnail(str(tmp_path / "photograph.jpg"), 100)
    with Image.open(result["path"]) as made:
        assert made.size == (100, 50)
        red, green, _ = made.getpixel((25, 12))
        assert red > 200
        assert green < 50
        assert made.getpixel((75, 37))[1] > 200
        assert 0x0112 not in made.getexif()


def test_thumbnail_of_sixteen_bits_is_not_clipped(tmp_path: Path) -> None:
    Image.new("I;16", (64, 64), 0x8000).save(tmp_path / "scan.png")
    result = thumbnails.thumbnail(str(tmp_path / "scan.png"))
    with Image.open(result["path"]) as made:
        assert made.getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("text.png", b"no image at all", "not a readable image: cannot identify"),
        ("empty.jpg", b"", "not a readable image: cannot identify"),
        (
            "cut.jpg",
            (IMAGES / "sample_data" / "grace_hopper.jpg").read_bytes()[:10_000],
            "not a readable image: .*truncated",
        ),
        ("cut.png", (IMAGES / "sample_data" / "logo2.png").read_bytes()[:5_000], "not a readable image: "),
        ("absent.png", None, "file not found"),
    ],
)
def test_thumbnail_discards_files_that_are_not_images(tmp_path: Path, name: str, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(jobqueue.Discard, match=reason):
        thumbnails.thumbnail(str(tmp_path / name))
    assert not (tmp_path / "thumbnails").exists()


@pytest.mark.parametrize("limit", [3_000, 6_000], ids=["refused by Pillow", "warned of by Pillow"])
def test_thumbnail_discards_decompression_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    Image.new("RGB", (100, 100)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(jobqueue.Discard, match="decompression bomb"):
        thumbnails.thumbnail(str(tmp_path / "bomb.png"))


def test_thumbnail_retries_disk_errors(tmp_path: Path) -> None:
    (tmp_path / "occupied").write_bytes(b"")
    with pytest.raises(OSError, match="occupied"):
        thumbnails.thumbnail(str(IMAGES / "images" / "home.png"), folder=str(tmp_path / "occupied"))
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(IsADirectoryError):
        thumbnails.thumbnail(str(tmp_path / "folder.png"))


def test_thumbnails_of_a_folder_through_the_service(service: ServiceFactory, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "broken.png").write_bytes(b"no image at all")
    running = service("examples.thumbnails")
    whole = run_module("examples.thumbnails", str(IMAGES), "--url", running.url, "--out", str(out), "--width", "32")
    broken = run_module("examples.thumbnails", str(tmp_path / "broken"), "--url", running.url, "--out", str(out))
    assert running.stop() == 0

    images = [path.relative_to(IMAGES) for path in IMAGES.rglob("*") if path.suffix in {".png", ".jpg"}]
    assert len(images) > 20
    assert whole.returncode == 0, whole.stderr
    assert f"{len(images)} images: {len(images)} succeeded" in whole.stdout
    assert "images/s" in whole.stdout
    for image in images:
        [made] = (out / image.parent).glob(f"{image.name}.32.*")
        with Image.open(made) as thumbnail:
            assert max(thumbnail.size) <= 32
    assert not list(out.rglob(".*")), "nothing unfinished is left behind"

    assert broken.returncode == 0, broken.stderr
    assert "dead: broken.png: not a readable image: cannot identify image file" in broken.stdout
    assert "1 images: 1 dead" in broken.stdout


def test_thumbnails_front_end_reports_errors(tmp_path: Path) -> None:
    command = CliRunner()
    nothing = command.invoke(thumbnails.main, [str(tmp_path), "--out", str(tmp_path / "out")])
    assert (nothing.exit_code, nothing.output) == (1, f"Error: no images in {tmp_path} or its subfolders\n")
    itself = command.invoke(thumbnails.main, [str(IMAGES), "--out", str(IMAGES)])
    assert (itself.exit_code, itself.output) == (1, "Error: --out must be a folder that does not contain the images\n")
    unserved = command.invoke(thumbnails.main, [str(IMAGES), "--out", str(tmp_path / "out"), "--url", "http://127.0.0.1:9"])
    assert unserved.exit_code == 1
    assert "Error: http://127.0.0.1:9: " in unserved.output
