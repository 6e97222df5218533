"""A server that others than this machine reach speaks TLS, or somebody has said that it need not."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from typing import Any

from shunter_work_pools.contracts.errors import InvalidInput


def check_exposure(values: Mapping[str, Any]) -> None:
    """Refuse to send tokens, secrets and output in the clear over a network.

    Args:
        values: the settings.

    Raises:
        InvalidInput: it would listen beyond loopback without TLS, and ``server.allow_plaintext`` is not set.
    """
    host = values["server.host"]
    if values["server.tls_cert"] or values["server.allow_plaintext"] or is_loopback(host):
        return
    raise InvalidInput(
        f"a server on {host} is reached from other machines, and without TLS everybody on the way reads tokens and "
        "secrets",
        "Give it a certificate: --tls-cert FILE --tls-key FILE.\n"
        "If a proxy in front of it speaks TLS, or nobody else is on that network: --allow-plaintext.",
    )


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine's own loopback, and nothing else."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        pass
    try:
        found = {str(address[4][0]).partition("%")[0] for address in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return False  # the server says itself that it is no address
    return all(ipaddress.ip_address(one).is_loopback for one in found)
