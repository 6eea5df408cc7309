"""Serve the dashboard: one page and its files. The page reads all its data from the API, like any other client.

The page contains no data, so it needs no token. It asks the user for a token and sends it with its API requests. The browser adds
no credentials automatically, so a page of another site cannot act through it. `Authorizer` also rejects requests from such pages.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from http import HTTPStatus
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import PurePosixPath

from jobqueue.http.api.routes import Route
from jobqueue.http.responses.answers import Answer

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types lit-html"  # only the page's own templates become HTML
)
"""Lets the page fetch from its own service only. Even if a job contains an inline script, the script does not run (CSP level 3,
Trusted Types)."""

PAGE_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}

FOR_GOOD = {"Cache-Control": "public, max-age=31536000, immutable", "Cross-Origin-Resource-Policy": "same-origin"}
"""The headers of the files. A file's path contains a digest of all files, so its content never changes."""

_PAGE = PurePosixPath("index.html")
_MEDIA_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
"""The media types of served files, by suffix; other files, such as licenses, are not served."""


def routes() -> list[Route]:
    """Make the routes of the page and its files. The OpenAPI document leaves them out."""
    files = dict(sorted(_files(resources.files("jobqueue.http") / "static", PurePosixPath())))
    digest = sha256()
    for path, content in files.items():
        digest.update(f"{path} {len(content)} ".encode() + content)
    base = f"/assets/{digest.hexdigest()[:16]}"
    page = files.pop(_PAGE).decode()
    # Preload all modules: they import each other, so otherwise the browser would find some of them only after several round trips.
    preloads = "\n".join(f'<link rel="modulepreload" href="{base}/{path}">' for path in files if _is_module(path))
    page = page.replace("{assets}", base).replace("{preloads}", preloads)
    return [
        _route("/", _PAGE, page.encode(), PAGE_HEADERS),
        *(_route(f"{base}/{path}", path, content, FOR_GOOD) for path, content in files.items()),
    ]


def _files(directory: Traversable, path: PurePosixPath) -> list[tuple[PurePosixPath, bytes]]:
    found = []
    for entry in directory.iterdir():
        place = path / entry.name
        if entry.is_dir():
            found += _files(entry, place)
        elif place.suffix in _MEDIA_TYPES:
            found.append((place, entry.read_bytes()))
    return found


def _is_module(path: PurePosixPath) -> bool:
    return path.suffix == ".js" and ".iife" not in path.suffixes


def _route(path: str, file: PurePosixPath, content: bytes, headers: Mapping[str, str]) -> Route:
    media_type = _MEDIA_TYPES[file.suffix]
    answer = Answer(HTTPStatus.OK, {**headers, "Content-Type": f"{media_type}; charset=utf-8"}, content)

    async def view() -> Answer:
        return answer

    return Route(method="GET", path=path, needs="page", summary=file.name, view=view, media_type=media_type, refuses=frozenset())
