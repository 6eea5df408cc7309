"""Handlers of a traced service. Every ended span, also of handlers, becomes a line of JSON in the file that SPANS names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import psycopg
import trio
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

import jobqueue


class ToFile(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with Path(os.environ["SPANS"]).open("ab", buffering=0) as file:
            file.writelines(span.to_json(indent=None).encode() + b"\n" for span in spans)
        return SpanExportResult.SUCCESS


if "SPANS" in os.environ:  # also true in the process of a cpu handler, because that process imports this module
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(ToFile()))
    trace.set_tracer_provider(provider)

tracer = trace.get_tracer("handlers")
app = jobqueue.App()
at_once = jobqueue.Backoff(base=0.01, cap=0.01)


def work(where: str) -> None:
    with tracer.start_as_current_span(where):
        pass


async def child() -> None:
    work("in a task of the job's")


@app.handler("async", max_retries=1, backoff=at_once)
async def on_the_loop(job: jobqueue.Job) -> None:
    job.nursery.start_soon(child)
    await trio.lowlevel.checkpoint()
    work("on the loop")
    if job.attempt == 1:
        raise ValueError("not yet")


@app.handler("thread")
def in_a_thread() -> None:
    work("in a thread")


@app.handler("cpu", cpu=True)
def in_a_process() -> None:
    work("in a process")


@app.handler("chain")
def submit_another(conn: psycopg.Connection) -> str:
    work("in a transaction")
    return jobqueue.submit(conn, "thread")
