"""``run export``: everything that is known of runs, as JSON Lines."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from shunter_cli.filters import Filters
from shunter_cli.progress import progress
from shunter_work_pools.contracts.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from shunter_work_pools.client import Client
    from shunter_work_pools.contracts.runs import ExportedRun

_PAGE = 500


def export(client: Client, filters: Filters, file: str | None, *, tasks: bool = False) -> int:
    """Write the runs, and say how many there were.

    Args:
        file: where to; None: stdout.
        tasks: with their task runs and artifacts.

    Raises:
        InvalidInput: the file cannot be written.
        ShunterError: the server said no. The file is then as it was before.
    """
    count = 0
    page = client.export_runs(limit=_PAGE, **filters.query())  # before there is a file
    with target(file, "--file") as out, progress("exporting runs", None) as step:
        while True:
            for run in page.runs:
                out.write((_with_tasks(client, run) if tasks else run.model_dump_json().encode()) + b"\n")
            count += len(page.runs)
            step(len(page.runs))
            if page.next is None:
                break
            page = client.export_runs(limit=_PAGE, cursor=page.next, **filters.query())
        out.flush()
    return count


def _with_tasks(client: Client, run: ExportedRun) -> bytes:
    document = run.model_dump(mode="json")
    try:
        document["tasks"] = [one.model_dump(mode="json") for one in client.each_task(run.id)]
        left = client.list_artifacts(run.id).artifacts
        document["artifacts"] = [client.get_artifact(run.id, one.key).model_dump(mode="json") for one in left]
    except NotFound:  # deleted since it was listed
        document |= {"tasks": [], "artifacts": []}
    return json.dumps(document, separators=(",", ":")).encode()


@contextmanager
def target(file: str | None, option: str) -> Iterator[BinaryIO]:
    """What to write to; a file gets its name when all is in it.

    Args:
        option: that names it, for errors.
    """
    if file is None:
        sys.stdout.flush()
        yield sys.stdout.buffer
        return
    path = Path(file)
    if path.exists() and not path.is_file():  # a pipe or a device is written to as it is
        with _writable(file, option), path.open("wb") as out:
            yield out
        return
    with _writable(file, option):
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
def _writable(file: str, option: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise InvalidInput(
            f"{option} {file!r} cannot be written: {exc.strerror}", "Name a file in a folder that is there."
        ) from exc
