"""Check the accessibility of a page with axe-core: WCAG 2.2 A and AA, and its best practices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

Scheme = Literal["light", "dark"]

LOOKS: tuple[tuple[int, int, Scheme], ...] = ((360, 740, "light"), (360, 740, "dark"), (1280, 900, "dark"), (3840, 2160, "light"))
"""Width and height in CSS pixels, and the color scheme of the system."""

_OPTIONS = {"resultTypes": ["violations"], "rules": {"target-size": {"enabled": True}}}


def accessible(page: Page) -> None:
    """Assert that axe-core finds no violation in the current state of the page."""
    found = Axe().run(page, options=_OPTIONS).response["violations"]
    violations = [
        f"{violation['id']}: {violation['help']}\n"
        + "\n".join(f"  {node['html']}\n  {node['failureSummary']}" for node in violation["nodes"])
        for violation in found
    ]
    assert not violations, "\n".join(violations)


def fits(page: Page) -> None:
    """Assert that the page needs no horizontal scrolling, except within `.scroll`."""
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def each_look(page: Page) -> Iterator[tuple[int, Scheme]]:
    """Show the page narrow and wide, light and dark, and yield each of these looks."""
    for width, height, scheme in LOOKS:
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme=scheme)
        yield width, scheme
