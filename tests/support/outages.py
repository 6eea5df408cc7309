"""A service during outages of its database."""

from __future__ import annotations

from collections import Counter

import httpx

from tests.support.postgres import Database
from tests.support.service import Service

RESUMED = 60.0
"""Seconds within which work resumes after the database is back. Less than 10 on an idle machine."""


class Node:
    """A running service, and its responses to submissions.

    Attributes:
        acknowledged: the ids of jobs in responses with status 201.
        refused: the other responses.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self.acknowledged: list[str] = []
        self.refused: list[httpx.Response] = []
        self._http = httpx.Client(base_url=service.url, timeout=120)

    def submit(self, *jobs: dict[str, object]) -> httpx.Response:
        answer = self._http.post("/submit", json=jobs)
        if answer.status_code == 201:
            self.acknowledged += answer.json()["ids"]
        else:
            self.refused.append(answer)
        return answer

    def troubles(self) -> list[str]:
        """Return the reasons why it is not ready; none if it is ready."""
        answer = self._http.get("/health/ready")
        body = answer.json()
        assert answer.status_code == (503 if "reasons" in body else 200)
        return list(body.get("reasons", []))

    def metrics(self) -> str:
        return self._http.get("/metrics").text

    def close(self) -> None:
        self._http.close()
        self.service.kill()


def assert_each_ended_once(database: Database, acknowledged: list[str]) -> None:
    ended = Counter(job_id for [job_id] in database.rows("SELECT id::text FROM jobqueue.jobs WHERE state = 'succeeded'"))
    assert set(ended.values()) == {1}
    assert set(acknowledged) <= set(ended)
