"""Name the two schemas of a queue. Queues with different names can share a database.

All SQL of jobqueue is written for the name ``jobqueue``: the schemas ``jobqueue`` and ``jobqueue_internal``, notification channels
such as ``jobqueue_keys``, and advisory locks whose numbers begin with `LOCKS`. `render` adapts this SQL to another name.
"""

from __future__ import annotations

import re
from hashlib import sha256

from jobqueue.errors import SettingsError

DEFAULT = "jobqueue"
"""The default name."""

MAX_LENGTH = 40
"""Maximum length of a name. The name of a channel contains it, and PostgreSQL limits channels to 63 bytes."""

LOCKS = 7_669_743
"""The first digits of the numbers of advisory locks. With 12 more digits, they are 'jobqueue' in ASCII."""

_NAME = re.compile(r"(?!pg_|public$|information_schema$)[a-z_][a-z0-9_]*(?<!_internal)")

_PLACES = re.compile(
    "|".join(
        [
            rf"(?P<channel>(?<=pg_notify\('){DEFAULT})",
            rf"(?P<lock>\b{LOCKS}(?=\d{{12}}\b|,))",
            rf"(?P<internal>{DEFAULT}(?=\\?_internal\b))",  # the backslash is part of a pattern for LIKE
            rf"(?P<qualified>\b{DEFAULT}(?=\.[\w%*]))",
            rf"(?P<schema>(?<=(?i:schema) ){DEFAULT}\b|(?<=schema \"){DEFAULT}(?=\"))",
            rf"(?P<literal>(?<='){DEFAULT}(?='))",  # for example 'jobqueue'::regnamespace
        ]
    )
)


def check(name: str) -> str:
    """Return a valid name unchanged.

    Raises:
        SettingsError: the name is not valid.
    """
    if not _NAME.fullmatch(name) or len(name) > MAX_LENGTH:
        raise SettingsError(
            f"the schema name (--schema) must be 1 to {MAX_LENGTH} of the characters a-z, 0-9 and _, but it is {name!r}."
            " A name must not begin with a digit or pg_, end with _internal, or be public or information_schema"
        )
    return name


def channel(default: str, name: str) -> str:
    """Return the name of a notification channel, given its name in the default queue.

    Only one queue uses it, because the name of a queue contains no colon.
    """
    return default if name == DEFAULT else f"{name}:{default}"


def render(sql: str, name: str) -> str:
    """Adapt SQL that is written for the default name to another name.

    Raises:
        SettingsError: the name is not valid.
    """
    if name == DEFAULT:
        return sql
    # Two of 8 million names share their locks. Then their queues sometimes wait for each other, which is harmless.
    locks = 1_000_000 + int.from_bytes(sha256(check(name).encode()).digest()[:8]) % 8_000_000
    substitutes = {"channel": channel(DEFAULT, name), "lock": str(locks)}
    return _PLACES.sub(lambda place: substitutes.get(place.lastgroup or "", name), sql)
