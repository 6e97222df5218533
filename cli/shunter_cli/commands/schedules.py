"""``shunter schedule``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, tzinfo
from typing import TYPE_CHECKING, Annotated
from zoneinfo import ZoneInfo

import typer

from shunter_cli import durations, faults, live, naming, output, pausing
from shunter_cli.completing import deployments, schedules
from shunter_cli.connection import connect
from shunter_cli.durations import ago
from shunter_cli.output import Output, OutputOption, QuietOption, WatchOption
from shunter_cli.pausing import ReasonOption

if TYPE_CHECKING:
    from shunter_work_pools.client import Client
    from shunter_work_pools.contracts.deployments import Preview, ScheduleView, When

group = typer.Typer(no_args_is_help=True, help="Schedules: when deployments run by themselves.")

DeploymentArgument = Annotated[
    str, typer.Argument(help="The deployment.", metavar="DEPLOYMENT", autocompletion=deployments)
]
MaybeDeployment = Annotated[
    str | None, typer.Argument(help="The deployment.", metavar="DEPLOYMENT", autocompletion=deployments)
]
ScheduleArgument = Annotated[
    str | None,
    typer.Argument(
        help="The schedule; need not be named if there is one only.",
        metavar="SCHEDULE",
        autocompletion=schedules,
    ),
]


def attach(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(group, name="schedule")


@group.command("list")
def list_(
    deployment: MaybeDeployment = None,
    watch: WatchOption = False,
    output_as: OutputOption = Output.TABLE,
    quiet: QuietOption = False,
) -> None:
    """Show all schedules, or those of one deployment.

    With -q, of one deployment the names, of all two words: deployment and name.
    """

    def ask() -> list[ScheduleView]:
        if deployment is None:
            return list(client.each_schedule())
        return naming.found(
            client, naming.DEPLOYMENT, deployment, lambda name: list(client.each_schedule(name))
        )

    with connect() as client:
        live.show(ask, lambda found: _list(found, deployment, output_as, quiet), watch=watch)


def _list(found: Sequence[ScheduleView], deployment: str | None, output_as: Output, quiet: bool) -> None:
    if quiet:
        for one in found:
            output.say(one.name if deployment is not None else f"{one.deployment} {one.name}")
    elif output_as is not Output.TABLE:
        output.show_objects(found, output_as)
    else:
        paused = pausing.column(found)
        output.table(
            ("DEPLOYMENT", "SCHEDULE", "STATE", "NEXT", "WHEN", *paused),
            [
                (
                    one.deployment,
                    one.name,
                    pausing.state(one),
                    ago(one.next_at),
                    one.words,
                    *pausing.cell(one, paused),
                )
                for one in found
            ],
            elastic=("DEPLOYMENT", "SCHEDULE", "WHEN", *paused),
        )


@group.command("pause")
def pause(
    deployment: DeploymentArgument,
    schedule: ScheduleArgument = None,
    reason: ReasonOption = "",
    output_as: OutputOption = Output.TABLE,
) -> None:
    """Make no more runs by a schedule."""
    _set_paused(deployment, schedule, True, output_as, reason)


@group.command("resume")
def resume(
    deployment: DeploymentArgument, schedule: ScheduleArgument = None, output_as: OutputOption = Output.TABLE
) -> None:
    """Make runs by a schedule again.

    What it missed meanwhile is made up for as its catch-up says.
    """
    _set_paused(deployment, schedule, False, output_as)


def _set_paused(
    deployment: str, schedule: str | None, paused: bool, output_as: Output, reason: str = ""
) -> None:
    from shunter_work_pools.contracts.deployments import SchedulePatch

    patch = pausing.patch(SchedulePatch, paused, reason)
    with connect() as client:
        found = naming.schedule(
            client, deployment, schedule, lambda whole, one: client.update_schedule(whole, one, patch)
        )
    if output_as is not Output.TABLE:
        output.show_object(found, output_as)
        return
    done = "paused" if found.paused else "resumed"
    following = f", next {durations.local(found.next_at)} ({ago(found.next_at)})" if found.next_at else ""
    output.say(f"schedule {found.name} of {found.deployment} {done}{following}")


@group.command("preview")
def preview(
    deployment: MaybeDeployment = None,
    schedule: ScheduleArgument = None,
    cron: Annotated[
        str | None, typer.Option(help="Of this expression, deployed or not.", metavar="EXPR")
    ] = None,
    interval: Annotated[str | None, typer.Option(help="Every 60s, 5m, 1h30m.", metavar="TIME")] = None,
    rrule: Annotated[
        str | None, typer.Option(help="Of this rule of RFC 5545, \\n between its lines.", metavar="RULE")
    ] = None,
    timezone: Annotated[str | None, typer.Option(help="Its zone, by default UTC.", metavar="ZONE")] = None,
    day_and: Annotated[
        bool, typer.Option("--day-and", help="Days of month and of week must both match (cron).")
    ] = False,
    anchor: Annotated[
        str | None,
        typer.Option(help="From when an interval or rule counts, by default --from.", metavar="TIME"),
    ] = None,
    start: Annotated[str | None, typer.Option(help="No slots before.", metavar="TIME")] = None,
    end: Annotated[str | None, typer.Option(help="No slots after.", metavar="TIME")] = None,
    from_: Annotated[
        str | None, typer.Option("--from", help="Slots from then on, by default from now.", metavar="TIME")
    ] = None,
    count: Annotated[
        int, typer.Option("--count", "-n", help="So many slots.", min=1, max=1000, metavar="N")
    ] = 10,
    output_as: OutputOption = Output.TABLE,
) -> None:
    """Show the next slots of a schedule, in its zone and in UTC.

    Of a deployed schedule, or of an expression, for which no server is needed:

    \b
      shunter schedule preview hello
      shunter schedule preview --cron "30 2 * * *" --timezone Europe/Berlin

    A time without zone is meant in the zone of the schedule.
    """
    expressions = [text for text in (cron, interval, rrule) if text is not None]
    options = [timezone, anchor, start, end, day_and or None]
    _one_of(deployment, expressions, any(one is not None for one in options))
    if deployment is not None:
        with connect() as client:
            zone, found = _deployed(client, deployment, schedule, from_, count)
    else:
        zone_name = timezone or "UTC"
        when = _when(cron, interval, rrule, zone_name, day_and, anchor)
        zone, found = _local(when, start, end, from_, anchor, count)
    if output_as is not Output.TABLE:
        output.show_objects(found.slots, output_as)
        return
    _show(zone, found, count)


def _one_of(deployment: str | None, expressions: Sequence[str], options: bool) -> None:
    from shunter_work_pools.contracts.errors import InvalidInput

    if deployment is None and not expressions:
        raise InvalidInput(
            "there is nothing to preview", "Name a deployment, or give --cron, --interval or --rrule."
        )
    if len(expressions) > 1:
        raise InvalidInput("--cron, --interval and --rrule exclude each other", "Give one of them.")
    if deployment is not None and (expressions or options):
        raise InvalidInput(
            "a deployed schedule is previewed as it is, without --cron, --timezone and the like",
            "Leave out the deployment's name, or these options.",
        )


def _deployed(
    client: Client, deployment: str, schedule: str | None, from_: str | None, count: int
) -> tuple[str, Preview]:
    """The zone and the slots, as the server sees them."""
    from shunter_work_pools import schedules as rules

    def ask(whole: str, name: str) -> tuple[str, Preview]:
        known = next((one for one in client.get_deployment(whole).schedules if one.name == name), None)
        zone = known.when.timezone if known else "UTC"
        after = durations.on_the_wall(from_, "--from", rules.zone_of(zone)) if from_ is not None else None
        return zone, client.preview_schedule(whole, name, after=after, count=count)

    return naming.schedule(client, deployment, schedule, ask)


def _when(
    cron: str | None,
    interval: str | None,
    rrule: str | None,
    timezone: str,
    day_and: bool,
    anchor: str | None,
) -> When:
    from shunter_work_pools.contracts.deployments import CronSchedule, IntervalSchedule, RRuleSchedule
    from shunter_work_pools.contracts.errors import InvalidInput

    if day_and and cron is None:
        raise InvalidInput("--day-and is for --cron", "Give both, or neither.")
    if anchor is not None and cron is not None:
        raise InvalidInput("--anchor is for --interval and --rrule", "A cron expression needs none.")
    if cron is not None:
        return CronSchedule(cron=cron, timezone=timezone, day="and" if day_and else "or")
    if rrule is not None:
        return RRuleSchedule(rrule=rrule.replace("\\n", "\n"), timezone=timezone)
    seconds = durations.seconds(interval or "", "--interval", zero=False)
    if seconds < 1:
        raise InvalidInput(f"--interval {interval!r} is shorter than one second", "Use 1s or more.")
    return IntervalSchedule(seconds=seconds, timezone=timezone)


def _local(
    when: When, start: str | None, end: str | None, from_: str | None, anchor: str | None, count: int
) -> tuple[str, Preview]:
    """The zone and the slots, without a server."""
    from shunter_work_pools import schedules as rules
    from shunter_work_pools.contracts.deployments import Preview, Schedule

    rules.check(Schedule(when=when))  # the zone that the times below are meant in, too
    zone = ZoneInfo(when.timezone)
    schedule = Schedule(when=when, start=_wall(start, "--start", zone), end=_wall(end, "--end", zone))
    after = _wall(from_, "--from", zone) or durations.now()
    rules.check(schedule)
    begin = _wall(anchor, "--anchor", zone) or after
    slots = rules.preview(schedule, after, begin, count)
    return when.timezone, Preview(words=rules.in_words(when), slots=slots)


def _wall(text: str | None, option: str, zone: tzinfo) -> datetime | None:
    return durations.on_the_wall(text, option, zone) if text is not None else None


def _show(zone: str, found: Preview, count: int) -> None:
    output.say(found.words)
    if found.slots:
        output.say("")
        output.table(
            (f"LOCAL ({zone})", "UTC", "REMARK"),
            [
                (_clock(slot.local), _clock(slot.utc.isoformat(), offset=False), slot.remark or "")
                for slot in found.slots
            ],
            elastic=("REMARK",),
            wrapped="REMARK",
        )
    if len(found.slots) < count:
        faults.tell("There are no more slots." if found.slots else "There are no slots.")


def _clock(text: str, *, offset: bool = True) -> str:
    """``Mon 2027-03-29 02:30:00+02:00``; in UTC only as much as differs from day to day."""
    when = datetime.fromisoformat(text)
    shown = when.isoformat(sep=" ", timespec="seconds" if not when.microsecond else "milliseconds")
    return f"{when:%a} {shown}" if offset else shown.removesuffix("+00:00")
