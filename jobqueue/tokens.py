"""Bearer tokens: what an entry of one looks like, and how one is made. Who may do what with it, `http.auth` decides.

An entry is ``ROLE:sha256:HEX``, or ``ROLE:SECRET`` for who must keep the secret itself there. In a file it stands on a line of its
own, and a name may follow it, so that people know whose it is.
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
"""The most tokens of a service: a request's token is compared with all of them, each for a tenth of a microsecond."""

MAX_NAME_LENGTH = 100
"""Characters of a token's name."""

HOW_TO_MAKE_ONE = "make one with `jobqueue token create --role submit`"

_HASHED = "sha256:"
_SECRET = re.compile(r"[\x21-\x7e]+")
_NAME = re.compile(r"[^\s#]\S*( \S+)*")
_LINE_END = re.compile(r"\r\n?|\n")  # str.splitlines would also end a line, and with it a comment, at U+0085 or U+2028


class Token(NamedTuple):
    """A token that is known.

    Attributes:
        role: what it is for.
        digest: the SHA-256 of its secret.
        name: whose it is, for people.
        plain: whether its entry held the secret itself.
    """

    role: Role
    digest: bytes
    name: str = ""
    plain: bool = False

    @property
    def entry(self) -> str:
        """The entry without the secret, as a file may keep it."""
        return f"{self.role}:{_HASHED}{self.digest.hex()}" + (f" {self.name}" if self.name else "")


def parse(entry: str, where: str = "the token") -> Token:
    """Read an entry without a name.

    Args:
        entry: ``ROLE:sha256:HEX`` or ``ROLE:SECRET``.
        where: where it was found, for the message: the entry itself is a secret, and is never in it.

    Raises:
        SettingsError: it has no role, or no client could send such a secret.
    """
    role, _, secret = entry.partition(":")
    if role not in ROLES:
        raise SettingsError(
            f"{where} has no role: an entry is ROLE:sha256:HEX or ROLE:SECRET, and ROLE is submit, read or admin; {HOW_TO_MAKE_ONE}"
        )
    if secret.startswith(_HASHED):
        try:
            digest = bytes.fromhex(secret.removeprefix(_HASHED))
        except ValueError:
            digest = b""
        if len(digest) != sha256().digest_size:
            raise SettingsError(f"{where} is no SHA-256: after sha256: come 64 hexadecimal digits; {HOW_TO_MAKE_ONE}")
        return Token(role, digest)
    if not _SECRET.fullmatch(secret):
        raise SettingsError(f"{where} must be printable ASCII characters without spaces, and not empty; {HOW_TO_MAKE_ONE}")
    return Token(role, _digest(secret), plain=True)


def parse_lines(text: str, where: str) -> list[Token]:
    """Read a file's text: an entry a line, a name after a space, and comments from a ``#`` at the beginning or after a space on.

    Raises:
        SettingsError: as `parse`, with the number of the line.
    """
    tokens = []
    for number, line in enumerate(_LINE_END.split(text), 1):
        entry, _, name = re.sub(r"(^|\s)#.*", "", line).strip().partition(" ")
        if entry:
            token = parse(entry, f"{where}, line {number}: the token")
            tokens.append(token._replace(name=check_name(name.strip(), f"{where}, line {number}: the name")))
    return tokens


def check_name(name: str, where: str) -> str:
    """Return a name that can stand behind an entry.

    Raises:
        SettingsError: it cannot.
    """
    if name and (len(name) > MAX_NAME_LENGTH or not name.isprintable() or not _NAME.fullmatch(name) or " #" in name):
        raise SettingsError(f"{where} has at most {MAX_NAME_LENGTH} printable characters, none of them a # after a space")
    return name


def gather(tokens: Iterable[Token]) -> tuple[Token, ...]:
    """Put the tokens of several sources together.

    Raises:
        SettingsError: there are too many, or one is given two roles: nobody could tell which was meant.
    """
    roles: dict[bytes, Token] = {}
    for token in tokens:
        other = roles.setdefault(token.digest, token)
        if other.role != token.role:
            named = f" ({token.name or other.name})" if token.name or other.name else ""
            raise SettingsError(f"a token{named} is given twice, with the roles {other.role} and {token.role}")
    if len(roles) > MAX_TOKENS:
        raise SettingsError(f"there are {len(roles)} tokens, and at most {MAX_TOKENS} are possible")
    return tuple(roles.values())


def create(role: Role, name: str = "") -> tuple[str, Token]:
    """Make a new secret, and what is known of it."""
    secret = f"jq_{secrets.token_urlsafe(32)}"
    return secret, Token(role, _digest(secret), name)


def _digest(secret: str) -> bytes:
    return sha256(secret.encode()).digest()
