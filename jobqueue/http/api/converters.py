"""Convert values of a node to the documents of `models`. Values that already have the form of a document need no converter."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from jobqueue.engine.job_watcher import UnstoredJob
from jobqueue.engine.task_tree import TaskState, Tree
from jobqueue.storage.roles.inspect import DeadJob, JobSummary, StoredJob

Listed = TypeVar("Listed", JobSummary, DeadJob)


def details(job: StoredJob) -> dict[str, Any]:
    """Return a `models.JobDetails`."""
    document = msgspec.structs.asdict(job) | {"options": _options(job.options)}
    saved = document.pop("saved")
    noted = saved if isinstance(saved, dict) else {}
    return document | {"progress": noted.get("progress"), "checkpoint": noted.get("checkpoint")}


def unstored(kept: UnstoredJob) -> dict[str, Any]:
    """Return the fields of a `models.JobDetails` that a node knows of a job that the database has deleted."""
    names = ("id", "kind", "queue", "payload", "priority", "attempt", "max_retries")
    noted = {"progress": kept.last.progress, "checkpoint": kept.last.checkpoint}
    return {name: getattr(kept.job, name) for name in names} | {"state": "succeeded", "result": kept.result} | noted


def listed(job: Listed) -> Listed:
    """Return a `models.ListedJob` or a `models.DeadLetter`."""
    return msgspec.structs.replace(job, options=_options(job.options))


def tasks(node_id: str, tree: Tree) -> dict[str, Any]:
    """Return a `models.Tasks`."""
    return {"node": node_id, "at": datetime.now(UTC).isoformat(), "tasks": tree.tasks, "root": _task(tree.root)}


def _task(task: TaskState) -> dict[str, Any]:
    job = None if task.run is None else task.run.job
    return {
        "name": task.name,
        "waits_on": task.waits_on,
        "stack": task.stack,
        "since": task.since,
        "job": None if job is None else {"id": job.id, "kind": job.kind, "queue": job.queue},
        "nurseries": [{"tasks": [_task(child) for child in nursery]} for nursery in task.nurseries],
        "more": task.more,
    }


def _options(options: Any) -> Any:
    """Return a job's options as the caller gave them: without internal fields, and with times as ISO 8601 text."""
    if not isinstance(options, dict):
        return options
    asked = {name: value for name, value in options.items() if name not in {"rank", "turn"}}
    for name in ("expires_at", "scheduled_for"):
        with suppress(KeyError, TypeError, ValueError, OverflowError):  # user SQL may have written any value
            asked[name] = datetime.fromtimestamp(asked[name], UTC).isoformat()
    return asked or None
