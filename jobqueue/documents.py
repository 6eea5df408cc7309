"""Check and encode the JSON that goes into the database: submissions, and the results and errors of handlers.

``jsonb`` rejects NUL characters and lone surrogates, and one bad row aborts its whole batch. So each document is checked and
encoded separately, and only once. A batch consists of encoded documents joined by commas.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec

MAX_DEPTH = 100
"""The maximum nesting of arrays and objects in a payload or a result."""

_encoder = msgspec.json.Encoder()
_skim = msgspec.json.Decoder(msgspec.Raw)


class RefusedDocument(ValueError):
    """A value is not JSON that PostgreSQL can store; the message explains why."""


def encode(value: Any, *, limit: int | None = None, finite: bool = False) -> bytes:
    """Encode one document for the database.

    Args:
        value: any value that `msgspec.json` can encode.
        limit: the maximum size in bytes; None for no limit. The size is checked before the steps that are slow for large documents.
        finite: whether all numbers are known to be finite, as numbers decoded from JSON are.

    Raises:
        RefusedDocument: JSON or ``jsonb`` cannot represent the value, or it is too large or nested too deeply.
    """
    try:
        document = _encoder.encode(value)
        if limit is not None and len(document) > limit:
            raise RefusedDocument(f"it has {len(document)} bytes, and the limit is {limit}")  # noqa: TRY301 - it skips the slow checks below
        # The encoder copies ready-made JSON (`msgspec.Raw`) unchecked, and one broken document breaks its whole batch.
        _skim.decode(document)
        if not document.isascii():
            document.decode()
        # The encoder writes numbers without a JSON form (NaN) as null. Only the value shows which nulls were intended.
        if b"null" in document and not finite:
            json.dumps(msgspec.to_builtins(value, enc_hook=_ready_made), allow_nan=False)
    except RefusedDocument:
        raise
    except RecursionError:
        raise RefusedDocument("it is nested too deeply") from None
    except BaseException as error:  # noqa: BLE001 - encoding a value may run a user's code
        raise RefusedDocument(str(error) or type(error).__name__) from None
    # A document has at least as many brackets as levels. For almost every document, this count is enough, without a search.
    if document.count(b"[") + document.count(b"{") > MAX_DEPTH and not _nested_within(msgspec.json.decode(document), MAX_DEPTH):
        raise RefusedDocument(f"it is nested more than {MAX_DEPTH} levels deep")
    # This text can also be an escaped backslash followed by "u0000". Only the decoded strings show whether it is.
    if b"\\u0000" in document and _holds_nul(msgspec.json.decode(document)):
        raise RefusedDocument("a string contains the character U+0000, which PostgreSQL cannot store")
    return document


def join(documents: Sequence[bytes]) -> str:
    """Join documents that `encode` returned into one JSON array."""
    return (b"[" + b",".join(documents) + b"]").decode()


def weight(size: int) -> int:
    """Return the weight of a document of this size (in bytes) in a batch: as many as this number of small documents."""
    return max(1, size >> 14)


def storable(text: str, limit: int) -> str:
    """Cut a text to about `limit` characters, and replace what ``jsonb`` rejects: NUL characters and lone surrogates."""
    if len(text) > limit:
        half = limit // 2
        text = f"{text[:half]}\n... {len(text) - limit} characters left out ...\n{text[-half:]}"
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


def _nested_within(value: Any, levels: int) -> bool:
    if isinstance(value, dict | list):
        children = value.values() if isinstance(value, dict) else value
        return levels > 0 and all(_nested_within(child, levels - 1) for child in children)
    return True


def _ready_made(_: msgspec.Raw) -> None:
    """Replace ready-made JSON, which cannot contain NaN."""


def _holds_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any(_holds_nul(key) or _holds_nul(child) for key, child in value.items())
    if isinstance(value, list):
        return any(map(_holds_nul, value))
    return False
