"""The server's secret keys: where they come from, and what is made of them."""

from __future__ import annotations

import hashlib
import hmac
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from shunter_work_pools.contracts.configuration import Values
from shunter_work_pools.contracts.errors import InvalidInput
from shunter_work_pools.contracts.home import home_from_env
from shunter_work_pools.secret_keys import SecretKeys, load_secret_keys

Load = Callable[..., Values]
OLD, NEW = "o" * 32, "n" * 32


def test_the_first_start_makes_a_key_that_stays(loaded: Load, home: Path) -> None:
    first = load_secret_keys(loaded(), home_from_env())
    file = home / "secret_key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert first.keys == (file.read_text().strip(),)
    assert load_secret_keys(loaded(), home_from_env()) == first


def test_those_of_the_setting_go_before_the_file(loaded: Load, home: Path) -> None:
    values = loaded(SHUNTER_SERVER_SECRET_KEYS=f"{NEW},{OLD}")
    assert load_secret_keys(values, home_from_env()).keys == (NEW, OLD)
    assert not (home / "secret_key").exists()


def test_a_file_may_hold_several(loaded: Load, home: Path) -> None:
    (home / "secret_key").write_text(f"{NEW}\n{OLD}\n")
    assert load_secret_keys(loaded(), home_from_env()).keys == (NEW, OLD)


@pytest.mark.parametrize("wrong", ["short", "x" * 31, "ä" * 40, f"{OLD} {OLD}", f"{NEW} short"])
def test_what_is_no_key_is_refused_and_not_shown(loaded: Load, home: Path, wrong: str) -> None:
    (home / "secret_key").write_text(wrong)
    with pytest.raises(InvalidInput) as file:
        load_secret_keys(loaded(), home_from_env())
    with pytest.raises(InvalidInput) as variable:
        loaded(SHUNTER_SERVER_SECRET_KEYS=wrong.replace(" ", ","))
    for told in (f"{file.value}", f"{variable.value}"):
        assert not any(part in told for part in wrong.split())


def test_none_is_shown(loaded: Load, home: Path) -> None:
    keys = load_secret_keys(loaded(SHUNTER_SERVER_SECRET_KEYS=NEW), home_from_env())
    assert NEW not in repr(keys)


def test_each_purpose_has_its_own_by_hkdf() -> None:
    keys = SecretKeys((NEW, OLD))
    assert keys.subkeys("secrets") == (_hkdf(NEW, "secrets"), _hkdf(OLD, "secrets"))
    assert not set(keys.subkeys("secrets")) & set(keys.subkeys("attempt tokens"))


def _hkdf(key: str, purpose: str) -> bytes:
    """One block by RFC 5869, section 2, without salt."""
    extracted = hmac.digest(bytes(32), key.encode(), hashlib.sha256)
    return hmac.digest(extracted, f"shunter {purpose}".encode() + b"\x01", hashlib.sha256)
