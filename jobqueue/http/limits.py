"""The bounds of HTTP: how much a client may send, how many may come, and how long each may take."""

MAX_CONNECTIONS = 4096
"""Connections open at once, unless half of the files that the process may open are fewer. More wait in the backlog."""

BACKLOG = 1024
"""Connections that the kernel holds until they are accepted."""

MAX_STREAMS = 100
"""Requests that one connection of HTTP/2 may have in flight."""

MAX_REQUESTS = 2_000
"""Requests in flight of all connections, those that wait for a job (`engine.watching.MAX_WATCHERS`) among them. Probes of the
service's health, and what the express lane answers, are not counted."""

MAX_HEADER_BYTES = 16 << 10
"""The most bytes of a request line with its headers."""

MAX_BODY_BYTES = 64 << 20
"""The largest body of a request."""

MAX_REFUSED_BODY_BYTES = 64 << 10
"""The longest body of a refused request that is waited for and thrown away, in HTTP/1.1. For a longer one its connection ends."""

MAX_SCHEDULE_BYTES = (1 << 20) + (64 << 10)
"""The largest body that describes a schedule: the payload of its jobs, and room for the other fields."""

MAX_SETTINGS_BYTES = 4 << 10
"""The largest body that holds the settings of a queue."""

MAX_CHANGE_BYTES = 4 << 10
"""The largest body that changes a job."""

MAX_FILTER_BYTES = 16 << 10
"""The largest body that holds a filter."""

HANDSHAKE_TIMEOUT = 10.0
"""Seconds for a TLS handshake, from connecting to its end."""

HEADERS_TIMEOUT = 10.0
"""Seconds from the first byte of a request, or from connecting, until its headers are complete."""

BODY_TIMEOUT = 30.0
"""Seconds in which the whole body must have come in."""

KEEP_ALIVE_TIMEOUT = 60.0
"""Seconds for which a connection may rest between two requests."""

REQUEST_TIMEOUT = 120.0
"""Seconds from a request's headers to the end of its answer: the bound of last resort, behind those of the routes. Where events are
sent, from one piece of the answer to the next: a client that does not take one holds up the next."""

SEND_TIMEOUT = 30.0
"""Seconds for a client to take one piece of an answer, of at most a job's result in size."""

LINGER_TIMEOUT = 2.0
"""Seconds between the last answer and the close, unless the client hangs up first: closing at once can take the answer away."""

CLOSE_TIMEOUT = 5.0
"""Seconds for what runs for a connection to end when the connection is over; then it is cancelled."""
