"""The one gate for JSON that goes into the database: submissions at the door, results and errors of handlers on their way out.

``jsonb`` refuses NUL characters and lone surrogates, and one bad row aborts its whole batch: so each document is checked, and
encoded, once and by itself, and a batch is nothing but encoded documents joined by commas.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec

MAX_DEPTH = 100
"""How deep arrays and objects may be nested in a payload or a result."""

_encoder = msgspec.json.Encoder()
_skim = msgspec.json.Decoder(msgspec.Raw)


class RefusedDocument(ValueError):
    """A value is not JSON that PostgreSQL can hold; the message says why."""


def encode(value: Any, *, limit: int | None = None, finite: bool = False) -> bytes:
    """Encode one document for the database.

    Args:
        value: what `msgspec.json` can encode.
        limit: the most bytes; None for no bound. It is looked at before anything that takes long on a large document.
        finite: whether its numbers are known to be finite, as those are that came out of JSON.

    Raises:
        RefusedDocument: it holds something that JSON, or ``jsonb``, has no form for.
    """
    try:
        document = _encoder.encode(value)
        if limit is not None and len(document) > limit:
            raise RefusedDocument(f"{len(document)} bytes as JSON, {limit} are allowed")  # noqa: TRY301 - what follows is what it spares
        # The encoder copies ready-made JSON (`msgspec.Raw`) unseen, and one broken document breaks its whole batch.
        _skim.decode(document)
        if not document.isascii():
            document.decode()
        # The encoder makes null of a number that JSON has no form for: only the value tells which nulls were meant.
        if b"null" in document and not finite:
            json.dumps(msgspec.to_builtins(value, enc_hook=_ready_made), allow_nan=False)
    except RefusedDocument:
        raise
    except RecursionError:
        raise RefusedDocument("nested too deeply") from None
    except BaseException as error:  # noqa: BLE001 - a value may run code of its user's while it is encoded
        raise RefusedDocument(str(error) or type(error).__name__) from None
    # There cannot be more levels than brackets: almost every document is known to be shallow without a walk.
    if document.count(b"[") + document.count(b"{") > MAX_DEPTH and not _nested_within(msgspec.json.decode(document), MAX_DEPTH):
        raise RefusedDocument(f"nested more than {MAX_DEPTH} levels deep")
    # The escape may also be the text of an escaped backslash before "u0000": only the decoded strings tell.
    if b"\\u0000" in document and _holds_nul(msgspec.json.decode(document)):
        raise RefusedDocument("a string holds the character U+0000, which PostgreSQL cannot store")
    return document


def join(documents: Sequence[bytes]) -> str:
    """Make one JSON array of documents that `encode` made."""
    return (b"[" + b",".join(documents) + b"]").decode()


def weight(size: int) -> int:
    """How many small documents one of so many bytes counts for, where a batch is bounded by their number."""
    return max(1, size >> 14)


def storable(text: str, limit: int) -> str:
    """Bound a text to so many characters and replace what ``jsonb`` refuses: NUL characters and lone surrogates."""
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
    """Stand for JSON that is text already: there is no NaN in it."""


def _holds_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any(_holds_nul(key) or _holds_nul(child) for key, child in value.items())
    if isinstance(value, list):
        return any(map(_holds_nul, value))
    return False
