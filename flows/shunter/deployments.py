"""Deployments made of flows: ``flow.to_deployment``, ``flow.deploy``, ``deploy``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from shunter import entrypoints
from shunter_work_pools.contracts.errors import BadRequest, InvalidInput, ShunterError

if TYPE_CHECKING:
    from logging import Logger

    from shunter.entrypoints import Place
    from shunter.flows import BaseFlow
    from shunter_work_pools.client import Client
    from shunter_work_pools.contracts.code_sources import Environment, Source
    from shunter_work_pools.contracts.deployments import Change, DeploymentSpec, Named, RetryPolicy, Schedule
    from shunter_work_pools.contracts.secrets import EnvValue


class Options(TypedDict, total=False):
    """What can be said of a deployment of a flow; all else is said by the flow.

    Attributes:
        parameters: over the flow's own defaults; what JSON cannot carry is converted as pydantic does.
        tags: labels of the deployment and its runs.
        description: free text; default: the first line of the flow's docstring.
        interval: seconds, or a timedelta: a schedule.
        cron, rrule: likewise by an expression, or by a rule of RFC 5545; one of the three at the most.
        timezone: of that schedule, an IANA name; default: UTC.
        catch_up: which of its missed slots are made up for: ``all`` (the default), ``latest`` or ``none``.
        paused: that schedule makes no slots until it is resumed.
        schedules: further ones, each with a name.
        max_active: of its runs so many at once, wherever they run.
        when_full: what becomes of a run that is due while there are as many: ``enqueue`` (the default), ...
        retries: further attempts of a run that did not complete, or a policy. (Those of ``@flow`` are made within one
            attempt, and do not help when its process dies.)
        timeout: seconds that an attempt may take.
        env: variables of its runs; of the script's own environment they have few.
        pass_env: names of variables that are taken over from the agent, of ``serve`` from the script.
        working_dir: where runs start; default: of ``serve`` the script's own, else a folder of the attempt's own.
        require: tags that the agent must have.
        need: what a run takes of its agent, as in ``{"gpu": 1, "memory": 2**33}``.
        limits: names of limits that its runs share with other deployments'.
        priority: higher first.
    """

    parameters: Mapping[str, Any]
    tags: Sequence[str]
    description: str
    interval: float | timedelta
    cron: str
    rrule: str
    timezone: str
    catch_up: Literal["all", "latest", "none"]
    paused: bool
    schedules: Sequence[Schedule]
    max_active: int
    when_full: str
    retries: int | RetryPolicy
    timeout: float
    env: Mapping[str, EnvValue]
    pass_env: Sequence[str]
    working_dir: str | os.PathLike[str]
    require: Sequence[str]
    need: Mapping[str, float]
    limits: Sequence[str]
    priority: int


class PoolOptions(Options, total=False):
    """What can be said of a deployment to a pool, beside :class:`Options`.

    Attributes:
        queue: the pool's work queue, by default the one named default.
        source: where its code is; default: the folder in which it is here, which the agent must have, too. What an
            agent fetches (``{"git": URL, "branch": ...}``, ``{"archive": URL}``) is not looked at here. None: it is
            installed where it runs.
        entrypoint: ``path.py:name`` or ``module:name``, from there; default: as it is here.
        environment: that its agent builds, as in ``{"requirements": ["pandas>=2"]}``; see docs/code.md.
        python: the interpreter; default: the agent's own.
        variables: over those of the pool's template.
    """

    queue: str
    source: Source | Mapping[str, Any] | None
    entrypoint: str
    environment: Environment | Mapping[str, Any]
    python: str
    variables: Mapping[str, Any]


@dataclass(frozen=True)
class FlowDeployment:
    """A deployment that is to be; made by ``flow.to_deployment``.

    Attributes:
        flow: whose it is.
        name: of the deployment.
        options: what was said of it.
    """

    flow: BaseFlow[Any, Any]
    name: str
    options: PoolOptions


def to_deployment(flow: BaseFlow[Any, Any], name: str | None, options: Mapping[str, Any]) -> FlowDeployment:
    """What ``serve`` and ``deploy`` take.

    Raises:
        TypeError: there is no such option.
    """
    known = [*Options.__annotations__, *PoolOptions.__annotations__]
    if unknown := sorted(set(options) - set(known)):
        raise TypeError(
            f"a deployment has no option {unknown[0]!r}; it has {', '.join(sorted(dict.fromkeys(known)))}"
        )
    return FlowDeployment(flow, flow.name if name is None else name, PoolOptions(**options))  # type: ignore[typeddict-item]


def deploy(*deployments: FlowDeployment, pool: str | None = None) -> list[Change]:
    """Make deployments whose runs are executed by the agents of a pool: all of them, or none.

    Args:
        deployments: made by ``flow.to_deployment``.
        pool: where they run; None: the pool whose match tags they all carry.

    Returns:
        What was changed of each, in their order: ``change`` is ``created``, ``changed`` or ``unchanged``.

    Raises:
        InvalidInput: one of them is wrong by itself, or runs would not find its flow.
        ShunterError: the server refuses them, or is not there.
    """
    with told():
        named = specs(check(deployments, "deploy"), pool=pool)
        from shunter_work_pools.client import Client

        with Client() as client:
            _fit_for_images(client, named, pool)
            changes = applied(client, named)
        warn(changes)
        return changes


def _fit_for_images(client: Client, named: Sequence[Named], pool: str | None) -> None:
    """Where runs are containers or pods only they can bring their journals to the server: by a token. Their code is in
    the image."""
    others = {one.name for one in client.list_pools().pools if one.type != "process"}
    if not others or (pool is not None and pool not in others):
        return
    from shunter.loggers import get_logger, set_up

    set_up()
    for one in named:
        one.spec.work.token = True
        if pool is not None and one.spec.work.local_source is not None:
            get_logger("shunter").warning(
                "deployment %s: the runs of pool %s know nothing of the folder %s: the image has to have %s, found from "
                "its working folder or as an installed module (then give source=None), or give a source that is fetched",
                one.name,
                pool,
                one.spec.work.local_source,
                one.spec.work.entrypoint,
            )


def check(deployments: Sequence[FlowDeployment], what: str) -> Sequence[FlowDeployment]:
    """Whether they can go together.

    Raises:
        InvalidInput: there are none, two have one name, or something else is among them.
    """
    if not deployments:
        raise InvalidInput(f"{what} was given no deployment", f"As in {what}(a.to_deployment(...), ...).")
    names: set[str] = set()
    for one in deployments:
        if not isinstance(one, FlowDeployment):
            kind = getattr(one, "_shunter_kind", type(one).__name__)
            raise InvalidInput(
                f"{what} takes deployments, not a {kind}", f"As in {what}(a.to_deployment(...), ...)."
            )
        if one.name in names:
            raise InvalidInput(
                f"two deployments are named {one.name!r}",
                "Names are a server's, whatever the flow: choose two.",
            )
        names.add(one.name)
    return deployments


def specs(
    deployments: Sequence[FlowDeployment], pool: str | None, served: Mapping[str, Any] | None = None
) -> list[Named]:
    """What the server is told of them; each is looked at as a run would find it.

    Args:
        served: options that they have if they do not say otherwise; None: they are for other agents.

    Raises:
        InvalidInput: a run would not find the flow, or what was said of one does not fit.
    """
    with ThreadPoolExecutor(4) as lookers:
        return list(lookers.map(lambda one: _named(one, pool, served), deployments))


def _named(one: FlowDeployment, pool: str | None, served: Mapping[str, Any] | None) -> Named:
    from pydantic import ValidationError

    from shunter_work_pools.contracts.deployments import Named

    options: dict[str, Any] = {**(served or {}), **one.options}
    try:
        place, found = _looked_at(one, options, sys.executable if served is not None else None)
        spec = _spec(one.name, options, place, found)
        return Named.model_validate({"name": one.name, "spec": {**spec, "pool": pool}})
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"] if part != "spec")
        raise InvalidInput(f"deployment {one.name!r}: {where}: {_words(first)}") from None


def _words(error: Mapping[str, Any]) -> str:
    """What is wrong; patterns of names and tags in words."""
    if error["type"] != "string_pattern_mismatch":
        return str(error["msg"])
    return (
        f"{error['input']!r} cannot be one: use letters, digits, dots, dashes and underscores, in tags also / : and one =, "
        "with a letter or digit first"
    )


def _looked_at(
    one: FlowDeployment, options: Mapping[str, Any], python: str | None
) -> tuple[Place, dict[str, Any]]:
    """Where its flow is, and what a run would find there."""
    remote = "source" in options and not isinstance(options["source"], str)
    try:
        if "entrypoint" in options:
            place = entrypoints.Place(options["entrypoint"], os.getcwd())
        else:
            place = entrypoints.place_of(one.flow)
        if "source" in options:
            place = entrypoints.Place(place.entrypoint, options["source"])
        if remote or "environment" in options:  # not at hand
            return place, {"parameter_schema": one.flow.parameter_schema(), "description": _summary(one.flow)}
        return place, entrypoints.looked_at(
            place.entrypoint, place.source, python or options.get("python") or sys.executable
        )
    except entrypoints.NotFound as exc:
        raise InvalidInput(f"deployment {one.name!r}: {exc}", exc.remedy) from None
    except entrypoints.Unfit as exc:
        remedy = _REMEDIES.get(exc.kind, "")
        raise InvalidInput(f"deployment {one.name!r}: {exc}", f"{exc.detail}{remedy}".rstrip()) from None


#: What to do, by the kind of an entrypoint's fault.
_REMEDIES = {
    "missing-function": "A run imports the file, where what is under `if __name__` is not there: define it outside of that.",
    "slow": "Work belongs into the flow, not into the body of the module.",
    "unsupported-signature": "Give its parameters types that JSON can carry.",
}


def _summary(flow: BaseFlow[Any, Any]) -> str:
    return next(iter((flow.__doc__ or "").strip().splitlines()), "")


#: Options that are fields of a deployment by the same name, and of its work.
_OF_SPEC = ("tags", "description", "max_active", "when_full", "require", "need", "limits", "priority", "queue", "variables")  # fmt: skip
_OF_WORK = ("timeout", "env", "pass_env", "environment", "python")


def _spec(name: str, options: dict[str, Any], place: Place, found: Mapping[str, Any]) -> dict[str, Any]:
    work = {
        "entrypoint": place.entrypoint,
        "source": place.source,
        **{key: _plain(options[key]) for key in _OF_WORK if options.get(key) is not None},
    }
    if options.get("working_dir") is not None:
        work["working_dir"] = os.path.abspath(options["working_dir"])
    spec = {
        "work": work,
        "description": str(found.get("description") or "")[:10_000],
        "parameter_schema": found.get("parameter_schema"),
        "parameters": _json(name, options.get("parameters") or {}),
        "schedules": _schedules(name, options),
        **{key: _plain(options[key]) for key in _OF_SPEC if options.get(key) is not None},
    }
    if (retries := options.get("retries")) is not None:
        spec["retries"] = {"count": retries} if isinstance(retries, int) else retries
    return spec


def _plain(value: Any) -> Any:
    """Lists and dicts where any sequence and mapping may be; text is one value, and no sequence of letters."""
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _json(name: str, parameters: Mapping[str, Any]) -> Any:
    from pydantic_core import PydanticSerializationError, to_jsonable_python

    try:
        return to_jsonable_python(dict(parameters))
    except PydanticSerializationError as exc:
        raise InvalidInput(
            f"deployment {name!r}: its parameters cannot be written as JSON: {exc}",
            "Give what JSON can carry, and let the flow make of it what it needs.",
        ) from None


def _schedules(name: str, options: Mapping[str, Any]) -> list[Any]:
    kinds = [kind for kind in ("interval", "cron", "rrule") if options.get(kind) is not None]
    if len(kinds) > 1:
        raise InvalidInput(
            f"deployment {name!r}: {' and '.join(kinds)} exclude each other",
            "Give one of them, or several schedules by `schedules`.",
        )
    if not kinds:
        for option in ("timezone", "catch_up", "paused"):
            if option in options:
                raise InvalidInput(
                    f"deployment {name!r}: {option} belongs to interval, cron or rrule, and there is none",
                    "Say it in each of `schedules`, or leave it out.",
                )
        return list(options.get("schedules", ()))
    (kind,) = kinds
    value = options[kind]
    when: dict[str, Any] = {"kind": kind, "timezone": options.get("timezone", "UTC")}
    if kind == "interval":
        when["seconds"] = value.total_seconds() if isinstance(value, timedelta) else value
    else:
        when[kind] = value
    further = {key: options[key] for key in ("catch_up", "paused") if key in options}
    return [{"when": when, **further}, *options.get("schedules", ())]


def applied(client: Client, named: Sequence[Named], *, dry_run: bool = False) -> list[Change]:
    """Deploy them, all or none; what takes others' place is said.

    Args:
        dry_run: only what would change, and what keeps runs waiting.

    Raises:
        BadRequest: with all faults in its text.
        ShunterError: the server refuses, or is not there.
    """
    from shunter_work_pools.contracts.deployments import ApplyRequest

    try:
        changes = client.apply(ApplyRequest(deployments=list(named), dry_run=dry_run)).deployments
    except BadRequest as exc:
        faults = [_fault(named, fault) for fault in exc.extra.get("faults", ())]
        if not faults:
            raise
        what, remedy = faults[0]
        if len(faults) > 1:
            what = f"{len(faults)} faults, and nothing is deployed"
            remedy = "\n".join(f"{each.rstrip('.')}. {then}".rstrip() for each, then in faults)
        raise BadRequest(what, remedy, **exc.extra) from None
    log = _log()
    for one, change in zip(named, changes, strict=True):
        if change.before is not None and (before := _place_in(change.before)) != (now := _place_in(one.spec)):
            log.warning("deployment %s was %s, and is %s now", one.name, before, now)
    return changes


def warn(changes: Sequence[Change]) -> None:
    """Say what keeps their runs waiting."""
    for change in changes:
        for warning in change.warnings:
            _log().warning("deployment %s: %s", change.name, warning)


def _log() -> Logger:
    from shunter.loggers import get_logger, set_up

    set_up()
    return get_logger("shunter")


def _fault(named: Sequence[Named], fault: Mapping[str, Any]) -> tuple[str, str]:
    """What is wrong with which, and what to do."""
    return f"deployment {named[fault['deployment']].name!r}: {fault['detail']}", fault.get("remedy") or ""


def _place_in(spec: DeploymentSpec) -> str:
    folder = spec.work.local_source
    what = spec.work.entrypoint or " ".join(spec.work.command or ())
    return os.path.join(folder, what) if folder is not None else what


@contextmanager
def told() -> Iterator[None]:
    """Errors tell in a traceback, too, what to do."""
    try:
        yield
    except ShunterError as exc:
        if exc.remedy:
            exc.add_note(exc.remedy)
        raise
