"""Helpers for the tests of running jobs: services on one database, and the effects of their handlers."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.support.postgres import Database
from tests.support.service import Service
from tests.support.waiting import wait_for

HANDLERS = "tests.handlers.running"


class Bench:
    """Services on one database, and the effects of their handlers."""

    def __init__(self, service: Callable[..., Service], database: Database, effects: Path) -> None:
        self.start_service = service
        self.database = database
        self.effects_file = effects
        self.effects_file.touch()
        self.on_ports: list[Service] = []

    def start(self, *arguments: str, handlers: str = HANDLERS) -> Service:
        return self.start_service(handlers, *arguments, env={"EFFECTS": str(self.effects_file)})

    def start_on(self, port: str, *arguments: str) -> Service:
        """Start a service on a given port, and end it with the test."""
        given = [HANDLERS, *arguments, "--port", port, "--database-url", self.database.url]
        node = Service(given, {"EFFECTS": str(self.effects_file)})
        self.on_ports.append(node)
        return node

    def effects(self, job_id: str) -> list[str]:
        lines = [line.split() for line in self.effects_file.read_text().splitlines()]
        return [what for what, of, _ in lines if of == job_id]

    def until(self, true: Callable[[], object], seconds: float = 120) -> float:
        """Wait until the condition is true; return how long that took."""
        return wait_for(true, seconds=seconds)

    def until_effect(self, job_id: str, what: str, seconds: float = 120) -> float:
        return self.until(lambda: what in self.effects(job_id), seconds)

    def job(self, job_id: str) -> dict[str, Any]:
        return self.database.value("SELECT to_jsonb(j) FROM jobqueue.jobs AS j WHERE id = %s", job_id)

    def until_state(self, job_id: str, state: str, seconds: float = 120) -> float:
        return self.until(lambda: self.job(job_id)["state"] == state, seconds)


def submit(service: Service, kind: str, **fields: Any) -> str:
    answer = httpx.post(f"{service.url}/submit", json={"kind": kind, **fields}, timeout=60)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def cancel(service: Service, job_id: str) -> httpx.Response:
    return httpx.post(f"{service.url}/jobs/{job_id}/cancel", timeout=60)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
