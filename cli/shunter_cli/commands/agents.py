"""``shunter agent``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shunter_cli import checks, confirm, installing, live, naming, output, pausing
from shunter_cli.completing import agents
from shunter_cli.connection import connect
from shunter_cli.durations import ago, local, seconds
from shunter_cli.faults import tell
from shunter_cli.filters import PoolOption, QueueOption, TagsOption, place
from shunter_cli.installing import NowOption, PrintOption, RunAsOption, UserOption
from shunter_cli.output import Output, OutputOption, QuietOption, WatchOption, YesOption
from shunter_cli.pausing import ReasonOption
from shunter_cli.service_units import agent_unit
from shunter_cli.setting_flags import OF_AGENT, as_words, taking
from shunter_work_pools.contracts.configuration import load
from shunter_work_pools.contracts.errors import Conflict, ServerUnreachable, Unavailable

if TYPE_CHECKING:
    from shunter_work_pools.client import Client
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
    words = _checked(pool, flags, queue, tag, name)
    if max_lifetime is not None:
        words += ["--max-lifetime", f"{seconds(max_lifetime, '--max-lifetime', zero=False)!r}"]
    words += ["--once"] * once + ["--until-idle"] * until_idle + ["--take-over"] * take_over
    # The daemon lives for months: it leaves the command line's libraries behind, and keeps the pid.
    os.execv(sys.executable, [sys.executable, "-m", "shunter_agents", *words])  # nosec B606 # a list of words, no shell: that is the point


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
        installing.show(service, text)
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
                set(tag or []) <= {*one.tags, *one.found_tags}
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
        paused = pausing.column(found)
        troubles = ("TROUBLES",) if any(agent.troubles for agent in found) else ()
        free = ("FREE",) if any(agent.capacity for agent in found) else ()
        some = (*paused, *troubles, *free)
        output.table(
            ("NAME", "POOLS", "STATE", ">ACTIVE", ">LIMIT", "SEEN", *some, "TAGS", "HOST"),
            [
                (
                    agent.name,
                    output.words(agent.pools),
                    condition(agent),
                    str(agent.active),
                    str(agent.limit),
                    ago(agent.last_seen_at),
                    *pausing.cell(agent, paused),
                    *("; ".join(agent.troubles) or "-" for _ in troubles),
                    *(output.amounts(agent.free_capacity) for _ in free),
                    output.words(agent.tags),
                    agent.host or "-",
                )
                for agent in found
            ],
            elastic=("NAME", "POOLS", *some, "TAGS", "HOST"),
            spare=("HOST", "FREE", "TAGS", *paused),
        )


def condition(agent: Agent) -> str:
    """How an agent is, in one word: lost, stopped, draining, paused, unwell (it takes nothing now) or ready."""
    if agent.lost:
        return "lost"
    if agent.stopped:
        return "stopped"
    if agent.draining:
        return "draining"
    if agent.paused:
        return "paused"
    return "unwell" if agent.troubles else "ready"


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
            ("state", condition(agent)),
            *pausing.facts(agent),
            *(("trouble", trouble) for trouble in agent.troubles),
            *(("reaches", f"{where} of pool {pool}") for pool, where in sorted(agent.reaches.items())),
            ("pools", output.words(agent.pools)),
            ("queues", output.words(agent.queues) if agent.queues else "all of its pools"),
            ("tags", output.words(agent.tags)),
            ("found tags", output.words(agent.found_tags)),
            ("active", f"{agent.active} of {agent.limit}"),
            ("capacity", output.amounts(agent.capacity)),
            ("free", output.amounts(agent.free_capacity)),
            ("host", agent.host or "-"),
            ("version", agent.version or "-"),
            ("first seen", f"{local(agent.first_seen_at)} ({ago(agent.first_seen_at)})"),
            ("last seen", f"{local(agent.last_seen_at)} ({ago(agent.last_seen_at)})"),
        ]
    )


@group.command("pause")
def pause(name: NameArgument, reason: ReasonOption = "", output_as: OutputOption = Output.TABLE) -> None:
    """Give an agent nothing new; what it has goes on, and so does the agent.

    Until it is resumed, in this life of it and those to come.
    """
    _set_paused(name, True, output_as, reason)


@group.command("resume")
def resume(name: NameArgument, output_as: OutputOption = Output.TABLE) -> None:
    """Give an agent runs again."""
    _set_paused(name, False, output_as)


def _set_paused(name: str, paused: bool, output_as: Output, reason: str = "") -> None:
    from shunter_work_pools.contracts.agents import AgentPatch

    patch = pausing.patch(AgentPatch, paused, reason)
    with connect() as client:
        agent = naming.found(client, naming.AGENT, name, lambda one: client.update_agent(one, patch))
    if output_as is not Output.TABLE:
        output.show_object(agent, output_as)
    else:
        output.say(f"agent {agent.name} {'paused' if agent.paused else 'resumed'}")


@group.command("drain")
def drain(
    name: NameArgument,
    wait: Annotated[bool, typer.Option("--wait", help="Until nothing of it runs any more.")] = False,
    output_as: OutputOption = Output.TABLE,
) -> None:
    """Tell an agent to take nothing new; it ends once its runs have.

    This life of it only: started again, it takes runs.
    """
    with connect() as client:
        found = naming.found(client, naming.AGENT, name, client.get_agent)
        agent = client.drain_agent(found.name)
        if wait:
            agent = _emptied(client, agent)
    if output_as is not Output.TABLE:
        output.show_object(agent, output_as)
    elif agent.active:
        goes = "goes" if agent.active == 1 else "go"
        output.say(f"agent {agent.name} drains; {output.counted(agent.active, 'run')} of it {goes} on")
    else:
        output.say(f"agent {agent.name} drains; nothing of it runs")


def _emptied(client: Client, agent: Agent) -> Agent:
    """The agent once it holds nothing; a server that goes away meanwhile is waited for."""
    told = False
    while agent.active:
        time.sleep(live.EVERY)
        try:
            agent = client.get_agent(agent.name)
        except (ServerUnreachable, Unavailable) as exc:
            if not told:
                tell(f"{exc.detail}; waiting for it to come back")
            told = True
            continue
        told = False
        if not agent.draining:
            raise Conflict(f"agent {agent.name} was started anew and takes runs again", "Drain it again.")
        if agent.lost and agent.active:
            raise Conflict(
                f"agent {agent.name} was lost while it drained, with {output.counted(agent.active, 'run')}",
                "Start it again under its name: it finds its runs. If its machine is gone for good: "
                f"`shunter agent remove {agent.name}`.",
            )
    return agent


@group.command("remove")
def remove(name: NameArgument, yes: YesOption = False, output_as: OutputOption = Output.TABLE) -> None:
    """Forget an agent that is gone; one that still runs is not forgotten.

    The runs that a lost one holds end now, as the deployment's --on-lost says (wait: as Crashed): only if its
    machine is gone for good, for otherwise they may go on there, and run twice.
    """
    with connect() as client:
        agent = naming.whole(client, naming.AGENT, name, client.get_agent)
        give_up = agent.lost and agent.active > 0
        runs = (
            f" with {output.counted(agent.active, 'run')} of it that may still go on there" if give_up else ""
        )
        confirm.removal(f"agent {agent.name}, seen {ago(agent.last_seen_at)},{runs}".rstrip(","), yes=yes)
        client.remove_agent(agent.name, give_up=give_up)
        if give_up:
            tell(
                f"Warning: {output.counted(agent.active, 'run')} of it ended; what goes on there is not known"
            )
    if output_as is not Output.TABLE:
        output.show_object(agent, output_as)
    else:
        output.say(f"agent {agent.name} removed")
