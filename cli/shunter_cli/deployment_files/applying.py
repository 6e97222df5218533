"""Deployments to the server, all or none, and what is told about it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shunter_cli import durations, faults, output
from shunter_cli.connection import connect
from shunter_cli.deployment_files import difference, finding
from shunter_cli.deployment_files.checking import Loaded, SomeFaults, load
from shunter_cli.deployment_files.places import Fault, FileFaults
from shunter_cli.output import Output
from shunter_work_pools.contracts.deployments import ApplyRequest, Change, Named
from shunter_work_pools.contracts.errors import InvalidInput, Refused, ShunterError
from shunter_work_pools.contracts.plain_text import plain

if TYPE_CHECKING:
    from shunter_work_pools.client import Client


def deploy_file(file: str | None, only: Sequence[str], *, dry_run: bool, check: bool, form: Output) -> None:
    """Deploy a file, by default the one in this folder.

    Args:
        only: names of deployments; empty: all of the file.
        dry_run: only print the difference.

    Raises:
        InvalidInput: the file has faults, which are told on stderr; nothing is deployed.
    """
    path = Path(file).expanduser() if file is not None else finding.find(Path.cwd())
    label = file if file is not None else path.name
    try:
        loaded = _chosen(_load(path, label, check=check), only)
        with connect() as client:
            changes = _apply(client, loaded, dry_run=dry_run)
    except FileFaults as exc:
        for line in exc.lines():
            faults.tell(plain(line))
        raise InvalidInput(exc.detail, exc.remedy) from exc
    show(loaded.deployments, changes, dry_run=dry_run, form=form)


def _load(path: Path, label: str, *, check: bool) -> Loaded:
    try:
        return load(path, label, os.environ, check=check)
    except SomeFaults as exc:
        raise FileFaults(label, [*exc.faults, *_of_the_server(exc.sound)]) from exc


def _of_the_server(sound: Loaded) -> list[Fault]:
    """What only the server finds wrong with deployments that are sound by themselves; nothing if it is away."""
    if not sound.deployments:
        return []
    try:
        with connect() as client:
            _apply(client, sound.once(), dry_run=True)  # a name given twice is told already
    except FileFaults as exc:
        return exc.faults
    except ShunterError:
        pass
    return []


def show(named: Sequence[Named], changes: Sequence[Change], *, dry_run: bool, form: Output) -> None:
    """Print what was, or would be, changed; warnings on stderr."""
    _warn(changes)
    if form is not Output.TABLE:
        output.show_data(difference.data(named, changes), form)
    elif dry_run:
        difference.show(named, changes)
    else:
        for one, change in zip(named, changes, strict=True):
            output.say(_line(one, change))


def _warn(changes: Sequence[Change]) -> None:
    """Each warning once, with the names of those it is about."""
    about: dict[str, list[str]] = {}
    for change in changes:
        for warning in change.warnings:
            about.setdefault(warning, []).append(change.name)
    for warning, names in about.items():
        others = f" and {len(names) - 3} others" if len(names) > 3 else ""
        faults.tell(f"Warning: {', '.join(names[:3])}{others}: {warning}")


def _chosen(loaded: Loaded, only: Sequence[str]) -> Loaded:
    names = [one.name for one in loaded.deployments]
    for name in only:
        if name not in names:
            known = faults.nearest(name, names) or f"There are: {', '.join(names)}."
            raise InvalidInput(f"there is no deployment {name!r} in {loaded.file}", known)
    return loaded.only(only) if only else loaded


def _apply(client: Client, loaded: Loaded, *, dry_run: bool) -> list[Change]:
    try:
        return client.apply(ApplyRequest(deployments=loaded.deployments, dry_run=dry_run)).deployments
    except Refused as exc:
        raise loaded.located(exc) from exc


def _line(one: Named, change: Change) -> str:
    from shunter_work_pools.schedules import in_words

    if change.change == "unchanged":
        return f"{one.name} is unchanged (revision {change.revision})"
    parts = [f"pool {one.spec.pool}" if one.spec.pool else "pool by tags"]
    for schedule in one.spec.schedules[:3]:
        seconds = schedule.when.seconds if schedule.when.kind == "interval" else None
        parts.append(f"every {durations.exactly(seconds)}" if seconds else in_words(schedule.when))
    if (more := len(one.spec.schedules) - 3) > 0:
        parts.append(f"{more} more")
    if change.next_at is not None:
        parts.append(f"next {durations.local(change.next_at)}")
    return f"{one.name} deployed as revision {change.revision} ({', '.join(parts)})"
