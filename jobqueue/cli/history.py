"""Render a job for people: its fields, payload, result and history."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from jobqueue.cli.output import facts, local, pretty, printable, seconds


def whole(job: dict[str, Any]) -> RenderableType:
    """Render all fields of a job."""
    options = job.get("options") or {}
    progress = job.get("progress")
    parts: list[RenderableType] = [
        facts(
            {
                "job": job["id"],
                "state": job["state"] + (", cancel requested" if job.get("cancel_requested_at") else ""),
                "reason": job.get("reason"),
                "kind": job["kind"],
                "queue": job["queue"],
                "priority": job.get("priority"),
                "attempt": _attempt(job),
                "timeout": seconds(job["timeout"]) if job.get("timeout") else None,
                **{name.replace("_", " "): value for name, value in options.items()},
                "progress": None if progress is None else _progress(progress),
            }.items()
        )
    ]
    parts += _section("payload", pretty(job.get("payload")))
    if job["state"] == "succeeded":
        parts += _section("result", pretty(job.get("result")))
    if job.get("checkpoint") is not None:
        parts += _section("checkpoint", pretty(job["checkpoint"]))
    parts += _section("history", facts((local(at), what) for at, what in sorted(_history(job), key=_moment)))
    for error in job.get("errors") or ():
        if error.get("traceback"):
            parts += _section(f"attempt {error['attempt']}", Text(printable(error["traceback"].rstrip())))
    return Group(*parts)


def _section(title: str, body: RenderableType) -> list[RenderableType]:
    return [Text(f"\n{title}", style="bold"), Padding(body, (0, 0, 0, 2), expand=False)]


def _attempt(job: dict[str, Any]) -> str:
    most = "" if job.get("max_retries") is None else f" of {job['max_retries'] + 1}"
    return f"{job['attempt']}{most}"


def _progress(progress: dict[str, Any]) -> str:
    fraction = progress.get("fraction")
    done = "" if fraction is None else f"{fraction:.0%} "
    return f"{done}{progress.get('message') or ''}".strip()


def _history(job: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each recorded event with its time: submission, failures, the last claim, the end."""
    happened = [(job.get("created_at"), "submitted")]
    happened += [
        (error.get("at"), f"attempt {error['attempt']} failed after {seconds(error.get('duration'))}: {error['error']}")
        for error in job.get("errors") or ()
    ]
    happened += [
        (job.get("claimed_at"), f"attempt {job['attempt']} claimed by node {job.get('node_id')}"),
        (job.get("cancel_requested_at"), "cancel requested"),
        (job.get("run_at"), "due"),
        (job.get("ended_at"), job["state"]),
    ]
    return ((at, what) for at, what in happened if at is not None)


def _moment(event: tuple[str, str]) -> datetime:
    return datetime.fromisoformat(event[0])
