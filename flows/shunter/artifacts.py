"""What a run leaves for people to look at: ``artifacts.table("prices", rows)``. The last one of a key counts."""

from __future__ import annotations

import base64
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

#: Bytes that one may have, as they are in the journal.
LIMIT = 256 * 1024
_KEY = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")


def table(
    key: str,
    rows: Iterable[Mapping[str, Any]] | Iterable[Sequence[Any]] | Mapping[str, Iterable[Any]],
    description: str = "",
) -> None:
    """Rows: mappings from column to value, or lists of which the first one has the names; or a mapping from column to its
    values; or a data frame. What is no number (NaN, infinite) is left empty.

    Raises:
        TypeError: it is none of these.
        ValueError: columns are not of one length.
    """
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):  # of pandas, which need not be there
        rows = rows.to_dict("records")
    elif isinstance(rows, Mapping):
        rows = [list(rows), *map(list, zip(*rows.values(), strict=True))]
    _leave(key, "table", [_row(key, row) for row in rows], description)


def _row(key: str, row: Any) -> Any:
    if isinstance(row, Mapping):
        return dict(row)
    if isinstance(row, str | bytes) or not isinstance(row, Iterable):
        raise TypeError(f"artifact {key}: a row is a mapping or a list, not {type(row).__name__}")
    return list(row)


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
    text = _text(data)
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


def _text(data: Any) -> str:
    """As JSON, in which only finite numbers are."""
    import json

    try:
        return json.dumps(data, default=_other, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(json.loads(json.dumps(data, default=_other))))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_finite(one) for one in value]
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    return value


def _other(value: Any) -> Any:
    """Numbers of numpy as numbers, all else as text."""
    found = value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value
    return found if isinstance(found, int | float) else str(value)
