"""Port ``jobqueue_internal.cause_of`` (code/causes.sql) to Python, for the store in memory.

`tests/testing/test_causes.py` compares the two."""

from __future__ import annotations

import re

MAX_LOOKED_AT = 1_000
MAX_CAUSE_LENGTH = 200
"""Two maximum lengths in characters: of the part of a message that is read, and of a cause."""

_KEPT, _CUT = "\x01", "\x02"

_NAMED = (
    r"([Ff]ield|[Aa]ttribute|[Aa]rgument|[Pp]arameter|[Oo]ption|[Mm]odule|[Mm]odule named|import name|NameError: name|KeyError:"
    r"|[Tt]ype|[Cc]lass|[Mm]ethod|[Ff]unction|[Hh]andler|[Kk]ind|[Cc]olumn|[Rr]elation|[Tt]able|[Cc]onstraint|[Ii]ndex|[Ss]chema|[Rr]ole"
    r"|[Dd]atabase|[Ee]ncoding|[Ee]rror|[Rr]esponse)"
    r""" (['"])((?:[A-Za-z_][A-Za-z0-9_.]*|[1-5][0-9]{2} [A-Z][A-Za-z -]*)['"])"""
)
_QUOTED = r"""(?<![A-Za-z0-9_])[bru]?(?:'(?:[^'\u0001\u0002]|'[A-Za-z0-9])*['\u0002]|"[^"\u0001\u0002]*["\u0002])"""
_TIME = (
    r"(?<![0-9])[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"(?:[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:[.,][0-9]+)?)?(?:Z|[+-][0-9]{2}:?[0-9]{2})?)?(?![0-9A-Za-z])"
)
_HEXADECIMAL = r"(?<![A-Za-z0-9_\u0001])(?:0x[0-9A-Fa-f]+|(?=[0-9]*[A-Fa-f])(?=[A-Fa-f]*[0-9])[0-9A-Fa-f]{6,})(?![A-Za-z0-9_])"

_RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"""([a-z]://[^ /?#"'<>(){}\[\],;|]+)[/?#][^ "'<>(){}\[\],;|]*""", r"\1/#"),
        (_NAMED, rf"\1 \2{_KEPT}\3"),
        (r"""(['"])([A-Za-z_][A-Za-z0-9_.]*['"] object)""", rf"\1{_KEPT}\2"),
        (_QUOTED, "'#'"),
        (r"=\([^()]*\)", "=(#)"),
        (r"[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+", "#"),
        (r"([Cc]ode|[Ss]tatus|[Ee]rrno|HTTP|[Ss]ignal|SQLSTATE)([ :=] ?-?)([0-9]{1,5})(?![0-9A-Za-z])", rf"\1\2{_KEPT}\3"),
        (_TIME, "#"),
        (r"(?<![A-Za-z0-9_\u0001-])(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{20,}", "#"),
        (_HEXADECIMAL, "#"),
        (r"(?<![0-9A-Za-z\u0001])-?[0-9]+(?:[.,:][0-9]+)*(?:[eE][-+]?[0-9]+)?|(?<=[A-Za-z])[0-9]{4,}", "#"),
        (r"(?<![A-Za-z0-9_.~#/])([.~]*/[A-Za-z0-9_.~#@%+=-]+)(?:/[A-Za-z0-9_.~#@%+=-]+)+/?", r"\1/#"),
        (r"#(?:[,.:/_-] ?#)+", "#"),
    )
]
"""The rules in order: a pattern and its replacement. code/causes.sql explains them."""


def cause_of(error: str | None, reason: str) -> str:
    """Return the cause of a dead job: its last error (or else its reason) without parts that vary between similar failures."""
    message = error or reason
    cause = re.sub("[\x01-\x20\x7f]+", " ", message[:MAX_LOOKED_AT]) + (_CUT if len(message) > MAX_LOOKED_AT else "")
    for pattern, replacement in _RULES:
        cause = pattern.sub(replacement, cause)
    return cause.translate({ord(_KEPT): None, ord(_CUT): None}).lstrip(" ")[:MAX_CAUSE_LENGTH].rstrip(" ") or "unknown"
