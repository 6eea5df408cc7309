"""The throughput that a node reports for its last minute."""

from __future__ import annotations

import trio
import trio.testing

from jobqueue.engine.recent_rates import RecentRates


async def test_rates_cover_the_last_minute(autojump_clock: trio.testing.MockClock) -> None:
    assert autojump_clock
    activity = RecentRates()
    assert activity.rates() == {}
    activity.note("mail", 600, failed=False)
    activity.note("mail", 30, failed=True)
    activity.note("quiet", 3, failed=True)
    assert activity.rates() == {"mail": (10, 0.5), "quiet": (0, 0.05)}
    await trio.sleep(30)
    activity.note("mail", 60, failed=False)
    assert activity.rates()["mail"] == (11, 0.5)
    await trio.sleep(31)
    assert activity.rates() == {"mail": (1, 0)}
    await trio.sleep(30)
    assert activity.rates() == {}


async def test_memory_stays_bounded_whatever_is_noted(autojump_clock: trio.testing.MockClock) -> None:
    assert autojump_clock
    activity = RecentRates()
    for _ in range(500):
        await trio.sleep(0.5)
        activity.note("mail", 1, failed=False)
    assert len(activity._seconds) == 61
    assert 1.9 < activity.rates()["mail"][0] <= 2.1
