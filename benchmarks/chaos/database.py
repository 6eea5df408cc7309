"""Connections of the benchmark itself. Faults that change settings do not affect them."""

from __future__ import annotations

import psycopg

PINNED = {
    "bytea_output": "hex",
    "datestyle": "ISO",
    "default_transaction_isolation": "read\\ committed",
    "extra_float_digits": "1",
    "intervalstyle": "postgres",
    "search_path": "public",
    "standard_conforming_strings": "on",
    "timezone": "UTC",
}
"""Settings of each session. A session's own settings take precedence over the settings of the database."""


def connect(url: str, purpose: str = "chaos") -> psycopg.Connection:
    """Open a connection in autocommit mode.

    Args:
        purpose: the application name. Faults that end sessions spare those named "chaos".

    Raises:
        psycopg.OperationalError: PostgreSQL cannot be reached, or refuses the connection.
    """
    options = " ".join(f"-c {name}={value}" for name, value in PINNED.items())
    return psycopg.connect(
        url, autocommit=True, application_name=purpose, connect_timeout=5, client_encoding="utf8", options=options
    )
