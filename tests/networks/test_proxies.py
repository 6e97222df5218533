"""Which proxy leads to a server."""

from __future__ import annotations

import pytest

from shunter_work_pools.contracts.errors import InvalidInput
from shunter_work_pools.proxies import proxy_for

PROXY = "http://proxy.test:3128"


def by(url: str, **environ: str) -> str | None:
    found = proxy_for(url, environ)
    return found.url if found is not None else None


def test_each_scheme_has_its_own_and_lower_case_goes_first() -> None:
    both = {"HTTP_PROXY": "http://a:1", "HTTPS_PROXY": "http://b:2"}
    assert by("http://s.test/api", **both) == "http://a:1"
    assert by("https://s.test/api", **both) == "http://b:2"
    assert by("https://s.test/api", **both, https_proxy="http://c:3") == "http://c:3"
    assert by("https://s.test/api", HTTP_PROXY="http://a:1") is None
    assert by("https://s.test/api", ALL_PROXY=PROXY) == PROXY
    assert by("https://s.test/api", HTTPS_PROXY="") is None
    assert by("http://s.test/api", HTTP_PROXY="proxy.test:3128") == PROXY


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "localhost", "LOCALHOST", "[::1]"])
def test_this_machine_is_never_reached_by_a_proxy(host: str) -> None:
    assert by(f"http://{host}:4400/api", HTTP_PROXY=PROXY) is None


@pytest.mark.parametrize(
    ("entry", "url", "direct"),
    [
        ("*", "http://s.test/api", True),
        ("s.test", "http://s.test/api", True),
        ("test", "http://s.test/api", True),
        (".test", "http://s.test/api", True),
        ("*.test", "http://s.test/api", True),
        ("S.Test", "http://s.TEST/api", True),
        ("est", "http://s.test/api", False),
        ("s.test.evil", "http://s.test/api", False),
        ("other.test, s.test", "http://s.test/api", True),
        ("other.test s.test", "http://s.test/api", True),
        ("s.test:80", "http://s.test/api", True),
        ("s.test:443", "http://s.test/api", False),
        ("s.test:4400", "http://s.test:4400/api", True),
        ("10.1.0.0/16", "http://10.1.2.3/api", True),
        ("10.1.0.0/16", "http://10.2.2.3/api", False),
        ("10.1.2.3", "http://10.1.2.3/api", True),
        ("10.1.2.3:81", "http://10.1.2.3/api", False),
        ("1.2.3", "http://10.1.2.3/api", False),
        ("fd00::/8", "http://[fd00::7]:4400/api", True),
        ("fd00::7", "http://[fd00::7]:4400/api", True),
        ("[fd00::7]:4400", "http://[fd00::7]:4400/api", True),
        ("10.1.0.0/99", "http://10.1.2.3/api", False),
        (",, ,", "http://s.test/api", False),
    ],
)
def test_exceptions(entry: str, url: str, direct: bool) -> None:
    assert by(url, HTTP_PROXY=PROXY, NO_PROXY=entry) == (None if direct else PROXY)


def test_a_password_is_not_shown() -> None:
    found = proxy_for("https://s.test", {"HTTPS_PROXY": "http://me:ge@heim@proxy.test:3128"})
    assert found is not None
    assert str(found) == "http://***@proxy.test:3128 (HTTPS_PROXY)"
    assert "heim" not in repr(found)


@pytest.mark.parametrize(
    "value", ["socks5://me:geheim@proxy.test:1080", "http://", "http://h:99999", "ftp://x"]
)
def test_what_cannot_be_used_is_told_by_its_variable(value: str) -> None:
    with pytest.raises(InvalidInput, match="HTTPS_PROXY") as refused:
        proxy_for("https://s.test", {"HTTPS_PROXY": value})
    assert "geheim" not in refused.value.told
