"""Parse JSON and reject ambiguous documents: duplicate names, NaN, numbers out of range, and unpaired surrogates.

Other parsers accept ambiguous documents silently, each in its own way. This parser is much slower than msgspec, so callers skip it
when a cheap check shows that a document is not ambiguous.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

from jobqueue.fields import MAX_SHOWN_NAME

MIN_INTEGER, MAX_INTEGER = -(2**63), 2**64 - 1
"""The range of integers for which common parsers have a type."""

FLOAT_DIGITS = 17
"""The number of significant digits of a 64-bit float. An integer beyond 64 bits may have at most this many significant digits."""

MAX_DIGITS = 310
"""Maximum length of a float in integer notation, in characters."""

MAX_SHOWN_DIGITS = 40
"""Maximum number of digits that an error message quotes."""


class Repeated(ValueError):
    """An object has a duplicate name."""

    def __init__(self, name: str) -> None:
        self.name = name[:MAX_SHOWN_NAME].encode(errors="backslashreplace").decode()  # the name may contain an unpaired surrogate
        super().__init__(f"the name {json.dumps(self.name)} is given more than once in one object")


class TooLarge(ValueError):
    """An integer is valid JSON, but too large for common parsers."""


def read(text: bytes) -> Any:
    """Parse one JSON document.

    Raises:
        TooLarge: an integer does not fit into 64 bits, and has more significant digits than a float.
        ValueError: the text is not JSON, or is ambiguous; the message has the reason.
        RecursionError: the document is nested too deeply.
    """
    if text.startswith(b"\xef\xbb\xbf"):
        raise ValueError("it begins with a byte order mark")
    try:
        value = _decoder.decode(text.decode())
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    if b"\\u" in text:
        _check_strings(value)
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise Repeated(name)
    return made


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS or not (MIN_INTEGER <= int(digits) <= MAX_INTEGER or _has_digits_of_float(digits)):
        raise TooLarge(f"the integer {digits[:MAX_SHOWN_DIGITS]} does not fit into 64 bits: send it as a string")
    return int(digits)


def _has_digits_of_float(digits: str) -> bool:
    """Return whether a large integer may be a float.

    This is necessary because PostgreSQL prints 1e20 with all its digits, and a caller must be able to submit such a payload
    again.
    """
    return len(digits.lstrip("-").rstrip("0")) <= FLOAT_DIGITS and math.isfinite(float(digits))


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {digits[:MAX_SHOWN_DIGITS]} is out of range")
    return number


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON number")


def _check_strings(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("a string holds half of a surrogate pair") from None


_decoder = json.JSONDecoder(object_pairs_hook=_once, parse_int=_integer, parse_float=_finite, parse_constant=_no_number)
