"""Certificates of authorities of the tests' own, as files that a setting names."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

#: Names and addresses of a server of the tests.
NAMES = ("127.0.0.1", "localhost", "shunter.test")


@dataclass(frozen=True)
class Pair:
    """A certificate with its key, in two files."""

    cert: Path
    key: Path

    def settings(self, prefix: str = "SHUNTER_TLS") -> dict[str, str]:
        """The variables that name them."""
        return {f"{prefix}_CERT": str(self.cert), f"{prefix}_KEY": str(self.key)}


class Authority:
    """One, with its certificate in ``file``."""

    def __init__(self, folder: Path, name: str) -> None:
        self._ca = trustme.CA(organization_name=name)
        self._folder = folder
        self._made = 0
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / f"{name}.pem"
        self._ca.cert_pem.write_to_path(str(self.file))

    def pair(self, *names: str, days: float = 30, began: float = 1) -> Pair:
        """A certificate for these names.

        Args:
            days: from now on; less than nothing: it has expired.
            began: days ago.
        """
        now = datetime.now(UTC)
        leaf = self._ca.issue_cert(
            *(names or NAMES), not_before=now - timedelta(days=began), not_after=now + timedelta(days=days)
        )
        self._made += 1
        pair = Pair(
            self._folder / f"{self.file.stem}-{self._made}.crt",
            self._folder / f"{self.file.stem}-{self._made}.key",
        )
        pair.cert.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        pair.key.touch(0o600)
        pair.key.write_bytes(leaf.private_key_pem.bytes())
        return pair
