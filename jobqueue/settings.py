"""The settings of a node, with their defaults and bounds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from jobqueue.errors import SettingsError
from jobqueue.fields import must_be
from jobqueue.job import PathName
from jobqueue.schema_names import DEFAULT, check
from jobqueue.tokens import gather, parse

MAX_CONCURRENCY = 10_000
"""Maximum number of jobs of one queue that a node runs at once."""

MAX_QUEUES = 100
"""Maximum number of queues of one node."""

MAX_PROCESSES = 64
"""Maximum number of nodes of one `jobqueue serve`. Each node has seven connections, and more for handlers with a connection."""

OPENABLE: frozenset[Literal["health", "metrics"]] = frozenset({"health", "metrics"})
"""Routes that a setting can open to requests without a token."""

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of one node. Durations are in seconds.

    Attributes:
        database_url: libpq URL of the database; None starts the embedded PostgreSQL.
        schema: the name of the queue's schemas in the database. Queues with different names are independent.
        data_dir: the data directory of the embedded PostgreSQL; None is `embedded.default_data_dir`.
        upgrade_data_dir: the directory of PostgreSQL's programs of an older major version. If the data directory has data of that
            version only, the node upgrades the data before it starts the embedded PostgreSQL.
        adopt: if the database is a copy, let its queue run. Otherwise, all queues and schedules of a copy are on hold.
        host: the address to listen on.
        port: the port to listen on; 0 chooses a free port.
        processes: the number of nodes that share the port, each in its own process. The settings below apply to each node.
        queues: the number of jobs that the node runs at once, by queue. The node does not work on a queue with 0.
        strict_kinds: whether to reject jobs whose kind has no handler on this node.
        tokens: entries of bearer tokens (see `jobqueue.tokens`). Each request must carry one of these tokens. Required unless the
            host is loopback. The object keeps the SHA-256 of each secret, not the secret.
        token_file: a file with more entries, one per line; reloaded when it changes.
        open: the routes that need no token: "health", "metrics", "health,metrics" or "none".
        cors_origins: origins, such as "https://jobs.example", whose pages may send requests.
        certfile: the certificate for TLS with its intermediate certificates, in PEM; reloaded when it changes.
        keyfile: the private key of the certificate, in PEM.
        poll_interval: the time between polls for work that no notification announced.
        visibility_timeout: the length of a lease. When a node sends no heartbeat for this time, other nodes take over its jobs.
        stall_limit: how long a handler may block the node before other nodes take over its jobs.
        grace_period: how long running jobs may continue after SIGTERM.
        keep_finished: how long succeeded jobs are kept, in whole days.
        keep_cancelled: how long cancelled jobs are kept, in whole days.
        keep_dead: how long dead letters are kept.
        idempotency_ttl: how long an idempotency key identifies the job that was first submitted with it.

    Raises:
        SettingsError: a value is out of range, is malformed, or conflicts with another value.
    """

    database_url: str | None = None
    schema: str = DEFAULT
    data_dir: Path | None = None
    upgrade_data_dir: Path | None = None
    adopt: bool = False
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
            ("port (--port)", self.port, 0, 65_535),
            ("number of processes (--processes)", self.processes, 1, MAX_PROCESSES),
            ("poll interval in seconds (--poll-interval)", self.poll_interval, 0.05, 60),
            ("visibility timeout in seconds (--visibility-timeout)", self.visibility_timeout, 2, 86_400),
            ("stall limit in seconds (--stall-limit)", self.stall_limit, 5, 86_400),
            ("grace period in seconds (--grace-period)", self.grace_period, 0, 86_400),
            ("time in seconds to keep succeeded jobs (--keep-finished)", self.keep_finished, 0, 10 * 365 * 86_400),
            ("time in seconds to keep cancelled jobs (--keep-cancelled)", self.keep_cancelled, 0, 10 * 365 * 86_400),
            ("time in seconds to keep dead letters (--keep-dead)", self.keep_dead, 0, 10 * 365 * 86_400),
            ("lifetime of idempotency keys in seconds (--idempotency-ttl)", self.idempotency_ttl, 1, 10 * 365 * 86_400),
            ("number of queues (--queue)", len(self.queues), 0, MAX_QUEUES),
            *((f"concurrency of queue {queue!r} (--queue)", width, 0, MAX_CONCURRENCY) for queue, width in self.queues.items()),
        ]
        for name, value, least, most in bounds:
            if not least <= value <= most:
                raise SettingsError(f"the {name} must be from {least} to {most}, got {value}")
        for queue in self.queues:
            try:
                msgspec.convert(queue, PathName)
            except msgspec.ValidationError:
                raise SettingsError(f"the queue name {queue!r} (--queue) must be {must_be(PathName)}") from None
        check(self.schema)
        self._check_access()

    def _check_access(self) -> None:
        known = gather(parse(entry, f"token {place} of --token (JOBQUEUE_TOKENS)") for place, entry in enumerate(self.tokens, 1))
        msgspec.structs.force_setattr(self, "tokens", tuple(token.entry for token in known))
        if self.open != "none" and not OPENABLE.issuperset(self.open.split(",")):
            raise SettingsError(f"--open must be health, metrics, health,metrics or none, got {self.open!r}")
        for origin in self.cors_origins:
            if not _ORIGIN.fullmatch(origin):
                raise SettingsError(
                    f"--cors-origin must be an origin, such as https://jobs.example or http://localhost:3000, got {origin!r}"
                )
        if (self.certfile is None) != (self.keyfile is None):
            raise SettingsError("TLS needs a certificate and its key: give both --certfile and --keyfile")

    @property
    def scheme(self) -> str:
        """The scheme of the URLs: http or https."""
        return "http" if self.certfile is None else "https"

    @property
    def opened(self) -> frozenset[Literal["health", "metrics"]]:
        """The members of `OPENABLE` that need no token."""
        return OPENABLE.intersection(self.open.split(","))

    @property
    def worked_queues(self) -> dict[str, int]:
        """The queues with a concurrency above 0, with their concurrency."""
        return {queue: width for queue, width in self.queues.items() if width > 0}
