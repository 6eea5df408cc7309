"""Who may ask: bearer tokens, or else only this machine, and never a page of another site in its browser."""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Iterable
from hashlib import sha256

from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Forbidden, Unauthorized

from jobqueue.errors import SettingsError

OPEN_PATHS = frozenset({"/health", "/health/ready"})
"""What everybody may GET: load balancers carry no tokens. Every other path, known or not, is closed."""

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class Guard:
    """The rules of admission of one service.

    Args:
        tokens: bearer tokens, each as good as another; without any, whoever reaches the service may do everything.
        hosts: names, besides those of loopback, that clients may call a service without tokens by: the one it is bound to.

    Raises:
        SettingsError: a token that no client could send.
    """

    def __init__(self, tokens: Iterable[str] | None, hosts: Iterable[str] = ()) -> None:
        self._digests = [_digest(token) for token in tokens or ()]
        self._hosts = LOOPBACK_NAMES | {host.lower() for host in hosts}

    def check(self, method: str, path: str, *, authorization: str | None, host: str | None, origin: str | None) -> None:
        """Let a request pass, or not. The last three are its headers of that name.

        Raises:
            Unauthorized: it shows no token that is known.
            Forbidden: a page of another site sent it, or it came for a host name that is not ours (DNS rebinding).
        """
        if method in {"GET", "HEAD"} and path in OPEN_PATHS:
            return
        # A browser tells the origin with every request that a foreign page could misuse, and pages cannot change it.
        if origin is not None and origin.partition("://")[2].lower() != (host or "").lower():
            raise Forbidden("Requests from pages of another origin are refused.")
        if self._digests:
            self._check_token(authorization or "")
        elif _host_name(host or "") not in self._hosts:
            names = ", ".join(sorted(self._hosts))
            raise Forbidden(f"Without a token this service answers only to the host names {names}: the Host header has another.")

    def _check_token(self, authorization: str) -> None:
        scheme, _, token = authorization.partition(" ")
        given = sha256(token.strip().encode()).digest()
        # All are compared, each in constant time: how long it takes tells nothing.
        known = [hmac.compare_digest(given, digest) for digest in self._digests]
        if scheme.lower() != "bearer" or not any(known):
            raise Unauthorized("Send a token: -H 'Authorization: Bearer TOKEN'", www_authenticate=WWWAuthenticate("bearer"))


def require_token_off_loopback(host: str, tokens: Iterable[str] | None) -> None:
    """Refuse to serve the network without a token: a job API that is open to all runs code for all.

    Args:
        host: the address or name to listen on.
        tokens: the bearer tokens, if any.

    Raises:
        SettingsError: there is no token, and the host is not loopback.
    """
    if not any(True for _ in tokens or ()) and not _is_loopback(host):
        raise SettingsError(
            f"listening on {host} without a token would let everybody who reaches it submit and cancel jobs: "
            "set a token, or listen on 127.0.0.1"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _digest(token: str) -> bytes:
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise SettingsError("a token must be printable ASCII characters without spaces, and not empty")
    return sha256(token.encode()).digest()


def _host_name(host: str) -> str:
    """Take the name out of a Host header, without its port and the brackets of IPv6."""
    matched = re.fullmatch(r"(?:\[([^\]]+)\]|([^:\[\]]+))(?::\d*)?", host)
    return (matched.group(1) or matched.group(2)).lower().rstrip(".") if matched else ""
