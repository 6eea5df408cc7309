"""``jobqueue top``: what the service does, as it does it."""

from __future__ import annotations

import os
import sys
import termios
import tty
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import click
import trio
from rich.live import Live

from jobqueue.cli.connection import NOT_NOW, Connection, connecting, json_option, run
from jobqueue.cli.output import Output
from jobqueue.cli.rates import Change, Scrape, change, read
from jobqueue.cli.snapshot import Snapshot, waiting
from jobqueue.client import Client, RequestRefused, Unreachable

WINDOW = 10.0
"""Seconds over which rates and latencies are taken: a second of a quiet queue says little."""

PATIENCE = 5.0
"""Seconds for all answers of one look."""


@click.command("top")
@connecting
@click.option(
    "--interval", type=click.FloatRange(0.1, 3600), default=1.0, show_default=True, metavar="SECONDS", help="How often to look."
)
@click.option("--once", is_flag=True, help="Print one screen and end; what is measured is measured for one interval.")
@json_option
def command(*, connection: Connection, interval: float, once: bool, as_json: bool) -> None:
    """Show rates, queues, latencies, the slowest kinds and what the nodes run, again and again; q or Ctrl-C ends it.

    Rates and latencies are those of the node that answers. What is no terminal, and --json, gets it once.
    """
    output = Output(as_json=as_json)

    async def main() -> None:
        async with connection.connect() as client:
            monitor = Monitor(client, connection.url if connection.database_url is None else "database")
            if once or as_json or not output.console.is_terminal:
                snapshot = await monitor.measure(interval)
                output.show(snapshot.document(), lambda: snapshot.screen(wide=output.wide))
            else:
                await _watch(monitor, output, interval)

    try:
        run(main)
    except KeyboardInterrupt:
        click.echo()


class Monitor:
    """Asks a service what it does, and remembers what it needs to tell rates.

    Args:
        client: of the service.
        url: as people know it.
    """

    def __init__(self, client: Client, url: str) -> None:
        self._client = client
        self.url = url
        self._scrapes: deque[Scrape] = deque()

    async def look(self) -> Snapshot:
        """Ask once.

        Raises:
            RequestRefused, Unreachable: as the client does.
        """
        try:
            with trio.fail_after(PATIENCE):
                text = await self._client.request("GET", "/metrics")
                scrape = read(text or "", trio.current_time())
                queues = await self._client.request("GET", "/queues")
                nodes = await self._client.request("GET", "/nodes")
        except trio.TooSlowError:
            raise Unreachable(f"no answer from {self.url} within {PATIENCE:.0f} s", in_doubt=False) from None
        return Snapshot(self.url, datetime.now(UTC), scrape, self._since_then(scrape), queues, nodes)

    async def measure(self, seconds: float) -> Snapshot:
        """Ask twice, so many seconds apart."""
        await self.look()
        await trio.sleep(seconds)
        return await self.look()

    def _since_then(self, scrape: Scrape) -> Change | None:
        """Compare with the oldest scrape of the window. A node that was restarted, or another one on its port, begins anew."""
        kept = self._scrapes
        if kept and kept[-1].node != scrape.node:
            kept.clear()
        kept.append(scrape)
        while kept[0].at < scrape.at - WINDOW:
            kept.popleft()
        return change(kept[0], scrape) if scrape.node else None


async def _watch(monitor: Monitor, output: Output, interval: float) -> None:
    snapshot: Snapshot | None = None
    with Live(console=output.console, screen=True, auto_refresh=False) as live:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_until_quit, nursery.cancel_scope)
            lost_at: float | None = None
            while True:
                began = trio.current_time()
                try:
                    snapshot = await monitor.look()
                    lost_at = None
                    screen = snapshot.screen(wide=output.wide)
                except (RequestRefused, Unreachable) as error:
                    if isinstance(error, RequestRefused) and error.status not in NOT_NOW:
                        raise
                    lost_at = began if lost_at is None else lost_at
                    trouble = f"lost for {trio.current_time() - lost_at:.0f} s, asking again: {error}"
                    screen = snapshot.screen(trouble, wide=output.wide) if snapshot else waiting(monitor.url, trouble)
                live.update(screen, refresh=True)
                await trio.sleep_until(began + interval)


async def _until_quit(scope: trio.CancelScope) -> None:
    if not sys.stdin.isatty():
        return
    with _each_key(sys.stdin.fileno()) as terminal:
        while True:
            await trio.lowlevel.wait_readable(terminal)
            keys = os.read(terminal, 64)
            if not keys or {*keys} & {*b"qQ"}:
                scope.cancel()
                return


@contextmanager
def _each_key(terminal: int) -> Iterator[int]:
    """Have the terminal give each key at once, and not show it."""
    before = termios.tcgetattr(terminal)
    tty.setcbreak(terminal)
    try:
        yield terminal
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
