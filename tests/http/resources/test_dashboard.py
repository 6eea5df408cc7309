"""The dashboard's files over HTTP. tests/dashboard tests the dashboard in a browser."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import PurePosixPath

import httpx
import pytest

from jobqueue.http.api.routes import Route
from jobqueue.http.resources import dashboard
from tests.support.service import Start


@pytest.fixture(scope="module")
def files() -> dict[str, Route]:
    return {re.sub(r"^/assets/\w+/", "", route.path): route for route in dashboard.routes()}


def test_the_page_and_its_files_are_served_without_a_token(service: Start) -> None:
    node = service("examples.quickstart", env={"JOBQUEUE_TOKENS": "admin:dashboard-secret"})
    with httpx.Client(base_url=node.url, timeout=60) as client:
        page = client.get("/")
        assert page.status_code == 200
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.headers["content-security-policy"] == dashboard.CONTENT_SECURITY_POLICY
        assert page.headers["cache-control"] == "no-store"
        linked = re.findall(r'(?:href|src)="([^"]+)"', page.text)
        assert len(linked) > 10
        for path in linked:
            file = client.get(path)
            assert file.status_code == 200, path
            assert "immutable" in file.headers["cache-control"]
            assert file.headers["x-content-type-options"] == "nosniff"
        assert client.get("/queues").status_code == 401, "the data needs a token"
        assert client.get("/", headers={"Host": "elsewhere.example"}).status_code == 200


def test_without_tokens_the_page_is_for_this_machine_only(service: Start) -> None:
    node = service("examples.quickstart")
    assert httpx.get(f"{node.url}/", timeout=60).status_code == 200
    assert httpx.get(f"{node.url}/", headers={"Host": "elsewhere.example"}, timeout=60).status_code == 403, "DNS rebinding"


def test_all_files_share_one_path_prefix(files: dict[str, Route]) -> None:
    bases = {route.path.removesuffix(name) for name, route in files.items() if name != "/"}
    assert len(bases) == 1


def test_nothing_in_the_page_is_inline_or_from_elsewhere(files: dict[str, Route]) -> None:
    static = resources.files("jobqueue.http") / "static"
    html = (static / "index.html").read_text()
    assert re.findall(r"<script(?![^>]* src=)|<style| on\w+=| style=", html) == []
    assert re.findall(r"https?:|//", html) == []
    for name in files:
        if name.endswith(".js") and "vendor" not in PurePosixPath(name).parts:
            text = (static / name).read_text()
            assert re.findall(r"innerHTML|unsafe|eval\(|document\.write| style=", text) == [], name


def test_licenses_are_packaged_and_not_served(files: dict[str, Route]) -> None:
    vendor = resources.files("jobqueue.http") / "static" / "vendor"
    libraries = [entry for entry in vendor.iterdir() if entry.is_dir()]
    assert libraries
    assert all((library / "LICENSE").is_file() for library in libraries)
    assert not any("LICENSE" in name for name in files)
