"""``shunter audit``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from shunter_cli import output
from shunter_cli.connection import connect
from shunter_cli.durations import local, past
from shunter_cli.output import Output, OutputOption

if TYPE_CHECKING:
    from shunter_work_pools.contracts.audit import AuditEntry

group = typer.Typer(no_args_is_help=True, help="Who did what, when and from where.")


def attach(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(group, name="audit")


@group.command("list")
def list_(
    who: Annotated[str | None, typer.Option(help="Only of this key or agent.", metavar="NAME")] = None,
    action: Annotated[
        str | None, typer.Option(help="Only this, such as cancel_run.", metavar="OPERATION")
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="From then on: 2h ago is 2h, or a moment.", metavar="TIME")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Before then.", metavar="TIME")] = None,
    limit: Annotated[int, typer.Option(help="So many at the most.", min=1, max=1000, metavar="N")] = 50,
    output_as: OutputOption = Output.TABLE,
) -> None:
    """Show what was done and what was refused, the newest first.

    What is read is not in it, nor what agents report of runs.
    """
    with connect() as client:
        page = client.list_audit(
            who=who,
            action=action,
            since=None if since is None else past(since, "--since"),
            until=None if until is None else past(until, "--until"),
            limit=limit,
        )
    if output_as is not Output.TABLE:
        output.show_objects(page.entries, output_as)
        return
    output.table(
        ("WHEN", "WHO", "FROM", "WHAT", "TO", "ANSWER", "DETAIL"),
        [
            (
                local(entry.at)[: len("2026-11-22 17:55:05")],
                entry.who or "-",
                entry.address or "-",
                entry.action,
                entry.target,
                str(entry.status) if entry.status >= 400 else "done",
                _detail(entry),
            )
            for entry in page.entries
        ],
        elastic=("TO", "DETAIL"),
        spare=("DETAIL", "FROM"),
    )
    if page.next is not None:
        output.say(f"\nthe newest {limit}: --limit shows more, --until what was before")


def _detail(entry: AuditEntry) -> str:
    return output.compact(entry.detail) if entry.detail else ""
