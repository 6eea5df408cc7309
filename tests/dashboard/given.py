"""What the tests of the dashboard put into a service, over HTTP, and see of it."""

from __future__ import annotations

import time
from typing import Any

import httpx

from tests.dashboard.conftest import Board

PATIENCE = 20.0
"""Seconds that a job may take to get where a test wants it."""


def submit(board: Board, kind: str = "greet", **fields: Any) -> str:
    answer = httpx.post(f"{board.url}/submit", json={"kind": kind, **fields}, timeout=PATIENCE)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def state_of(board: Board, job_id: str) -> str | None:
    rows = board.database.rows("SELECT state FROM jobqueue.jobs WHERE id = %s", job_id)
    return rows[0][0] if rows else None


def until_state(board: Board, job_id: str, state: str | None) -> str:
    """Wait until a job is in a state, or gone; return its id."""
    give_up_at = time.monotonic() + PATIENCE
    while (now := state_of(board, job_id)) != state:
        assert time.monotonic() < give_up_at, f"{job_id} is {now}, not {state}"
        time.sleep(0.01)
    return job_id


def ended(board: Board, kind: str, state: str, **fields: Any) -> str:
    """Submit a job and wait for its end."""
    return until_state(board, submit(board, kind, **fields), state)


def clear(board: Board) -> None:
    """Delete every job that does not run, and every schedule."""
    for table in ("pending_jobs", "scheduled_jobs", "blocked_jobs", "finished_jobs", "dead_jobs", "schedules"):
        board.database.rows(f"DELETE FROM jobqueue.{table}")
