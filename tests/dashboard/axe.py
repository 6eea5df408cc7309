"""axe-core: what of a page keeps people from using it (WCAG 2.2 A and AA, and what its authors call best practice)."""

from __future__ import annotations

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

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
