"""``shunter agent``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shunter_cli import checks, confirm, installing, live, naming, output
from shunter_cli.completing import agents
from shunter_cli.connection import connect
from shunter_cli.durations import ago, local
from shunter_cli.filters import PoolOption, QueueOption, TagsOption, place
from shunter_cli.installing import NowOption, PrintOption, RunAsOption, UserOption
from shunter_cli.output import Output, OutputOption, QuietOption, WatchOption, YesOption
from shunter_cli.service_units import agent_unit
from shunter_cli.setting_flags import OF_AGENT, as_words, taking
from shunter_work_pools.contracts.configuration import load

if TYPE_CHECKING:
    from shunter_work_pools.contracts.agents import Agent

group = typer.Typer(no_args_is_help=True, help="Agents: the daemons that take runs and launch them.")

NameArgument = Annotated[str, typer.Argument(help="The agent's name.", metavar="NAME", autocompletion=agents)]
ServedPools = Annotated[
    list[str], typer.Option(help="A pool to serve, in order of preference. Repeatable.", metavar="NAME")
]
ServedQueues = Annotated[
    list[str] | None, typer.Option(help="Serve only this queue of its pools. Repeatable.", metavar="NAME")
]
OwnTags = Annotated[
    list[str] | None, typer.Option(help="What runs may require of it. Repeatable.", metavar="TAG")
]
OwnName = Annotated[
    str | None,
    typer.Option(help="Its name, by default HOST-POOL; under it it finds its runs again.", metavar="NAME"),
]


def attach(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(group, name="agent")


@group.command("start")
@taking(OF_AGENT)
def start(
    pool: ServedPools,
    flags: dict[str, Any],
    queue: ServedQueues = None,
    tag: OwnTags = None,
    name: OwnName = None,
) -> None:
    """Serve pools: take runs that are due, launch them, report back.

    Runs until it is told to stop: SIGTERM or Ctrl-C takes nothing new and lets runs finish, a second
    one cancels them. Killed, it finds its runs again at the next start under the same name.
    """
    words = _checked(pool, flags, queue, tag, name)
    # The daemon lives for months: it leaves the command line's libraries behind, and keeps the pid.
    os.execv(sys.executable, [sys.executable, "-m", "shunter_agents", *words])


def _checked(
    pool: list[str], flags: dict[str, Any], queue: list[str] | None, tag: list[str] | None, name: str | None
) -> list[str]:
    """The words after ``agent start``; what is wrong in them is told here, in the words of all commands."""
    checks.names("--pool", pool)
    checks.names("--queue", queue or [])
    checks.names("--name", [name] if name is not None else [])
    checks.tags("--tag", tag or [])
    load(flags)
    words = as_words(flags)
    for option, values in (("--pool", pool), ("--queue", queue), ("--tag", tag)):
        words += [word for value in values or [] for word in (option, value)]
    if name is not None:
        words += ["--name", name]
    return words


@group.command("install")
@taking(OF_AGENT)
def install(
    pool: ServedPools,
    flags: dict[str, Any],
    queue: ServedQueues = None,
    tag: OwnTags = None,
    name: OwnName = None,
    user: UserOption = False,
    run_as: RunAsOption = None,
    now: NowOption = False,
    print_: PrintOption = False,
) -> None:
    """Make a service of it, which systemd starts at each boot and whenever it ends.

    It is written as a unit shunter-agent-NAME with the options given here and the variables SHUNTER_... that
    are set now; its home is /var/lib/shunter unless SHUNTER_HOME says otherwise.
    """
    if name is None:
        from shunter_agents.state_folder import default_name

        checks.names("--pool", pool)
        name = default_name(pool[0])
    words = _checked(pool, flags, queue, tag, name)
    service = installing.planned(
        _unit(name), ["agent", "start", *words], flags, user=user, run_as=run_as, of="agent"
    )
    text = agent_unit(service, name, installing.systemd_version())
    if print_:
        output.say(text.rstrip("\n"))
    else:
        installing.install(service, text, now=now)


@group.command("uninstall")
def uninstall(
    name: Annotated[str, typer.Argument(help="The agent's name.", metavar="NAME")], user: UserOption = False
) -> None:
    """Stop an agent's service, which lets its runs finish, and remove its unit. Its state stays."""
    checks.names("NAME", [name])
    installing.uninstall(_unit(name), user=user)


def _unit(name: str) -> str:
    return f"shunter-agent-{name}"


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
