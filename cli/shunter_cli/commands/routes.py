"""``shunter route``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from shunter_cli import naming, output
from shunter_cli.completing import deployments
from shunter_cli.connection import connect
from shunter_cli.output import Output, OutputOption

if TYPE_CHECKING:
    from shunter_work_pools.contracts.explanations import Route

group = typer.Typer(no_args_is_help=True, help="Routes: which pool and which agents runs go to, and why.")


def attach(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(group, name="route")


@group.command("explain")
def explain(
    deployment: Annotated[
        str, typer.Argument(help="The deployment.", metavar="DEPLOYMENT", autocompletion=deployments)
    ],
    tag: Annotated[
        list[str] | None,
        typer.Option(help="A run's label, over the deployment's. Repeatable.", metavar="TAG"),
    ] = None,
    output_as: OutputOption = Output.TABLE,
) -> None:
    """Show every pool and agent, with the reason for or against.

    It is what would become of a run that were made now. Why a run that there is waits says
    `shunter run explain RUN`.
    """
    with connect() as client:
        found = naming.found(
            client, naming.DEPLOYMENT, deployment, lambda name: client.route(name, tags=tag or [])
        )
    if output_as is not Output.TABLE:
        output.show_object(found, output_as)
    else:
        _show(found)


def _show(route: Route) -> None:
    from shunter_work_pools.contracts.capacity import shown

    pairs = [
        ("deployment", f"{route.deployment}, revision {route.revision}"),
        ("tags", ", ".join(route.tags)),
        ("requires", ", ".join(route.require)),
        ("needs", shown(route.need)),
        ("goes to", f"{route.pool}, queue {route.queue}" if route.pool else "no pool yet"),
        ("so", route.sentence),
    ]
    output.facts([(key, value) for key, value in pairs if value])
    if route.pools:
        output.say("")
        output.table(
            ("POOL", "CHOSEN", "MATCH", "WHY"),
            _pools(route),
            elastic=("POOL", "MATCH", "WHY"),
            wrapped="WHY",
        )
    if route.agents:
        output.say("")
        _show_agents(route)


def _pools(route: Route) -> list[tuple[str, str, str, str]]:
    """A row of each pool; of those that are out as another is named, one of all."""
    from shunter_work_pools.contracts.explanations import PoolReason

    out = [one for one in route.pools if one.code == PoolReason.NOT_NAMED.value]
    each = [one for one in route.pools if one not in out] if len(out) > 1 else route.pools
    rows = [(one.name, "yes" if one.chosen else "-", output.words(one.match), one.sentence) for one in each]
    return rows if len(out) <= 1 else [*rows, (f"{len(out)} others", "-", "-", out[0].sentence)]


def _show_agents(route: Route) -> None:
    """Of the tags that agents found those that the runs ask for, under the same key."""
    asked = {tag.partition("=")[0] for tag in route.require}
    found = [[tag for tag in one.found_tags if tag.partition("=")[0] in asked] for one in route.agents]
    columns = ("AGENT", "TAKES", "TAGS", *(("FOUND",) if any(found) else ()), "WHY")
    output.table(
        columns,
        [
            (
                one.name,
                one.takes,
                output.words([own for own in one.tags if own not in one.found_tags]),
                *((output.words(tags),) if any(found) else ()),
                one.sentence,
            )
            for one, tags in zip(route.agents, found, strict=True)
        ],
        elastic=tuple(name for name in columns if name != "TAKES"),
        wrapped="WHY",
    )
