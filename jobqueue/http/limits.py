"""The limits of the HTTP server: sizes, counts, and timeouts."""

MAX_CONNECTIONS = 4096
"""Maximum number of open connections. If half of the process's file descriptor limit is lower, that half applies instead. Further
connections wait in the backlog."""

BACKLOG = 1024
"""Maximum number of connections that the kernel queues until the server accepts them."""

MAX_STREAMS = 100
"""Maximum number of requests in flight on one HTTP/2 connection."""

MAX_REQUESTS = 2_000
"""Maximum number of requests in flight on all connections. This includes requests that wait for a job
(`engine.job_watcher.MAX_WATCHERS`), but not health probes and requests in the express lane."""

MAX_HEADER_BYTES = 16 << 10
"""Maximum size of a request line and its headers, in bytes."""

MAX_BODY_BYTES = 64 << 20
"""Maximum size of a request's body, in bytes."""

MAX_REFUSED_BODY_BYTES = 64 << 10
"""In HTTP/1.1, the server reads and drops the body of a rejected request. This is the maximum size of such a body, in bytes. If a
body is longer, the server closes the connection."""

MAX_SCHEDULE_BYTES = (1 << 20) + (64 << 10)
"""Maximum size of a body that describes a schedule, in bytes: the maximum size of a payload, and room for the other fields."""

MAX_SETTINGS_BYTES = 4 << 10
"""Maximum size of a body with a queue's settings, in bytes."""

MAX_CHANGE_BYTES = 4 << 10
"""Maximum size of a body that changes a job, in bytes."""

MAX_FILTER_BYTES = 16 << 10
"""Maximum size of a body with a filter, in bytes."""

HANDSHAKE_TIMEOUT = 10.0
"""Seconds from the connection to the end of its TLS handshake."""

HEADERS_TIMEOUT = 10.0
"""Seconds from the connection, or from the first byte of a request, until the headers are complete."""

BODY_TIMEOUT = 30.0
"""Seconds to receive a whole body."""

KEEP_ALIVE_TIMEOUT = 60.0
"""Seconds that a connection may stay idle between two requests."""

REQUEST_TIMEOUT = 120.0
"""Maximum seconds from a request's headers to the end of its response. This is the last resort, because routes have shorter limits.

For an event stream, it is the maximum time between two parts of the response. A client that does not read delays the next part."""

SEND_TIMEOUT = 30.0
"""Maximum seconds for a client to receive one part of a response. A part is at most as large as a job's result."""

LINGER_TIMEOUT = 2.0
"""Seconds for which the server waits for the client to hang up before the server itself closes the connection. If the server closed
it at once, the client could lose the last response."""

CLOSE_TIMEOUT = 5.0
"""Seconds that the tasks of a closed connection may take to end. After that, they are cancelled."""
