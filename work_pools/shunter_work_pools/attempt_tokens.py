"""Tokens of attempts: reckoned from the server's secret key, the run and the number of the attempt.

They are written down nowhere, and another agent that takes an attempt over gets the same. Whether one holds still
is for the attempt's lease to say.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from uuid import UUID

from shunter_work_pools.contracts.identities import PREFIXES, Kind
from shunter_work_pools.secret_keys import SecretKeys

_PREFIX = PREFIXES[Kind.ATTEMPT]
#: Bytes of what is signed: the run's id and the number.
_SIGNED = 16 + 4


class AttemptTokens:
    """Makes and reads them.

    Args:
        secret_keys: the newest makes, all of them read.
    """

    def __init__(self, secret_keys: SecretKeys) -> None:
        self._keys = secret_keys.subkeys("attempt tokens")

    def make(self, run: UUID, attempt: int) -> str:
        """The token of an attempt."""
        signed = run.bytes + attempt.to_bytes(4)
        return _PREFIX + urlsafe_b64encode(signed + _signature(self._keys[0], signed)).decode().rstrip("=")

    def read(self, token: str) -> tuple[UUID, int] | None:
        """Run and number of a token; None: no key of this server made it."""
        text = token.removeprefix(_PREFIX)
        try:
            raw = urlsafe_b64decode(text + "=" * (-len(text) % 4))
        except ValueError:
            return None
        signed, signature = raw[:_SIGNED], raw[_SIGNED:]
        if len(signed) < _SIGNED or not any(
            hmac.compare_digest(_signature(key, signed), signature) for key in self._keys
        ):
            return None
        return UUID(bytes=signed[:16]), int.from_bytes(signed[16:])


def _signature(key: bytes, signed: bytes) -> bytes:
    return hmac.digest(key, signed, hashlib.sha256)
