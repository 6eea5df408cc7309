"""The dashboard: one page, and the files that it is made of. All that it shows it asks the API for, as anybody could.

The page itself tells nothing, so it needs no token: it asks for one, and sends it along with its requests. A browser adds nothing
to these by itself, so no other site can have it act (and `Guard` refuses what another site's page sends).
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from http import HTTPStatus
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import PurePosixPath

from jobqueue.http.answers import Answer
from jobqueue.http.routes import Route

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types lit-html"  # no text becomes a document but our own templates
)
"""What the page may do: fetch from its own service. Nothing inline runs, whatever a job holds (CSP level 3, Trusted Types)."""

PAGE_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}

FOR_GOOD = {"Cache-Control": "public, max-age=31536000, immutable", "Cross-Origin-Resource-Policy": "same-origin"}
"""Of the files: where they are says what they hold, so they never change."""

_PAGE = PurePosixPath("index.html")
_MEDIA_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
"""The media types of what is served, by suffix; licences are there too, and are not served."""


def routes() -> list[Route]:
    """Make the routes of the page and its files. They are for browsers, and no part of the API's description."""
    files = dict(sorted(_files(resources.files("jobqueue.http") / "static", PurePosixPath())))
    digest = sha256()
    for path, content in files.items():
        digest.update(f"{path} {len(content)} ".encode() + content)
    base = f"/assets/{digest.hexdigest()[:16]}"
    page = files.pop(_PAGE).decode()
    # Modules import each other: the browser would hear of the last ones only after several round trips.
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
