"""What networks are made of: an authority, a real nginx, a real forward proxy, networks of the tests' own."""

from __future__ import annotations

import os

import pytest

from tests.engines import nginx, tinyproxy
from tests.engines.packages import install_debian
from tests.networks.certificates import Authority


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """One that is to be believed."""
    return Authority(tmp_path_factory.mktemp("authority"), "ours")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """One that is not."""
    return Authority(tmp_path_factory.mktemp("stranger"), "strange")


@pytest.fixture(scope="session")
def has_nginx() -> None:
    """nginx is there."""
    if nginx.program() is None and os.environ.get("SHUNTER_TEST_INSTALL") == "1":
        install_debian("nginx")
    if nginx.program() is None:
        pytest.skip("no nginx: install it, or set SHUNTER_TEST_INSTALL=1 (root, Debian or Ubuntu)")


@pytest.fixture(scope="session")
def has_tinyproxy() -> None:
    """tinyproxy is there."""
    if tinyproxy.program() is None and os.environ.get("SHUNTER_TEST_INSTALL") == "1":
        install_debian("tinyproxy")
    if tinyproxy.program() is None:
        pytest.skip("no tinyproxy: install it, or set SHUNTER_TEST_INSTALL=1 (root, Debian or Ubuntu)")
