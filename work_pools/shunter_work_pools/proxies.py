"""Which proxy leads to a server, by HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY.

The variables are as curl and Go read them: lower case goes before upper case, NO_PROXY lists names (with all below
them), addresses, networks (``10.0.0.0/8``) and ``*``, each with a port if only that is meant. This machine's own
loopback is never asked for by a proxy, which could not reach it.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from shunter_work_pools.contracts.errors import InvalidInput

#: Inside a run: by which its agent reaches the server of ``SHUNTER_API_URL``. What else the run does goes its own ways.
API_PROXY = "SHUNTER_API_PROXY"
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Proxy:
    """A proxy on the way to a server.

    Attributes:
        url: with user and password if it wants them.
        variable: that names it.
    """

    url: str = field(repr=False)
    variable: str

    def __str__(self) -> str:
        """For people: without the password."""
        return f"{re.sub(r'//.*@', '//***@', self.url)} ({self.variable})"


def proxy_for(url: str, environ: Mapping[str, str] | None = None) -> Proxy | None:
    """The proxy by which a URL is reached; None: directly.

    Raises:
        InvalidInput: the variable names what cannot be used.
    """
    environ = os.environ if environ is None else environ
    parts = urlsplit(url)
    host, port = (parts.hostname or "").rstrip("."), parts.port or _PORTS.get(parts.scheme, 0)
    if _is_local(host) or _excepted(host, port, _first(environ, "no_proxy")[0]):
        return None
    given, variable = _first(environ, f"{parts.scheme}_proxy", "all_proxy")
    if not given and url == environ.get("SHUNTER_API_URL"):
        given, variable = environ.get(API_PROXY, ""), API_PROXY
    if not given:
        return None
    proxy = Proxy(given if "://" in given else f"http://{given}", variable)
    _check(proxy)
    return proxy


def _first(environ: Mapping[str, str], *names: str) -> tuple[str, str]:
    """The value of the first of these that is set, in lower or upper case, and its name."""
    for name in (written for one in names for written in (one, one.upper())):
        if environ.get(name, "").strip():
            return environ[name].strip(), name
    return "", ""


def _check(proxy: Proxy) -> None:
    try:
        parts = urlsplit(proxy.url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise InvalidInput(
            f"{proxy} is no proxy that can be used",
            f"Write http://HOST:PORT into {proxy.variable} (SOCKS is not spoken), or name the server in NO_PROXY.",
        )


def _is_local(host: str) -> bool:
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _excepted(host: str, port: int, exceptions: str) -> bool:
    return any(_covers(entry, host, port) for entry in re.split(r"[\s,]+", exceptions.lower()) if entry)


def _covers(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    address = _address(host)
    if address is not None and "/" in entry:
        try:
            return address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    found = re.fullmatch(r"\[?(?P<name>[^\[\]]*?)\]?(?::(?P<port>\d+))?", entry)
    if _address(entry) is not None:  # of IPv6, whose colons begin no port
        name, only = entry, None
    elif found is not None:
        name, only = found["name"], found["port"]
    else:
        return False
    if only is not None and int(only) != port:
        return False
    if address is not None:
        return _address(name) == address
    name = name.removeprefix("*").removeprefix(".").rstrip(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return None
