"""``shunter pool``."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from shunter_cli import checks, confirm, faults, live, naming, output, pausing, waiting
from shunter_cli.commands import templates
from shunter_cli.commands.queues import table_of
from shunter_cli.completing import pools
from shunter_cli.connection import connect
from shunter_cli.durations import ago
from shunter_cli.output import Output, OutputOption, QuietOption, WatchOption, YesOption
from shunter_cli.pausing import ReasonOption
from shunter_work_pools.contracts.errors import InvalidInput

if TYPE_CHECKING:
    from shunter_work_pools.contracts.pools import Pool, PoolPatch

group = typer.Typer(no_args_is_help=True, help="Work pools: where runs can be executed.")

NewNameArgument = Annotated[str, typer.Argument(help="The pool's name.", metavar="NAME")]
NameArgument = Annotated[str, typer.Argument(help="The pool's name.", metavar="NAME", autocompletion=pools)]


class PoolType(StrEnum):
    """What a pool's agents launch attempts as."""

    PROCESS = "process"
    DOCKER = "docker"
    KUBERNETES = "kubernetes"


def attach(app: typer.Typer) -> None:
    """Add the group."""
    group.add_typer(templates.group, name="template")
    app.add_typer(group, name="pool")


@group.command("create")
def create(
    name: NewNameArgument,
    type: Annotated[PoolType, typer.Option(help="What its agents launch runs as.")] = PoolType.PROCESS,
    match: Annotated[
        list[str] | None,
        typer.Option(
            help="Deployments that name no pool and carry all these tags come here. Repeatable.",
            metavar="TAG",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Runs at once in the whole pool.", min=0, metavar="N")
    ] = None,
    priority: Annotated[int, typer.Option(help="Between pools that match equally well.", metavar="N")] = 0,
    template: Annotated[
        list[str] | None,
        typer.Option(
            help="A variable of its template, as in image=python:3.12 (docker, kubernetes). Repeatable.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    template_file: Annotated[
        str | None,
        typer.Option(help="The template as a JSON object in a file, - for stdin.", metavar="FILE"),
    ] = None,
    output_as: OutputOption = Output.TABLE,
    quiet: QuietOption = False,
) -> None:
    """Make a pool; it gets a queue named default."""
    from shunter_work_pools.contracts.pools import PoolSpec

    checks.names("the pool's name", [name])
    spec = PoolSpec(
        name=name,
        type=type.value,
        match=match or [],
        limit=limit,
        priority=priority,
        template=templates.given(template or [], type.value, "--template", template_file),
    )
    with connect() as client:
        pool = client.create_pool(spec)
    if output_as is not Output.TABLE:
        output.show_object(pool, output_as)
    else:
        output.say(pool.name if quiet else f"pool {pool.name} created (type {pool.type})")


@group.command("list")
def list_(
    watch: WatchOption = False, output_as: OutputOption = Output.TABLE, quiet: QuietOption = False
) -> None:
    """Show all pools."""
    with connect() as client:
        live.show(
            lambda: client.list_pools().pools, lambda found: _list(found, output_as, quiet), watch=watch
        )


def _list(found: Sequence[Pool], output_as: Output, quiet: bool) -> None:
    if quiet:
        for pool in found:
            output.say(pool.name)
    elif output_as is not Output.TABLE:
        output.show_objects(found, output_as)
    else:
        paused = pausing.column(found)
        output.table(
            ("NAME", "TYPE", "STATE", ">ACTIVE", ">LIMIT", ">WAITING", *paused, "AGENTS"),
            [
                (
                    pool.name,
                    pool.type,
                    pausing.state(pool),
                    str(pool.active),
                    output.number(pool.limit),
                    str(pool.waiting),
                    *pausing.cell(pool, paused),
                    output.words(pool.agents),
                )
                for pool in found
            ],
            elastic=("NAME", *paused, "AGENTS"),
            spare=paused,
        )


@group.command("inspect")
def inspect(name: NameArgument, output_as: OutputOption = Output.TABLE) -> None:
    """Show one pool and its queues."""
    with connect() as client:
        pool = naming.found(client, naming.POOL, name, client.get_pool)
    if output_as is not Output.TABLE:
        output.show_object(pool, output_as)
        return
    output.facts(
        [
            ("name", pool.name),
            ("type", pool.type),
            ("state", pausing.state(pool)),
            *pausing.facts(pool),
            ("match tags", output.words(pool.match)),
            ("limit", output.number(pool.limit)),
            ("priority", str(pool.priority)),
            *([("template", output.compact(pool.template))] if pool.template else []),
            ("active", str(pool.active)),
            ("waiting", str(pool.waiting)),
            ("agents", output.words(pool.agents)),
            ("created", ago(pool.created_at)),
        ]
    )
    output.say("")
    table_of(pool.queues)


@group.command("check")
def check(
    name: NameArgument,
    timeout: Annotated[
        str, typer.Option(help="Give up waiting after so long; the check goes on.", metavar="TIME")
    ] = "2m",
    output_as: OutputOption = Output.TABLE,
) -> int:
    """See that runs come through: the server has a harmless command (echo) run in the pool.

    It is a run like any other, of the deployment check-NAME, which the server makes; it goes before all that waits, and
    there is one of a pool at a time. The exit code is 0 if it is Completed, 1 at any other end, 124 if the time ran out.
    """
    from shunter_cli import durations, pool_checking

    limit = durations.seconds(timeout, "--timeout")
    say = output.say if output_as is Output.TABLE else lambda line: None
    with connect() as client:
        found = naming.found(
            client, naming.POOL, name, lambda name: pool_checking.follow(client, name, limit, say)
        )
    code = pool_checking.exit_code(found)
    if output_as is not Output.TABLE:
        output.show_object(found, output_as)
        return code
    for line in found.log.splitlines():
        output.say(f"| {line}")
    if code == 0:
        output.say(f"pool {name} runs what it is given: agent {found.agent}")
    else:
        why = f"the check of pool {name!r} is {found.state}"
        faults.show(
            f"{why}{' after ' + timeout if code == waiting.TIMED_OUT else ''}: {found.sentence}",
            found.next_step,
        )
    return code


@group.command("pause")
def pause(name: NameArgument, reason: ReasonOption = "", output_as: OutputOption = Output.TABLE) -> None:
    """Start no more runs from the pool; those that run go on."""
    _set_paused(name, True, output_as, reason)


@group.command("resume")
def resume(name: NameArgument, output_as: OutputOption = Output.TABLE) -> None:
    """Start runs from the pool again."""
    _set_paused(name, False, output_as)


@group.command("update")
def update(
    name: NameArgument,
    match: Annotated[
        list[str] | None, typer.Option(help="The new match tags. Repeatable.", metavar="TAG")
    ] = None,
    no_match: Annotated[bool, typer.Option("--no-match", help="No match tags any more.")] = False,
    limit: Annotated[
        int | None, typer.Option(help="Runs at once in the whole pool.", min=0, metavar="N")
    ] = None,
    no_limit: Annotated[bool, typer.Option("--no-limit", help="No limit any more.")] = False,
    priority: Annotated[
        int | None, typer.Option(help="Between pools that match equally well.", metavar="N")
    ] = None,
    output_as: OutputOption = Output.TABLE,
) -> None:
    """Change a pool; what is not named stays as it is."""
    from shunter_work_pools.contracts.pools import PoolPatch

    changes: dict[str, object] = {}
    if match or no_match:
        changes["match"] = match or []
    if limit is not None or no_limit:
        changes["limit"] = limit
    if priority is not None:
        changes["priority"] = priority
    if not changes:
        raise InvalidInput("there is nothing to change", "Give --match, --limit or --priority.")
    pool = _change(name, PoolPatch.model_validate(changes))
    if output_as is not Output.TABLE:
        output.show_object(pool, output_as)
    else:
        output.say(f"pool {pool.name} updated")


def _set_paused(name: str, paused: bool, output_as: Output, reason: str = "") -> None:
    from shunter_work_pools.contracts.pools import PoolPatch

    pool = _change(name, pausing.patch(PoolPatch, paused, reason))
    if output_as is not Output.TABLE:
        output.show_object(pool, output_as)
    else:
        output.say(f"pool {pool.name} {'paused' if pool.paused else 'resumed'}")


def _change(name: str, patch: PoolPatch) -> Pool:
    with connect() as client:
        return naming.found(client, naming.POOL, name, lambda one: client.update_pool(one, patch))


@group.command("delete")
def delete(name: NameArgument, yes: YesOption = False, output_as: OutputOption = Output.TABLE) -> None:
    """Delete a pool with its queues; not while a run waits or is active in it, or a deployment names it."""
    with connect() as client:
        pool = naming.whole(client, naming.POOL, name, client.get_pool)
        queues = output.counted(len(pool.queues), "queue")
        confirm.removal(
            f"pool {pool.name} with {queues} ({', '.join(one.name for one in pool.queues)})", yes=yes
        )
        client.delete_pool(pool.name)
    if output_as is not Output.TABLE:
        output.show_object(pool, output_as)
    else:
        output.say(f"pool {pool.name} deleted")
