"""The handlers of benchmarked nodes: one for each of the three ways in which a handler can run. They do nothing."""

import jobqueue

app = jobqueue.App()


@app.handler("async")
async def on_the_loop() -> None:
    """Run on the event loop."""


@app.handler("thread")
def in_a_thread() -> None:
    """Run in a thread."""


@app.handler("process", cpu=True)
def in_a_process() -> None:
    """Run in a process."""
