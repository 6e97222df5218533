"""The options that choose: the same for all commands that take many."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from shunter_cli import durations, faults, naming

if TYPE_CHECKING:
    from shunter_work_pools.client import Client

T = TypeVar("T")

TagsOption = Annotated[
    list[str] | None, typer.Option("--tag", help="With this tag. Repeatable: all of them.", metavar="TAG")
]
PoolOption = Annotated[str | None, typer.Option("--pool", help="In this pool.", metavar="NAME")]
QueueOption = Annotated[str | None, typer.Option("--queue", help="In this queue of --pool.", metavar="NAME")]


@dataclass(frozen=True)
class Filters:
    """Which runs are meant; what is None or empty does not matter. As the client's ``list_runs`` takes it."""

    states: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    pool: str | None = None
    queue: str | None = None
    deployment: str | None = None
    late: bool | None = None
    held: bool | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    scheduled_after: datetime | None = None
    scheduled_before: datetime | None = None

    def query(self) -> dict[str, Any]:
        """The arguments of the client's methods."""
        return asdict(self)

    def __bool__(self) -> bool:
        return self != Filters()


def filtered(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that choose runs, in place of its argument ``filters``."""
    options = inspect.signature(chosen, eval_str=True).parameters
    parameters: list[inspect.Parameter] = []
    for one in inspect.signature(command, eval_str=True).parameters.values():
        parameters += options.values() if one.name == "filters" else [one]

    def with_filters(**given: Any) -> Any:
        picked = {name: given.pop(name) for name in options}
        return command(filters=chosen(**picked), **given)

    with_filters.__name__, with_filters.__doc__ = command.__name__, command.__doc__
    by_name = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]
    with_filters.__signature__ = inspect.Signature(by_name)  # type: ignore[attr-defined]
    with_filters.__annotations__ = {one.name: one.annotation for one in parameters}
    return with_filters


def chosen(
    state: Annotated[
        list[str] | None, typer.Option(help="In this state. Repeatable: any of them.", metavar="STATE")
    ] = None,
    tag: TagsOption = None,
    pool: PoolOption = None,
    queue: QueueOption = None,
    deployment: Annotated[str | None, typer.Option(help="Of this deployment.", metavar="NAME")] = None,
    late: Annotated[
        bool | None,
        typer.Option("--late/--no-late", help="Only those that wait or waited too long, or none."),
    ] = None,
    held: Annotated[
        bool | None,
        typer.Option("--held/--no-held", help="Only those that wait for something paused, or none."),
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Made at or after: 2026-11-22, or 2h (ago).", metavar="TIME")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Made before.", metavar="TIME")] = None,
    scheduled_after: Annotated[
        str | None, typer.Option(help="Scheduled for then or later.", metavar="TIME")
    ] = None,
    scheduled_before: Annotated[
        str | None, typer.Option(help="Scheduled for before that.", metavar="TIME")
    ] = None,
) -> Filters:
    """The filters of what was typed.

    Raises:
        InvalidInput: an unknown state, a time that is none, a queue without its pool.
    """
    _with_its_pool(pool, queue)
    return Filters(
        states=tuple(_state(word) for word in state or []),
        tags=tuple(tag or []),
        pool=pool,
        queue=queue,
        deployment=deployment,
        late=late,
        held=held,
        created_after=_past(since, "--since"),
        created_before=_past(until, "--until"),
        scheduled_after=_past(scheduled_after, "--scheduled-after"),
        scheduled_before=_past(scheduled_before, "--scheduled-before"),
    )


def place(client: Client, pool: str | None, queue: str | None) -> tuple[str | None, str | None]:
    """The whole names of a pool and a queue of it, which may be shortened; None: not asked for.

    Raises:
        InvalidInput: a queue without its pool.
        ShunterError: as :func:`shunter_cli.naming.found`.
    """
    _with_its_pool(pool, queue)
    if pool is None:
        return None, None
    if queue is None:
        return naming.found(client, naming.POOL, pool, client.get_pool).name, None
    return naming.queue(
        client, pool, queue, lambda whole, one: (whole, naming.queue_in(client.get_pool(whole), one).name)
    )


def _with_its_pool(pool: str | None, queue: str | None) -> None:
    from shunter_work_pools.contracts.errors import InvalidInput

    if queue is not None and pool is None:
        raise InvalidInput("--queue needs --pool", "Name the pool whose queue it is.")


def with_names(client: Client, filters: Filters, ask: Callable[[Filters], T]) -> T:
    """What ``ask`` answers, with names that may be shortened.

    Raises:
        ShunterError: as :func:`shunter_cli.naming.found`.
    """

    def by_queue(known: Filters) -> T:
        if known.queue is None or known.pool is None:
            return ask(known)
        kind = naming.queues_of(known.pool)
        return naming.found(client, kind, known.queue, lambda name: ask(replace(known, queue=name)))

    def by_pool(known: Filters) -> T:
        if known.pool is None:
            return by_queue(known)
        return naming.found(client, naming.POOL, known.pool, lambda name: by_queue(replace(known, pool=name)))

    if filters.deployment is None:
        return by_pool(filters)
    return naming.found(
        client, naming.DEPLOYMENT, filters.deployment, lambda name: by_pool(replace(filters, deployment=name))
    )


def _past(text: str | None, option: str) -> datetime | None:
    return durations.past(text, option) if text is not None else None


def _state(word: str) -> str:
    from shunter_work_pools.contracts.errors import InvalidInput
    from shunter_work_pools.contracts.states import AttemptState, RunState

    known = list(
        dict.fromkeys([*(state.value for state in RunState), *(state.value for state in AttemptState)])
    )
    for name in known:
        if name.lower() == word.lower():
            return name
    question = faults.nearest(word, known)
    raise InvalidInput(
        f"--state {word!r} is not a state", f"{question} There are: {', '.join(known)}.".strip()
    )
