"""``jobqueue top``: show the activity of a service live."""

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

from jobqueue.cli.connection import NOT_NOW, Address, connecting, json_option, run
from jobqueue.cli.output import Output
from jobqueue.cli.rates import Change, Scrape, change, read
from jobqueue.cli.snapshot import Snapshot, waiting
from jobqueue.client import Client, RequestRefused, Unreachable

WINDOW = 10.0
"""Seconds over which rates and latencies are computed."""

PATIENCE = 5.0
"""Timeout for all responses of one snapshot together, in seconds."""


@click.command("top")
@connecting
@click.option(
    "--interval", type=click.FloatRange(0.1, 3600), default=1.0, show_default=True, metavar="SECONDS", help="Time between updates."
)
@click.option("--once", is_flag=True, help="Print one screen, with rates measured over one interval, and exit.")
@json_option
def command(*, address: Address, interval: float, once: bool, as_json: bool) -> None:
    """Show rates, latencies, queues, the slowest kinds and the running jobs of the nodes, and update them. q or Ctrl-C quits.

    Rates and latencies belong to the node that responds. With --json, or if the output is not a terminal, print once.
    """
    output = Output(as_json=as_json)

    async def main() -> None:
        async with address.connect() as client:
            monitor = Monitor(client, address.url if address.database_url is None else "database")
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
    """Takes snapshots of a service, and keeps earlier scrapes to compute rates.

    Args:
        client: the client of the service.
        url: the URL to show.
    """

    def __init__(self, client: Client, url: str) -> None:
        self._client = client
        self.url = url
        self._scrapes: deque[Scrape] = deque()

    async def look(self) -> Snapshot:
        """Take a snapshot.

        Raises:
            RequestRefused, Unreachable: the client raised this error, or `PATIENCE` seconds have passed (Unreachable).
        """
        try:
            with trio.fail_after(PATIENCE):
                text = await self._client.request("GET", "/metrics")
                scrape = read(text or "", trio.current_time())
                queues = await self._client.request("GET", "/queues")
                nodes = await self._client.request("GET", "/nodes")
        except trio.TooSlowError:
            raise Unreachable(f"no response from {self.url} within {PATIENCE:.0f} s", in_doubt=False) from None
        return Snapshot(self.url, datetime.now(UTC), scrape, self._since_then(scrape), queues, nodes)

    async def measure(self, seconds: float) -> Snapshot:
        """Take two snapshots, `seconds` apart, and return the second."""
        await self.look()
        await trio.sleep(seconds)
        return await self.look()

    def _since_then(self, scrape: Scrape) -> Change | None:
        """Compare with the oldest scrape of the window. Start over when another node or a restarted node responds."""
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
                    trouble = f"no data for {trio.current_time() - lost_at:.0f} s, trying again: {error}"
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
    """Read each key at once, and do not echo it."""
    before = termios.tcgetattr(terminal)
    tty.setcbreak(terminal)
    try:
        yield terminal
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
