"""What a node can be told, with the defaults; the command line and its environment variables fill this in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from jobqueue.errors import SettingsError
from jobqueue.fields import must_be
from jobqueue.job import PathName
from jobqueue.tokens import gather, parse

MAX_CONCURRENCY = 10_000
"""The most jobs of one queue that a node runs at once."""

MAX_QUEUES = 100
"""The most queues that one node works."""

MAX_PROCESSES = 64
"""The most nodes that one `jobqueue serve` runs: each has seven connections to PostgreSQL, and more for handlers' transactions."""

OPENABLE: frozenset[Literal["health", "metrics"]] = frozenset({"health", "metrics"})
"""What can be open to requests without a token."""

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of one node. Durations are in seconds.

    Attributes:
        database_url: the PostgreSQL to use; None starts the embedded one below `data_dir`.
        data_dir: where the embedded PostgreSQL keeps its data; None is the user's data directory.
        host: the address to listen on.
        port: the port to listen on; 0 takes a free one.
        processes: how many nodes share the port, each in a process of its own; what follows holds for each of them.
        queues: how many jobs of each queue this node runs at once; a queue with 0, or none at all, is only submitted to.
        strict_kinds: refuse a submission whose kind this node does not serve.
        tokens: entries of bearer tokens (see `jobqueue.tokens`) that HTTP clients must show one of; needed off loopback. Their
            secrets are not kept, only the SHA-256 of each.
        token_file: a file of more such entries, a line each, which is read again when it changes.
        open: what answers without a token: "health", "metrics", both with a comma between them, or "none".
        cors_origins: origins, such as "https://jobs.example", whose pages may ask from a browser.
        certfile: the certificate to serve TLS with, and those between it and a root, in PEM; read again when it changes.
        keyfile: its private key, in PEM.
        poll_interval: how often to look for work that no notification told of.
        visibility_timeout: how long a node may be silent before its jobs are given to others.
        stall_limit: how long a handler may hold up the node before the node's jobs are given to others.
        grace_period: how long running jobs may go on after SIGTERM.
        keep_finished: how long jobs that succeeded are kept, by whole days.
        keep_cancelled: how long cancelled jobs are kept, by whole days.
        keep_dead: how long dead letters are kept.
        idempotency_ttl: how long an idempotency key stands for the job that was first submitted with it.

    Raises:
        SettingsError: a value that cannot work.
    """

    database_url: str | None = None
    data_dir: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    processes: int = 1
    queues: Mapping[str, int] = msgspec.field(default_factory=lambda: {"default": 16})
    strict_kinds: bool = False
    tokens: tuple[str, ...] = ()
    token_file: str | None = None
    open: str = "health"
    cors_origins: tuple[str, ...] = ()
    certfile: str | None = None
    keyfile: str | None = None
    poll_interval: float = 2.0
    visibility_timeout: float = 30.0
    stall_limit: float = 600.0
    grace_period: float = 20.0
    keep_finished: float = 86_400.0
    keep_cancelled: float = 30 * 86_400.0
    keep_dead: float = 30 * 86_400.0
    idempotency_ttl: float = 86_400.0

    def __post_init__(self) -> None:
        bounds = [
            ("port", self.port, 0, 65_535),
            ("number of processes", self.processes, 1, MAX_PROCESSES),
            ("poll interval", self.poll_interval, 0.05, 60),
            ("visibility timeout", self.visibility_timeout, 2, 86_400),
            ("stall limit", self.stall_limit, 5, 86_400),
            ("grace period", self.grace_period, 0, 86_400),
            ("time to keep finished jobs", self.keep_finished, 0, 10 * 365 * 86_400),
            ("time to keep cancelled jobs", self.keep_cancelled, 0, 10 * 365 * 86_400),
            ("time to keep dead jobs", self.keep_dead, 0, 10 * 365 * 86_400),
            ("time to live of idempotency keys", self.idempotency_ttl, 1, 10 * 365 * 86_400),
            ("number of queues", len(self.queues), 0, MAX_QUEUES),
            *((f"concurrency of queue {queue!r}", width, 0, MAX_CONCURRENCY) for queue, width in self.queues.items()),
        ]
        for name, value, least, most in bounds:
            if not least <= value <= most:
                raise SettingsError(f"the {name} must be from {least} to {most}, got {value}")
        for queue in self.queues:
            try:
                msgspec.convert(queue, PathName)
            except msgspec.ValidationError:
                raise SettingsError(f"the queue name {queue!r} must be {must_be(PathName)}") from None
        self._check_access()

    def _check_access(self) -> None:
        known = gather(parse(entry, f"token {place} of --token (JOBQUEUE_TOKENS)") for place, entry in enumerate(self.tokens, 1))
        msgspec.structs.force_setattr(self, "tokens", tuple(token.entry for token in known))
        if self.open != "none" and not OPENABLE.issuperset(self.open.split(",")):
            raise SettingsError(f"what is open must be health, metrics, health,metrics or none, got {self.open!r}")
        for origin in self.cors_origins:
            if not _ORIGIN.fullmatch(origin):
                raise SettingsError(
                    f"an origin is what browsers say, such as https://jobs.example or http://localhost:3000, got {origin!r}"
                )
        if (self.certfile is None) != (self.keyfile is None):
            raise SettingsError("a certificate needs its key, and a key its certificate: give both --certfile and --keyfile")

    @property
    def scheme(self) -> str:
        """The scheme of the URLs that are served."""
        return "http" if self.certfile is None else "https"

    @property
    def opened(self) -> frozenset[Literal["health", "metrics"]]:
        """What answers without a token, of `OPENABLE`."""
        return OPENABLE.intersection(self.open.split(","))

    @property
    def worked_queues(self) -> dict[str, int]:
        """The queues that this node works, with their concurrency."""
        return {queue: width for queue, width in self.queues.items() if width > 0}
