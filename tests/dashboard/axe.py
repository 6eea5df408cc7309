"""axe-core: what of a page keeps people from using it (WCAG 2.2 A and AA, and what its authors call best practice)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

Scheme = Literal["light", "dark"]

LOOKS: tuple[tuple[int, int, Scheme], ...] = ((360, 740, "light"), (360, 740, "dark"), (1280, 900, "dark"), (3840, 2160, "light"))
"""Width and height in CSS pixels, and what the system's setting is."""

_OPTIONS = {"resultTypes": ["violations"], "rules": {"target-size": {"enabled": True}}}


def accessible(page: Page) -> None:
    """Assert that axe-core finds nothing in what the page shows now."""
    found = Axe().run(page, options=_OPTIONS).response["violations"]
    told = [
        f"{violation['id']}: {violation['help']}\n"
        + "\n".join(f"  {node['html']}\n  {node['failureSummary']}" for node in violation["nodes"])
        for violation in found
    ]
    assert not told, "\n".join(told)


def fits(page: Page) -> None:
    """Assert that the page itself need not be scrolled sideways: only what is within `.scroll` may be wider."""
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def each_look(page: Page) -> Iterator[tuple[int, Scheme]]:
    """Have the page shown narrow and wide, by day and by night; at each it is to be looked at."""
    for width, height, scheme in LOOKS:
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme=scheme)
        yield width, scheme
