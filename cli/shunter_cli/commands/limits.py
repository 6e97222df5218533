"""``shunter limit``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from shunter_cli import checks, confirm, limit_words, live, naming, output
from shunter_cli.completing import limits
from shunter_cli.connection import connect
from shunter_cli.durations import ago, local
from shunter_cli.limit_words import NONE, WhenFull
from shunter_cli.output import Output, OutputOption, QuietOption, WatchOption, YesOption
from shunter_work_pools.contracts.errors import InvalidInput

if TYPE_CHECKING:
    from shunter_work_pools.contracts.limits import Limit

group = typer.Typer(
    no_args_is_help=True,
    help="Limits that deployments share: how many runs are active at once, or start within a time.",
)

NewNameArgument = Annotated[str, typer.Argument(help="The limit's name.", metavar="NAME")]
NameArgument = Annotated[str, typer.Argument(help="The limit's name.", metavar="NAME", autocompletion=limits)]


def attach(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(group, name="limit")


@group.command("create")
def create(
    name: NewNameArgument,
    tag: Annotated[
        str | None,
        typer.Option(
            help="It holds for all runs with this tag; by default for deployments that name it.",
            metavar="TAG",
        ),
    ] = None,
    max: Annotated[
        int | None, typer.Option(help="Runs at once; 0: none may start.", min=0, metavar="N")
    ] = None,
    rate: Annotated[
        str | None, typer.Option(help="Starts within a time, as in 10/1m.", metavar="N/TIME")
    ] = None,
    when_full: Annotated[
        WhenFull, typer.Option(help="What becomes of a run that is due while --max is reached.")
    ] = WhenFull.ENQUEUE,
    output_as: OutputOption = Output.TABLE,
    quiet: QuietOption = False,
) -> None:
    """Make a limit.

    \b
      shunter limit create warehouse --max 3
      shunter deploy --name load --limit warehouse -- ./load.sh

    One of a tag holds at once, also for the runs that wait and run.
    """
    from shunter_work_pools.contracts.limits import LimitSpec

    checks.names("the limit's name", [name])
    checks.tags("--tag", [] if tag is None else [tag])
    if max is None and rate is None:
        raise InvalidInput(f"limit {name!r} limits nothing", "Give --max (runs at once), --rate or both.")
    if when_full is not WhenFull.ENQUEUE and not max:
        raise InvalidInput(f"--when-full {when_full} needs a --max of at least 1", "As in: --max 1.")
    spec = LimitSpec(
        name=name,
        tag=tag,
        max=max,
        rate=None if rate is None else limit_words.rate(rate, "--rate"),
        strategy=when_full.value,
    )
    with connect() as client:
        limit = client.create_limit(spec)
    if quiet and output_as is Output.TABLE:
        output.say(limit.name)
    else:
        _show(limit, "created", output_as)


@group.command("list")
def list_(
    watch: WatchOption = False, output_as: OutputOption = Output.TABLE, quiet: QuietOption = False
) -> None:
    """Show all limits that deployments share.

    Those of pools, queues and single deployments are shown with these.
    """
    with connect() as client:
        live.show(
            lambda: client.list_limits().limits, lambda found: _list(found, output_as, quiet), watch=watch
        )


def _list(found: Sequence[Limit], output_as: Output, quiet: bool) -> None:
    if quiet:
        for limit in found:
            output.say(limit.name)
    elif output_as is not Output.TABLE:
        output.show_objects(found, output_as)
    else:
        output.table(
            ("NAME", ">ACTIVE", ">MAX", "RATE", "WHEN FULL", ">WAITING", "HOLDS FOR"),
            [
                (
                    limit.name,
                    str(limit.active),
                    output.number(limit.max),
                    limit_words.rate_shown(limit.rate),
                    limit.strategy,
                    str(limit.waiting),
                    _holds_for(limit),
                )
                for limit in found
            ],
            elastic=("NAME", "HOLDS FOR"),
        )


def _holds_for(limit: Limit) -> str:
    return output.words(limit.deployments) if limit.tag is None else f"tag {limit.tag}"


@group.command("inspect")
def inspect(name: NameArgument, output_as: OutputOption = Output.TABLE) -> None:
    """Show one limit, and what it counts now."""
    with connect() as client:
        limit = naming.found(client, naming.LIMIT, name, client.get_limit)
    if output_as is not Output.TABLE:
        output.show_object(limit, output_as)
        return
    allowed = "" if limit.full_until is None else f"{local(limit.full_until)} ({ago(limit.full_until)})"
    facts = [
        ("name", limit.name),
        ("tag" if limit.tag else "deployments", limit.tag or output.words(limit.deployments)),
        ("runs at once", output.number(limit.max)),
        ("starts", limit_words.rate_shown(limit.rate)),
        ("when full", limit.strategy),
        ("active", str(limit.active)),
        ("waiting", str(limit.waiting)),
        ("next start", allowed),
        ("created", ago(limit.created_at)),
    ]
    output.facts([(key, value) for key, value in facts if value])


@group.command("update")
def update(
    name: NameArgument,
    max: Annotated[
        str | None, typer.Option(help="Runs at once; none: no such limit any more.", metavar="N|none")
    ] = None,
    rate: Annotated[
        str | None, typer.Option(help="Starts within a time; none: likewise.", metavar="N/TIME|none")
    ] = None,
    when_full: Annotated[
        WhenFull | None, typer.Option(help="What becomes of a run that is due while --max is reached.")
    ] = None,
    output_as: OutputOption = Output.TABLE,
) -> None:
    """Change a limit; what is not named stays as it is.

    No active run is stopped because --max is lowered, unless --when-full says so.
    """
    from shunter_work_pools.contracts.limits import LimitPatch

    changes: dict[str, object] = {}
    if max is not None:
        changes["max"] = None if max == NONE else limit_words.most(max, "--max")
    if rate is not None:
        changes["rate"] = None if rate == NONE else limit_words.rate(rate, "--rate")
    if when_full is not None:
        changes["strategy"] = when_full.value
    if not changes:
        raise InvalidInput("there is nothing to change", "Give --max, --rate or --when-full.")
    patch = LimitPatch.model_validate(changes)
    with connect() as client:
        limit = naming.found(client, naming.LIMIT, name, lambda one: client.update_limit(one, patch))
    _show(limit, "updated", output_as)


@group.command("delete")
def delete(name: NameArgument, yes: YesOption = False, output_as: OutputOption = Output.TABLE) -> None:
    """Delete a limit; not while a deployment names it. What it held back goes on."""
    with connect() as client:
        limit = naming.whole(client, naming.LIMIT, name, client.get_limit)
        confirm.removal(f"limit {limit.name}", yes=yes)
        client.delete_limit(limit.name)
    _show(limit, "deleted", output_as)


def _show(limit: Limit, done: str, output_as: Output) -> None:
    if output_as is not Output.TABLE:
        output.show_object(limit, output_as)
    else:
        output.say(f"limit {limit.name} {done}{_says(limit) if done != 'deleted' else ''}")


def _says(limit: Limit) -> str:
    parts = [f"tag {limit.tag}"] if limit.tag else []
    if limit.max is not None:
        parts.append(f"{output.counted(limit.max, 'run')} at once")
    if limit.rate is not None:
        parts.append(f"{limit_words.rate_shown(limit.rate)} starts")
    if limit.strategy != "enqueue":
        parts.append(f"when full: {limit.strategy}")
    return f" ({', '.join(parts)})"
