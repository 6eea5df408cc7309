"""Prepare jobs for the tests of the dashboard."""

from __future__ import annotations

import time
from typing import Any

import httpx

from tests.http.dashboard.board import Board

PATIENCE = 60.0
"""Maximum time until a job is in the state that a test needs, in seconds."""


def submit(board: Board, kind: str = "greet", **fields: Any) -> str:
    answer = httpx.post(f"{board.url}/submit", json={"kind": kind, **fields}, timeout=PATIENCE)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def state_of(board: Board, job_id: str) -> str | None:
    rows = board.database.rows("SELECT state FROM jobqueue.jobs WHERE id = %s", job_id)
    return rows[0][0] if rows else None


def until_state(board: Board, job_id: str, state: str | None) -> str:
    """Wait until a job is in a state, or deleted if the state is None; return its id."""
    give_up_at = time.monotonic() + PATIENCE
    while (now := state_of(board, job_id)) != state:
        assert time.monotonic() < give_up_at, f"{job_id} is {now}, not {state}"
        time.sleep(0.01)
    return job_id


def ended(board: Board, kind: str, state: str, **fields: Any) -> str:
    """Submit a job and wait for its end."""
    return until_state(board, submit(board, kind, **fields), state)


def clear(board: Board) -> None:
    """Delete all jobs that are not running, and all schedules."""
    for table in ("pending_jobs", "scheduled_jobs", "blocked_jobs", "finished_jobs", "dead_jobs", "schedules"):
        board.database.rows(f"DELETE FROM jobqueue_internal.{table}")
