"""Values of task runs, kept so that a later attempt has them without executing the task again.

A small one is in the journal's line itself, a larger one in a file named by its hash beside the journal, or at any URL
that fsspec opens. What JSON gives back exactly as it was is kept as JSON, other values by pickle or cloudpickle. Who
reads pickled values executes what they say; so they are only read from where the run itself may write.
"""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

from shunter.errors import ServerAway, ServerRefused
from shunter.packing import pack, unpack

#: Bytes up to which a value is in the journal's line.
INLINE = 16 * 1024
#: Bytes that one value may have, unless the flow says otherwise.
LIMIT = 256 * 1024 * 1024
_DEEPEST = 40
_PLAIN = (str, bool, type(None))
#: Bits of an int from which on it is not written as digits, of which Python allows 4300.
_LONG = 10_000


class NotKept(Exception):
    """The value cannot be kept; the text says why."""


class Store:
    """Where larger values are.

    Args:
        place: a folder, or a URL of fsspec (``s3://bucket/results``).
        limit: bytes that one value may have.
        fetch: gives what is in no file here, by its name.
    """

    def __init__(self, place: str, limit: int = LIMIT, fetch: Callable[[str], bytes] | None = None) -> None:
        self.place = place
        self._fetch = fetch
        self.limit = limit
        self._remote = "://" in place

    def keep(self, value: Any) -> dict[str, Any]:
        """Keep a value; by what it is found again.

        Raises:
            NotKept: it is too large, or cannot be made into bytes.
            OSError: there is no room, or no way.
        """
        kind, data = encode(value)
        if len(data) > self.limit:
            raise NotKept(f"it takes {len(data)} bytes, more than the {self.limit} allowed (result_limit)")
        if len(data) <= INLINE:
            return {"i": value} if kind == "j" else {"p": base64.b64encode(data).decode()}
        name = blake2b(data, digest_size=20).hexdigest()
        self.write(name, data, again=False)
        where = {"url": self._url(name)} if self._remote else {"f": name}
        return {**where, "n": len(data), "z": kind}

    def load(self, reference: dict[str, Any]) -> Any:
        """The value.

        Raises:
            NotKept: it is not there any more, or not what was kept.
            ServerAway, ServerRefused: whether it is there cannot be known now.
        """
        if "i" in reference:
            return reference["i"]
        try:
            if "p" in reference:
                return unpack(base64.b64decode(reference["p"]))
            data = self._referred(reference)
            if len(data) != reference["n"]:
                raise NotKept(f"{len(data)} bytes are there instead of {reference['n']}")
            return decode(reference["z"], data)
        except (NotKept, ServerAway, ServerRefused):
            raise
        except Exception as exc:
            raise NotKept(f"{type(exc).__name__}: {exc}") from None

    def write(self, name: str, data: bytes, again: bool = True) -> None:
        """Keep bytes under a name.

        Args:
            again: also if there are some already.
        """
        if not self._remote:
            write_whole(os.path.join(self.place, name), data, again)
            return
        system, path = _fsspec().core.url_to_fs(self._url(name))
        if again or not system.exists(path):
            system.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            system.pipe_file(path, data)

    def read(self, name: str) -> bytes:
        """Bytes by their name.

        Raises:
            FileNotFoundError: there are none.
        """
        return _read_url(self._url(name)) if self._remote else _read_file(os.path.join(self.place, name))

    def _url(self, name: str) -> str:
        return f"{self.place.rstrip('/')}/{name}"

    def _referred(self, reference: dict[str, Any]) -> bytes:
        if "url" in reference:
            return _read_url(reference["url"])
        name = os.path.basename(reference["f"])
        try:
            return _read_file(os.path.join(self.place, name))
        except FileNotFoundError:
            if self._fetch is None:
                raise
            return self._fetch(name)


def _read_url(url: str) -> bytes:
    with _fsspec().open(url, "rb") as file:
        data: bytes = file.read()
    return data


def _read_file(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def encode(value: Any) -> tuple[str, bytes]:
    """``("j", JSON)`` where that gives the same value back, else ``("p", pickled)``.

    Raises:
        NotKept: it cannot be pickled.
    """
    if _exact(value, 0):
        return "j", json.dumps(value, separators=(",", ":")).encode()
    try:
        return "p", pack(value)
    except Exception as exc:
        raise NotKept(str(exc)) from None


def is_small(value: Any) -> bool:
    """Whether it would be in the journal's line, as JSON."""
    return _exact(value, 0) and len(json.dumps(value)) <= INLINE


def decode(kind: str, data: bytes) -> Any:
    """The value again."""
    return json.loads(data) if kind == "j" else unpack(data)


def write_whole(path: str, data: bytes, again: bool = True) -> None:
    """A file that is there whole or not at all."""
    if not again and os.path.exists(path):
        return
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    draft = f"{path}.{os.getpid()}.{os.urandom(4).hex()}"
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
        os.replace(draft, path)
    except BaseException:
        if os.path.exists(draft):
            os.unlink(draft)
        raise


def _fsspec() -> Any:
    try:
        import fsspec
    except ImportError:
        raise NotKept("results at URLs need the package fsspec: pip install 'shunter[code]'") from None
    return fsspec


def _exact(value: Any, depth: int) -> bool:
    kind = type(value)
    if kind in _PLAIN:
        return True
    if kind is int:
        return value.bit_length() < _LONG  # type: ignore[no-any-return]
    if kind is float:
        return math.isfinite(value)
    if depth > _DEEPEST:
        return False
    if kind is list:
        return all(_exact(part, depth + 1) for part in value)
    if kind is dict:
        return all(type(k) is str and _exact(v, depth + 1) for k, v in value.items())
    return False
