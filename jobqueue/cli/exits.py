"""Exit codes."""

from enum import IntEnum


class Exit(IntEnum):
    """The exit codes of all commands.

    Attributes:
        REFUSED: the service rejected the request, or the awaited job did not succeed.
        USAGE: the command line is wrong (click uses the same code).
        NOT_FOUND: the named job, queue or schedule does not exist.
        UNREACHABLE: the service or the database is unreachable or unavailable; the same command may succeed later.
        TIMEOUT: a wait reached its timeout.
        INTERRUPTED: Ctrl-C interrupted the command. The code is 128 plus the number of SIGINT, as in shells.
    """

    DONE = 0
    REFUSED = 1
    USAGE = 2
    NOT_FOUND = 3
    UNREACHABLE = 4
    TIMEOUT = 5
    INTERRUPTED = 130
