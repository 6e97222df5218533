"""Apply: deployments are made, changed and rolled back; several at once, all or none.

Everything is checked before anything is changed, and every fault is told, not only the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, func, insert, select, update

from shunter_work_pools import schedules as slots
from shunter_work_pools.contracts.agents import LEASE_MARGIN
from shunter_work_pools.contracts.base import Micros, moment
from shunter_work_pools.contracts.deployments import Change, DeploymentSpec, Named
from shunter_work_pools.contracts.durations import exactly
from shunter_work_pools.contracts.errors import BadRequest, NotFound, Refused
from shunter_work_pools.contracts.secret_variables import SECRETS, kept
from shunter_work_pools.queue import secrets, templates, timetable
from shunter_work_pools.queue.catalog import (
    DEFAULT_QUEUE,
    deployment_row,
    nearest,
    pool_row,
    queue_row,
    revision_spec,
)
from shunter_work_pools.queue.explain.agents import unfit_reason
from shunter_work_pools.queue.explain.reason import Reason
from shunter_work_pools.queue.explain.waiting import no_pool_reason
from shunter_work_pools.queue.fire import fire_deployment
from shunter_work_pools.queue.lanes import all_limits
from shunter_work_pools.queue.limits import places_freed
from shunter_work_pools.queue.parameters import check_json, check_schema, parameter_faults
from shunter_work_pools.queue.routing import Router
from shunter_work_pools.queue.standing import Kind, nearest_to_it, standings
from shunter_work_pools.storage.schema import deployments, pools, revisions, schedules
from shunter_work_pools.storage.store import Tx


@dataclass(frozen=True)
class Times:
    """What a deploy needs to know of the server.

    Attributes:
        late_after, since: as for :func:`~shunter_work_pools.queue.fire.fire`.
        lost_after, lease_for: the settings, seconds.
    """

    late_after: Micros
    since: Micros
    lost_after: float
    lease_for: float


@dataclass(frozen=True)
class Fault:
    """What is wrong with one deployment of a request.

    Attributes:
        deployment: its place in the request.
        loc: path into its spec.
    """

    deployment: int
    loc: list[str | int]
    detail: str
    remedy: str = ""

    def document(self) -> dict[str, Any]:
        """As it is told."""
        return {
            "deployment": self.deployment,
            "loc": self.loc,
            "detail": self.detail,
            "remedy": self.remedy,
        }


class DryRun(Exception):
    """Undoes a transaction that was only to show what it would do.

    Args:
        changes: what it would change.
    """

    def __init__(self, changes: list[Change]) -> None:
        super().__init__("only a dry run")
        self.changes = changes


def apply(tx: Tx, wanted: list[Named], times: Times) -> list[Change]:
    """Make deployments, or new revisions of those whose spec differs, all or none.

    Slots that are due are made into runs under the revision that they were due under.

    Raises:
        BadRequest: with ``faults``, all that were found.
    """
    wanted = [_with_secrets(tx, one) for one in wanted]
    found = list(_faults(tx, wanted, times))
    if found:
        raise _refusal(wanted, found)
    done: dict[str, Change] = {}
    # By id, as claims lock them; new ones in one order after that, so that no two wait for each other.
    tx.conn.execute(
        select(deployments.c.id)
        .where(deployments.c.name.in_([one.name for one in wanted]))
        .order_by(deployments.c.id)
        .with_for_update(key_share=True)
    )
    for one in sorted(wanted, key=lambda one: one.name):
        done[one.name] = _apply_one(tx, one, times)
    _warn(tx, {one.name: one.spec for one in wanted}, done, times)
    return [done[one.name] for one in wanted]


def rollback(tx: Tx, name: str, to: int | None, times: Times) -> Change:
    """Make the spec of an earlier revision the current one, as a new revision.

    Args:
        to: its number; None: the one before the current one.

    Raises:
        NotFound: there is no such deployment, or no such revision of it.
        BadRequest: the spec does not fit what there is now, e.g. its pool was deleted.
    """
    row = deployment_row(tx, name)
    number = row.revision - 1 if to is None else to
    statement = select(revisions.c.number).where(revisions.c.deployment_id == row.id)
    numbers = sorted(tx.conn.scalars(statement))
    if number not in numbers:
        what = f"no revision {number}" if to is not None else "no revision before its first one"
        shown = ", ".join(map(str, numbers[-10:]))
        more = "..., " if len(numbers) > 10 else ""
        raise NotFound(f"deployment {name!r} has {what}", f"There is: {more}{shown}.")
    spec = revision_spec(tx, row.id, number)
    (change,) = apply(tx, [Named(name=name, spec=spec)], times)
    return change


# ---- one deployment


def _with_secrets(tx: Tx, one: Named) -> Named:
    """With the secret values of its current revision, where the request leaves them."""
    if SECRETS not in one.spec.variables:
        return one
    row = tx.conn.execute(
        select(deployments.c.id, deployments.c.revision).where(
            deployments.c.name == one.name, deployments.c.deleted_at.is_(None)
        )
    ).one_or_none()
    if row is None:
        return one
    before = revision_spec(tx, row.id, row.revision).variables
    variables = kept(one.spec.variables, before)
    return Named(name=one.name, spec=one.spec.model_copy(update={"variables": variables}))


def _apply_one(tx: Tx, one: Named, times: Times) -> Change:
    row = _locked(tx, one.name)
    if row is None:
        deployment_id = tx.conn.execute(
            insert(deployments)
            .values(
                name=one.name,
                revision=1,
                paused=False,
                max_active=one.spec.max_active,
                when_full=one.spec.when_full,
                created_at=tx.now,
                updated_at=tx.now,
            )
            .returning(deployments.c.id)
        ).scalar_one()
        _add_revision(tx, deployment_id, 1, one.spec)
        timetable.apply_schedules(tx, deployment_id, False, None, one.spec)
        tx.changes.limits |= one.spec.when_full != "enqueue"
        return Change(name=one.name, change="created", revision=1, next_at=_next_at(tx, deployment_id))
    before = revision_spec(tx, row.id, row.revision)
    if before == one.spec:
        return Change(
            name=one.name,
            change="unchanged",
            revision=row.revision,
            before=before,
            next_at=_next_at(tx, row.id),
        )
    fire_deployment(tx, row.id, times.late_after, times.since)
    number = row.revision + 1
    tx.conn.execute(
        update(deployments)
        .where(deployments.c.id == row.id)
        .values(
            revision=number,
            max_active=one.spec.max_active,
            when_full=one.spec.when_full,
            updated_at=tx.now,
        )
    )
    if (row.max_active, row.when_full) != (one.spec.max_active, one.spec.when_full):
        tx.changes.limits = True
        places_freed(tx, [], [row.id])
    _add_revision(tx, row.id, number, one.spec)
    timetable.apply_schedules(tx, row.id, row.paused, before, one.spec)
    return Change(
        name=one.name, change="changed", revision=number, before=before, next_at=_next_at(tx, row.id)
    )


def _locked(tx: Tx, name: str) -> Row[Any] | None:
    return tx.conn.execute(
        select(deployments).where(deployments.c.name == name).with_for_update(key_share=True)
    ).one_or_none()


def _add_revision(tx: Tx, deployment_id: int, number: int, spec: DeploymentSpec) -> None:
    document = spec.model_dump(mode="json")
    tx.conn.execute(
        insert(revisions).values(deployment_id=deployment_id, number=number, spec=document, created_at=tx.now)
    )


def _next_at(tx: Tx, deployment_id: int) -> Any:
    found: Micros | None = tx.conn.scalar(
        select(func.min(schedules.c.next_at)).where(schedules.c.deployment_id == deployment_id)
    )
    return None if found is None else moment(found)


def _warn(tx: Tx, specs: dict[str, DeploymentSpec], done: dict[str, Change], times: Times) -> None:
    """Say what will keep runs waiting."""
    router = Router(tx)
    by_id = {row.id: row for row in tx.conn.execute(select(pools))}
    known: dict[Kind, Reason | None] = {}  # many deployments want the same
    for name, spec in specs.items():
        at = router.place(spec, spec.tags)
        if at is None:
            why: Reason | None = no_pool_reason(router, spec.tags)
        else:
            kind = Kind.of(spec, by_id[at[0]], spec.queue or DEFAULT_QUEUE)
            if kind not in known:
                found = standings(tx, kind, kind.pool, times.lost_after)
                known[kind] = unfit_reason(tx, kind, nearest_to_it(found))
            why = known[kind]
            if spec.work.environment is not None and (of := by_id[at[0]]).type != "process":
                done[name].warnings.append(
                    f"pool {of.name!r} runs images, and builds no environment: its runs will be refused there. Put "
                    "what is required into the image, and deploy it without an environment."
                )
        if why is not None:
            done[name].warnings.append(f"{why.sentence}; its runs will wait. {why.next_step}")


# ---- faults


def _refusal(wanted: list[Named], found: list[Fault]) -> BadRequest:
    detail, remedy = found[0].detail, found[0].remedy
    if len(wanted) > 1:
        detail = f"deployment {wanted[found[0].deployment].name!r}: {detail}"
    if len(found) > 1:
        detail = f"{detail} (and {len(found) - 1} more {'faults' if len(found) > 2 else 'fault'})"
    return BadRequest(detail, remedy, faults=[fault.document() for fault in found])


def _faults(tx: Tx, wanted: list[Named], times: Times) -> Iterator[Fault]:
    first: dict[str, int] = {}
    for at, one in enumerate(wanted):
        if first.setdefault(one.name, at) != at:
            yield Fault(at, ["name"], f"{one.name!r} is named twice in this request", "Name each once.")
        for loc, detail, remedy in _faults_of(tx, one.spec, times):
            yield Fault(at, loc, detail, remedy)


_Found = tuple[list[str | int], str, str]


def _faults_of(tx: Tx, spec: DeploymentSpec, times: Times) -> Iterator[_Found]:
    try:
        check_schema(spec.parameter_schema)
    except Refused as exc:
        yield ["parameter_schema"], exc.detail, exc.remedy
    else:
        yield from _parameter_faults(spec)
    try:
        check_json(spec.variables, "variables")
    except Refused as exc:
        yield ["variables"], exc.detail, exc.remedy
        return
    for at, schedule in enumerate(spec.schedules):
        try:
            slots.check(schedule)
        except Refused as exc:
            yield [*("schedules", at), *_schedule_field(exc.detail)], exc.detail, exc.remedy
    if spec.pool is not None:
        try:
            _hold(tx, queue_row(tx, spec.pool, spec.queue or DEFAULT_QUEUE))
        except NotFound as exc:
            there = tx.conn.scalar(select(pools.c.id).where(pools.c.name == spec.pool)) is not None
            yield ["queue" if there else "pool"], exc.detail, exc.remedy
        else:
            yield from _variable_faults(tx, spec, spec.pool)
    if spec.limits:
        named = all_limits(tx).named
        for at, name in enumerate(spec.limits):
            if name not in named:
                yield (
                    ["limits", at],
                    f"there is no limit {name!r} that deployments can name",
                    nearest(name, list(named)),
                )
    yield from secrets.faults(tx, spec)
    if spec.exclusive:
        yield from _lease_faults(spec.work.grace, times)


def _variable_faults(tx: Tx, spec: DeploymentSpec, pool_name: str) -> Iterator[_Found]:
    """Of a pool that is found by tags nothing is known yet: its launcher refuses what does not fit."""
    if not spec.variables:
        return
    pool = pool_row(tx, pool_name)
    for loc, detail, remedy in templates.faults(pool.type, pool.template, spec.variables):
        said = ".".join(map(str, loc))
        yield ["variables", *loc], f"variable {said} of pool {pool_name!r}: {detail}", remedy


def _lease_faults(grace: float, times: Times) -> Iterator[_Found]:
    """An agent that is cut off must be able to end the work in time, though not before it counts as lost."""
    room = times.lease_for - times.lost_after - LEASE_MARGIN
    if grace > room:
        yield (
            ["work", "grace"],
            f"a grace of {exactly(grace)} does not fit an exclusive run: the server's lease of "
            f"{exactly(times.lease_for)}, less {exactly(times.lost_after)} until an agent is lost and "
            f"{exactly(LEASE_MARGIN)} to spare, leaves {exactly(max(0.0, room))}",
            "Give a shorter grace, or start the server with a longer --lease-for (and --give-up-after).",
        )


def _hold(tx: Tx, queue: Row[Any]) -> None:
    """Whoever would delete the pool meanwhile waits, and then finds that it is needed."""
    tx.conn.execute(
        select(pools.c.id).where(pools.c.id == queue.pool_id).with_for_update(read=True, key_share=True)
    )


_WHEN = {"timezone": "timezone", "cron": "cron", "rrule": "rrule", "interval": "seconds"}


def _schedule_field(detail: str) -> list[str | int]:
    """Path to the field that a detail begins with, within a schedule."""
    field = detail.partition(":")[0]
    return ["when", _WHEN[field]] if field in _WHEN else [field]


def _parameter_faults(spec: DeploymentSpec) -> Iterator[_Found]:
    # Without a schedule a required parameter may be left to the run; what is given must fit now.
    told = set()
    try:
        for path, detail, remedy in parameter_faults(spec, spec.parameters, "the deployment", partial=True):
            told.add(_said(detail))
            yield ["parameters", *path], detail, remedy
    except Refused as exc:
        at_fault = "parameters" if "parameter_schema" not in exc.detail else "parameter_schema"
        yield [at_fault], exc.detail, exc.remedy
        return
    for at, schedule in enumerate(spec.schedules):
        merged = spec.parameters | schedule.parameters
        try:
            for path, detail, remedy in parameter_faults(spec, merged, f"schedule {schedule.name!r}"):
                if _said(detail) not in told:
                    yield ["schedules", at, "parameters", *path], detail, remedy
        except Refused as exc:
            yield ["schedules", at, "parameters"], exc.detail, exc.remedy


def _said(detail: str) -> str:
    """What is wrong, without whose parameters they are."""
    return detail.partition(" do not fit: ")[2]
