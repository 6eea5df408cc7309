"""Load tokens and TLS certificates from the settings and their files, and reload the files when they change."""

from __future__ import annotations

import ssl
from functools import partial

import trio

from jobqueue import tokens
from jobqueue.errors import SettingsError, UnusableFile
from jobqueue.http.access import auth, token_file
from jobqueue.http.access.auth import Authorizer
from jobqueue.http.access.file_watch import WatchedFiles
from jobqueue.http.transport.hypercorn_connection import configuration
from jobqueue.settings import Settings


class Credentials:
    """The authorization and TLS of a service, from its settings.

    Attributes:
        authorizer: decides which requests are allowed.

    Raises:
        SettingsError: a token is invalid, a file cannot be used, or the service has no token but listens on more than loopback.
    """

    def __init__(self, settings: Settings) -> None:
        self._given = [tokens.parse(entry) for entry in settings.tokens]
        self._tls: ssl.SSLContext | None = None
        self.authorizer = Authorizer(
            self._given,
            [settings.host],
            opened=settings.opened,
            origins=settings.cors_origins,
        )
        self._reloaded = []
        if settings.token_file is not None:
            self._reloaded.append(WatchedFiles([settings.token_file], partial(self._load_tokens, settings.token_file)))
        if settings.certfile is not None and settings.keyfile is not None:
            files = settings.certfile, settings.keyfile
            self._reloaded.append(WatchedFiles(files, partial(self._load_certificate, *files)))
        auth.require_token_off_loopback(settings.host, self.authorizer.tokens)

    def tls(self) -> ssl.SSLContext | None:
        """Return the TLS context for the next connection; None for plain HTTP."""
        return self._tls

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Reload the files when they change, until cancelled."""
        async with trio.open_nursery() as nursery:
            for reloaded in self._reloaded:
                await nursery.start(reloaded.run)
            task_status.started()
            await trio.sleep_forever()

    def _load_tokens(self, path: str) -> None:
        try:
            self.authorizer.replace_tokens(tokens.gather([*self._given, *token_file.read(path)]))
        except UnusableFile:
            raise
        except SettingsError as error:
            raise UnusableFile(f"the token file cannot be used: {error}") from None

    def _load_certificate(self, certfile: str, keyfile: str) -> None:
        config = configuration()
        config.certfile, config.keyfile = certfile, keyfile
        config.keyfile_password = ""  # reject an encrypted key; otherwise OpenSSL asks for its password on the terminal
        try:
            self._tls = config.create_ssl_context()
        except (OSError, ValueError) as error:
            raise UnusableFile(f"the certificate {certfile} with the key {keyfile} cannot be used: {error}") from None
