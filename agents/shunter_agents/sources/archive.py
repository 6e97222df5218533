"""Code in archives: fetched when it has changed, checked, unpacked once.

http and https are read by this module; every other URL by fsspec and the package that it wants for it (``s3fs`` for
``s3://``).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from shunter_agents.sources.extraction import BadArchive, extract
from shunter_agents.sources.locks import ALONE, left_alone, locked
from shunter_agents.sources.shared import Shared, Told
from shunter_agents.sources.shelf import Shelf
from shunter_agents.sources.surroundings import masked
from shunter_infrastructure.launcher import LaunchFailed, NotReady
from shunter_infrastructure.removing import remove
from shunter_work_pools.contracts.code_sources import ArchiveSource
from shunter_work_pools.contracts.sizes import size
from shunter_work_pools.contracts.states import Cause

#: Bytes of an archive, seconds for the whole of it, and seconds without a byte.
ARCHIVE_LIMIT, FETCH_LIMIT, STALL_LIMIT = 2 * 2**30, 1800.0, 30.0
_REDIRECTS = 5
_CHUNK = 1024 * 1024
#: File systems of fsspec that stand before others: by their options they keep copies and lists wherever one wants,
#: which is with the rights of the agent's user, and read such lists as pickles.
_BEFORE_OTHERS = {
    *("async_wrapper", "asyncwrapper", "blockcache", "cached", "dask", "dir", "dvc", "filecache", "generic"),
    *("libarchive", "reference", "simplecache", "tar", "zip"),
}


@dataclass(frozen=True)
class Fetched:
    """An archive that was looked at.

    Attributes:
        file: it; None: it is as it was.
        mark: by which it is seen whether it has changed; empty: that cannot be seen.
    """

    file: Path | None
    mark: str = ""


class Archives:
    """Archives that were unpacked.

    Args:
        shelf: for what they hold.
        marks: folder for what is known of the archives of each URL.
    """

    def __init__(self, shelf: Shelf, marks: Path) -> None:
        self._shelf = shelf
        self._marks = marks
        self._looking: Shared[str] = Shared()

    async def fetch(self, source: ArchiveSource, secret: str | None, user: Path, told: Told) -> Path:
        """The folder of what a source's archive holds.

        Args:
            secret: options of the file system, a JSON object.
            user: folder of the attempt that uses it.
            told: is called with progress.

        Raises:
            LaunchFailed: it cannot be had, or is not what it should be.
            NotReady: where it is, is away.
        """
        options = _options(source, secret)
        name = _digest(source.archive, secret or "")
        if source.sha256 is not None and self._shelf.has(self._key(name, source.sha256)):
            sha256 = source.sha256
        else:

            async def look(say: Told) -> str:
                self._marks.mkdir(mode=0o700, parents=True, exist_ok=True)
                async with locked(self._marks / f"{name}.lock", ALONE):
                    for left in self._marks.glob(f"{name}.fetch-*"):  # of one that was killed
                        await asyncio.to_thread(remove, left)
                    os.utime(self._marks / f"{name}.lock")
                    self._looking.close(name)  # who comes from now on may know of a newer archive
                    return await self._look(source, options, name, user, say)

            sha256 = await self._looking.get(name, look, told)
        return await self._shelf.take(self._key(name, sha256), user, _gone(source))

    async def _look(
        self, source: ArchiveSource, options: Mapping[str, Any], name: str, user: Path, say: Told
    ) -> str:
        known = self._known(name)
        if known is not None and not self._shelf.has(self._key(name, known["sha256"])):
            known = None
        with tempfile.TemporaryDirectory(prefix=f"{name}.fetch-", dir=self._marks) as folder:
            target = Path(folder, "archive")
            try:
                async with asyncio.timeout(FETCH_LIMIT):
                    mark = None if known is None else known["mark"]
                    fetched = await _fetch(source, options, target, mark, say)
            except TimeoutError as exc:
                raise _failed(source, f"it did not come within {FETCH_LIMIT:g} seconds") from exc
            if fetched.file is None:
                assert known is not None
                sha256 = known["sha256"]
            else:
                sha256 = await asyncio.to_thread(_sha256, fetched.file)
            if source.sha256 not in (None, sha256):
                raise _failed(
                    source,
                    f"its sha256 is {sha256}, and not {source.sha256}",
                    "Somebody changed it; correct the deployment's sha256 if that is as it should be.",
                )
            if fetched.file is not None:
                await self._shelf.take(self._key(name, sha256), user, _unpack(source, fetched.file))
                if fetched.mark:
                    self._remember(name, {"mark": fetched.mark, "sha256": sha256})
        return sha256

    def collect(self, keep: float) -> None:
        """Remove what is known of archives that nobody wanted for so many seconds, and what was left half fetched."""
        for path in left_alone(self._marks, keep):
            for left in self._marks.glob(f"{path.stem}.fetch-*"):
                remove(left)
            path.with_suffix(".json").unlink(missing_ok=True)

    def _key(self, name: str, sha256: str) -> str:
        # By its URL and secret, too: who knows what an archive holds need not be one who may have it.
        return f"{sha256[:12]}-{_digest(name, sha256)}"

    def _known(self, name: str) -> dict[str, str] | None:
        try:
            found = json.loads((self._marks / f"{name}.json").read_bytes())
            return {"mark": str(found["mark"]), "sha256": str(found["sha256"])}
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def _remember(self, name: str, found: Mapping[str, str]) -> None:
        draft = self._marks / f"{name}.{os.getpid()}"
        draft.write_text(json.dumps(found), "utf-8")
        draft.replace(self._marks / f"{name}.json")


def _unpack(source: ArchiveSource, file: Path) -> Any:
    async def make(draft: Path) -> None:
        try:
            await asyncio.to_thread(extract, file, draft)
        except BadArchive as exc:
            raise _failed(source, str(exc), "Pack it anew.") from exc

    return make


def _gone(source: ArchiveSource) -> Any:
    async def make(draft: Path) -> None:
        raise NotReady(f"the archive {_shown(source)} was removed from the cache and is fetched again")

    return make


async def _fetch(
    source: ArchiveSource, options: Mapping[str, Any], target: Path, mark: str | None, say: Told
) -> Fetched:
    scheme = urlsplit(source.archive).scheme
    if scheme in ("http", "https"):
        return await _over_http(source, options, target, mark, say)
    return await asyncio.to_thread(_by_fsspec, source, dict(options), target, mark, say)


async def _over_http(
    source: ArchiveSource, options: Mapping[str, Any], target: Path, mark: str | None, say: Told
) -> Fetched:
    import httpx

    headers = options.get("headers", {})
    if set(options) - {"headers"} or not isinstance(headers, dict):
        raise _failed(source, 'its secret has other options than {"headers": {...}}', "Correct the secret.")
    # As it is: what is compressed for the way can be a thousand times as large in memory, and more.
    headers = {**headers, "Accept-Encoding": "identity"}
    known = {"If-None-Match": mark} if mark and not mark.startswith("@") else {}
    known |= {"If-Modified-Since": mark[1:]} if mark and mark.startswith("@") else {}
    try:
        async with (
            httpx.AsyncClient(timeout=STALL_LIMIT) as client,
            _answer(client, source, {**headers, **known}) as answer,
        ):
            if answer.status_code == 304 and mark:
                return Fetched(None, mark)
            if answer.status_code >= 500 or answer.status_code in (408, 429):
                raise NotReady(
                    f"the archive {_shown(source)} is away: its server answers {answer.status_code}",
                    cause=Cause.SOURCE,
                )
            if answer.status_code != 200:
                remedy = "Correct the URL, or name a secret that opens it."
                raise _failed(source, f"its server answers {answer.status_code}", remedy)
            with target.open("wb") as file:
                count = 0
                async for data in answer.aiter_raw(_CHUNK):
                    count = _counted(source, count, data)
                    file.write(data)
                    say(f"its code is being fetched: {size(count)}")
            etag, modified = answer.headers.get("etag"), answer.headers.get("last-modified")
            return Fetched(target, etag or (f"@{modified}" if modified else ""))
    except httpx.TransportError as exc:
        said = masked(str(exc)) or type(exc).__name__
        raise NotReady(f"the archive {_shown(source)} is away: {said}", cause=Cause.SOURCE) from exc
    except httpx.InvalidURL as exc:
        raise _failed(source, str(exc), "Correct the URL.") from exc


@asynccontextmanager
async def _answer(client: Any, source: ArchiveSource, headers: Mapping[str, str]) -> AsyncIterator[Any]:
    """The answer of whom a URL leads to in the end. What headers tell is for the first host only."""
    url, told = source.archive, dict(headers)
    for _ in range(_REDIRECTS + 1):
        async with client.stream("GET", url, headers=told) as answer:
            if answer.status_code not in (301, 302, 303, 307, 308):
                yield answer
                return
            further = urljoin(url, answer.headers.get("location", ""))
        before, after = urlsplit(url), urlsplit(further)
        if after.scheme not in ("http", "https") or (before.scheme, after.scheme) == ("https", "http"):
            raise _failed(
                source, f"it leads to {masked(further)}, which is not followed", "Name its true URL."
            )
        if (before.scheme, before.netloc) != (after.scheme, after.netloc):
            told = {}
        url = further
    raise _failed(source, f"it leads on and on, more than {_REDIRECTS} times", "Name its true URL.")


def _by_fsspec(
    source: ArchiveSource, options: dict[str, Any], target: Path, mark: str | None, say: Told
) -> Fetched:
    if "::" in source.archive or source.archive.partition("://")[0] in _BEFORE_OTHERS:
        raise _failed(source, "it goes by way of another address", "Name the archive's own URL.")
    try:
        import fsspec.core
    except ImportError as exc:
        raise _failed(
            source, "the agent lacks the package fsspec", "Install shunter[code] where the agent is."
        ) from exc
    try:
        system, path = fsspec.core.url_to_fs(source.archive, **options)
        # Only some say a mark of the content; from others it is fetched each time.
        info = system.info(path)
        found = _mark(info)
        if mark and mark == found:
            return Fetched(None, mark)
        with system.open(path, "rb") as content, target.open("wb") as file:
            count = 0
            for data in _chunks(content):
                count = _counted(source, count, data)
                file.write(data)
                say(f"its code is being fetched: {size(count)}")
    except ImportError as exc:
        raise _failed(
            source, f"the agent lacks a package for it: {exc}", "Install that where the agent is."
        ) from exc
    except (FileNotFoundError, IsADirectoryError, PermissionError, ValueError, TypeError) as exc:
        raise _failed(
            source, masked(f"{type(exc).__name__}: {exc}"), "Correct the URL, or the secret that opens it."
        ) from exc
    except (LaunchFailed, NotReady):
        raise
    except Exception as exc:  # whatever a plugin says when its service is away
        said = masked(f"{type(exc).__name__}: {exc}")
        raise NotReady(f"the archive {_shown(source)} is away: {said}", cause=Cause.SOURCE) from exc
    return Fetched(target, found)


def _mark(info: Mapping[str, Any]) -> str:
    for name in ("ETag", "etag", "md5Hash", "generation"):
        if info.get(name):
            return f"{name}={info[name]}"
    if "ino" in info and "mtime" in info:  # a file of this machine
        return f"{info['ino']} {info['mtime']} {info.get('size')}"
    return ""


def _chunks(content: Any) -> Iterator[bytes]:
    while data := content.read(_CHUNK):
        yield data


def _counted(source: ArchiveSource, count: int, data: bytes) -> int:
    count += len(data)
    if count > ARCHIVE_LIMIT:
        raise _failed(
            source, f"it is larger than {size(ARCHIVE_LIMIT)}", "Leave out what a run does not need."
        )
    return count


def _options(source: ArchiveSource, secret: str | None) -> dict[str, Any]:
    if secret is None:
        return {}
    try:
        found = json.loads(secret)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise _failed(
            source, "its secret is no JSON object of options", 'Make it {"headers": {...}}, for example.'
        )
    return found


def _failed(source: ArchiveSource, why: str, remedy: str = "") -> LaunchFailed:
    return LaunchFailed(Cause.SOURCE, f"the archive {_shown(source)}: {why}", remedy)


def _shown(source: ArchiveSource) -> str:
    # What comes after the question mark may be a signature by which anybody has it.
    return source.archive.partition("?")[0]


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:40]
