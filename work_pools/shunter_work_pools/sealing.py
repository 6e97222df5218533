"""Values that are encrypted at rest, each bound to its place, so that none can be moved to another one.

AES-SIV (RFC 5297): what is altered is not opened, and no nonce can be used twice. The same value in the same place
looks the same; that is how a deploy finds out that nothing changed.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from shunter_work_pools.contracts.errors import BadRequest
from shunter_work_pools.contracts.secret_variables import SECRETS
from shunter_work_pools.contracts.secrets import SECRET_LIMIT
from shunter_work_pools.secret_keys import SecretKeys

#: What a sealed text begins with; the digit is of its layout.
MARK = "sealed:1:"
#: Bytes by which a key is known.
_NAME = 4


class Unreadable(Exception):
    """No key of this server opens it, or it is not what was put there."""


@dataclass(frozen=True)
class _Key:
    name: bytes
    cipher: AESSIV = field(repr=False)


class Sealer:
    """Seals with the newest key of a server, opens with all of them."""

    def __init__(self, keys: SecretKeys) -> None:
        parts = zip(
            keys.subkeys("secrets: integrity"),
            keys.subkeys("secrets: encryption"),
            keys.subkeys("secrets: name of the key"),
            strict=True,
        )
        self._keys = [
            _Key(name[:_NAME], AESSIV(integrity + encryption)) for integrity, encryption, name in parts
        ]

    def seal(self, value: str, *place: str) -> bytes:
        """A value for one place."""
        key = self._keys[0]
        return key.name + key.cipher.encrypt(value.encode(), [part.encode() for part in place])

    def open(self, sealed: bytes, *place: str) -> str:
        """The value.

        Raises:
            Unreadable: it cannot be opened.
        """
        for key in self._keys:
            if sealed.startswith(key.name):
                try:
                    return key.cipher.decrypt(sealed[_NAME:], [part.encode() for part in place]).decode()
                except InvalidTag:
                    continue
        raise Unreadable

    def has_key(self, sealed: bytes) -> bool:
        """Whether the key is there that it was sealed with."""
        return any(sealed.startswith(key.name) for key in self._keys)

    def is_newest(self, sealed: bytes) -> bool:
        """Whether it is sealed as it would be now."""
        return sealed.startswith(self._keys[0].name)

    # -- secret_env of a template or a deployment

    def seal_variables(self, variables: Mapping[str, Any], kind: str, name: str) -> dict[str, Any]:
        """Variables whose ``secret_env`` may be stored; what is no text is left for others to refuse.

        Args:
            kind, name: whose they are: ``pool`` or ``deployment``.

        Raises:
            BadRequest: a value is too large.
        """
        values = variables.get(SECRETS)
        if not isinstance(values, dict):
            return dict(variables)
        return {
            **variables,
            SECRETS: {one: self._sealed(value, kind, name, one) for one, value in values.items()},
        }

    def _sealed(self, value: Any, *place: str) -> Any:
        if not isinstance(value, str) or "\0" in value:
            return value
        try:
            size = len(value.encode())
        except UnicodeEncodeError as exc:
            raise BadRequest(
                f"variable {SECRETS}.{place[-1]} is no text in UTF-8", "Send another value."
            ) from exc
        if size > SECRET_LIMIT:
            raise BadRequest(
                f"variable {SECRETS}.{place[-1]} has more than {SECRET_LIMIT} bytes", "Mount a Secret."
            )
        return MARK + base64.b64encode(self.seal(value, *place)).decode()

    def open_variable(self, value: str, *place: str) -> str:
        """The value of a variable of ``secret_env`` as it is stored.

        Args:
            place: kind and name of whose it is, and the variable's name.

        Raises:
            Unreadable: it cannot be opened.
        """
        sealed = sealed_bytes(value)
        return value if sealed is None else self.open(sealed, *place)


def sealed_bytes(value: Any) -> bytes | None:
    """What a sealed text holds; None: it is none (of an earlier version of the server)."""
    return base64.b64decode(value[len(MARK) :]) if isinstance(value, str) and value.startswith(MARK) else None
