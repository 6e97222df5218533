"""What programs that the agent runs for its own purposes are given of its environment: no credentials of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping

_PASSED = {
    *("PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"),
    *("SSH_AUTH_SOCK", "SSL_CERT_FILE", "SSL_CERT_DIR", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "GIT_SSL_CAPATH"),
    *(
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "no_proxy",
    ),
}
_IN_URL = re.compile(r"(?<=://)[^/\s@]+@")


def surroundings(own: Mapping[str, str]) -> dict[str, str]:
    """The environment of such a program: found by it, reached through the proxies, trusted by the certificates of
    the agent."""
    found = {name: own[name] for name in _PASSED if name in own}
    found.setdefault("PATH", "/usr/local/bin:/usr/bin:/bin")
    return found | {"LC_ALL": "C.UTF-8"}


def masked(text: str, secret: str | None = None) -> str:
    """Without a secret, and without what stands before the host in URLs."""
    for value in {secret, secret and secret.strip()}:
        if value:
            text = text.replace(value, "***")
    return _IN_URL.sub("***@", text)
