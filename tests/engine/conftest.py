"""Fixtures for runs without a node."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio_parallel

from tests.support.executor import Runner


@pytest.fixture
async def node() -> AsyncIterator[Runner]:
    async with trio_parallel.open_worker_context(grace_period=60) as processes:
        yield Runner(processes)
