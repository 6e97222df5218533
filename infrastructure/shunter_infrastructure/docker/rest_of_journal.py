"""What a flow in a container did not bring to the server itself before it ended: fetched as long as the container is there.

The journal says beside it how far it was brought. If there is more, all of it is put into the attempt's folder, as
``task_files`` has it, with the results that its last lines name. What lies there the run decides.
"""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from contextlib import suppress
from pathlib import Path

import docker
from docker.errors import APIError

from shunter_infrastructure.docker.container import FILES
from shunter_infrastructure.docker.ending import FETCHES, is_file
from shunter_infrastructure.task_files import BROUGHT, FOLDER, JOURNAL, RESULTS, results_in
from shunter_work_pools.contracts.tasks import JOURNAL_LIMIT, RESULT_FILE_LIMIT
from shunter_work_pools.daemon_log import get_logger

log = get_logger()

_WHERE = f"{FILES}/{FOLDER}"
#: Bytes of a number, and of the end of a journal that is looked through for results.
_NUMBER, _END = 32, 64 * 1024 * 1024


def fetch(client: docker.APIClient, container: str, folder: Path) -> None:
    """Put it into the attempt's folder, if there is any. What cannot be had is done again if the run is retried."""
    place, draft = folder / FOLDER, folder / f"{FOLDER}.new"
    if place.exists():
        return
    shutil.rmtree(draft, ignore_errors=True)
    (draft / RESULTS).mkdir(parents=True)
    try:
        if _fetched(client, container, draft):
            draft.rename(place)  # all of it, or nothing
    except (OSError, tarfile.TarError, APIError) as exc:
        log.error("what a flow did at its end cannot be had", container=container[:12], reason=str(exc))
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _fetched(client: docker.APIClient, container: str, draft: Path) -> bool:
    """Whether there was anything."""
    journal = draft / JOURNAL
    brought = _number(client, container, draft / BROUGHT)
    size = _copy(client, container, JOURNAL, journal, JOURNAL_LIMIT, more_than=brought)
    if not size:
        return False
    with journal.open("rb") as file:
        file.seek(max(brought, size - _END))
        names = results_in(file.read())
    room = RESULT_FILE_LIMIT
    for name in names:
        room -= _copy(client, container, f"{RESULTS}/{name}", draft / RESULTS / name, room)
    return True


def _number(client: docker.APIClient, container: str, target: Path) -> int:
    """How far the run has brought its journal."""
    text = target.read_text() if _copy(client, container, BROUGHT, target, _NUMBER) else ""
    return int(text) if text.isascii() and text.isdigit() else 0


def _copy(
    client: docker.APIClient, container: str, name: str, target: Path, limit: int, *, more_than: int = 0
) -> int:
    """Bytes of a file that was fetched; 0: there is none, or it has not as many, or too many."""
    for _ in range(FETCHES - 1):
        with suppress(tarfile.ReadError):
            return _copy_once(client, container, name, target, limit, more_than)
    return _copy_once(client, container, name, target, limit, more_than)


def _copy_once(
    client: docker.APIClient, container: str, name: str, target: Path, limit: int, more_than: int
) -> int:
    try:
        chunks, stat = client.get_archive(container, f"{_WHERE}/{name}")
    except APIError as exc:
        if exc.status_code == 404 or "no such file" in str(exc).lower():
            return 0
        raise
    size = int(stat.get("size", 0)) if stat and is_file(stat) else 0
    if not more_than < size <= limit:
        return 0
    with tempfile.TemporaryFile(dir=target.parent) as packed:
        for chunk in chunks:
            packed.write(chunk)
        packed.seek(0)
        with tarfile.open(fileobj=packed) as archive:
            entry = archive.next()
            file = None if entry is None else archive.extractfile(entry)
            if file is None:
                return 0
            with target.open("wb") as copy:
                shutil.copyfileobj(file, copy)
    return size
