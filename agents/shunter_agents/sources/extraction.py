"""Archives of strangers, unpacked: whatever is in one, nothing is written outside the folder given.

Zip and tar are read by one set of rules of this module; the standard library only lists and decompresses. Files and
folders are made first, with names whose folders are real folders made here; links come last, so that nothing is ever
written through one.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, Self

#: What an archive may hold at the most: entries, and bytes once it is unpacked.
ENTRY_LIMIT, BYTE_LIMIT = 100_000, 4 * 2**30
_CHUNK = 1024 * 1024
_ZSTD = b"\x28\xb5\x2f\xfd"


#: Bytes of what a tar file says of one entry: names, links, attributes. It is read into memory at once.
_ABOUT_LIMIT = 1024 * 1024
_ABOUT = {
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
}


class BadArchive(Exception):
    """It cannot be unpacked, or must not be; the text says why."""


@dataclass(frozen=True)
class _Entry:
    """
    Attributes:
        kind: ``file``, ``folder``, ``link`` (symbolic) or ``same`` (a hard link).
        target: of a link; of a hard link: a name in the archive.
        open: its content.
    """

    name: str
    kind: str
    executable: bool = False
    target: str = ""
    open: Callable[[], IO[bytes]] | None = None


def extract(
    archive: Path, target: Path, *, entry_limit: int = ENTRY_LIMIT, byte_limit: int = BYTE_LIMIT
) -> None:
    """Unpack a zip file (a wheel is one) or a tar file, compressed or not, into a folder that is made.

    Raises:
        BadArchive: it is neither, it is damaged or too large, or something in it would be written elsewhere.
        OSError: the disk cannot be written.
    """
    os.mkdir(target, 0o755)
    writer = _Writer(target, entry_limit, byte_limit)
    try:
        with _entries(archive) as entries:
            for entry in entries:
                writer.add(entry)
        writer.link()
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        UnicodeError,
        NotImplementedError,
    ) as exc:
        raise BadArchive(f"it is damaged, or no archive that can be read: {exc}") from exc
    except RuntimeError as exc:  # how zipfile says that a password is needed
        raise BadArchive(str(exc)) from exc


class _Header(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        found = super().frombuf(buf, encoding, errors)
        if found.type in _ABOUT and found.size > _ABOUT_LIMIT:
            raise BadArchive(f"it says more than {_ABOUT_LIMIT // 2**20} MiB of one entry")
        if found.type == tarfile.GNUTYPE_SPARSE:
            raise BadArchive(f"{found.name!r} is a sparse file: pack it without --sparse")
        return found


class _Writer:
    def __init__(self, target: Path, entry_limit: int, byte_limit: int) -> None:
        self._target = target
        self._entry_limit = entry_limit
        self._byte_limit = byte_limit
        self._left = byte_limit
        self._folders: set[PurePosixPath] = {PurePosixPath()}
        self._files: set[PurePosixPath] = set()
        self._links: dict[PurePosixPath, str] = {}
        self._count = 0
        self._seen: dict[str, PurePosixPath] = {}

    def add(self, entry: _Entry) -> None:
        self._count += 1
        if self._count > self._entry_limit:
            raise BadArchive(f"it has more than {self._entry_limit:,} entries")
        path = _inner(entry.name)
        if path == PurePosixPath() and entry.kind == "folder":
            return
        self._make_folder(path.parent)
        if entry.kind == "folder":
            self._make_folder(path)
            return
        self._new(path)
        if entry.kind == "link":
            self._links[path] = entry.target
        elif entry.kind == "same":
            first = _inner(entry.target)
            if first not in self._files:
                raise BadArchive(
                    f"{entry.name!r} is a hard link to {entry.target!r}, which is no file before it"
                )
            with open(self._target / first, "rb") as content:
                self._write(path, content, bool(os.fstat(content.fileno()).st_mode & 0o100))
        else:
            assert entry.open is not None
            with entry.open() as content:
                self._write(path, content, entry.executable)

    def link(self) -> None:
        """Make the symbolic links: those that stay inside, wherever the others lead."""
        for path, target in self._links.items():
            if not target or "\0" in target or target.startswith("/"):
                raise BadArchive(f"{str(path)!r} is a link to {target!r}, outside of the archive")
            end = self._followed(path, target)
            if end is None:
                raise BadArchive(f"{str(path)!r} is a link to {target!r}, outside of the archive")
        for path, target in self._links.items():
            os.symlink(target, self._target / path)

    def _followed(self, path: PurePosixPath, target: str) -> PurePosixPath | None:
        """Where a link leads, all links being followed; None if that is outside, or nowhere because of a ring."""
        at, parts, hops = path.parent, list(reversed(PurePosixPath(target).parts)), 0
        while parts:
            part = parts.pop()
            if part == "..":
                if at == PurePosixPath():
                    return None
                at = at.parent
                continue
            at = at / part
            if at in self._links:
                hops += 1
                further = self._links[at]
                if hops > 40 or further.startswith("/"):
                    return None
                parts += reversed(PurePosixPath(further).parts)
                at = at.parent
        return at

    def _make_folder(self, path: PurePosixPath) -> None:
        if path in self._folders:
            return
        self._make_folder(path.parent)
        self._new(path)
        os.mkdir(self._target / path, 0o755)
        self._folders.add(path)

    def _new(self, path: PurePosixPath) -> None:
        # On other file systems names that differ in case or in how they are composed are one.
        same = unicodedata.normalize("NFC", str(path)).casefold()
        if same in self._seen:
            raise BadArchive(f"it has {str(path)!r} twice" + _as(path, self._seen[same]))
        self._seen[same] = path

    def _write(self, path: PurePosixPath, content: IO[bytes], executable: bool) -> None:
        mode = 0o755 if executable else 0o644  # no set-id bits, whatever the archive says
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(self._target / path, flags, mode), "wb") as file:
            while data := content.read(_CHUNK):
                self._left -= len(data)
                if self._left < 0:
                    raise BadArchive(f"it is larger than {self._byte_limit / 2**30:.3g} GiB when unpacked")
                file.write(data)
        self._files.add(path)


def _as(path: PurePosixPath, other: PurePosixPath) -> str:
    return "" if path == other else f", the other time as {str(other)!r}"


def _inner(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if not name or name.startswith("/") or ".." in path.parts or "\0" in name or "\\" in name:
        raise BadArchive(f"the entry {name!r} would be written outside of its folder")
    return path


@contextlib.contextmanager
def _entries(archive: Path) -> Iterator[Iterator[_Entry]]:
    if zipfile.is_zipfile(archive) and not _is_tar(archive):
        with zipfile.ZipFile(archive) as opened:
            yield _of_zip(opened)
        return
    with contextlib.ExitStack() as stack:
        file: Any = stack.enter_context(open(archive, "rb"))
        if file.read(4) == _ZSTD:
            file.seek(0)
            file = stack.enter_context(_unzstd(file))
            tar = stack.enter_context(tarfile.open(fileobj=file, mode="r|", tarinfo=_Header))
        else:
            file.seek(0)
            tar = stack.enter_context(tarfile.open(fileobj=file, mode="r:*", tarinfo=_Header))
        yield _of_tar(tar)


def _is_tar(archive: Path) -> bool:
    try:
        tarfile.open(archive, tarinfo=_Header).close()
    except tarfile.TarError:
        return False
    return True


def _unzstd(file: IO[bytes]) -> Any:
    for name, maker in (("compression.zstd", "ZstdFile"), ("backports.zstd", "ZstdFile")):
        with contextlib.suppress(ImportError):
            return getattr(importlib.import_module(name), maker)(file)
    with contextlib.suppress(ImportError):
        return importlib.import_module("zstandard").ZstdDecompressor().stream_reader(file)
    raise BadArchive(
        "it is compressed with zstd, which this agent cannot read: install the package zstandard"
    )


def _of_zip(opened: zipfile.ZipFile) -> Iterator[_Entry]:
    for info in opened.infolist():
        mode = info.external_attr >> 16
        # What a zip file says besides its permissions is a kind; many say nothing.
        kind = stat.S_IFMT(mode)
        if info.is_dir():
            yield _Entry(info.filename, "folder")
        elif kind == stat.S_IFLNK:
            with opened.open(info) as content:
                target = content.read(5000).decode()
            yield _Entry(info.filename, "link", target=target)
        elif kind in (0, stat.S_IFREG):
            yield _Entry(info.filename, "file", bool(mode & 0o100), open=partial(opened.open, info))
        else:
            raise BadArchive(f"{info.filename!r} is no file, folder or link")


def _of_tar(tar: tarfile.TarFile) -> Iterator[_Entry]:
    for info in tar:
        if info.isdir():
            yield _Entry(info.name, "folder")
        elif info.issym():
            yield _Entry(info.name, "link", target=info.linkname)
        elif info.islnk():
            yield _Entry(info.name, "same", target=info.linkname)
        elif info.isreg():
            yield _Entry(info.name, "file", bool(info.mode & 0o100), open=partial(_content, tar, info))
        else:
            raise BadArchive(f"{info.name!r} is no file, folder or link")


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    content = tar.extractfile(info)
    if content is None:
        raise BadArchive(f"{info.name!r} has no content")
    return content
