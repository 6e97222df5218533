"""Certificates, keys and authorities in files (PEM): what is wrong with one is told by its name."""

from __future__ import annotations

import os
import ssl
import stat
from pathlib import Path

from shunter_work_pools.contracts.errors import InvalidInput


def load_pair(context: ssl.SSLContext, certificate: str, key: str | None, setting: str) -> None:
    """Have a context show a certificate.

    Args:
        key: None: it is in the file of the certificate.
        setting: that names the certificate, e.g. ``server.tls_cert``.

    Raises:
        InvalidInput: a file is not there, cannot be read, is not what it should be; the key is readable by all, is
            encrypted, or belongs to another certificate.
    """
    key_setting = setting.replace("cert", "key") if key else setting
    key = key or certificate
    if "-----BEGIN CERTIFICATE-----" not in _text(certificate, setting):
        raise InvalidInput(
            f"{certificate} ({setting}) holds no certificate in PEM",
            "It begins with -----BEGIN CERTIFICATE-----.",
        )
    text = _text(key, key_setting)
    if "PRIVATE KEY-----" not in text:
        raise InvalidInput(
            f"{key} ({key_setting}) holds no private key in PEM",
            f"Name the key's file: {setting.replace('cert', 'key')}.",
        )
    if "ENCRYPTED" in text:
        raise InvalidInput(
            f"the key {key} ({key_setting}) is encrypted, and nobody is there to type its passphrase",
            "Decrypt it (openssl pkey -in FILE -out NEW) into a file that only Shunter's user may read.",
        )
    check_mode(key, key_setting)
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as exc:
        if exc.reason == "KEY_VALUES_MISMATCH":
            raise InvalidInput(
                f"the key {key} does not belong to the certificate {certificate}",
                "The server's own certificate comes first in its file, before those of its authorities.",
            ) from exc
        raise InvalidInput(
            f"{certificate} and its key {key} cannot be used: {exc.reason or exc}",
            "`openssl x509 -text -in FILE` and `openssl pkey -check -in FILE` tell more.",
        ) from exc


def load_authorities(context: ssl.SSLContext, path: str, setting: str) -> None:
    """Have a context believe the authorities of a file.

    Raises:
        InvalidInput: it is not there, cannot be read, or holds none.
    """
    _text(path, setting)
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as exc:
        raise InvalidInput(
            f"{path} ({setting}) holds no certificate in PEM", "It begins with -----BEGIN CERTIFICATE-----."
        ) from exc


def check_mode(path: str, setting: str) -> None:
    """Refuse a key that everybody on the machine may read or replace.

    Raises:
        InvalidInput: they may.
    """
    if stat.S_IMODE(os.stat(path).st_mode) & 0o007:
        raise InvalidInput(
            f"everybody on this machine may read or change the key {path} ({setting})",
            f"chmod o= {path}; who has it can pose as its owner, so think of a new one.",
        )


def _text(path: str, setting: str) -> str:
    try:
        return Path(path).read_text("ascii", "replace")
    except OSError as exc:
        raise InvalidInput(
            f"{path} ({setting}) cannot be read: {exc.strerror or exc}",
            "Name a file that the user who runs this may read.",
        ) from exc
