"""``shunter queue``."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated

import typer

from shunter_cli import checks, faults, output
from shunter_cli.connection import connect, pool_names
from shunter_cli.output import Output, OutputOption, QuietOption
from shunter_work_pools.contracts.errors import InvalidInput

if TYPE_CHECKING:
    from shunter_work_pools.client import Client
    from shunter_work_pools.contracts.pools import Queue, QueuePatch

group = typer.Typer(no_args_is_help=True, help="Work queues: the ordered lines inside a pool.")

PoolArgument = Annotated[str, typer.Argument(help="The pool.", metavar="POOL")]
NameArgument = Annotated[str, typer.Argument(help="The queue.", metavar="NAME")]


def attach(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(group, name="queue")


@group.command("create")
def create(
    pool: PoolArgument,
    name: NameArgument,
    priority: Annotated[int, typer.Option(help="Between the pool's queues, higher first.", metavar="N")] = 0,
    limit: Annotated[
        int | None, typer.Option(help="Runs at once from this queue.", min=0, metavar="N")
    ] = None,
    output_as: OutputOption = Output.TABLE,
) -> None:
    """Make a queue in a pool."""
    from shunter_work_pools.contracts.pools import QueueSpec

    checks.names("the queue's name", [name])
    spec = QueueSpec(name=name, priority=priority, limit=limit)
    with connect() as client, _suggesting(client, pool):
        queue = client.create_queue(pool, spec)
    _show(queue, "created", output_as)


@group.command("list")
def list_(pool: PoolArgument, output_as: OutputOption = Output.TABLE, quiet: QuietOption = False) -> None:
    """Show the queues of a pool."""
    with connect() as client, _suggesting(client, pool):
        queues = client.get_pool(pool).queues
    if quiet:
        for queue in queues:
            output.say(queue.name)
    elif output_as is Output.JSON:
        output.show_objects(queues)
    else:
        output.table(
            ("QUEUE", "STATE", ">PRIORITY", ">ACTIVE", ">LIMIT", ">WAITING"),
            [
                (
                    queue.name,
                    "paused" if queue.paused else "ready",
                    str(queue.priority),
                    str(queue.active),
                    "-" if queue.limit is None else str(queue.limit),
                    str(queue.waiting),
                )
                for queue in queues
            ],
        )


@group.command("pause")
def pause(pool: PoolArgument, name: NameArgument, output_as: OutputOption = Output.TABLE) -> None:
    """Start no more runs from the queue; those that run go on."""
    from shunter_work_pools.contracts.pools import QueuePatch

    _show(_change(pool, name, QueuePatch(paused=True)), "paused", output_as)


@group.command("resume")
def resume(pool: PoolArgument, name: NameArgument, output_as: OutputOption = Output.TABLE) -> None:
    """Start runs from the queue again."""
    from shunter_work_pools.contracts.pools import QueuePatch

    _show(_change(pool, name, QueuePatch(paused=False)), "resumed", output_as)


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
    with connect() as client, _suggesting(client, pool, name):
        return client.update_queue(pool, name, patch)


def _suggesting(client: Client, pool: str, queue: str | None = None) -> AbstractContextManager[None]:
    """Help with a mistyped pool, or a mistyped queue of a pool that is there."""
    listing = "`shunter pool list` shows the pools there are."
    if queue is None:
        return faults.suggesting(pool, lambda: pool_names(client), listing)

    def known() -> list[str]:
        pools = {found.name: found for found in client.list_pools().pools}
        if pool not in pools:
            return list(pools)
        return [found.name for found in client.get_pool(pool).queues]

    return faults.suggesting(queue, known, f"`shunter queue list {pool}` shows the queues there are.")


def _show(queue: Queue, done: str, output_as: Output) -> None:
    if output_as is Output.JSON:
        output.show_object(queue)
    else:
        output.say(f"queue {queue.name} of pool {queue.pool} {done}")
