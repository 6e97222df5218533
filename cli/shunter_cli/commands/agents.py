"""``shunter agent``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shunter_cli import agent_policy, checks, confirm, installing, joining, live, naming, output, pausing
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
from shunter_work_pools.contracts.errors import Conflict, InvalidInput, ServerUnreachable, Unavailable
from shunter_work_pools.contracts.home import home_from_env
from shunter_work_pools.contracts.settings import JOIN_VARIABLE

if TYPE_CHECKING:
    from shunter_work_pools.client import Client
    from shunter_work_pools.contracts.agents import Agent

group = typer.Typer(no_args_is_help=True, help="Agents: the daemons that take runs and launch them.")

NameArgument = Annotated[str, typer.Argument(help="The agent's name.", metavar="NAME", autocompletion=agents)]
ServedPools = Annotated[
    list[str] | None,
    typer.Option(
        help="A pool to serve, in order of preference. Default: what it joined for. Repeatable.",
        metavar="NAME",
    ),
]
ServedQueues = Annotated[
    list[str] | None, typer.Option(help="Serve only this queue of its pools. Repeatable.", metavar="NAME")
]
OwnTags = Annotated[
    list[str] | None, typer.Option(help="What runs may require of it. Repeatable.", metavar="TAG")
]
OwnName = Annotated[
    str | None,
    typer.Option(
        help="Its name, by default that of the one agent that joined here, else HOST-POOL; under it it finds its runs "
        "again.",
        metavar="NAME",
    ),
]
CreatePool = Annotated[
    str | None,
    typer.Option(
        help="Make its pools if they are not there: process, docker or kubernetes. The agent must be allowed to.",
        metavar="TYPE",
    ),
]
TemplateFile = Annotated[
    str | None,
    typer.Option(
        help="With --create-pool: the template that these pools are to have, a JSON object.", metavar="FILE"
    ),
]
Match = Annotated[
    list[str] | None,
    typer.Option(
        help="With --create-pool: a match tag that these pools are to have: deployments that name no pool and carry "
        "them all go there. Repeatable.",
        metavar="TAG",
    ),
]
NoMatch = Annotated[
    bool, typer.Option("--no-match", help="With --create-pool: they are to have no match tags.")
]


def attach(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(group, name="agent")


@group.command("start")
@taking(OF_AGENT)
def start(
    flags: dict[str, Any],
    pool: ServedPools = None,
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
    create_pool: CreatePool = None,
    template_file: TemplateFile = None,
    match: Match = None,
    no_match: NoMatch = False,
) -> None:
    """Serve pools: take runs that are due, launch them, report back.

    Runs until it is told to stop. SIGTERM or Ctrl-C: it takes nothing new, waits for its runs (as long as
    --drain-grace allows; then --drain-end decides), delivers what it owes, also to a server that is away
    for a while, and ends with exit code 0. A second one cancels its runs; then it ends also while the
    server is away, and its next start delivers. Killed, it finds its runs again at the next start under
    the same name.
    """
    words = _checked(pool, flags, queue, tag, name)
    words += _of_pools(create_pool, template_file, match, no_match=no_match)
    if max_lifetime is not None:
        words += ["--max-lifetime", f"{seconds(max_lifetime, '--max-lifetime', zero=False)!r}"]
    words += ["--once"] * once + ["--until-idle"] * until_idle + ["--take-over"] * take_over
    # The daemon lives for months: it leaves the command line's libraries behind, and keeps the pid.
    os.execv(sys.executable, [sys.executable, "-m", "shunter_agents", *words])  # nosec B606 # a list of words, no shell: that is the point


def _of_pools(
    create_pool: str | None, template_file: str | None, match: list[str] | None, *, no_match: bool
) -> list[str]:
    given = {"--template-file": template_file, "--match": match, "--no-match": no_match}
    if create_pool is None:
        alone = next((option for option, value in given.items() if value), None)
        if alone is not None:
            raise InvalidInput(f"{alone} says nothing without --create-pool")
        return []
    from shunter_agents.options import template_of
    from shunter_cli.commands.pools import PoolType

    if create_pool not in list(PoolType):
        raise InvalidInput(
            f"--create-pool {create_pool!r}: there is no such type", f"Use {', '.join(PoolType)}."
        )
    if match and no_match:
        raise InvalidInput("--match and --no-match contradict each other")
    checks.tags("--match", match or [])
    words = ["--create-pool", create_pool, *(word for tag in match or [] for word in ("--match", tag))]
    if template_file is not None:
        template_of(template_file)
        words += ["--template-file", os.path.abspath(template_file)]
    return words + ["--no-match"] * no_match


def _checked(
    pool: list[str] | None,
    flags: dict[str, Any],
    queue: list[str] | None,
    tag: list[str] | None,
    name: str | None,
) -> list[str]:
    """The words after ``agent start``; what is wrong in them is told here, in the words of all commands."""
    checks.names("--pool", pool or [])
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
    flags: dict[str, Any],
    pool: ServedPools = None,
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

        if not pool:
            raise InvalidInput(
                "nothing says which agent it is", "Name it with --name, or its pool with --pool."
            )
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


@group.command("invite")
def invite(
    pool: Annotated[str, typer.Option(help="The pool that the agents will serve.", metavar="NAME")],
    uses: Annotated[int, typer.Option(help="So many agents may join by it.", min=1, metavar="N")] = 1,
    expires: Annotated[str, typer.Option(help="How long it holds.", metavar="DURATION")] = "1h",
    name: Annotated[
        str | None, typer.Option(help="What the invitation is called in `shunter key list`.", metavar="LABEL")
    ] = None,
    manage_pools: Annotated[
        bool,
        typer.Option(
            "--manage-pools", help="These agents may make the pool, and set its template and match tags."
        ),
    ] = False,
    url: Annotated[
        str | None,
        typer.Option(help="The address by which the agents reach the server. Default: yours.", metavar="URL"),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(
            help="The image of the line for Docker, whose entrypoint is shunter. Default: what `make images` makes.",
            metavar="IMAGE",
        ),
    ] = None,
    output_as: OutputOption = Output.TABLE,
    quiet: QuietOption = False,
) -> None:
    """Make an enrolment token, by which agents join; it is shown this once.

    `shunter key list` shows the invitations there are, `shunter key revoke` takes one back.
    """
    from shunter_agents.joining import root_of
    from shunter_work_pools.contracts.identities import InvitationRequest

    checks.names("--pool", [pool])
    checks.names("--name", [name] if name is not None else [])
    request = InvitationRequest(
        pool=pool,
        name=name,
        uses=uses,
        expires_in=seconds(expires, "--expires", zero=False),
        manage_pools=manage_pools,
    )
    with connect() as client:
        made = client.invite(request)
        address = root_of(url) if url is not None else client.api_url
        lines = dict(joining.lines(address, made.token, image))
        # Each pod that there will ever be spends a use of it.
        if uses > 1 and (its := client.get_pool(pool).type) != "docker":
            lines["Kubernetes"] = joining.line_for_helm(
                address, made.token, pool, its, manage_pools=manage_pools
            )
    if output_as is not Output.TABLE:
        output.show_data({**made.model_dump(mode="json"), "lines": lines}, output_as)
        return
    if quiet:
        output.say(made.token)
        return
    assert made.key.expires_at is not None
    output.say(
        f"invitation {made.key.name}: {output.counted(uses, 'agent')} of pool {pool} may join until "
        f"{local(made.key.expires_at)} by this token, which is not shown again:\n\n  {made.token}"
    )
    for place_, line in lines.items():
        output.say(
            f"\n{'In' if place_ in ('Docker', 'Kubernetes') else 'As' if 'service' in place_ else 'On'} {place_}:\n\n  {line}"
        )
    if joining.is_of_this_machine(address):
        tell(f"\n{address} is reached from this machine alone: name another address with --url")


@group.command("join")
@taking(OF_AGENT)
def join(
    url: Annotated[
        str, typer.Argument(help="The server's address, such as https://shunter.example.com/api.")
    ],
    flags: dict[str, Any],
    name: Annotated[
        str | None, typer.Option(help="The agent's name. Default: HOST-POOL.", metavar="NAME")
    ] = None,
    token_file: Annotated[
        str | None,
        typer.Option(
            help=f"A file with the enrolment token, - for stdin. Default: the variable {JOIN_VARIABLE}, else it is "
            "asked for.",
            metavar="FILE",
        ),
    ] = None,
    start_: Annotated[
        bool, typer.Option("--start", help="Start the agent then, with the options given here.")
    ] = False,
    install_: Annotated[
        bool,
        typer.Option("--install", help="Make a service of it, which systemd starts now and at each boot."),
    ] = False,
    user: UserOption = False,
    run_as: RunAsOption = None,
    queue: ServedQueues = None,
    tag: OwnTags = None,
    create_pool: CreatePool = None,
    template_file: TemplateFile = None,
    match: Match = None,
    no_match: NoMatch = False,
) -> None:
    """Become an agent of a server, by the enrolment token that `shunter agent invite` gave.

    The agent gets a credential of its own, kept in its state folder and renewed by itself; `shunter agent start` needs
    nothing else then. Said again, it goes on where it was broken off, and one that has joined already is left as it is.
    """
    from shunter_agents.credential import Stored
    from shunter_agents.joining import already, root_of
    from shunter_agents.joining import join as join_server

    if start_ and install_:
        raise InvalidInput("--start and --install contradict each other", "--install starts it, too.")
    if not install_ and (user or run_as is not None):
        raise InvalidInput("--user and --run-as are for --install")
    words = _checked(None, flags, queue, tag, name)
    words += _of_pools(create_pool, template_file, match, no_match=no_match)
    root = root_of(url)
    account = installing.prepare_home(user=user, run_as=run_as) if install_ else None
    agents = home_from_env().agents
    stored: Stored | None = already(agents, root, name, away_too=start_)
    if stored is not None:
        tell(f"agent {stored.agent} has joined {root} already")
    else:
        token = joining.given_token(token_file)
        stored = joining.when_there(
            lambda: join_server(
                agents, root, token, name, made=lambda folder: installing.give(folder, agents, account)
            ),
            waits=start_,
        )
        tell(f"agent {stored.agent} has joined {root} for {output.words(stored.pools)}")
    os.environ.pop(JOIN_VARIABLE, None)
    if name is None:
        words += ["--name", stored.agent]
    if start_:
        os.execv(sys.executable, [sys.executable, "-m", "shunter_agents", *words])  # nosec B606 # a list of words, no shell: that is the point
    if install_:
        service = installing.planned(
            _unit(stored.agent), ["agent", "start", *words], flags, user=user, run_as=run_as, of="agent"
        )
        text = agent_unit(service, stored.agent, installing.systemd_version())
        installing.install(service, text, now=True, joined=True)
    else:
        tell(f"  Start it: shunter agent start --name {stored.agent}")


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


@group.command("policy")
def policy(
    policy: Annotated[
        str | None, typer.Option(help="This file, whatever the setting agent.policy says.", metavar="FILE")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="The file agent.toml in the state folder of this agent, if there is one.", metavar="NAME"
        ),
    ] = None,
    output_as: OutputOption = Output.TABLE,
) -> None:
    """Check the policy of an agent of this machine, and show its rules: what it runs, whatever its server says.

    The file is read as `agent start` does, which would end with the same error. No server is asked.
    """
    checks.names("--name", [name] if name is not None else [])
    agent_policy.show(policy, name, output_as)


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
