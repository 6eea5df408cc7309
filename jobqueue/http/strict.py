"""Read JSON of which there is one reading: what other readers would settle in silence, each in its own way, is refused.

That is slower than msgspec by far. Where a glance tells that there is nothing to settle, there is no need for it.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

from jobqueue.fields import MAX_SHOWN_NAME

MIN_INTEGER, MAX_INTEGER = -(2**63), 2**64 - 1
"""The integers that every reader has a type for."""

FLOAT_DIGITS = 17
"""The significant digits of a 64-bit float; an integer beyond 64 bits may have as many."""

MAX_DIGITS = 310
"""The characters of the longest float that is written as an integer."""

MAX_SHOWN_DIGITS = 40
"""Digits of a number that an error quotes."""


class Repeated(ValueError):
    """An object has a name more than once."""

    def __init__(self, name: str) -> None:
        self.name = name[:MAX_SHOWN_NAME].encode(errors="backslashreplace").decode()  # it may hold half of a surrogate pair
        super().__init__(f"the name {json.dumps(self.name)} is given more than once in one object")


class TooLarge(ValueError):
    """An integer is one to JSON, but not to every reader."""


def read(text: bytes) -> Any:
    """Read one JSON document.

    Raises:
        TooLarge: an integer in it does not fit into 64 bits, and has more digits than a float.
        ValueError: it is none, or there is more than one way to read it; the message says why.
        RecursionError: it is nested too deeply.
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
    """Tell whether an integer may be a float: PostgreSQL shows 1e20 with all its digits, and that job can be submitted again."""
    return len(digits.lstrip("-").rstrip("0")) <= FLOAT_DIGITS and math.isfinite(float(digits))


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {digits[:MAX_SHOWN_DIGITS]} is out of range")
    return number


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _check_strings(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("a string holds half of a surrogate pair") from None


_decoder = json.JSONDecoder(object_pairs_hook=_once, parse_int=_integer, parse_float=_finite, parse_constant=_no_number)
