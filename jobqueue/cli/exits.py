"""How a command ends, for scripts."""

from enum import IntEnum


class Exit(IntEnum):
    """The exit codes of all commands.

    Attributes:
        REFUSED: the service said no, or what was waited for has failed.
        USAGE: the command line is wrong; it is click's own.
        NOT_FOUND: there is no such job, or whatever was named.
        UNREACHABLE: the service or the database cannot be reached, or cannot work now: the same command may work later.
        TIMEOUT: a wait ran out of time.
        INTERRUPTED: by Ctrl-C, as shells tell it.
    """

    DONE = 0
    REFUSED = 1
    USAGE = 2
    NOT_FOUND = 3
    UNREACHABLE = 4
    TIMEOUT = 5
    INTERRUPTED = 130
