"""Who may ask what: bearer tokens with a role, or else only this machine; and no page of another site, in nobody's browser."""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Collection, Iterable
from hashlib import sha256

from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Forbidden, Unauthorized

from jobqueue.errors import SettingsError
from jobqueue.http.routes import Access
from jobqueue.tokens import HOW_TO_MAKE_ONE, ROLES, Role, Token

READS = frozenset({"GET", "HEAD"})

HEALTH: frozenset[Access] = frozenset({"health"})
"""What is open unless said otherwise: load balancers carry no tokens."""

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class Guard:
    """The rules of admission of one service.

    Args:
        tokens: those that are known; without any, whoever reaches the service may do everything.
        hosts: names, besides those of loopback, that clients may call a service without tokens by: the one it is bound to.
        opened: what needs no token; everything else, be there such a route or not, is closed.
        origins: origins whose pages may ask, besides the service's own.

    Attributes:
        tokens: the known tokens; another tuple from each `admit` on.
        opened: as given, as are the `origins`.
    """

    def __init__(
        self,
        tokens: Iterable[Token] | None = None,
        hosts: Iterable[str] = (),
        *,
        opened: Collection[Access] = HEALTH,
        origins: Iterable[str] = (),
    ) -> None:
        self.origins = frozenset(origins)
        self._hosts = LOOPBACK_NAMES | {host.lower() for host in hosts}
        self.opened = opened
        self.admit(tokens or ())

    def admit(self, tokens: Iterable[Token]) -> None:
        """Know these tokens from now on, and no others."""
        self.tokens = tuple(tokens)

    def check(self, method: str, needs: Access | None, *, authorization: str | None, host: str | None, origin: str | None) -> None:
        """Let a request pass, or not.

        Args:
            method: in capitals.
            needs: what its route says; None where there is no route, and any token will do.
            authorization: its header of that name, as are `host` and `origin`.

        Raises:
            Unauthorized: it shows no token that is known.
            Forbidden: its token is for other things, a page of another site sent it, or it came for a host name that is not ours
                (DNS rebinding).
        """
        is_open = needs == "page" or needs in self.opened
        if is_open and needs == "health":
            return  # load balancers come by any name
        # A browser tells the origin with every request that a foreign page could misuse, and pages cannot change it.
        if origin is not None and origin.partition("://")[2].lower() != (host or "").lower() and origin not in self.origins:
            raise Forbidden("Requests from pages of another origin are refused.")
        if not self.tokens:
            if _host_name(host or "") not in self._hosts:
                names = ", ".join(sorted(self._hosts))
                raise Forbidden(
                    f"Without a token this service answers only to the host names {names}: the Host header has another."
                )
        elif not is_open:
            held = self._role_of(authorization or "")
            if not permits(held, method, needs):
                named = " or ".join(role for role in ROLES if permits(role, method, needs))
                raise Forbidden(f"This needs a token of the role {named}: yours has the role {held}.")

    def _role_of(self, authorization: str) -> Role:
        scheme, _, secret = authorization.partition(" ")
        given = sha256(secret.strip().encode()).digest()
        tokens = self.tokens  # there may be others in a moment
        # All are compared, each in constant time: how long it takes tells nothing.
        same = [hmac.compare_digest(given, token.digest) for token in tokens]
        if scheme.lower() != "bearer" or True not in same:
            raise Unauthorized("Send a token: -H 'Authorization: Bearer TOKEN'", www_authenticate=WWWAuthenticate("bearer"))
        return tokens[same.index(True)].role


def permits(held: Role, method: str, needs: Access | None) -> bool:
    """Tell whether a role is enough for a request: admin is for all, read also for what submitters may look at."""
    if needs is None or needs in {"page", "health"} or held == "admin":
        return True
    return held == needs or (held == "read" and (needs == "metrics" or (needs == "submit" and method in READS)))


def require_token_off_loopback(host: str, tokens: Collection[Token]) -> None:
    """Refuse to serve the network without a token: a job API that is open to all runs code for all.

    Args:
        host: the address or name to listen on.
        tokens: those that are known.

    Raises:
        SettingsError: there is no token, and the host is not loopback.
    """
    if not tokens and not _is_loopback(host):
        raise SettingsError(
            f"listening on {host} without a token would let everybody who reaches it submit and cancel jobs: "
            f"give it a token, or listen on 127.0.0.1; {HOW_TO_MAKE_ONE}"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _host_name(host: str) -> str:
    """Take the name out of a Host header, without its port and the brackets of IPv6."""
    matched = re.fullmatch(r"(?:\[([^\]]+)\]|([^:\[\]]+))(?::\d*)?", host)
    return (matched.group(1) or matched.group(2)).lower().rstrip(".") if matched else ""
