"""Hooks for schemathesis: how to write NDJSON, and how the parts of a request depend on each other.

OpenAPI cannot describe these dependencies. Without the hooks, the service would reject most of the generated requests for them.
"""

import json
from typing import Any
from urllib.parse import unquote

import schemathesis
from schemathesis.core.parameters import ParameterLocation


@schemathesis.serializer("application/x-ndjson", "application/ndjson", "application/jsonl")
def lines(_: Any, value: Any) -> bytes:
    # A value that is not a list has no lines, so send one line that is not a job.
    return "\n".join(json.dumps(job) for job in (value if isinstance(value, list) else [[value]])).encode()


@schemathesis.hook
def before_call(_: Any, case: Any, __: Any) -> None:
    body = case.body
    if case.path == "/submit" and valid(case, ParameterLocation.HEADER) and case.headers:
        one = isinstance(body, dict) and case.media_type == "application/json"
        if not one or "idempotency_key" in body:
            case.headers.pop("Idempotency-Key", None)
    if (
        case.operation.label == "PUT /schedules/{name}"
        and valid(case, ParameterLocation.BODY)
        and isinstance(body, dict)
        and "name" in body
    ):
        body["name"] = unquote(str(case.path_parameters["name"]))


def valid(case: Any, location: ParameterLocation) -> bool:
    """Return whether schemathesis means this part of a request to be valid."""
    part = case.meta.components.get(location)
    return part is None or not part.mode.is_negative
