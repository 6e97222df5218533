"""``run export``: everything that is known of runs, as JSON Lines."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from shunter_cli.filters import Filters
from shunter_cli.progress import progress
from shunter_work_pools.contracts.errors import InvalidInput

if TYPE_CHECKING:
    from shunter_work_pools.client import Client

_PAGE = 500


def export(client: Client, filters: Filters, file: str | None) -> int:
    """Write the runs, and say how many there were.

    Args:
        file: where to; None: stdout.

    Raises:
        InvalidInput: the file cannot be written.
        ShunterError: the server said no. The file is then as it was before.
    """
    count = 0
    page = client.export_runs(limit=_PAGE, **filters.query())  # before there is a file
    with target(file) as out, progress("exporting runs", None) as step:
        while True:
            for run in page.runs:
                out.write(run.model_dump_json().encode() + b"\n")
            count += len(page.runs)
            step(len(page.runs))
            if page.next is None:
                break
            page = client.export_runs(limit=_PAGE, cursor=page.next, **filters.query())
        out.flush()
    return count


@contextmanager
def target(file: str | None) -> Iterator[BinaryIO]:
    """What to write to; a file gets its name when all is in it."""
    if file is None:
        sys.stdout.flush()
        yield sys.stdout.buffer
        return
    path = Path(file)
    if path.exists() and not path.is_file():  # a pipe or a device is written to as it is
        with _writable(file), path.open("wb") as out:
            yield out
        return
    with _writable(file):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


@contextmanager
def _writable(file: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise InvalidInput(
            f"--file {file!r} cannot be written: {exc.strerror}", "Name a file in a folder that is there."
        ) from exc
