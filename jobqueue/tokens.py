"""Create and parse bearer tokens. `http.access.auth` decides what a role may do.

An entry of a token is ``ROLE:sha256:HEX``, or ``ROLE:SECRET`` with the secret itself. A token file has one entry per line. The name
of the owner may follow an entry.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from hashlib import sha256
from typing import Literal, NamedTuple, get_args

from jobqueue.errors import SettingsError

Role = Literal["submit", "read", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)

MAX_TOKENS = 1_000
"""Maximum number of tokens of a service. Each request is compared with all of them, which takes 0.1 µs per token."""

MAX_NAME_LENGTH = 100
"""Maximum length of the name of a token, in characters."""

HOW_TO_MAKE_ONE = "make one with `jobqueue token create --role submit`"

_HASHED = "sha256:"
_SECRET = re.compile(r"[\x21-\x7e]+")
_NAME = re.compile(r"[^\s#]\S*( \S+)*")
_LINE_END = re.compile(r"\r\n?|\n")  # not str.splitlines, which would also end a comment at U+0085 or U+2028


class Token(NamedTuple):
    """A known token.

    Attributes:
        role: what the token permits.
        digest: the SHA-256 of the secret.
        name: the name of the owner, for people.
        plain: whether the entry contained the secret itself.
    """

    role: Role
    digest: bytes
    name: str = ""
    plain: bool = False

    @property
    def entry(self) -> str:
        """The entry with the SHA-256 in place of the secret."""
        return f"{self.role}:{_HASHED}{self.digest.hex()}" + (f" {self.name}" if self.name else "")


def parse(entry: str, where: str = "the token") -> Token:
    """Parse an entry without a name.

    Args:
        entry: ``ROLE:sha256:HEX`` or ``ROLE:SECRET``.
        where: the place of the entry, for the error message. The message never contains the entry, because it is a secret.

    Raises:
        SettingsError: the entry has no role, its digest is malformed, or no client could send its secret.
    """
    role, _, secret = entry.partition(":")
    if role not in ROLES:
        raise SettingsError(
            f"{where} has no role: write ROLE:sha256:HEX or ROLE:SECRET, where ROLE is submit, read or admin; {HOW_TO_MAKE_ONE}"
        )
    if secret.startswith(_HASHED):
        try:
            digest = bytes.fromhex(secret.removeprefix(_HASHED))
        except ValueError:
            digest = b""
        if len(digest) != sha256().digest_size:
            raise SettingsError(f"{where} is not a SHA-256 digest: 64 hexadecimal digits must follow the prefix; {HOW_TO_MAKE_ONE}")
        return Token(role, digest)
    if not _SECRET.fullmatch(secret):
        raise SettingsError(f"{where} must have a secret of printable ASCII characters without spaces; {HOW_TO_MAKE_ONE}")
    return Token(role, _digest(secret), plain=True)


def parse_lines(text: str, where: str) -> list[Token]:
    """Parse the text of a token file.

    Each line has an entry and, after a space, an optional name. A comment begins with ``#``, at the start of a line or after a
    space.

    Raises:
        SettingsError: as in `parse`, with the line number.
    """
    tokens = []
    for number, line in enumerate(_LINE_END.split(text), 1):
        entry, _, name = re.sub(r"(^|\s)#.*", "", line).strip().partition(" ")
        if entry:
            token = parse(entry, f"{where}, line {number}: the token")
            tokens.append(token._replace(name=check_name(name.strip(), f"{where}, line {number}: the name")))
    return tokens


def check_name(name: str, where: str) -> str:
    """Return the name if it can follow an entry in a token file.

    Raises:
        SettingsError: the name cannot follow an entry.
    """
    if name and (len(name) > MAX_NAME_LENGTH or not name.isprintable() or not _NAME.fullmatch(name) or " #" in name):
        raise SettingsError(f"{where} must have at most {MAX_NAME_LENGTH} printable characters, and no # first or after a space")
    return name


def gather(tokens: Iterable[Token]) -> tuple[Token, ...]:
    """Combine the tokens of several sources, without duplicates.

    Raises:
        SettingsError: there are more than `MAX_TOKENS`, or a token has two roles.
    """
    roles: dict[bytes, Token] = {}
    for token in tokens:
        other = roles.setdefault(token.digest, token)
        if other.role != token.role:
            named = f" ({token.name or other.name})" if token.name or other.name else ""
            raise SettingsError(f"a token{named} is given twice, with the roles {other.role} and {token.role}: give it one role")
    if len(roles) > MAX_TOKENS:
        raise SettingsError(f"there are {len(roles)} tokens, and at most {MAX_TOKENS} are allowed: remove some")
    return tuple(roles.values())


def create(role: Role, name: str = "") -> tuple[str, Token]:
    """Create a token; return its secret and the token."""
    secret = f"jq_{secrets.token_urlsafe(32)}"
    return secret, Token(role, _digest(secret), name)


def _digest(secret: str) -> bytes:
    return sha256(secret.encode()).digest()
