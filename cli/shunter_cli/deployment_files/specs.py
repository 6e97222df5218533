"""A deployment whose form is right, to its spec: what it names is looked for where it is deployed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shunter_cli import checks, parameters
from shunter_cli.deployment_files.model import ArchiveEntry, DeploymentEntry, GitEntry
from shunter_cli.deployment_files.places import Fault, Node, Written, fault_at, plain
from shunter_cli.deployment_files.schedule_entries import to_schedule
from shunter_cli.deployment_files.wording import words
from shunter_work_pools.contracts.code_sources import ArchiveSource, Environment, GitSource, Source
from shunter_work_pools.contracts.deployments import DeploymentSpec, Keep, Named, RetryPolicy, Work
from shunter_work_pools.contracts.errors import InvalidInput


def as_written(loc: Sequence[str | int]) -> list[str | int]:
    """The steps in a file of a path into a spec."""
    steps = [*loc]
    if steps[:1] == ["work"]:
        steps = steps[1:]
    if steps[:1] == ["parameter_schema"]:
        return ["entrypoint"]
    if steps[2:3] == ["when"]:
        rest = ["interval" if step == "seconds" else step for step in steps[3:]]
        steps = [*steps[:2], *rest[-1:]]  # in between is the kind, which a file does not say
    return steps


def deployment(node: Node, folder: Path, *, check: bool, fits: bool) -> tuple[Named | None, list[Fault]]:
    """The deployment of a mapping whose form is right, or what else is wrong with it.

    Args:
        fits: whether its fields are known to go together; otherwise only what it names is looked for.
    """
    entry = DeploymentEntry.model_validate(plain(node))
    faults: list[Fault] = []
    if entry.queue is not None and entry.pool is None:
        detail = "a queue needs a pool"
        faults.append(fault_at(node, ["queue"], detail, "Name the pool whose queue it is."))
    if entry.when_full != "enqueue" and not entry.max_active:
        detail = f"{entry.when_full} needs a max_active of at least 1"
        faults.append(fault_at(node, ["when_full"], detail, "As in `max_active: 1`."))
    known = _Here(node, folder, faults, check).look(entry)
    if faults or not fits:
        return None, faults
    try:
        spec = _spec(entry, known)
    except ValidationError as exc:
        told: list[dict[str, Any]] = [dict(complaint) for complaint in exc.errors(include_url=False)]
        return None, [fault_at(node, as_written(one["loc"]), *words(one)) for one in told]
    return Named(name=entry.name, spec=spec), []


@dataclass
class _Known:
    """What is known of a deployment's surroundings."""

    source: Source | None = None
    working_dir: str | None = None
    python: str | None = None
    parameter_schema: dict[str, Any] | None = None
    description: str = ""


@dataclass
class _Here:
    """Looks at what a deployment names on this machine, from the file's folder."""

    node: Node
    folder: Path
    faults: list[Fault]
    check: bool

    def look(self, entry: DeploymentEntry) -> _Known:
        known = _Known()
        if not entry.no_source:
            known.source = _fetched(entry.source) or self._path("source", str(entry.source))
        at_hand = isinstance(known.source, str)
        if entry.working_dir is not None:
            # From what is fetched, as it is written.
            known.working_dir = self._path("working_dir", entry.working_dir) if at_hand else entry.working_dir
        if entry.python is not None:
            known.python = self._python(entry.python)
        # What is fetched, or needs packages that are to be installed, is looked at where it runs.
        if (
            not self.check
            or self.faults
            or not isinstance(known.source, str)
            or entry.environment is not None
        ):
            return known
        try:
            if entry.command is not None:
                checks.command(entry.command, Path(known.source))
            elif entry.entrypoint is not None:
                found = checks.entrypoint(entry.entrypoint, Path(known.source), known.python)
                known.parameter_schema = found.get("parameter_schema")
                known.description = str(found.get("description") or "")[:10_000]
        except InvalidInput as exc:
            self._fault("entrypoint" if entry.entrypoint is not None else "command", exc)
        return known

    def _path(self, key: str, text: str) -> str:
        path = str(self.folder / Path(text).expanduser())
        try:
            return checks.folder(key, path, check=self.check)
        except InvalidInput as exc:
            self._fault(key, exc)
            return path

    def _python(self, text: str) -> str:
        where = str(self.folder / Path(text).expanduser()) if "/" in text else text
        try:
            return checks.interpreter(where, check=self.check)
        except InvalidInput as exc:
            self._fault("python", exc)
            return where

    def _fault(self, key: str, exc: InvalidInput) -> None:
        detail = exc.detail.removeprefix(f"{key} ").removeprefix("--python ")
        self.faults.append(fault_at(self.node, [key], detail, exc.remedy.replace("--python", "`python:`")))


def _spec(entry: DeploymentEntry, known: _Known) -> DeploymentSpec:
    schema = known.parameter_schema
    return DeploymentSpec(
        work=Work(
            command=entry.command,
            entrypoint=entry.entrypoint,
            source=known.source,
            environment=None if entry.environment is None else Environment(**entry.environment.model_dump()),
            working_dir=known.working_dir,
            env=entry.env,
            pass_env=entry.pass_env,
            python=known.python,
            timeout=entry.timeout,
            start_timeout=entry.start_timeout,
            grace=entry.grace,
            memory_limit=entry.memory_limit,
            run_as=entry.run_as,
            token=entry.token,
        ),
        parameters=_typed(entry.parameters, schema),
        parameter_schema=schema,
        tags=entry.tags,
        require=entry.require,
        need=entry.need,
        limits=entry.limits,
        max_active=entry.max_active,
        when_full=entry.when_full,
        pool=entry.pool,
        queue=entry.queue,
        priority=entry.priority,
        schedules=[
            to_schedule(one).model_copy(update={"parameters": _typed(one.parameters, schema)})
            for one in entry.schedules
        ],
        retries=RetryPolicy(**entry.retries.model_dump()),
        on_lost=entry.on_lost,
        exclusive=entry.exclusive,
        keep=Keep(**entry.keep.model_dump()),
        variables=entry.variables,
        description=entry.description or known.description,
    )


def _fetched(entry: str | GitEntry | ArchiveEntry) -> GitSource | ArchiveSource | None:
    if isinstance(entry, str):
        return None
    return (GitSource if isinstance(entry, GitEntry) else ArchiveSource).model_validate(entry.model_dump())


def _typed(given: dict[str, Any], schema: dict[str, Any] | None) -> dict[str, Any]:
    """Parameters with the text of a variable as the number or switch that the schema wants."""
    return {
        key: parameters.scalar(str(value), schema, key) if isinstance(value, Written) else value
        for key, value in given.items()
    }
