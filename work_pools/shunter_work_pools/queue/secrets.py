"""Secrets: set, listed without their values, deleted, and given to the agent of an attempt that may have them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Row, Select, Text, and_, cast, delete, func, insert, or_, select, update

from shunter_work_pools.attempt_tokens import AttemptTokens
from shunter_work_pools.contracts.base import Micros, moment
from shunter_work_pools.contracts.deployments import DeploymentSpec, Work
from shunter_work_pools.contracts.errors import Conflict, NotFound, StaleEpoch
from shunter_work_pools.contracts.secret_variables import SECRETS
from shunter_work_pools.contracts.secrets import (
    AttemptSecrets,
    FromSecret,
    OwnSecrets,
    Secret,
    SecretsRequest,
)
from shunter_work_pools.masking import NO_MASK, Mask
from shunter_work_pools.queue.catalog import nearest, revision_spec
from shunter_work_pools.queue.journals import going_on
from shunter_work_pools.sealing import Sealer, Unreadable, sealed_bytes
from shunter_work_pools.storage.schema import (
    attempts,
    deployments,
    leases,
    pools,
    revisions,
    runs,
    secret_values,
    secrets,
)
from shunter_work_pools.storage.store import Tx

#: For so long a replaced value is kept at the least: an agent that was away may still bring output that has it.
KEPT: Micros = 7 * 86_400 * 1_000_000


def _place(name: str, version: int) -> tuple[str, str, str]:
    return "secret", name, str(version)


# ---- for people


def set_secret(tx: Tx, sealer: Sealer, name: str, value: str) -> Secret:
    """Make a secret, or give it another value: attempts that start from now on get that."""
    row = tx.conn.execute(select(secrets).where(secrets.c.name == name).with_for_update()).one_or_none()
    if row is None:
        version = 1
        secret_id = tx.conn.execute(
            insert(secrets)
            .values(name=name, version=version, created_at=tx.now, updated_at=tx.now)
            .returning(secrets.c.id)
        ).scalar_one()
    else:
        secret_id, version = row.id, row.version + 1
        created = tx.now if row.deleted_at is not None else row.created_at
        tx.conn.execute(
            update(secrets)
            .where(secrets.c.id == secret_id)
            .values(version=version, created_at=created, updated_at=tx.now, deleted_at=None)
        )
        _replaced(tx, secret_id)
    sealed = sealer.seal(value, *_place(name, version))
    tx.conn.execute(insert(secret_values).values(secret_id=secret_id, version=version, value=sealed))
    return list_secrets(tx, sealer, name)[0]


def delete_secret(tx: Tx, name: str, *, force: bool = False) -> None:
    """Delete a secret. What runs keeps what it was given.

    Raises:
        NotFound: there is none of that name.
        Conflict: a deployment names it, and ``force`` is not given.
    """
    row = _row(tx, name, lock=True)
    naming = [] if force else _naming(tx).get(name, [])
    if naming:
        shown = ", ".join(map(repr, naming[:5])) + (", ..." if len(naming) > 5 else "")
        raise Conflict(
            f"secret {name!r} is named by deployment {shown}",
            "Change or delete these first, or force it: their runs will not start then.",
        )
    tx.conn.execute(update(secrets).where(secrets.c.id == row.id).values(deleted_at=tx.now))
    _replaced(tx, row.id)


def list_secrets(tx: Tx, sealer: Sealer, name: str | None = None) -> list[Secret]:
    """All secrets by name, or the one of a name.

    Raises:
        NotFound: there is none of that name.
    """
    newest = and_(secret_values.c.secret_id == secrets.c.id, secret_values.c.version == secrets.c.version)
    statement = select(secrets, secret_values.c.value).join(secret_values, newest).order_by(secrets.c.name)
    statement = statement.where(secrets.c.deleted_at.is_(None))
    if name is not None:
        statement = statement.where(secrets.c.id == _row(tx, name).id)
    naming = _naming(tx)
    return [
        Secret(
            name=row.name,
            version=row.version,
            created_at=moment(row.created_at),
            updated_at=moment(row.updated_at),
            used_by=naming.get(row.name, []),
            readable=sealer.has_key(row.value),
        )
        for row in tx.conn.execute(statement)
    ]


def _row(tx: Tx, name: str, *, lock: bool = False) -> Row[Any]:
    statement = select(secrets).where(secrets.c.name == name, secrets.c.deleted_at.is_(None))
    row = tx.conn.execute(statement.with_for_update() if lock else statement).one_or_none()
    if row is None:
        raise NotFound(f"there is no secret {name!r}", nearest(name, _names(tx)))
    return row


def _names(tx: Tx) -> list[str]:
    return list(tx.conn.scalars(select(secrets.c.name).where(secrets.c.deleted_at.is_(None))))


def _replaced(tx: Tx, secret_id: int) -> None:
    current = secret_values.c.replaced_at.is_(None)
    tx.conn.execute(
        update(secret_values)
        .where(secret_values.c.secret_id == secret_id, current)
        .values(replaced_at=tx.now)
    )


# ---- deployments that name them


def named_by(work: Work) -> Iterator[tuple[list[str | int], str]]:
    """The secrets of the server that some work needs: where each is named in a spec, and its name."""
    for variable, value in work.env.items():
        if isinstance(value, FromSecret):
            yield ["work", "env", variable, "secret"], value.secret
    if work.source is not None and not isinstance(work.source, str) and work.source.secret is not None:
        yield ["work", "source", "secret"], work.source.secret


def faults(tx: Tx, spec: DeploymentSpec) -> Iterator[tuple[list[str | int], str, str]]:
    """What is wrong with the secrets that a deployment names. Those that are there are not deleted meanwhile."""
    named = list(named_by(spec.work))
    if not named:
        return
    wanted = secrets.c.name.in_({name for _, name in named})
    # Locked by whom would delete one: that waits, and finds that it is named.
    there = set(
        tx.conn.scalars(
            select(secrets.c.name).where(wanted, secrets.c.deleted_at.is_(None)).with_for_update(read=True)
        )
    )
    for loc, name in named:
        if name not in there:
            near = nearest(name, _names(tx))
            yield loc, f"there is no secret {name!r}", f"Set it: `shunter secret set {name}`. {near}".rstrip()


def _naming(tx: Tx) -> dict[str, list[str]]:
    """Names of the deployments whose current revisions name secrets, in order, by the secret."""
    current = and_(
        revisions.c.deployment_id == deployments.c.id, revisions.c.number == deployments.c.revision
    )
    rows = tx.conn.execute(
        select(deployments.c.id, deployments.c.name, deployments.c.revision)
        .join(revisions, current)
        .where(deployments.c.deleted_at.is_(None), cast(revisions.c.spec, Text).contains('"secret"'))
        .order_by(deployments.c.name)
    )
    found: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        for name in dict.fromkeys(name for _, name in named_by(revision_spec(tx, row.id, row.revision).work)):
            found[name].append(row.name)
    return found


# ---- for agents


@dataclass(frozen=True)
class _Held:
    """An attempt that an agent holds, and since when any agent does."""

    deployment_id: int
    revision: int
    pool_id: int
    since: Micros


def attempt_secrets(
    tx: Tx,
    sealer: Sealer,
    agent_id: int,
    agent: str,
    request: SecretsRequest,
    output_known: Callable[[], int],
    tokens: AttemptTokens,
) -> AttemptSecrets:
    """What an attempt may have, for the agent that holds it under this epoch. One that has ended is held until all of
    its output is here: by a later life of the agent it cannot be masked without them.

    Args:
        output_known: how much of its output is here.
        tokens: make one for an attempt whose work asks for it, or that goes on from an earlier one.

    Raises:
        StaleEpoch: this agent does not hold it, or not under this epoch.
    """
    held = _held(tx, agent_id, agent, request, output_known)
    if held is None:
        raise StaleEpoch(
            f"attempt {request.attempt} of run {request.run} is not held by agent {agent!r} under epoch "
            f"{request.epoch}",
            "Sync.",
        )
    found = _gathered(tx, sealer, held)
    asked = revision_spec(tx, held.deployment_id, held.revision).work.token
    if asked or (request.attempt > 1 and going_on(tx, [request.run])):
        found.token = tokens.make(request.run, request.attempt)
    return found


def mask_of(tx: Tx, sealer: Sealer, run: UUID, attempt: int) -> Mask:
    """What is not to be seen of what an attempt tells of itself, as far as the server knows it: not what its agent
    alone has.

    Raises:
        Conflict: there is no key for what it may have been given.
    """
    live = select(leases.c.deployment_id, leases.c.revision, leases.c.pool_id, leases.c.granted_at).where(
        leases.c.run_id == run, leases.c.attempt == attempt
    )
    ended = (
        select(runs.c.deployment_id, runs.c.revision, runs.c.pool_id, attempts.c.claimed_at)
        .join(attempts, attempts.c.run_id == runs.c.id)
        .where(runs.c.id == run, attempts.c.number == attempt)
    )
    its = tx.conn.execute(live).one_or_none() or tx.conn.execute(ended).one_or_none()
    found = AttemptSecrets() if its is None else _gathered(tx, sealer, _Held(*its))
    if found.unreadable:
        raise Conflict(
            "the server has no key for its secrets, so that what it tells cannot be masked",
            "Give the server its secret key back.",
        )
    return Mask(found.values) if found.values else NO_MASK


def own_secrets(tx: Tx, sealer: Sealer, run: UUID, attempt: int) -> OwnSecrets | None:
    """What a live attempt may have, for itself; None: it has no lease any more.

    Values are those from when it was granted: its agent masks no later ones.

    Raises:
        Conflict: one of them cannot be had.
    """
    lease = tx.conn.execute(
        select(leases.c.deployment_id, leases.c.revision, leases.c.granted_at).where(
            leases.c.run_id == run, leases.c.attempt == attempt
        )
    ).one_or_none()
    if lease is None:
        return None
    env = revision_spec(tx, lease.deployment_id, lease.revision).work.env
    wanted = {variable: value.secret for variable, value in env.items() if isinstance(value, FromSecret)}
    first: dict[str, str] = {}
    for row in tx.conn.execute(_since(wanted.values(), lease.granted_at)):
        if row.name not in first:
            try:
                first[row.name] = sealer.open(row.value, *_place(row.name, row.version))
            except Unreadable as exc:
                raise Conflict(
                    f"the server has no key for secret {row.name!r}", "Give the server its secret key back."
                ) from exc
    missing = sorted(set(wanted.values()) - set(first))
    if missing:
        raise Conflict(f"there is no secret {missing[0]!r} any more", "Set it, and start the run anew.")
    return OwnSecrets(env={variable: first[name] for variable, name in wanted.items()})


def _gathered(tx: Tx, sealer: Sealer, held: _Held) -> AttemptSecrets:
    spec = revision_spec(tx, held.deployment_id, held.revision)
    found = AttemptSecrets()
    named = [name for _, name in named_by(spec.work)]
    values = _values(tx, sealer, named, held.since, found)
    source = spec.work.source
    found.env = {
        variable: values[value.secret]
        for variable, value in spec.work.env.items()
        if isinstance(value, FromSecret) and value.secret in values
    }
    if source is not None and not isinstance(source, str) and source.secret is not None:
        found.source = values.get(source.secret)
    _template_values(tx, sealer, held, spec, found)
    return found


def _held(
    tx: Tx, agent_id: int, agent: str, request: SecretsRequest, output_known: Callable[[], int]
) -> _Held | None:
    lease = tx.conn.execute(
        select(leases.c.deployment_id, leases.c.revision, leases.c.pool_id, leases.c.granted_at).where(
            leases.c.run_id == request.run,
            leases.c.attempt == request.attempt,
            leases.c.epoch == request.epoch,
            leases.c.agent_id == agent_id,
        )
    ).one_or_none()
    if lease is not None:
        return _Held(*lease)
    ended = tx.conn.execute(
        select(
            runs.c.deployment_id, runs.c.revision, runs.c.pool_id, attempts.c.claimed_at, attempts.c.log_size
        )
        .join(runs, runs.c.id == attempts.c.run_id)
        .where(
            attempts.c.run_id == request.run,
            attempts.c.number == request.attempt,
            attempts.c.epoch == request.epoch,
            attempts.c.agent == agent,
            attempts.c.log_deleted.is_(False),
        )
    ).one_or_none()
    if ended is None or ended.log_size is None or output_known() >= ended.log_size:
        return None
    return _Held(*ended[:4])


def _since(names: Collection[str], since: Micros) -> Select[Any]:
    """Values by name and version, those that were replaced after a moment among them."""
    return (
        select(secrets.c.name, secret_values)
        .join(secret_values, secret_values.c.secret_id == secrets.c.id)
        .where(
            secrets.c.name.in_(names),
            or_(secret_values.c.replaced_at.is_(None), secret_values.c.replaced_at >= since),
        )
        .order_by(secrets.c.name, secret_values.c.version)
    )


def _values(
    tx: Tx, sealer: Sealer, names: Collection[str], since: Micros, found: AttemptSecrets
) -> dict[str, str]:
    """Current values by name; what an attempt of ``since`` may have been given before is noted to be masked."""
    if not names:
        return {}
    rows = tx.conn.execute(_since(names, since))
    current: dict[str, str] = {}
    unreadable: set[str] = set()
    for row in rows:
        try:
            value = sealer.open(row.value, *_place(row.name, row.version))
        except Unreadable:
            unreadable.add(row.name)
            continue
        if row.replaced_at is None:
            current[row.name] = value
        else:
            found.masked.append(value)
    found.unreadable += sorted(unreadable)
    found.missing += sorted(set(names) - set(current) - unreadable)
    return current


def _template_values(
    tx: Tx, sealer: Sealer, held: _Held, spec: DeploymentSpec, found: AttemptSecrets
) -> None:
    pool = tx.conn.execute(select(pools.c.name, pools.c.template).where(pools.c.id == held.pool_id)).one()
    own = SECRETS in spec.variables
    stored: Any = (spec.variables if own else pool.template).get(SECRETS) or {}
    owner = ("deployment", _name(tx, held.deployment_id)) if own else ("pool", pool.name)
    for variable, value in stored.items():
        if value is None:
            continue
        try:
            found.template_env[variable] = sealer.open_variable(value, *owner, variable)
        except Unreadable:
            found.unreadable.append(f"{SECRETS}.{variable}")


def _name(tx: Tx, deployment_id: int) -> str:
    return str(tx.conn.scalar(select(deployments.c.name).where(deployments.c.id == deployment_id)))


# ---- upkeep


def forget_replaced(tx: Tx) -> int:
    """Delete values that nothing can have been given any more whose output is still to come; how many."""
    oldest: Micros | None = tx.conn.scalar(select(func.min(leases.c.granted_at)))
    before = min(tx.now - KEPT, tx.now if oldest is None else oldest)
    gone = tx.conn.execute(delete(secret_values).where(secret_values.c.replaced_at < before))
    empty = ~select(secret_values.c.version).where(secret_values.c.secret_id == secrets.c.id).exists()
    tx.conn.execute(delete(secrets).where(secrets.c.deleted_at.is_not(None), empty))
    return int(gone.rowcount)


@dataclass
class Resealed:
    """What :func:`reseal` did.

    Attributes:
        count: values that are sealed by the newest key now and were not before.
        unreadable: whose values are that no key opens.
    """

    count: int
    unreadable: list[str]


def reseal(tx: Tx, sealer: Sealer) -> Resealed:
    """Seal by the newest key what is sealed by an older one, or by none (an earlier version of the server)."""
    done = Resealed(0, [])
    rows = tx.conn.execute(
        select(secrets.c.name, secret_values).join(secrets, secrets.c.id == secret_values.c.secret_id)
    ).all()
    for row in rows:
        if sealer.is_newest(row.value):
            continue
        place = _place(row.name, row.version)
        try:
            value = sealer.open(row.value, *place)
        except Unreadable:
            done.unreadable.append(f"secret {row.name}")
            continue
        this = (secret_values.c.secret_id == row.secret_id, secret_values.c.version == row.version)
        tx.conn.execute(update(secret_values).where(*this).values(value=sealer.seal(value, *place)))
        done.count += 1
    for pool in tx.conn.execute(select(pools.c.id, pools.c.name, pools.c.template)).all():
        template = _resealed(sealer, pool.template, ("pool", pool.name), done)
        if template != pool.template:
            tx.conn.execute(update(pools).where(pools.c.id == pool.id).values(template=template))
    statement = (
        select(revisions.c.deployment_id, revisions.c.number, revisions.c.spec, deployments.c.name)
        .join(deployments, deployments.c.id == revisions.c.deployment_id)
        .where(cast(revisions.c.spec, Text).contains(json.dumps(SECRETS), autoescape=True))
    )
    for revision in tx.conn.execute(statement).all():
        variables = revision.spec.get("variables", {})
        new = _resealed(sealer, variables, ("deployment", revision.name), done)
        if new != variables:
            tx.conn.execute(
                update(revisions)
                .where(
                    revisions.c.deployment_id == revision.deployment_id, revisions.c.number == revision.number
                )
                .values(spec=revision.spec | {"variables": new})
            )
    done.unreadable = list(dict.fromkeys(done.unreadable))
    return done


def _resealed(
    sealer: Sealer, variables: dict[str, Any], owner: tuple[str, str], done: Resealed
) -> dict[str, Any]:
    opened: dict[str, str] = {}
    stored = variables.get(SECRETS)
    for variable, value in stored.items() if isinstance(stored, dict) else ():
        sealed = sealed_bytes(value)
        if value is None or (sealed is not None and sealer.is_newest(sealed)):
            continue
        try:
            opened[variable] = sealer.open_variable(value, *owner, variable)
        except Unreadable:
            done.unreadable.append(f"{' '.join(owner)}, {SECRETS}.{variable}")
    if not opened:
        return variables
    done.count += len(opened)
    return {
        **variables,
        SECRETS: {**variables[SECRETS], **sealer.seal_variables({SECRETS: opened}, *owner)[SECRETS]},
    }
