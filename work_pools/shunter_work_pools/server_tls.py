"""The server's certificate: checked when it starts, and read anew when its files change.

Who renews certificates (certbot, cert-manager) changes files, one after the other, and tells nobody. So a new
context is made of all of them, and taken for new connections only if it is whole; until then the old one serves.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509

from shunter_work_pools.contracts.errors import InvalidInput
from shunter_work_pools.daemon_log import get_logger
from shunter_work_pools.key_files import load_authorities, load_pair

log = get_logger()

#: Seconds between two looks at the files.
LOOK_EVERY = 5.0
#: A certificate that ends so soon is told of, once a day.
SOON, TELL_EVERY = timedelta(days=7), timedelta(days=1)


class ServerTls:
    """The TLS of a server.

    Args:
        values: the settings.

    Attributes:
        context: for who listens; new connections get what the files held last.

    Raises:
        InvalidInput: a file cannot be used, or the certificate is not valid now.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._files = [values[f"server.tls_{name}"] for name in ("cert", "key", "client_ca")]
        self._seen = self._look()
        self._current, self._ends = self._made()
        self._told_at = datetime.min.replace(tzinfo=UTC)
        self.context = self._current
        self.context.sni_callback = self._choose

    def _choose(self, connection: ssl.SSLObject, name: str | None, base: ssl.SSLContext) -> None:
        """Asked by OpenSSL at each handshake, also where the client names no server."""
        if self._current is not base:
            connection.context = self._current

    async def keep_renewed(self) -> None:
        """Look at the files again and again, until cancelled."""
        while True:
            self.tell_of_the_end(datetime.now(UTC))
            await asyncio.sleep(LOOK_EVERY)
            self.renew()

    def renew(self) -> bool:
        """Take what the files hold now; whether it is new. What cannot be used is told, once, and not taken."""
        found = self._look()
        if found == self._seen:
            return False
        self._seen = found
        try:
            self._current, self._ends = self._made()
        except InvalidInput as exc:
            log.warning("the new certificate cannot be used; the old one goes on", reason=exc.told)
            return False
        log.info("the certificate was renewed", ends=self._ends.isoformat())
        return True

    def tell_of_the_end(self, now: datetime) -> None:
        """Say it, once a day, if the certificate ends soon."""
        if self._ends - now < SOON and now - self._told_at >= TELL_EVERY:
            self._told_at = now
            log.warning(
                "the certificate ends soon: renew it", file=self._files[0], ends=self._ends.isoformat()
            )

    def _look(self) -> list[tuple[int, ...] | None]:
        """What tells a file that was changed, also one behind a link that now leads elsewhere."""
        return [_state(path) if path else None for path in self._files]

    def _made(self) -> tuple[ssl.SSLContext, datetime]:
        certificate, key, authorities = self._files
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.set_alpn_protocols(["http/1.1"])
        load_pair(context, certificate, key, "server.tls_cert")
        ends = _valid_until(certificate)
        if authorities:
            load_authorities(context, authorities, "server.tls_client_ca")
            required = self._values["server.tls_client_required"]
            context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
        return context, ends


def server_tls(values: Mapping[str, Any]) -> ServerTls | None:
    """The TLS that the settings ask for; None: none.

    Raises:
        InvalidInput: as :class:`ServerTls`, or a part of it is set without the certificate.
    """
    if values["server.tls_cert"]:
        return ServerTls(values)
    for name in ("server.tls_key", "server.tls_client_ca"):
        if values[name]:
            raise InvalidInput(
                f"{name} is set, and server.tls_cert is not", "Give the certificate: --tls-cert FILE."
            )
    return None


def _state(path: str) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _valid_until(path: str) -> datetime:
    """When a certificate ends.

    Raises:
        InvalidInput: it has ended, or has not begun.
    """
    with open(path, "rb") as file:
        certificate = x509.load_pem_x509_certificates(file.read())[0]
    begins, ends, now = certificate.not_valid_before_utc, certificate.not_valid_after_utc, datetime.now(UTC)
    if not begins <= now < ends:
        wrong = f"has expired at {ends}" if now >= ends else f"is valid only from {begins} on"
        raise InvalidInput(
            f"the certificate {path} (server.tls_cert) {wrong}; here it is {now:%Y-%m-%d %H:%M:%S+00:00}",
            "Renew it, or set this machine's clock.",
        )
    return ends
