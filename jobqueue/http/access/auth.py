"""Authorize requests: by bearer tokens with roles, or by loopback host names without tokens. Reject requests from other sites."""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Collection, Iterable
from hashlib import sha256

from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Forbidden, Unauthorized

from jobqueue.errors import SettingsError
from jobqueue.http.api.routes import Access, permits
from jobqueue.tokens import HOW_TO_MAKE_ONE, ROLES, Role, Token

HEALTH: frozenset[Access] = frozenset({"health"})
"""The kinds of access that need no token by default. The health is one of them, because load balancers check it without a token."""

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class Authorizer:
    """The authorization rules of one service.

    Args:
        tokens: the known tokens. If there are none, every client that reaches the service may do everything.
        hosts: the host names, in addition to loopback names, that a service without tokens accepts.
        opened: the kinds of access that need no token. Everything else needs one, including paths that do not exist.
        origins: the origins whose pages may send requests, in addition to the service's own.

    Attributes:
        tokens: the known tokens; `replace_tokens` replaces the tuple.
        opened: see above.
        origins: see above.
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
        self.replace_tokens(tokens or ())

    def replace_tokens(self, tokens: Iterable[Token]) -> None:
        """Replace the known tokens."""
        self.tokens = tuple(tokens)

    def check(self, method: str, needs: Access | None, *, authorization: str | None, host: str | None, origin: str | None) -> None:
        """Raise unless a request is allowed.

        Args:
            method: the HTTP method, in capitals.
            needs: the access that the route needs. None if there is no such route; then any known token is enough.
            authorization: the header Authorization.
            host: the header Host.
            origin: the header Origin.

        Raises:
            Unauthorized: the request has no known token.
            Forbidden: the token's role is not enough, a page of another origin sent the request, or the host name is not the
                service's (DNS rebinding).
        """
        is_open = needs == "page" or needs in self.opened
        if is_open and needs == "health":
            return  # load balancers use any host name
        # Browsers add an Origin header to every cross-site request that could do harm, and a page cannot forge that header.
        if origin is not None and origin.partition("://")[2].lower() != (host or "").lower() and origin not in self.origins:
            raise Forbidden("Requests from pages of other origins are rejected.")
        if not self.tokens:
            if _host_name(host or "") not in self._hosts:
                names = ", ".join(sorted(self._hosts))
                raise Forbidden(
                    f"A service without tokens accepts only the host names {names}: the Host header has a different name."
                )
        elif not is_open:
            held = self._role_of(authorization or "")
            if not permits(held, method, needs):
                named = " or ".join(role for role in ROLES if permits(role, method, needs))
                raise Forbidden(f"This request requires a token with the role {named}: yours has the role {held}.")

    def _role_of(self, authorization: str) -> Role:
        scheme, _, secret = authorization.partition(" ")
        given = sha256(secret.strip().encode()).digest()
        tokens = self.tokens  # copy the reference, because another thread may replace the tuple
        # Compare all tokens, each in constant time, so that the response time reveals nothing about them.
        same = [hmac.compare_digest(given, token.digest) for token in tokens]
        if scheme.lower() != "bearer" or True not in same:
            reason = (
                "The token is unknown or was revoked: use another one."
                if authorization
                else "Send a token: -H 'Authorization: Bearer TOKEN'"
            )
            raise Unauthorized(reason, www_authenticate=WWWAuthenticate("bearer"))
        return tokens[same.index(True)].role


def require_token_off_loopback(host: str, tokens: Collection[Token]) -> None:
    """Raise if a service without tokens would listen on the network: then anybody could make it run jobs.

    Args:
        host: the address or name to listen on.
        tokens: the known tokens.

    Raises:
        SettingsError: there is no token, and the host is not loopback.
    """
    if not tokens and not _is_loopback(host):
        raise SettingsError(
            f"listening on {host} without a token would let everybody who can connect submit and cancel jobs: "
            f"set a token, or listen on 127.0.0.1; {HOW_TO_MAKE_ONE}"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _host_name(host: str) -> str:
    """Return the name in a Host header, without the port and the brackets of IPv6; empty if the header is malformed."""
    matched = re.fullmatch(r"(?:\[([^\]]+)\]|([^:\[\]]+))(?::\d*)?", host)
    return (matched.group(1) or matched.group(2)).lower().rstrip(".") if matched else ""
