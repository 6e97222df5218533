"""What a run leaves for people to look at: ``artifacts.table("prices", rows)``. The last one of a key counts."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

#: Bytes that one may have, as they are in the journal.
LIMIT = 256 * 1024
_KEY = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")


def table(
    key: str, rows: Sequence[Mapping[str, Any]] | Sequence[Sequence[Any]], description: str = ""
) -> None:
    """Rows: mappings from column to value, or lists of which the first one has the names."""
    _leave(key, "table", [dict(row) if isinstance(row, Mapping) else list(row) for row in rows], description)


def markdown(key: str, text: str, description: str = "") -> None:
    """Text in Markdown."""
    _leave(key, "markdown", str(text), description)


def link(key: str, url: str, description: str = "") -> None:
    """An address.

    Raises:
        ValueError: it is none of http, https, or another scheme with ``://``; scripts are no addresses.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*://\S+", url):
        raise ValueError(f"artifact {key}: {url!r} is no URL")
    _leave(key, "link", url, description)


def image(key: str, source: str | bytes | os.PathLike[str], description: str = "") -> None:
    """An image: its bytes, a file, or a URL.

    Raises:
        ValueError: it is none of PNG, JPEG, GIF or WebP.
        OSError: the file cannot be read.
    """
    if isinstance(source, str) and "://" in source:
        _leave(key, "image", source, description)
        return
    if not isinstance(source, bytes):
        with open(source, "rb") as file:
            source = file.read()
    for start, kind in _IMAGES.items():
        if source.startswith(start):
            _leave(key, "image", f"data:image/{kind};base64,{base64.b64encode(source).decode()}", description)
            return
    raise ValueError(f"artifact {key}: neither PNG, JPEG, GIF nor WebP")


_IMAGES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}


def _leave(key: str, kind: str, data: Any, description: str) -> None:
    """Put it into the journal; without one it is nowhere, as there is nobody to look at it.

    Raises:
        ValueError: the key is none, or it is too large.
        TypeError: it is not JSON.
    """
    import json

    if not _KEY.fullmatch(key):
        raise ValueError(f"the artifact's key {key!r} is not made of small letters, digits, '-', '_' and '.'")
    text = json.dumps(data, default=str)
    if len(text) > LIMIT:
        raise ValueError(
            f"artifact {key} takes {len(text)} bytes, more than the {LIMIT} allowed: link to it instead"
        )
    from shunter import journal
    from shunter.scopes import current

    found = journal.told_to()
    if found is not None:
        scope = current.get()
        about = {"key": key, "kind": kind, "data": json.loads(text), "description": description}
        found.tell({"art": about, "k": scope.key if scope is not None else ""})
