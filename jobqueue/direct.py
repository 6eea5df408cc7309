"""The HTTP API as an ASGI app that works directly on a database, without a service and without a port.

::

    async with open_api("postgresql://...") as api:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://localhost") as http:
            response = await http.get("/queues")

The app is not a node: it has no lease and no row in ``nodes``, and claims no jobs. Nodes are notified of the jobs that it submits.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from quart_trio import QuartTrio

from jobqueue.engine.handlers import App
from jobqueue.http import app
from jobqueue.http.access.auth import Authorizer
from jobqueue.schema_names import DEFAULT
from jobqueue.service import open_engine, operations
from jobqueue.settings import Settings
from jobqueue.storage import schema as schemas
from jobqueue.storage.connection import connect
from jobqueue.storage.postgres.store import PostgresStore


@asynccontextmanager
async def open_api(database_url: str, schema: str = DEFAULT) -> AsyncIterator[QuartTrio]:
    """Open the HTTP API on a database that already has the schema.

    Args:
        database_url: a libpq URL or connection string.
        schema: the name of the queue's schemas.

    Raises:
        SettingsError: the URL or the name is not valid.
        DatabaseUnavailable: the database does not exist or is unreachable.
        SchemaVersionError: the database has no jobqueue schema, or the schema of another version.
    """
    settings = Settings(database_url=database_url, schema=schema, queues={})
    await trio.to_thread.run_sync(_require_schema, database_url, schema)
    store = PostgresStore(database_url, schema)
    async with open_engine(App(), settings, store, lives=False) as engine, trio.open_nursery() as nursery:
        for part in (engine.submissions, engine.watcher, engine.overview, engine.history):
            await nursery.start(part.run)
        yield app.build(operations(engine, settings, stopping=lambda: False), Authorizer())
        await engine.history.flush()
        nursery.cancel_scope.cancel()


def _require_schema(database_url: str, schema: str) -> None:
    with connect(database_url, "inspect", schema=schema) as connection:
        schemas.require(connection)
