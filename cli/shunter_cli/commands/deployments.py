"""``shunter deployment``."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from shunter_cli import code_words, confirm, faults, live, naming, output, pausing
from shunter_cli.completing import deployments
from shunter_cli.connection import connect
from shunter_cli.durations import ago, exactly, local
from shunter_cli.filters import PoolOption, QueueOption, TagsOption, place
from shunter_cli.output import Output, OutputOption, QuietOption, WatchOption, YesOption
from shunter_cli.pausing import ReasonOption
from shunter_cli.secret_words import origin
from shunter_work_pools.contracts.sizes import size

if TYPE_CHECKING:
    from datetime import datetime

    from shunter_cli.backfilling import Filled
    from shunter_work_pools.client import Client
    from shunter_work_pools.contracts.deployments import (
        Deployment,
        DeploymentSpec,
        RetryPolicy,
        Revision,
        ScheduleView,
    )
    from shunter_work_pools.contracts.secrets import EnvValue

group = typer.Typer(no_args_is_help=True, help="Deployments: named, runnable things.")

NameArgument = Annotated[
    str, typer.Argument(help="The deployment's name.", metavar="NAME", autocompletion=deployments)
]

#: Waiting runs of a deployment that are counted before it is deleted.
_COUNTED = 500


def attach(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(group, name="deployment")


@group.command("list")
def list_(
    tag: TagsOption = None,
    pool: PoolOption = None,
    queue: QueueOption = None,
    watch: WatchOption = False,
    output_as: OutputOption = Output.TABLE,
    quiet: QuietOption = False,
) -> None:
    """Show all deployments, or some.

    Those that name no pool are in none: where their tags lead is seen run by run.
    """
    with connect() as client:
        of_pool, of_queue = place(client, pool, queue)

        def wanted(one: Deployment) -> bool:
            return (
                set(tag or []) <= set(one.spec.tags)
                and of_pool in (None, one.spec.pool)
                and of_queue in (None, one.spec.queue or "default")
            )

        live.show(
            lambda: list(filter(wanted, client.each_deployment())),
            lambda found: _list(found, output_as, quiet),
            watch=watch,
        )


def _list(found: Sequence[Deployment], output_as: Output, quiet: bool) -> None:
    if quiet:
        for one in found:
            output.say(one.name)
    elif output_as is not Output.TABLE:
        output.show_objects(found, output_as)
    else:
        paused = pausing.column(found)
        output.table(
            ("NAME", ">REV", "STATE", "POOL", "SCHEDULE", "NEXT", *paused, "TAGS"),
            [
                (
                    one.name,
                    str(one.revision),
                    pausing.state(one),
                    one.spec.pool or "by tags",
                    output.words(timing(schedule) for schedule in one.schedules),
                    ago(next_slot(one)),
                    *pausing.cell(one, paused),
                    output.words(one.spec.tags),
                )
                for one in found
            ],
            elastic=("NAME", "POOL", "SCHEDULE", *paused, "TAGS"),
            spare=(*paused, "TAGS"),
        )


@group.command("inspect")
def inspect(name: NameArgument, output_as: OutputOption = Output.TABLE) -> None:
    """Show one deployment with its current revision."""
    from shunter_work_pools.contracts.capacity import shown

    with connect() as client:
        found = naming.found(client, naming.DEPLOYMENT, name, client.get_deployment)
    if output_as is not Output.TABLE:
        output.show_object(found, output_as)
        return
    spec, work = found.spec, found.spec.work
    pairs = [
        ("name", found.name),
        ("description", spec.description),
        ("revision", f"{found.revision}, made {ago(found.updated_at)}"),
        ("state", pausing.state(found)),
        *pausing.facts(found),
        ("command" if work.command else "entrypoint", shlex.join(work.command or [work.entrypoint or ""])),
        ("source", code_words.source(work.source)),
        ("builds", code_words.environment(work.environment) if work.environment else ""),
        ("working dir", work.working_dir or ""),
        ("runs as", work.run_as or ""),
        ("token", "its runs are given one" if work.token else ""),
        ("python", work.python or ""),
        ("parameters", output.compact(spec.parameters) if spec.parameters else ""),
        ("pool", f"{spec.pool}, queue {spec.queue or 'default'}" if spec.pool else "by tags"),
        ("tags", ", ".join(spec.tags)),
        ("requires", ", ".join(spec.require)),
        ("needs", shown(spec.need)),
        ("limits", ", ".join(spec.limits)),
        ("runs at once", _at_once(spec)),
        ("priority", str(spec.priority) if spec.priority else ""),
        ("retries", _retries(spec.retries) if spec.retries.count or spec.retries.uncounted else ""),
        ("time-out", exactly(work.timeout) if work.timeout else ""),
        ("grace", exactly(work.grace)),
        ("memory limit", size(work.memory_limit) if work.memory_limit is not None else ""),
        ("if its agent is lost", spec.on_lost),
        ("exclusive", "two attempts never work at once" if spec.exclusive else ""),
        ("environment", ", ".join([*map(_variable, work.env.items()), *work.pass_env])),
    ]
    for schedule in found.schedules:
        state = f"next {local(schedule.next_at)} ({ago(schedule.next_at)})"
        if schedule.paused:
            state = f"paused by {pausing.brief(schedule.pause)}" if schedule.pause else "paused"
        pairs.append((f"schedule {schedule.name}", f"{timing(schedule)}; {state}"))
    output.facts([(key, value) for key, value in pairs if value])


def _variable(one: tuple[str, EnvValue]) -> str:
    """``NAME``; ``NAME (secret warehouse)``. Values are not shown: many are passwords all the same."""
    name, value = one
    return name if isinstance(value, str) else f"{name} ({origin(value.model_dump())})"


def _at_once(spec: DeploymentSpec) -> str:
    """``3``, ``1, when full: cancel_new``; empty if there is no limit."""
    if spec.max_active is None:
        return ""
    return str(spec.max_active) + (f", when full: {spec.when_full}" if spec.when_full != "enqueue" else "")


def _retries(policy: RetryPolicy) -> str:
    """``3, after 10s, each delay 2 times the one before up to 5m, after oom or timeout only``."""
    parts = [f"{policy.count}, after {exactly(policy.delay)}"]
    if policy.backoff > 1:
        most = exactly(max(policy.delay, policy.max_delay))
        parts.append(f"each delay {policy.backoff:g} times the one before up to {most}")
    if policy.jitter:
        parts.append(f"up to {policy.jitter:.0%} more at random")
    if policy.on:
        parts.append(f"after {faults.either((cause.value for cause in policy.on), most=20)} only")
    if policy.uncounted:
        after = faults.either((cause.value for cause in policy.uncounted), most=20)
        parts.append(f"after {after} always and uncounted")
    if policy.more_memory is not None:
        more = policy.more_memory
        parts.append(f"after oom with {more.factor:g} times the memory up to {size(more.up_to)}")
    return ", ".join(parts)


@group.command("history")
def history(name: NameArgument, output_as: OutputOption = Output.TABLE) -> None:
    """Show the revisions of a deployment and what each changed."""
    from shunter_cli.revisions import changes

    with connect() as client:
        found = naming.found(client, naming.DEPLOYMENT, name, client.list_revisions).revisions
    if output_as is not Output.TABLE:
        output.show_objects(found, output_as)
        return
    before: list[Revision | None] = [*found[1:], None]
    output.table(
        (">REV", "", "MADE", "CHANGED"),
        [
            (
                str(one.number),
                "current" if one is found[0] else "",
                local(one.created_at),
                changes(earlier.spec, one.spec) if earlier else "made",
            )
            for one, earlier in zip(found, before, strict=True)
        ],
        elastic=("CHANGED",),
        wrapped="CHANGED",
    )


@group.command("rollback")
def rollback(
    name: NameArgument,
    to: Annotated[
        int | None, typer.Option(help="The revision, by default the one before.", min=1, metavar="N")
    ] = None,
    output_as: OutputOption = Output.TABLE,
) -> None:
    """Make an earlier revision the current one, as a new revision."""
    from shunter_work_pools.contracts.deployments import RollbackRequest

    request = RollbackRequest(to=to)
    with connect() as client:
        applied = naming.found(
            client, naming.DEPLOYMENT, name, lambda one: client.rollback_deployment(one, request)
        )
    for warning in applied.warnings:
        faults.tell(f"Warning: {warning}")
    if output_as is not Output.TABLE:
        output.show_object(applied, output_as)
        return
    one = applied.deployment
    which = f"revision {to}" if to is not None else "the revision before"
    if applied.changed:
        output.say(f"{one.name} is as in {which} again (revision {one.revision})")
    else:
        output.say(f"{one.name} is unchanged: it is as in {which} already (revision {one.revision})")


@group.command("pause")
def pause(name: NameArgument, reason: ReasonOption = "", output_as: OutputOption = Output.TABLE) -> None:
    """Make no more runs by its schedules, and start none that wait."""
    _set_paused(name, True, output_as, reason)


@group.command("resume")
def resume(name: NameArgument, output_as: OutputOption = Output.TABLE) -> None:
    """Let it run again."""
    _set_paused(name, False, output_as)


def _set_paused(name: str, paused: bool, output_as: Output, reason: str = "") -> None:
    from shunter_work_pools.contracts.deployments import DeploymentPatch

    patch = pausing.patch(DeploymentPatch, paused, reason)
    with connect() as client:
        found = naming.found(
            client, naming.DEPLOYMENT, name, lambda one: client.update_deployment(one, patch)
        )
    if output_as is not Output.TABLE:
        output.show_object(found, output_as)
    else:
        output.say(f"deployment {found.name} {'paused' if found.paused else 'resumed'}")


@group.command("delete")
def delete(name: NameArgument, yes: YesOption = False, output_as: OutputOption = Output.TABLE) -> None:
    """Delete a deployment with its schedules, runs and history.

    Its runs that wait are cancelled first; while one is active nothing is deleted.
    `shunter run export --deployment NAME` keeps what is known of them.
    """
    with connect() as client:
        found = naming.whole(client, naming.DEPLOYMENT, name, client.get_deployment)
        confirm.removal(_all_of(client, found), yes=yes)
        client.delete_deployment(found.name)
    if output_as is not Output.TABLE:
        output.show_object(found, output_as)
    else:
        output.say(f"deployment {found.name} deleted")


def _all_of(client: Client, one: Deployment) -> str:
    runs = len(client.list_runs(deployment=one.name, limit=_COUNTED).runs)
    counted = f"{runs} or more runs" if runs == _COUNTED else output.counted(runs, "run")
    parts = [output.counted(one.revision, "revision"), output.counted(len(one.schedules), "schedule")]
    return f"deployment {one.name} with {', '.join(parts)} and {counted}"


@group.command("flush-late")
def flush_late(name: NameArgument, output_as: OutputOption = Output.TABLE) -> None:
    """End the late runs of a deployment that still wait, as skipped.

    `shunter run retry` brings one back.
    """
    from shunter_cli.progress import progress
    from shunter_work_pools.contracts.deployments import Skipped

    total, whole_name = 0, name

    def first(one: str) -> Skipped:
        nonlocal whole_name
        whole_name = one
        return client.flush_late(one)

    with connect() as client, progress("skipping late runs", None) as step:
        answer = naming.found(client, naming.DEPLOYMENT, name, first)
        while True:
            total += answer.runs
            step(answer.runs)
            if not answer.more:
                break
            answer = client.flush_late(whole_name)
    if output_as is not Output.TABLE:
        output.show_object(Skipped(runs=total), output_as)
    else:
        output.say(f"{output.counted(total, 'late run')} of {whole_name} skipped")


@group.command("backfill")
def backfill(
    name: NameArgument,
    start: Annotated[
        str, typer.Option("--from", help="First day or moment, in the schedule's zone.", metavar="TIME")
    ],
    end: Annotated[str, typer.Option("--to", help="Day or moment before which it ends.", metavar="TIME")],
    schedule: Annotated[
        str | None, typer.Option(help="Of this schedule only, by default of all.", metavar="NAME")
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(help="Of its runs, so many at once.", min=1, max=100_000, metavar="N"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how many there would be.")] = False,
    output_as: OutputOption = Output.TABLE,
) -> None:
    """Make the runs of past slots that have none.

    A date means its midnight: --from 2026-11-01 --to 2026-11-08 are seven days. Slots that have a run
    already keep it, so the same again goes on where it was interrupted.
    """
    from shunter_cli.backfilling import fill

    with connect() as client:

        def run(one: str) -> list[Filled]:
            return fill(client, one, schedule, start, end, concurrency, dry_run)

        filled = naming.found(client, naming.DEPLOYMENT, name, run)
    if output_as is not Output.TABLE:
        output.show_objects([one.answer for one in filled], output_as)
        return
    for one in filled:
        output.say(one.in_words(dry_run))


@group.command("events")
def events(name: NameArgument, watch: WatchOption = False, output_as: OutputOption = Output.TABLE) -> None:
    """Show what happened to a deployment itself, oldest first.

    As slots that were not made up for. What happened to a run is in `shunter run events`.
    """
    from shunter_cli.commands.runs import draw_events

    with connect() as client:
        live.show(
            lambda: naming.found(client, naming.DEPLOYMENT, name, client.list_deployment_events).events,
            lambda found: draw_events(found, output_as, attempts=False),
            watch=watch,
        )


def timing(schedule: ScheduleView) -> str:
    """A schedule in a few words."""
    if schedule.when.kind == "interval":
        return f"every {exactly(schedule.when.seconds)}"
    return schedule.words


def next_slot(deployment: Deployment) -> datetime | None:
    """The earliest next slot of its schedules; None without one."""
    return min((one.next_at for one in deployment.schedules if one.next_at), default=None)
