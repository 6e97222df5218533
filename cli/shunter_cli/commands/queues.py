"""``shunter queue``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from shunter_cli import checks, confirm, live, naming, output, pausing
from shunter_cli.completing import pools, queues
from shunter_cli.connection import connect
from shunter_cli.output import Output, OutputOption, QuietOption, WatchOption, YesOption
from shunter_cli.pausing import ReasonOption
from shunter_work_pools.contracts.errors import InvalidInput

if TYPE_CHECKING:
    from shunter_work_pools.contracts.pools import Queue, QueuePatch

group = typer.Typer(no_args_is_help=True, help="Work queues: the ordered lines inside a pool.")

PoolArgument = Annotated[str, typer.Argument(help="The pool.", metavar="POOL", autocompletion=pools)]
NewNameArgument = Annotated[str, typer.Argument(help="The queue.", metavar="NAME")]
NameArgument = Annotated[str, typer.Argument(help="The queue.", metavar="NAME", autocompletion=queues)]


def attach(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(group, name="queue")


@group.command("create")
def create(
    pool: PoolArgument,
    name: NewNameArgument,
    priority: Annotated[int, typer.Option(help="Between the pool's queues, higher first.", metavar="N")] = 0,
    limit: Annotated[
        int | None, typer.Option(help="Runs at once from this queue.", min=0, metavar="N")
    ] = None,
    output_as: OutputOption = Output.TABLE,
    quiet: QuietOption = False,
) -> None:
    """Make a queue in a pool."""
    from shunter_work_pools.contracts.pools import QueueSpec

    checks.names("the queue's name", [name])
    spec = QueueSpec(name=name, priority=priority, limit=limit)
    with connect() as client:
        queue = naming.found(client, naming.POOL, pool, lambda one: client.create_queue(one, spec))
    if quiet and output_as is Output.TABLE:
        output.say(queue.name)
    else:
        _show(queue, "created", output_as)


@group.command("list")
def list_(
    pool: Annotated[
        str | None, typer.Argument(help="The pool.", metavar="POOL", autocompletion=pools)
    ] = None,
    watch: WatchOption = False,
    output_as: OutputOption = Output.TABLE,
    quiet: QuietOption = False,
) -> None:
    """Show the queues of a pool, or of all.

    With -q, of one pool the names, of all two words: pool and name.
    """

    def ask() -> list[Queue]:
        if pool is not None:
            return naming.found(client, naming.POOL, pool, client.get_pool).queues
        return [queue for one in client.list_pools().pools for queue in one.queues]

    def draw(found: list[Queue]) -> None:
        if quiet:
            for queue in found:
                output.say(queue.name if pool is not None else f"{queue.pool} {queue.name}")
        elif output_as is not Output.TABLE:
            output.show_objects(found, output_as)
        else:
            table_of(found, pools=pool is None)

    with connect() as client:
        live.show(ask, draw, watch=watch)


def table_of(found: Sequence[Queue], *, pools: bool = False) -> None:
    """Queues as a table.

    Args:
        pools: name the pool of each.
    """
    paused = pausing.column(found)
    rows = [
        (
            queue.pool,
            queue.name,
            pausing.state(queue),
            str(queue.priority),
            str(queue.active),
            output.number(queue.limit),
            str(queue.waiting),
            *pausing.cell(queue, paused),
        )
        for queue in found
    ]
    columns = ("POOL", "QUEUE", "STATE", ">PRIORITY", ">ACTIVE", ">LIMIT", ">WAITING", *paused)
    if pools:
        output.table(columns, rows, elastic=("POOL", "QUEUE", *paused))
    else:
        output.table(columns[1:], [row[1:] for row in rows], elastic=("QUEUE", *paused))


@group.command("inspect")
def inspect(pool: PoolArgument, name: NameArgument, output_as: OutputOption = Output.TABLE) -> None:
    """Show one queue."""
    queue = _found(pool, name)
    if output_as is not Output.TABLE:
        output.show_object(queue, output_as)
        return
    output.facts(
        [
            ("name", queue.name),
            ("pool", queue.pool),
            ("state", pausing.state(queue)),
            *pausing.facts(queue),
            ("priority", str(queue.priority)),
            ("limit", output.number(queue.limit)),
            ("active", str(queue.active)),
            ("waiting", str(queue.waiting)),
        ]
    )


def _found(pool: str, name: str) -> Queue:
    with connect() as client:
        return naming.queue(
            client, pool, name, lambda one, queue: naming.queue_in(client.get_pool(one), queue)
        )


@group.command("pause")
def pause(
    pool: PoolArgument,
    name: NameArgument,
    reason: ReasonOption = "",
    output_as: OutputOption = Output.TABLE,
) -> None:
    """Start no more runs from the queue; those that run go on."""
    from shunter_work_pools.contracts.pools import QueuePatch

    _show(_change(pool, name, pausing.patch(QueuePatch, True, reason)), "paused", output_as)


@group.command("resume")
def resume(pool: PoolArgument, name: NameArgument, output_as: OutputOption = Output.TABLE) -> None:
    """Start runs from the queue again."""
    from shunter_work_pools.contracts.pools import QueuePatch

    _show(_change(pool, name, pausing.patch(QueuePatch, False)), "resumed", output_as)


@group.command("update")
def update(
    pool: PoolArgument,
    name: NameArgument,
    priority: Annotated[
        int | None, typer.Option(help="Between the pool's queues, higher first.", metavar="N")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Runs at once from this queue.", min=0, metavar="N")
    ] = None,
    no_limit: Annotated[bool, typer.Option("--no-limit", help="No limit any more.")] = False,
    output_as: OutputOption = Output.TABLE,
) -> None:
    """Change a queue; what is not named stays as it is."""
    from shunter_work_pools.contracts.pools import QueuePatch

    changes: dict[str, object] = {}
    if limit is not None or no_limit:
        changes["limit"] = limit
    if priority is not None:
        changes["priority"] = priority
    if not changes:
        raise InvalidInput("there is nothing to change", "Give --limit or --priority.")
    _show(_change(pool, name, QueuePatch.model_validate(changes)), "updated", output_as)


def _change(pool: str, name: str, patch: QueuePatch) -> Queue:
    with connect() as client:
        return naming.queue(client, pool, name, lambda whole, one: client.update_queue(whole, one, patch))


@group.command("delete")
def delete(
    pool: PoolArgument, name: NameArgument, yes: YesOption = False, output_as: OutputOption = Output.TABLE
) -> None:
    """Delete a queue; not while a run waits or is active in it, or a deployment names it."""
    with connect() as client:
        found = naming.whole(client, naming.POOL, pool, client.get_pool)
        queue = naming.whole(client, naming.queues_of(pool), name, lambda one: naming.queue_in(found, one))
        confirm.removal(f"queue {queue.name} of pool {queue.pool}", yes=yes)
        client.delete_queue(queue.pool, queue.name)
    _show(queue, "deleted", output_as)


def _show(queue: Queue, done: str, output_as: Output) -> None:
    if output_as is not Output.TABLE:
        output.show_object(queue, output_as)
    else:
        output.say(f"queue {queue.name} of pool {queue.pool} {done}")
