"""Patterns of the agent's policy, and what is compared with them.

In all of them ``*`` stands for any characters but ``/`` (in entrypoints also not ``:``), ``**`` for any at all, and
``?`` for one that ``*`` could stand for. Nothing else is special.

Whoever deploys chooses what is compared. So it is brought into one form first, in which two names of the same thing
look alike: links are followed, ``..`` is resolved, what is left out of a name is filled in.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import unquote, urlsplit

_WILD = re.compile(r"[*?]")
_SCP = re.compile(r"(?:[^@/:]+@)?([^@/:]+):(?!//)(.+)")


@lru_cache(maxsize=1024)
def compiled(pattern: str, apart: str = "/") -> re.Pattern[str]:
    """The regular expression of a pattern.

    Args:
        apart: characters that ``*`` does not stand for.
    """
    one = f"[^{re.escape(apart)}]" if apart else "."
    words = {"**": ".*", "*": f"{one}*", "?": one}
    parts = re.split(r"(\*\*|\*|\?)", pattern)
    return re.compile("".join(words.get(part) or re.escape(part) for part in parts), re.DOTALL)


def matches(text: str, patterns: Iterable[str], apart: str = "/") -> bool:
    """Whether one of the patterns fits the whole text."""
    return any(compiled(pattern, apart).fullmatch(text) for pattern in patterns)


def is_wild(pattern: str) -> bool:
    """Whether it stands for more than one text."""
    return _WILD.search(pattern) is not None


# -- paths of this machine


def _named(path: str) -> str:
    """A path with the links in its folders followed, but not a link that it is itself."""
    folder, name = os.path.split(path)
    return os.path.join(os.path.realpath(folder), name)


def _real(pattern: str) -> str:
    """A pattern of paths with the links in what precedes its first ``*`` or ``?`` followed."""
    found = _WILD.search(pattern)
    if found is None:
        return os.path.realpath(pattern)
    folder, rest = pattern[: found.start()].rpartition("/")[::2]
    real = os.path.realpath(folder or "/").rstrip("/")
    return f"{real}/{rest}{pattern[found.start() :]}"


def program_allowed(path: str, patterns: Iterable[str]) -> bool:
    """Whether a program may be executed.

    A pattern without wildcards is a program under this name, a link too: whoever wrote it down chose where that leads.
    With wildcards it is where the file itself is: a link in such a folder to something elsewhere is not meant.
    """
    real, named = os.path.realpath(path), _named(path)
    for pattern in patterns:
        if is_wild(pattern):
            if compiled(_real(pattern)).fullmatch(real):
                return True
        elif _named(pattern) in (named, real):
            return True
    return False


def folder_allowed(path: str, patterns: Iterable[str]) -> bool:
    """Whether a folder is one of those meant, or in one, once all links are followed."""
    real = os.path.realpath(path)
    with_parents = [real]
    while with_parents[-1] != "/":
        with_parents.append(os.path.dirname(with_parents[-1]))
    return any(compiled(_real(pattern)).fullmatch(one) for pattern in patterns for one in with_parents)


# -- addresses


def repository(url: str) -> str | None:
    """A repository or archive in one form: scheme, host and path; None if it cannot be told where that is.

    Credentials, query and ``.git`` are left out. ``user@host:path`` is that of ssh, a path that of a file, with its
    links followed.
    """
    if "::" in url:
        return None  # a program to be run (git), or a chain of addresses (fsspec)
    if url.startswith("/"):
        return f"file://{os.path.realpath(_without_suffix(url))}"
    scp = _SCP.fullmatch(url) if "://" not in url else None
    try:
        parts = urlsplit(f"ssh://{scp[1]}/{scp[2]}" if scp else url)
        port = parts.port
    except ValueError:
        return None
    path = unquote(parts.path)
    if not parts.scheme or "\\" in url or ".." in path.split("/") or any(ord(one) < 32 for one in path):
        return None
    if parts.scheme == "file":
        return f"file://{os.path.realpath(_without_suffix(path))}" if not parts.netloc else None
    host = (parts.hostname or "") + (f":{port}" if port is not None else "")
    return f"{parts.scheme}://{host}{_without_suffix(posixpath.normpath(path) if path else '/')}"


def _without_suffix(path: str) -> str:
    return path.rstrip("/").removesuffix(".git") or "/"


def repository_allowed(url: str, patterns: Iterable[str]) -> bool:
    """Whether something may be fetched from there."""
    found = repository(url)
    return found is not None and matches(found, map(_without_suffix, patterns))


def image(name: str) -> str:
    """The name of an image with its registry: ``python:3.11`` is ``docker.io/library/python:3.11``."""
    first, slash, _ = name.partition("/")
    if slash and (first == "localhost" or "." in first or ":" in first):
        return name
    return f"docker.io/{name}" if slash else f"docker.io/library/{name}"


def image_allowed(name: str, patterns: Iterable[str]) -> bool:
    """Whether containers may be made of an image. A pattern without tag and digest stands for all of them."""
    full = image(name)
    bare = re.sub(r"(:[^/:@]+)?(@[^/]+)?$", "", full)
    for pattern in map(image, patterns):
        tagged = ":" in pattern.rpartition("/")[2] or "@" in pattern
        if compiled(pattern).fullmatch(full if tagged else bare):
            return True
    return False


def entrypoint(text: str) -> str:
    """An entrypoint with ``..`` and ``.`` in its path resolved."""
    path, colon, function = text.rpartition(":")
    if not colon:
        path, function = text, ""
    return f"{posixpath.normpath(path)}{colon}{function}"
