"""``shunter deploy``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from shunter_cli import (
    causes,
    checks,
    code_options,
    completing,
    durations,
    faults,
    limit_words,
    output,
    parameters,
    schedule_options,
    sizes,
)
from shunter_cli.commands import templates
from shunter_cli.connection import connect, pool_names
from shunter_cli.limit_words import WhenFull
from shunter_cli.output import Output, OutputOption
from shunter_work_pools.contracts.errors import InvalidInput

if TYPE_CHECKING:
    from shunter_work_pools.client import Client
    from shunter_work_pools.contracts.deployments import Applied, DeploymentSpec, MoreMemory
    from shunter_work_pools.contracts.secrets import EnvValue

#: Options that go with a deployment file.
_OF_FILES = frozenset({"file", "only", "dry_run", "no_check", "output_as"})


class OnLost(StrEnum):
    """What happens to a run whose agent stays silent."""

    WAIT = "wait"
    RETRY = "retry"
    CRASH = "crash"


class CatchUp(StrEnum):
    """What becomes of missed slots."""

    ALL = "all"
    LATEST = "latest"
    NONE = "none"


class DeployCommand(typer.core.TyperCommand):
    """Takes everything behind ``--`` as the command, untouched."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep the words behind the first ``--`` for the function, parse the others."""
        if "--" in args:
            at = args.index("--")
            ctx.meta["shunter.command"] = args[at + 1 :]
            args = args[:at]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Name the command in the usage line."""
        return [*super().collect_usage_pieces(ctx), "[-- COMMAND...]"]


def attach(app: typer.Typer) -> None:
    """Add the command."""
    app.command("deploy", cls=DeployCommand)(deploy)


def deploy(
    ctx: typer.Context,
    entrypoint: Annotated[
        str | None,
        typer.Argument(
            help="path.py:function, module:function or path.py, from this folder. Or a command behind --.",
            metavar="ENTRYPOINT",
        ),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            "--file", "-f", help="A deployment file; by default shunter.yaml or .toml here.", metavar="FILE"
        ),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="This one of the file. Repeatable.", metavar="NAME")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would change.")] = False,
    name: Annotated[str, typer.Option(help="The deployment's name.", metavar="NAME")] = "",
    pool: Annotated[
        str | None,
        typer.Option(
            help="Where it runs; by its tags if none is named.",
            metavar="NAME",
            autocompletion=completing.pools,
        ),
    ] = None,
    queue: Annotated[
        str | None,
        typer.Option(
            help="The pool's work queue, by default the one named default.",
            metavar="NAME",
            autocompletion=completing.queues,
        ),
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A label. Repeatable.", metavar="TAG")] = None,
    require: Annotated[
        list[str] | None, typer.Option(help="A tag its agent must have. Repeatable.", metavar="TAG")
    ] = None,
    need: Annotated[
        list[str] | None,
        typer.Option(
            help="What a run takes of its agent, as in gpu=1, cpu=0.5, memory=8GiB. Repeatable.",
            metavar="NAME=AMOUNT",
        ),
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            help="A limit that its runs share with others. Repeatable.",
            metavar="NAME",
            autocompletion=completing.limits,
        ),
    ] = None,
    max_active: Annotated[
        int | None, typer.Option(help="Of its runs, so many at once.", min=0, metavar="N")
    ] = None,
    when_full: Annotated[
        WhenFull, typer.Option(help="What becomes of a run that is due while --max-active is reached.")
    ] = WhenFull.ENQUEUE,
    interval: Annotated[str | None, typer.Option(help="Run every 60s, 5m, 1h30m.", metavar="TIME")] = None,
    cron: Annotated[
        str | None, typer.Option(help="Run by a cron expression, as in '0 6 * * *'.", metavar="EXPR")
    ] = None,
    rrule: Annotated[
        str | None, typer.Option(help="Run by a rule of RFC 5545, \\n between its lines.", metavar="RULE")
    ] = None,
    timezone: Annotated[
        str | None,
        typer.Option(help="Zone of the schedule, as in Europe/Berlin; by default UTC.", metavar="ZONE"),
    ] = None,
    day_and: Annotated[
        bool, typer.Option("--day-and", help="Days of month and of week must both match (cron).")
    ] = False,
    anchor: Annotated[str | None, typer.Option(help="From when --interval counts.", metavar="TIME")] = None,
    jitter: Annotated[
        str | None, typer.Option(help="Start within this time after the slot.", metavar="TIME")
    ] = None,
    start: Annotated[str | None, typer.Option(help="No slots before.", metavar="TIME")] = None,
    end: Annotated[str | None, typer.Option(help="No slots after.", metavar="TIME")] = None,
    catch_up: Annotated[CatchUp, typer.Option(help="Which missed slots are made up for.")] = CatchUp.ALL,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", "-p", help="A parameter. Repeatable.", metavar="KEY=VALUE"),
    ] = None,
    params_file: Annotated[
        str | None, typer.Option(help="Parameters as a JSON object in a file, - for stdin.", metavar="FILE")
    ] = None,
    retries: Annotated[int, typer.Option(help="Further attempts if one does not complete.", metavar="N")] = 0,
    retry_delay: Annotated[
        str, typer.Option(help="Time between the first two attempts.", metavar="TIME")
    ] = "0s",
    retry_backoff: Annotated[
        float, typer.Option(help="Each further delay is so many times the one before.", metavar="N")
    ] = 1.0,
    retry_max_delay: Annotated[
        str, typer.Option(help="A delay that grows does so up to this.", metavar="TIME")
    ] = "1h",
    retry_jitter: Annotated[
        float, typer.Option(help="Up to this share of a delay, 0 to 1, is added to it.", metavar="N")
    ] = 0.0,
    retry_on: Annotated[
        list[str] | None,
        typer.Option(
            help="Only after this cause, as in oom; by default after any. Repeatable.", metavar="CAUSE"
        ),
    ] = None,
    retry_uncounted: Annotated[
        list[str] | None,
        typer.Option(
            help="After this cause (preempted, evicted, node_lost) always, and without counting. Repeatable.",
            metavar="CAUSE",
        ),
    ] = None,
    retry_memory: Annotated[
        str | None,
        typer.Option(
            help="After oom with so many times the memory, up to a limit: 2x:8GiB.", metavar="FACTOR:SIZE"
        ),
    ] = None,
    timeout: Annotated[str | None, typer.Option(help="Longest time of an attempt.", metavar="TIME")] = None,
    start_timeout: Annotated[
        str, typer.Option(help="Longest time until it has started.", metavar="TIME")
    ] = "5m",
    grace: Annotated[str, typer.Option(help="Time between SIGTERM and SIGKILL.", metavar="TIME")] = "10s",
    memory_limit: Annotated[
        str | None, typer.Option(help="Memory of all its processes together, as in 512MiB.", metavar="SIZE")
    ] = None,
    priority: Annotated[int, typer.Option(help="Within the queue, higher first.", metavar="N")] = 0,
    env: Annotated[
        list[str] | None,
        typer.Option(help="A variable of the run. Repeatable.", metavar="NAME=VALUE"),
    ] = None,
    secret_env: Annotated[
        list[str] | None,
        typer.Option(
            help="A variable whose value is a secret of `shunter secret set`. Repeatable.",
            metavar="NAME=SECRET",
        ),
    ] = None,
    agent_secret_env: Annotated[
        list[str] | None,
        typer.Option(
            help="A variable whose value is a secret that its agent has itself. Repeatable.",
            metavar="NAME=SECRET",
        ),
    ] = None,
    pass_env: Annotated[
        list[str] | None,
        typer.Option(help="A variable taken over from the agent. Repeatable.", metavar="NAME"),
    ] = None,
    working_dir: Annotated[
        str | None, typer.Option(help="Where it starts, by default a folder of its own.", metavar="DIR")
    ] = None,
    run_as: Annotated[
        str | None,
        typer.Option(
            help="The user of the agent's machine as whom it runs, by default the agent's own.",
            metavar="USER",
        ),
    ] = None,
    python: Annotated[
        str | None,
        typer.Option(
            help="Interpreter of an entrypoint, by default the agent's; of an environment, its version.",
            metavar="PATH|VERSION",
        ),
    ] = None,
    git: Annotated[
        str | None,
        typer.Option(help="The code is in this repository: https, ssh, or user@host:path.", metavar="URL"),
    ] = None,
    branch: Annotated[str | None, typer.Option(help="Of --git; by default its own.", metavar="NAME")] = None,
    git_tag: Annotated[str | None, typer.Option(help="Of --git.", metavar="NAME")] = None,
    commit: Annotated[str | None, typer.Option(help="Of --git.", metavar="SHA")] = None,
    archive: Annotated[
        str | None,
        typer.Option(help="The code is in this zip, tar or whl: https://, s3:// and others.", metavar="URL"),
    ] = None,
    sha256: Annotated[str | None, typer.Option(help="That --archive must have.", metavar="HEX")] = None,
    source_folder: Annotated[
        str | None, typer.Option(help="Of --git or --archive, where the code is.", metavar="DIR")
    ] = None,
    source_secret: Annotated[
        str | None, typer.Option(help="The secret that opens --git or --archive.", metavar="NAME")
    ] = None,
    source_user: Annotated[
        str | None, typer.Option(help="Of --git over https, beside the secret.", metavar="NAME")
    ] = None,
    no_source: Annotated[
        bool, typer.Option("--no-source", help="Nothing of this folder is needed: the code is installed.")
    ] = False,
    package: Annotated[
        list[str] | None,
        typer.Option(
            help="Its agent builds an environment with this, as in 'pandas>=2'. Repeatable.",
            metavar="REQUIREMENT",
        ),
    ] = None,
    requirements: Annotated[
        str | None, typer.Option(help="Likewise, with this file of the source.", metavar="FILE")
    ] = None,
    lock: Annotated[
        str | None,
        typer.Option(help="Likewise, by uv.lock, pylock.toml or requirements with hashes.", metavar="FILE"),
    ] = None,
    token: Annotated[
        bool,
        typer.Option(
            "--token",
            help="Its runs are given a token to speak to the server of themselves; flows in containers and pods need it.",
        ),
    ] = False,
    var: Annotated[
        list[str] | None,
        typer.Option(
            help="A variable over that of its pool's template, as in image=python:3.12. Repeatable.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    description: Annotated[str, typer.Option(help="For people.", metavar="TEXT")] = "",
    on_lost: Annotated[
        OnLost, typer.Option(help="What to do with a run whose agent stays silent.")
    ] = OnLost.CRASH,
    exclusive: Annotated[
        bool,
        typer.Option("--exclusive", help="Two attempts never work at once: cut off, its agent ends it."),
    ] = False,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Deploy what exists only where the agent runs.")
    ] = False,
    output_as: OutputOption = Output.TABLE,
) -> None:
    """Make deployments, or new revisions of them.

    Those of shunter.yaml or shunter.toml in this folder, all or none; or one, a Python function with its
    parameters or any command:

    \b
      shunter deploy --dry-run
      shunter deploy pipeline.py:main --name pipeline -p year=2013
      shunter deploy --name hello --interval 60s -- sh -c 'echo hello'

    Relative paths are meant from this folder. The same again changes nothing.
    """
    from shunter_work_pools.contracts.deployments import DeploymentSpec, RetryPolicy, Work

    command = ctx.meta.get("shunter.command")
    if file is not None or only or (entrypoint is None and command is None and not name):
        _refuse_options(ctx, command)
        from shunter_cli.deployment_files.applying import deploy_file

        deploy_file(file, only or [], dry_run=dry_run, check=not no_check, form=output_as)
        return
    if not name:
        raise InvalidInput("a deployment needs a name", "Give it with --name.")
    checks.names("--name", [name])
    checks.names("--pool", [pool] if pool is not None else [])
    checks.names("--limit", limit or [])
    if when_full is not WhenFull.ENQUEUE and not max_active:
        raise InvalidInput(
            f"--when-full {when_full} needs a --max-active of at least 1", "As in: --max-active 1."
        )
    said = code_options.Said(
        git=git,
        branch=branch,
        tag=git_tag,
        commit=commit,
        archive=archive,
        sha256=sha256,
        folder=source_folder,
        secret=source_secret,
        user=source_user,
        no_source=no_source,
        requirements=package or [],
        requirements_file=requirements,
        lock=lock,
    )
    fetched = code_options.source(said)
    remote = fetched is not None or no_source
    environment = code_options.environment(said, python, None if remote or no_check else Path.cwd())
    # What is fetched or installed is not at hand: it is looked at where it runs.
    at_hand = not no_check and not remote and environment is None
    target = _target(entrypoint, command, None if environment else python, check=at_hand)
    work = Work(
        command=target.command,
        entrypoint=target.entrypoint,
        source=fetched if remote else str(target.source),
        environment=environment,
        working_dir=_working_dir(working_dir, remote, check=not no_check),
        env=_variables(env or [], secret_env or [], agent_secret_env or []),
        pass_env=pass_env or [],
        python=target.python,
        timeout=durations.seconds(timeout, "--timeout", zero=False) if timeout is not None else None,
        start_timeout=durations.seconds(start_timeout, "--start-timeout", zero=False),
        grace=durations.seconds(grace, "--grace"),
        memory_limit=sizes.memory(memory_limit, "--memory-limit") if memory_limit is not None else None,
        run_as=checks.user("--run-as", run_as) if run_as is not None else None,
        token=token,
    )
    spec = DeploymentSpec(
        work=work,
        parameters=parameters.parse(param or [], target.schema, params_file),
        parameter_schema=target.schema,
        tags=tag or [],
        require=require or [],
        need=limit_words.amounts(need or [], "--need"),
        limits=limit or [],
        max_active=max_active,
        when_full=when_full.value,
        pool=pool,
        queue=queue,
        priority=priority,
        schedules=schedule_options.schedules(
            schedule_options.Said(
                interval, cron, rrule, timezone, day_and, anchor, jitter, start, end, catch_up.value
            )
        ),
        retries=RetryPolicy(
            count=retries,
            delay=durations.seconds(retry_delay, "--retry-delay"),
            backoff=retry_backoff,
            max_delay=durations.seconds(retry_max_delay, "--retry-max-delay"),
            jitter=retry_jitter,
            on=causes.retried(retry_on or [], "--retry-on"),
            uncounted=causes.uncounted(retry_uncounted or [], "--retry-uncounted"),
            more_memory=_more_memory(retry_memory),
        ),
        on_lost=on_lost.value,
        exclusive=exclusive,
        variables=templates.given(var or [], None, "--var"),
        description=description or target.description,
    )
    with connect() as client:
        listing = "`shunter pool list` shows the pools there are."
        with faults.suggesting(pool or "", lambda: pool_names(client), listing):
            if dry_run:
                _show_difference(client, name, spec, output_as)
                return
            applied = client.deploy(name, spec)
    for warning in applied.warnings:
        faults.tell(f"Warning: {warning}")
    if output_as is not Output.TABLE:
        output.show_object(applied, output_as)
    else:
        output.say(_summary(applied))


def _refuse_options(ctx: typer.Context, command: Sequence[str] | None) -> None:
    """Whatever is said of one deployment does not go with a file of them."""
    given = [one for one in ctx.command.params if _is_given(ctx, one.name) and one.name not in _OF_FILES]
    if command is None and not given:
        return
    what = "a command behind --" if command is not None else given[0].opts[0]
    if what == "entrypoint":
        what = "an entrypoint"
    raise InvalidInput(
        f"{what} does not go with a deployment file",
        "Write it into the file; or deploy without -f: name an entrypoint, or a command behind --, and --name.",
    )


def _is_given(ctx: typer.Context, name: str | None) -> bool:
    source = ctx.get_parameter_source(name) if name else None
    return source is not None and source.name == "COMMANDLINE"


def _show_difference(client: Client, name: str, spec: DeploymentSpec, form: Output) -> None:
    from shunter_cli.deployment_files import applying
    from shunter_work_pools.contracts.deployments import ApplyRequest, Named

    named = [Named(name=name, spec=spec)]
    changes = client.apply(ApplyRequest(deployments=named, dry_run=True)).deployments
    applying.show(named, changes, dry_run=True, form=form)


@dataclass(frozen=True)
class Target:
    """What is to be run, and what is known of its parameters."""

    source: Path
    command: list[str] | None = None
    entrypoint: str | None = None
    python: str | None = None
    schema: dict[str, Any] | None = None
    description: str = ""


def _target(
    entrypoint: str | None, command: Sequence[str] | None, python: str | None, *, check: bool
) -> Target:
    source = Path.cwd()
    if (entrypoint is None) == (command is None):
        raise InvalidInput(
            f"{'both an entrypoint and a command were' if entrypoint else 'nothing to run was'} given",
            "Name an entrypoint such as pipeline.py:main, or a command behind --.",
        )
    if command is not None:
        if not command or not command[0]:
            raise InvalidInput("there is no command behind --", "As in: -- sh -c 'echo hello'")
        if python:
            raise InvalidInput("--python is for an entrypoint", "A command names its interpreter itself.")
        if check:
            checks.command(command, source)
        return Target(source, command=list(command))
    chosen = checks.interpreter(python, check=check) if python else None
    if not check:
        return Target(source, entrypoint=entrypoint, python=chosen)
    assert entrypoint is not None
    found = checks.entrypoint(entrypoint, source, chosen)
    return Target(
        source,
        entrypoint=entrypoint,
        python=chosen,
        schema=found.get("parameter_schema"),
        description=str(found.get("description") or "")[:10_000],
    )


def _working_dir(text: str | None, remote: bool, *, check: bool) -> str | None:
    """A folder of this machine; of a source that the agent fetches, as it is written: from there."""
    if not text or remote:
        return text or None
    return checks.folder("--working-dir", text, check=check)


def _variables(
    plain: Sequence[str], secret: Sequence[str], agent_secret: Sequence[str]
) -> dict[str, EnvValue]:
    from shunter_work_pools.contracts.secrets import FromAgent, FromSecret

    pairs: dict[str, EnvValue] = dict(
        _pairs("--env", plain, "--pass-env NAME takes over the agent's variable.")
    )
    for flag, words in (("--secret-env", secret), ("--agent-secret-env", agent_secret)):
        for key, name in _pairs(flag, words, f"As in {flag} PASSWORD=warehouse.").items():
            checks.names(flag, [name])
            if key in pairs:
                raise InvalidInput(f"{flag} {key}: the variable {key} is given twice", "Give it once.")
            pairs[key] = FromSecret(secret=name) if flag == "--secret-env" else FromAgent(agent_secret=name)
    return pairs


def _pairs(flag: str, words: Sequence[str], remedy: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise InvalidInput(f"{flag} {word!r} is not NAME=VALUE", remedy)
        pairs[key] = text
    return pairs


def _summary(applied: Applied) -> str:
    from shunter_cli.commands.deployments import next_slot, timing

    one = applied.deployment
    if not applied.changed:
        return f"{one.name} is unchanged (revision {one.revision})"
    parts = [f"pool {one.spec.pool}" if one.spec.pool else "pool by tags"]
    parts += [timing(schedule) for schedule in one.schedules]
    if upcoming := next_slot(one):
        parts.append(f"next {durations.local(upcoming)}")
    return f"{one.name} deployed as revision {one.revision} ({', '.join(parts)})"


def _more_memory(text: str | None) -> MoreMemory | None:
    """``2x:8GiB``.

    Raises:
        InvalidInput: it does not look like that.
    """
    from shunter_work_pools.contracts.deployments import MoreMemory

    if text is None:
        return None
    factor, colon, most = text.partition(":")
    try:
        times = float(factor.strip().removesuffix("x"))
    except ValueError:
        times = 0.0
    if not colon or not 1 < times <= 100:
        raise InvalidInput(
            f"--retry-memory {text!r} is no factor above 1, at most 100, with a limit",
            "As in 2x:8GiB: twice as much each time, up to 8 GiB.",
        )
    return MoreMemory(factor=times, up_to=sizes.memory(most, "--retry-memory"))
