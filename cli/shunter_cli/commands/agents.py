"""``shunter agent``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shunter_cli import checks, confirm, live, naming, output
from shunter_cli.completing import agents
from shunter_cli.connection import connect
from shunter_cli.durations import ago, local, seconds
from shunter_cli.filters import PoolOption, QueueOption, TagsOption, place
from shunter_cli.output import Output, OutputOption, QuietOption, WatchOption, YesOption
from shunter_cli.setting_flags import as_words, taking
from shunter_work_pools.contracts.configuration import load
from shunter_work_pools.contracts.settings import SETTINGS

if TYPE_CHECKING:
    from shunter_work_pools.contracts.agents import Agent

group = typer.Typer(no_args_is_help=True, help="Agents: the daemons that take runs and launch them.")

NameArgument = Annotated[str, typer.Argument(help="The agent's name.", metavar="NAME", autocompletion=agents)]


def attach(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(group, name="agent")


@group.command("start")
@taking([setting for setting in SETTINGS if setting.startswith("agent.")])
def start(
    pool: Annotated[
        list[str], typer.Option(help="A pool to serve, in order of preference. Repeatable.", metavar="NAME")
    ],
    flags: dict[str, Any],
    queue: Annotated[
        list[str] | None, typer.Option(help="Serve only this queue of its pools. Repeatable.", metavar="NAME")
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="What runs may require of it. Repeatable.", metavar="TAG")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="Its name, by default HOST-POOL; under it it finds its runs again.", metavar="NAME"
        ),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Take one run, and end after it.")] = False,
    until_idle: Annotated[
        bool, typer.Option("--until-idle", help="End when it has nothing, and nothing is due for it.")
    ] = False,
    max_lifetime: Annotated[
        str | None,
        typer.Option(help="Take nothing new after so long, and end after what it has.", metavar="DURATION"),
    ] = None,
    take_over: Annotated[
        bool,
        typer.Option(
            "--take-over",
            help="Its state folder comes from another machine, which is gone for good. What ran there ends "
            "as Crashed.",
        ),
    ] = False,
) -> None:
    """Serve pools: take runs that are due, launch them, report back.

    Runs until it is told to stop. SIGTERM or Ctrl-C: it takes nothing new, waits for its runs (as long as
    --drain-grace allows; then --drain-end decides), delivers what it owes, also to a server that is away
    for a while, and ends with exit code 0. A second one cancels its runs; then it ends also while the
    server is away, and its next start delivers. Killed, it finds its runs again at the next start under
    the same name.
    """
    checks.names("--pool", pool)
    checks.names("--queue", queue or [])
    checks.names("--name", [name] if name is not None else [])
    checks.tags("--tag", tag or [])
    load(flags)  # what is wrong is told here, in the words of all commands
    words = as_words(flags)
    for option, values in (("--pool", pool), ("--queue", queue), ("--tag", tag)):
        words += [word for value in values or [] for word in (option, value)]
    if name is not None:
        words += ["--name", name]
    if max_lifetime is not None:
        words += ["--max-lifetime", f"{seconds(max_lifetime, '--max-lifetime', zero=False)!r}"]
    words += ["--once"] * once + ["--until-idle"] * until_idle + ["--take-over"] * take_over
    # The daemon lives for months: it leaves the command line's libraries behind, and keeps the pid.
    os.execv(sys.executable, [sys.executable, "-m", "shunter_agents", *words])


@group.command("list")
def list_(
    tag: TagsOption = None,
    pool: PoolOption = None,
    queue: QueueOption = None,
    watch: WatchOption = False,
    output_as: OutputOption = Output.TABLE,
    quiet: QuietOption = False,
) -> None:
    """Show all agents, or those that serve a pool or a queue of it."""
    with connect() as client:
        of_pool, of_queue = place(client, pool, queue)

        def wanted(one: Agent) -> bool:
            return (
                set(tag or []) <= set(one.tags)
                and (of_pool is None or of_pool in one.pools)
                and (of_queue is None or not one.queues or of_queue in one.queues)
            )

        live.show(
            lambda: list(filter(wanted, client.list_agents().agents)),
            lambda found: _list(found, output_as, quiet),
            watch=watch,
            what=unseen,
        )


def unseen(found: Sequence[Agent]) -> list[Agent]:
    """The agents without when they were seen last, which changes every second."""
    return [agent.model_copy(update={"last_seen_at": agent.first_seen_at}) for agent in found]


def _list(found: Sequence[Agent], output_as: Output, quiet: bool) -> None:
    if quiet:
        for agent in found:
            output.say(agent.name)
    elif output_as is not Output.TABLE:
        output.show_objects(found, output_as)
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
                for agent in found
            ],
            elastic=("NAME", "POOLS", "TAGS", "HOST"),
            spare=("HOST", "TAGS"),
        )


@group.command("inspect")
def inspect(name: NameArgument, output_as: OutputOption = Output.TABLE) -> None:
    """Show one agent."""
    with connect() as client:
        agent = naming.found(client, naming.AGENT, name, client.get_agent)
    if output_as is not Output.TABLE:
        output.show_object(agent, output_as)
        return
    output.facts(
        [
            ("name", agent.name),
            ("state", "lost" if agent.lost else "ready"),
            ("pools", output.words(agent.pools)),
            ("queues", output.words(agent.queues) if agent.queues else "all of its pools"),
            ("tags", output.words(agent.tags)),
            ("active", f"{agent.active} of {agent.limit}"),
            ("host", agent.host or "-"),
            ("version", agent.version or "-"),
            ("first seen", f"{local(agent.first_seen_at)} ({ago(agent.first_seen_at)})"),
            ("last seen", f"{local(agent.last_seen_at)} ({ago(agent.last_seen_at)})"),
        ]
    )


@group.command("remove")
def remove(name: NameArgument, yes: YesOption = False, output_as: OutputOption = Output.TABLE) -> None:
    """Forget an agent that is gone; one that still runs is not forgotten."""
    with connect() as client:
        agent = naming.whole(client, naming.AGENT, name, client.get_agent)
        confirm.removal(f"agent {agent.name}, seen {ago(agent.last_seen_at)}", yes=yes)
        client.remove_agent(agent.name)
    if output_as is not Output.TABLE:
        output.show_object(agent, output_as)
    else:
        output.say(f"agent {agent.name} removed")
