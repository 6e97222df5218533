"""Fetched code on its way into a pod: each file is one of the run's Secret, which the kubelet lays out as a folder.

Nothing in the image is needed for that, and no rights but those that a Secret of a run takes anyway. What is larger
than a Secret may be belongs into the image.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from shunter_infrastructure.launcher import LaunchFailed
from shunter_work_pools.contracts.states import Cause

#: Bytes, and files, that code may have: a Secret may have 1 MiB, with parameters and variables, and the Job names each.
BYTE_LIMIT, FILE_LIMIT = 700 * 1024, 1000
_REMEDY = "Put the code into the image and deploy without a source, or name the folder that is needed with `folder`."


@dataclass(frozen=True)
class SourceFile:
    """One file.

    Attributes:
        key: of the Secret.
        path: below the source's folder.
        executable: it is a program.
    """

    key: str
    path: str
    data: bytes
    executable: bool


def read(source: Path | None) -> list[SourceFile]:
    """The files of a source, always in the same order; empty if there is no source.

    Raises:
        LaunchFailed: they are too many, too large, or of a kind that cannot be carried.
    """
    if source is None:
        return []
    root, left = source.resolve(), BYTE_LIMIT
    found: list[SourceFile] = []
    for folder, names, files in os.walk(root):
        names.sort()
        if linked := [name for name in names if os.path.islink(os.path.join(folder, name))]:
            raise _refused(f"{linked[0]} in it is a link to a folder, which cannot be carried into a pod")
        for name in sorted(files):
            place = Path(folder, name)
            if not place.resolve().is_relative_to(root):
                raise _refused(f"{name} in it is a link that leads out of it")
            left -= place.stat().st_size
            if left < 0 or len(found) == FILE_LIMIT:
                raise _refused(
                    f"it is too large to be carried into a pod: the limits are {BYTE_LIMIT // 1024} KiB and "
                    f"{FILE_LIMIT:,} files"
                )
            path = str(place.relative_to(root))
            found.append(
                SourceFile(f"source-{len(found)}", path, place.read_bytes(), os.access(place, os.X_OK))
            )
    return found


def _refused(why: str) -> LaunchFailed:
    return LaunchFailed(Cause.SOURCE, f"its code: {why}", _REMEDY)
