"""Parse server-sent events from chunks of bytes, as the HTML standard defines them (section 9.2.6)."""

from __future__ import annotations

import re
from collections.abc import Iterator

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class EventStream:
    """Parser for the chunks of one response. Returns each event once its closing blank line has arrived.

    Lines end only with LF, CR or CRLF. JSON may contain U+2028, U+2029 and U+0085 unescaped. So this
    parser cannot use `str.splitlines` or `httpx.Response.iter_lines`, which would split there.
    """

    def __init__(self) -> None:
        self._unfinished: list[bytes] = []
        self._after_cr = False
        self._at_start = True
        self._name = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> Iterator[tuple[str, str]]:
        """Parse the next chunk; yield the name and the data of each event that it completes."""
        if self._after_cr and chunk:
            chunk = chunk.removeprefix(b"\n")  # the LF of a CRLF: its CR has already ended the line
            self._after_cr = False
        if not chunk:
            return
        self._after_cr = chunk.endswith(b"\r")
        *ended, rest = _LINE_END.split(chunk)
        for line in ended:
            yield from self._line(b"".join([*self._unfinished, line]))
            self._unfinished = []
        self._unfinished.append(rest)

    def _line(self, line: bytes) -> Iterator[tuple[str, str]]:
        if self._at_start:
            line = line.removeprefix(_BOM)
            self._at_start = False
        if not line:
            if self._data:
                yield self._name.decode(errors="replace"), b"\n".join(self._data).decode(errors="replace")
            self._name, self._data = b"", []
            return
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"event":
            self._name = value
        elif field == b"data":
            self._data.append(value)
