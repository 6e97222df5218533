"""The server's secret keys: what it encrypts and signs with, never written into its database.

From each come keys of 32 bytes by purpose (HKDF with SHA-256, RFC 5869), so that what is done with one says nothing
about the others. There are several while a key is rotated: the newest makes, all of them open and verify.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from shunter_work_pools.contracts.errors import InvalidInput
from shunter_work_pools.contracts.home import Home, ensure_secret
from shunter_work_pools.contracts.settings import secret_keys

#: Bytes of a subkey.
SUBKEY = 32


@dataclass(frozen=True)
class SecretKeys:
    """The keys of a server.

    Attributes:
        keys: newest first, at least one.
    """

    keys: tuple[str, ...] = field(repr=False)

    def subkeys(self, purpose: str) -> tuple[bytes, ...]:
        """The keys for one purpose, newest first, each 32 bytes."""
        return tuple(_subkey(key, purpose) for key in self.keys)


@functools.lru_cache(256)
def _subkey(key: str, purpose: str) -> bytes:
    return HKDF(SHA256(), SUBKEY, salt=None, info=b"shunter " + purpose.encode()).derive(key.encode())


def passing_keys() -> SecretKeys:
    """Keys that are kept nowhere."""
    return SecretKeys((secrets.token_urlsafe(SUBKEY),))


def load_secret_keys(values: Mapping[str, Any], home: Home) -> SecretKeys:
    """The keys of ``server.secret_keys``, else of the home's file, which is made if there is none.

    Raises:
        InvalidInput: the file cannot be read or made, or holds what is no key.
    """
    keys: tuple[str, ...] = values["server.secret_keys"]
    if not keys:
        written = ensure_secret(home.secret_key_file, "secret key")
        try:
            keys = secret_keys(written.split())
        except ValueError as exc:
            wrong, remedy = exc.args
            raise InvalidInput(f"the secret key file {home.secret_key_file} {wrong}", remedy) from exc
    return SecretKeys(keys)
