"""Test your handlers: run one attempt, drain a queue in memory and in virtual time, or start a real service.

::

    from jobqueue import testing

    from myjobs import app

    def test_thumbnail():
        assert testing.run_sync(app, "thumbnail", {"path": "a.png"}) == {"width": 256}

    @testing.in_virtual_time
    async def test_it_is_tried_four_times():
        async with testing.Queue(app) as queue:
            await queue.submit("thumbnail", {"path": "missing.png"})
            await queue.drain()
            assert queue.dead[0]["attempt"] == 4

The pytest fixture `jobqueue_service` starts the service; see ``jobqueue.pytest_plugin``. The service does not import this package.
"""

from jobqueue.engine.handlers import PayloadMismatch
from jobqueue.testing.attempt import AttemptFailed, run, run_sync
from jobqueue.testing.clock import Clock, in_virtual_time
from jobqueue.testing.queue import NotDrained, Queue, drain

__all__ = ["AttemptFailed", "Clock", "NotDrained", "PayloadMismatch", "Queue", "drain", "in_virtual_time", "run", "run_sync"]
