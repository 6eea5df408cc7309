"""Malformed HTTP that broke other servers, by name, and JSON that different decoders interpret differently."""

from __future__ import annotations

import base64

import hpack

LOCAL = b"Host: localhost\r\n"
JSON = b"Content-Type: application/json\r\n"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def post(*headers: bytes, body: bytes = b"", path: bytes = b"/submit") -> bytes:
    """Return a POST with a JSON body. `headers` must declare the length of the body."""
    return b"POST " + path + b" HTTP/1.1\r\n" + LOCAL + JSON + b"".join(header + b"\r\n" for header in headers) + b"\r\n" + body


def get(target: bytes, *headers: bytes, version: bytes = b"HTTP/1.1") -> bytes:
    return (
        b"GET " + target + b" " + version + b"\r\n" + b"".join(header + b"\r\n" for header in (*headers, b"Host: localhost", b""))
    )


def frame(kind: int, flags: int, stream: int, content: bytes = b"") -> bytes:
    """Return an HTTP/2 frame (RFC 9113, 4.1)."""
    return len(content).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + content


def headers_frame(stream: int, *fields: tuple[str, str], flags: int = 5) -> bytes:
    given = fields or ((":method", "GET"), (":path", "/queues"), (":scheme", "http"), (":authority", "localhost"))
    return frame(1, flags, stream, hpack.Encoder().encode(list(given), huffman=False))


CHUNKED = b"Transfer-Encoding: chunked"

LENGTHS = {
    "no length": post(body=b"{}"),
    "two lengths": post(b"Content-Length: 2", b"Content-Length: 3", body=b"{} "),
    "the same length twice": post(b"Content-Length: 2", b"Content-Length: 2", body=b"{}"),
    "a list of lengths": post(b"Content-Length: 2, 2", body=b"{}"),
    "a huge length": post(b"Content-Length: 99999999999999999999", body=b"{}"),
    "a length over the limit": post(b"Content-Length: 67108865", body=b"{}"),
    "a negative length": post(b"Content-Length: -1", body=b"{}"),
    "a signed length": post(b"Content-Length: +2", body=b"{}"),
    "a length in hex": post(b"Content-Length: 0x2", body=b"{}"),
    "a length with an underscore": post(b"Content-Length: 1_0", body=b'{"a": "xx"}'),
    "a length of other digits": post("Content-Length: \uff12".encode(), body=b"{}"),
    "an empty length": post(b"Content-Length:", body=b"{}"),
    "too short a length": post(b"Content-Length: 1", body=b"{}"),
    "too long a length": post(b"Content-Length: 9", body=b"{}"),
}

SMUGGLING = {
    "CL.TE": post(b"Content-Length: 6", CHUNKED, body=b"0\r\n\r\nG"),
    "TE.CL": post(CHUNKED, b"Content-Length: 3", body=b"2\r\n{}\r\n0\r\n\r\n"),
    "TE.TE": post(CHUNKED, b"Transfer-Encoding: identity", body=b"2\r\n{}\r\n0\r\n\r\n"),
    "TE with a tab": post(b"Transfer-Encoding:\tchunked", body=b"2\r\n{}\r\n0\r\n\r\n"),
    "TE with a space before the colon": post(b"Transfer-Encoding : chunked", body=b"2\r\n{}\r\n0\r\n\r\n"),
    "TE with a vertical tab": post(b"Transfer-Encoding: \x0bchunked", body=b"2\r\n{}\r\n0\r\n\r\n"),
    "TE of a prefix": post(b"Transfer-Encoding: xchunked", body=b"2\r\n{}\r\n0\r\n\r\n"),
    "TE of two": post(b"Transfer-Encoding: gzip, chunked", body=b"2\r\n{}\r\n0\r\n\r\n"),
    "a request in a body": post(b"Content-Length: 2", body=b"{}GET /queues HTTP/1.1\r\n" + LOCAL + b"\r\n"),
    "a carriage return in a header": post(b"X: a\rContent-Length: 2", body=b"{}"),
}

CHUNKS = {
    "good chunks": post(CHUNKED, body=b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n"),
    "an extension": post(CHUNKED, body=b'2;a="b"\r\n{}\r\n0\r\n\r\n'),
    "a long extension": post(CHUNKED, body=b"2;" + b"a" * 20_000 + b"\r\n{}\r\n0\r\n\r\n"),
    "trailers": post(CHUNKED, body=b"2\r\n{}\r\n0\r\nX: y\r\n\r\n"),
    "a trailer of weight": post(CHUNKED, body=b"2\r\n{}\r\n0\r\nContent-Length: 9\r\n\r\n"),
    "a huge chunk": post(CHUNKED, body=b"ffffffffffffffff\r\n{}"),
    "a chunk size with a sign": post(CHUNKED, body=b"+2\r\n{}\r\n0\r\n\r\n"),
    "a chunk size in 0x": post(CHUNKED, body=b"0x2\r\n{}\r\n0\r\n\r\n"),
    "no chunk size": post(CHUNKED, body=b"\r\n{}\r\n0\r\n\r\n"),
    "a chunk without its end": post(CHUNKED, body=b"2\r\n{}0\r\n\r\n"),
    "a chunk with a bare LF": post(CHUNKED, body=b"2\n{}\n0\n\n"),
    "chunks of nothing": post(CHUNKED, body=b"0\r\n\r\n"),
    "chunks that stop": post(CHUNKED, body=b"2\r\n{"),
}

HEADS = {
    "no HTTP": b"nonsense\r\n\r\n",
    "HTTP/0.9": b"GET /health\r\n",
    "HTTP/1.0": get(b"/health", version=b"HTTP/1.0"),
    "HTTP/9.9": get(b"/health", version=b"HTTP/9.9"),
    "http in lower case": get(b"/health", version=b"http/1.1"),
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": get(b"/health", b"Host: evil.example"),
    "a foreign host": b"GET /queues HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    "a host of a long part": b"GET /queues HTTP/1.1\r\nHost: " + b"x" * 64 + b"\r\n\r\n",
    "a host of empty parts": b"GET /queues HTTP/1.1\r\nHost: a..b\r\n\r\n",
    "an odd host": b"GET /queues HTTP/1.1\r\nHost: [::1\r\n\r\n",
    "a host with a port of words": b"GET /queues HTTP/1.1\r\nHost: localhost:http\r\n\r\n",
    "a folded header": get(b"/health", b"X: a", b" b"),
    "a header without a colon": get(b"/health", b"X"),
    "a header without a name": get(b"/health", b": x"),
    "a name with a space": get(b"/health", b"X Y: z"),
    "a NUL in a header": get(b"/health", b"X: a\0b"),
    "a NUL in a name": get(b"/health", b"X\0: b"),
    "a control character": get(b"/health", b"X: \x01\x7f"),
    "UTF-8 in a header": get(b"/health", "X: é".encode()),
    "a byte over ASCII": get(b"/health", b"X: \xff"),
    "bare line feeds": get(b"/health").replace(b"\r\n", b"\n"),
    "bare carriage returns": get(b"/health").replace(b"\r\n", b"\r"),
    "empty lines before": b"\r\n" * 10 + get(b"/health"),
    "empty lines and no more": b"\r\n" * 2_000,
    "a long target": get(b"/" + b"x" * 20_000),
    "a long query": get(b"/queues?" + b"x" * 15_000),
    "a long header": get(b"/health", b"X: " + b"y" * 20_000),
    "a header at the limit": get(b"/health", b"X: " + b"y" * 16_000),
    "many headers": get(b"/health", *(b"X-%d: y" % number for number in range(2_000))),
    "a method of length": b"G" * 20_000 + b" / HTTP/1.1\r\n" + LOCAL + b"\r\n",
    "an odd method": b"\x00\xff /queues HTTP/1.1\r\n" + LOCAL + b"\r\n",
    "CONNECT": b"CONNECT localhost:80 HTTP/1.1\r\n" + LOCAL + b"\r\n",
    "TRACE": b"TRACE /queues HTTP/1.1\r\n" + LOCAL + b"\r\n",
    "OPTIONS *": b"OPTIONS * HTTP/1.1\r\n" + LOCAL + b"\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200,
    "NULs": b"\0" * 1_000,
    "0xff": b"\xff" * 1_000,
    "half a head": b"POST /submit HTTP/1.1\r\nHost: lo",
    "a head without its end": get(b"/health")[:-2],
    "nothing": b"",
    "one byte": b"G",
    "SSH": b"SSH-2.0-OpenSSH_9.7\r\n",
    "RDP": b"\x03\x00\x00\x13\x0e\xe0\x00\x00\x00\x00\x00\x01\x00\x08\x00\x0b\x00\x00\x00",
}

TARGETS = {
    "only a query": get(b"?x"),
    "no target": b"GET  HTTP/1.1\r\n" + LOCAL + b"\r\n",
    "a whole URL": get(b"http://localhost/health"),
    "a whole URL of elsewhere": get(b"http://evil.example/queues"),
    "half a URL": get(b"http://["),
    "a URL without a path": get(b"http://localhost"),
    "a URL of another scheme": get(b"file:///etc/passwd"),
    "a space in it": get(b"/que ues"),
    "dots": get(b"/../../etc/passwd"),
    "encoded dots": get(b"/%2e%2e/%2e%2e/etc/passwd"),
    "slashes": get(b"//health//"),
    "a backslash": get(b"/\\queues"),
    "a NUL": get(b"/queues\0"),
    "an encoded NUL": get(b"/schedules/%00"),
    "half an escape": get(b"/queues/%f"),
    "a surrogate": get(b"/schedules/%ed%a0%80"),
    "not UTF-8": get(b"/schedules/%ff%fe"),
    "raw UTF-8": get("/schedules/é".encode()),
    "raw bytes": get(b"/\xc3\xa9\xff"),
    "a fragment": get(b"/health#x"),
    "a semicolon": get(b"/health;a=b"),
    "a query of bytes": get(b"/metrics?%ff=%00&&=&a=b&a"),
    "a long id": get(b"/jobs/" + b"0" * 5_000),
    "an id with braces": get(b"/jobs/%7B0190a0b0-0000-7000-8000-000000000001%7D"),
    "a wait that is not a number": get(b"/jobs/0190a0b0-0000-7000-8000-000000000001?wait=nan"),
    "a wait of infinity": get(b"/jobs/0190a0b0-0000-7000-8000-000000000001?wait=inf"),
    "a page of its own": get(b"/dead?after=99999999999999999999-x&limit=%D9%A1"),
}

UPGRADES = {
    "a WebSocket": get(
        b"/", b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: eA=="
    ),
    "a WebSocket with a body": get(b"/", b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Version: 13") + b"\0x",
    "a WebSocket without a key": get(b"/queues", b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Version: 13"),
    "an odd protocol": get(
        b"/", b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Protocol: \xff"
    ),
    "h2c": get(b"/queues", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__", b"Connection: Upgrade, HTTP2-Settings"),
    "h2c with odd settings": get(b"/queues", b"Upgrade: h2c", b"HTTP2-Settings: \xff!", b"Connection: Upgrade, HTTP2-Settings"),
    "h2c with settings of garbage": get(
        b"/queues",
        b"Upgrade: h2c",
        b"HTTP2-Settings: " + base64.urlsafe_b64encode(b"\xff" * 7),
        b"Connection: Upgrade, HTTP2-Settings",
    ),
    "h2c without settings": get(b"/queues", b"Upgrade: h2c", b"Connection: Upgrade"),
    "expects": post(b"Expect: 100-continue", b"Content-Length: 2", body=b"{}"),
    "expects what is none": post(b"Expect: a miracle", b"Content-Length: 2", body=b"{}"),
    "expects and waits": post(b"Expect: 100-continue", b"Content-Length: 2"),
}

HTTP2 = {
    "the preface": PREFACE,
    "half a preface": PREFACE[:20],
    "settings": PREFACE + frame(4, 0, 0),
    "a request": PREFACE + frame(4, 0, 0) + headers_frame(1),
    "requests": PREFACE + frame(4, 0, 0) + b"".join(headers_frame(number) for number in range(1, 20, 2)),
    "too many requests": PREFACE + frame(4, 0, 0) + b"".join(headers_frame(number, flags=4) for number in range(1, 400, 2)),
    "resets": PREFACE + frame(4, 0, 0) + b"".join(headers_frame(n) + frame(3, 0, n, b"\0\0\0\x08") for n in range(1, 200, 2)),
    "a submission": PREFACE
    + frame(4, 0, 0)
    + headers_frame(
        1,
        (":method", "POST"),
        (":path", "/submit"),
        (":scheme", "http"),
        (":authority", "localhost"),
        ("content-type", "application/json"),
        flags=4,
    )
    + frame(0, 1, 1, b"{}"),
    "a path of bytes": PREFACE + frame(4, 0, 0) + frame(1, 5, 1, b"\x82\x86\x41\x1a\x44\x08/caf\xc3\xa9\xff!"),
    "no path": PREFACE + frame(4, 0, 0) + headers_frame(1, (":method", "GET"), (":scheme", "http")),
    "an empty path": PREFACE + frame(4, 0, 0) + headers_frame(1, (":method", "GET"), (":path", ""), (":scheme", "http")),
    "no method": PREFACE + frame(4, 0, 0) + headers_frame(1, (":path", "/"), (":scheme", "http")),
    "an extended CONNECT": PREFACE
    + frame(4, 0, 0)
    + headers_frame(
        1, (":method", "CONNECT"), (":protocol", "websocket"), (":path", "/"), (":scheme", "http"), (":authority", "localhost")
    ),
    "a header in capitals": PREFACE + frame(4, 0, 0) + headers_frame(1, (":method", "GET"), (":path", "/"), ("X", "y")),
    "a name of lines": PREFACE + frame(4, 0, 0) + headers_frame(1, (":method", "GET"), (":path", "/"), ("x\r\ny", "z\r\n")),
    "data without a stream": PREFACE + frame(4, 0, 0) + frame(0, 1, 1, b"{}"),
    "a frame too large": PREFACE + frame(4, 0, 0) + b"\xff\xff\xff\0\0\0\0\0\1",
    "a window of nothing": PREFACE + frame(4, 0, 0) + headers_frame(1, flags=4) + frame(8, 0, 1, b"\0\0\0\0"),
    "a window too large": PREFACE + frame(4, 0, 0) + frame(8, 0, 0, b"\x7f\xff\xff\xff") * 2,
    "settings of no window": PREFACE + frame(4, 0, 0, b"\0\4\0\0\0\0") + headers_frame(1),
    "settings out of range": PREFACE + frame(4, 0, 0, b"\0\4\xff\xff\xff\xff"),
    "many settings": PREFACE + frame(4, 0, 0) * 500,
    "many pings": PREFACE + frame(4, 0, 0) + frame(6, 0, 0, b"12345678") * 500,
    "priorities": PREFACE + frame(4, 0, 0) + b"".join(frame(2, 0, n, b"\0\0\0\0\x10") for n in range(1, 3_000, 2)),
    "a priority on itself": PREFACE + frame(4, 0, 0) + frame(2, 0, 1, b"\0\0\0\1\x10"),
    "pieces of headers": PREFACE + frame(4, 0, 0) + frame(1, 1, 1) + frame(9, 0, 1) * 100,
    "a push": PREFACE + frame(4, 0, 0) + frame(5, 4, 1, b"\0\0\0\2"),
    "going away": PREFACE + frame(4, 0, 0) + frame(7, 0, 0, b"\0" * 8),
    "an unknown frame": PREFACE + frame(4, 0, 0) + frame(99, 255, 7, b"?" * 100),
    "garbage": PREFACE + b"\xff" * 200,
    "zeros": PREFACE + b"\0" * 200,
}

BROKEN = {
    "lengths": LENGTHS,
    "smuggling": SMUGGLING,
    "chunks": CHUNKS,
    "heads": HEADS,
    "targets": TARGETS,
    "upgrades": UPGRADES,
    "HTTP/2": HTTP2,
}

VALUES = [
    *(
        "null",
        "true",
        "0",
        "1",
        "-1",
        "-0",
        "0.5",
        "1.5",
        "1e3",
        "1e-400",
        '""',
        '"x"',
        "[]",
        "{}",
        '{"a": 1}',
        "[1, 2]",
        '[["x"]]',
    ),
    *("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "01", "+1", ".5", "1.", "0x10", "nul", "'x'", "undefined", ""),
    *("9223372036854775807", "18446744073709551615", "18446744073709551616", "-9223372036854775809", "9" * 400, "9" * 5_000),
    *('{"a": 1, "a": 2}', '{"a": {"b": 1, "b": 2}}', '{"\\u0061": 1, "a": 2}', '[{"a": 1, "a": 1}]', '{"": 1, "": 2}'),
    *(
        '"\\ud800"',
        '"\\udc00\\ud800"',
        '{"\\ud800": 1}',
        '{"\\ud800": 1, "\\ud800": 2}',
        '"\\ud83d\\ude00"',
        '"\\u0000"',
        '"a\\u0000b"',
    ),
    *('{"\\u0000": 1}', '"\\u00"', '"\\x41"', '"\n"', '"\t"', '"\x00"', '"\x7f"', '"\u2028"', '"é"', '"\U0001f600"', "\ufeff1"),
    *(
        "[" * 99 + "]" * 99,
        "[" * 101 + "]" * 101,
        "[" * 5_000 + "]" * 5_000,
        '{"a":' * 200 + "1" + "}" * 200,
        "[" * 100_000,
        "{" * 3_000,
    ),
    *('"2030-01-31T08:00:00Z"', '"2030-01-31"', '"0001-01-01T00:00:00Z"', '"9999-12-31T23:59:59+00:00"', '"2030-02-31T08:00:00Z"'),
    *('"' + "x" * 200 + '"', '"' + "x" * 201 + '"', '"' + "x" * 70_000 + '"', '"' + "é" * 200 + '"', "[" + "1," * 2_000 + "1]"),
    *("1 2", "{} {}", "{}x", "[1,]", '{"a" 1}', '{"a": 1,}', "{,}", "[,]", "/* */ 1", "1 // 2", '"x', "[1", '{"a"'),
    *(
        '"pending"',
        '"dead"',
        '["pending", "dead"]',
        '"default"',
        '"async"',
        '"*/5 * * * *"',
        '"Europe/Berlin"',
        '"60 * * * *"',
        '"one"',
    ),
]
"""Valid, invalid, and ambiguous JSON values."""

RAW_VALUES = [
    b'"\xff"',
    b'"\xc0\x80"',
    b'"\xed\xa0\x80"',
    b'"\xf4\x90\x80\x80"',
    b"\xef\xbb\xbf1",
    b"\xff\xfe1\0",
    b'"\xe2\x82"',
    b"\0",
]
"""More JSON values, as bytes."""
