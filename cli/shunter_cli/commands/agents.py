"""``shunter agent``."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from shunter_cli import checks, output
from shunter_cli.connection import connect
from shunter_cli.durations import ago
from shunter_cli.output import Output, OutputOption, QuietOption

group = typer.Typer(no_args_is_help=True, help="Agents: the daemons that take runs and launch them.")

#: Attempts an agent holds at once if it is not told.
DEFAULT_LIMIT = 8


def attach(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(group, name="agent")


@group.command("start")
def start(
    pool: Annotated[
        list[str], typer.Option(help="A pool to serve, in order of preference. Repeatable.", metavar="NAME")
    ],
    queue: Annotated[
        list[str] | None, typer.Option(help="Serve only this queue of its pools. Repeatable.", metavar="NAME")
    ] = None,
    limit: Annotated[
        int, typer.Option(help="Runs at once.", min=1, max=100_000, metavar="N")
    ] = DEFAULT_LIMIT,
    tag: Annotated[
        list[str] | None, typer.Option(help="What runs may require of it. Repeatable.", metavar="TAG")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="Its name, by default HOST-POOL; under it it finds its runs again.", metavar="NAME"
        ),
    ] = None,
) -> None:
    """Serve pools: take runs that are due, launch them, report back.

    Runs until it is told to stop: SIGTERM or Ctrl-C takes nothing new and lets runs finish, a second
    one cancels them. Killed, it finds its runs again at the next start under the same name.
    """
    checks.names("--pool", pool)
    checks.names("--queue", queue or [])
    checks.names("--name", [name] if name is not None else [])
    checks.tags("--tag", tag or [])
    words = ["--limit", str(limit)]
    for option, values in (("--pool", pool), ("--queue", queue), ("--tag", tag)):
        words += [word for value in values or [] for word in (option, value)]
    if name is not None:
        words += ["--name", name]
    # The daemon lives for months: it leaves the command line's libraries behind, and keeps the pid.
    os.execv(sys.executable, [sys.executable, "-m", "shunter_agents", *words])


@group.command("list")
def list_(output_as: OutputOption = Output.TABLE, quiet: QuietOption = False) -> None:
    """Show all agents."""
    with connect() as client:
        agents = client.list_agents().agents
    if quiet:
        for agent in agents:
            output.say(agent.name)
    elif output_as is Output.JSON:
        output.show_objects(agents)
    else:
        output.table(
            ("NAME", "POOLS", "STATE", ">ACTIVE", ">LIMIT", "SEEN", "TAGS", "HOST"),
            [
                (
                    agent.name,
                    output.words(agent.pools),
                    "lost" if agent.lost else "ready",
                    str(agent.active),
                    str(agent.limit),
                    ago(agent.last_seen_at),
                    output.words(agent.tags),
                    agent.host or "-",
                )
                for agent in agents
            ],
            elastic=("NAME", "POOLS", "TAGS", "HOST"),
        )
