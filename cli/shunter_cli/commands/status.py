"""``shunter status``: one look at everything, on one screen."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shunter_cli import durations, live, output, pausing
from shunter_cli.connection import connect
from shunter_cli.durations import ago, in_words
from shunter_cli.output import Output, OutputOption, WatchOption

if TYPE_CHECKING:
    from datetime import datetime

    from shunter_work_pools.contracts.agents import Agent
    from shunter_work_pools.contracts.runs import Run
    from shunter_work_pools.contracts.status import Status

#: Lines that are not the sections': of the server, of the counts, the prompt below.
_FRAME = 3


def attach(app: typer.Typer) -> None:
    """Add the command."""
    app.command("status")(status)


def status(
    since: Annotated[
        str, typer.Option(help="Failures since then: 2h (ago), or 2026-11-22T06:00.", metavar="TIME")
    ] = "24h",
    watch: WatchOption = False,
    output_as: OutputOption = Output.TABLE,
) -> None:
    """Show on one screen what runs, is late, failed and comes next."""
    durations.past(since, "--since")
    with connect() as client:
        live.show(
            lambda: client.status(since=durations.past(since, "--since")),
            lambda found: _draw(found, client.api_url, output_as),
            watch=watch,
            what=_telling,
        )


def _telling(found: Status) -> Any:
    """What of it counts as a change: not the clock, nor that agents were heard of again."""
    from shunter_cli.commands.agents import unseen

    calm = {"server": found.server.pause, "since": None, "agents": unseen(found.agents)}
    return found.model_copy(update=calm)


@dataclass(frozen=True)
class Section:
    """A list under a line that says how many there are.

    Attributes:
        count: of all there are; ``rows`` may be fewer.
    """

    title: str
    count: int
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    elastic: tuple[str, ...]


def _draw(found: Status, url: str, output_as: Output) -> None:
    if output_as is not Output.TABLE:
        output.show_object(found, output_as)
        return
    now = found.server.server_time
    pause = found.server.pause
    if pause is not None:
        output.heading(output.clipped(f"MAINTENANCE {pausing.in_words(pause)}"))
    output.say(output.clipped(_server(found, url, now)))
    output.say(output.clipped(_counts(found, now)))
    sections = _sections(found, now)
    room = shutil.get_terminal_size((80, 24)).lines - _FRAME - len(sections) - (pause is not None)
    for section, count in zip(sections, shares([len(one.rows) for one in sections], room), strict=True):
        shown = f", {count} shown" if 0 < count < section.count else ""
        output.heading(f"{section.title}: {section.count or 'none'}{shown}")
        if count:
            output.table(
                section.columns, section.rows[:count], elastic=section.elastic, header=False, indent=2
            )


def shares(wanted: Sequence[int], room: int) -> list[int]:
    """How many lines each gets: one after the other in turn, until all have what they want or none is left."""
    given = [0] * len(wanted)
    while room > 0 and given != list(wanted):
        for index, most in enumerate(wanted):
            if given[index] < most and room > 0:
                given[index] += 1
                room -= 1
    return given


def _server(found: Status, url: str, now: datetime) -> str:
    server = found.server
    size = f" of {output.size(server.database_bytes)}" if server.database_bytes is not None else ""
    up = f", up {_for(server.started_at, now)}" if server.started_at else ""
    return f"shunter {server.version} at {url}, {server.store}{size}{up}"


def _counts(found: Status, now: datetime) -> str:
    states = [f"{count:,} {state}" for state, count in found.live.items() if count]
    late = f" ({found.late:,} late)" if found.late else ""
    hours = in_words((now - found.since).total_seconds())
    parts = [", ".join(states) + late if states else "nothing runs or is due"]
    parts.append(f"{found.upcoming:,} upcoming")
    parts.append(f"{found.failed:,} failed in {hours}")
    return "; ".join(parts)


def _sections(found: Status, now: datetime) -> list[Section]:
    active = sum(count for state, count in found.live.items() if state not in ("Scheduled", "Retrying"))
    return [
        Section("RUNNING", active, *_runs([_active(run, now) for run in found.active_runs])),
        Section("LATE", found.late, *_runs([_late(run, now) for run in found.late_runs])),
        Section("FAILED", found.failed, *_runs([_failed(run, now) for run in found.failed_runs])),
        Section(
            "AGENTS",
            len(found.agents),
            ("NAME", "STATE", ">ACTIVE", "SEEN", "MORE"),
            [_agent(agent, now) for agent in sorted(found.agents, key=_worst_first)],
            ("NAME", "MORE"),
        ),
        Section(
            "NEXT",
            len(found.next_slots),
            ("DEPLOYMENT", "SCHEDULE", "NEXT", "WHEN"),
            [(one.deployment, one.name, ago(one.next_at, now), one.words) for one in found.next_slots],
            ("DEPLOYMENT", "SCHEDULE", "WHEN"),
        ),
    ]


def _runs(
    rows: list[tuple[str, ...]],
) -> tuple[tuple[str, ...], list[tuple[str, ...]], tuple[str, ...]]:
    return ("ID", "DEPLOYMENT", "STATE", "SINCE", "MORE"), rows, ("DEPLOYMENT", "MORE")


def _active(run: Run, now: datetime) -> tuple[str, ...]:
    state = run.state + (" lost" if run.lost else "")
    # Claimed it has not begun, and its slot may be long ago: a backfill.
    begun = f"for {_for(run.started_at, now)}" if run.started_at else "-"
    return (output.short(run.id), run.deployment, state, begun, run.pool or "no pool")


def _late(run: Run, now: datetime) -> tuple[str, ...]:
    since = run.due_at or run.scheduled_at
    pool = f"{run.pool}, queue {run.queue}" if run.pool else "no pool matches"
    state = run.state + (" held" if run.held else "")
    return (output.short(run.id), run.deployment, state, f"due {ago(since, now)}", pool)


def _failed(run: Run, now: datetime) -> tuple[str, ...]:
    why = run.message or (run.cause.value if run.cause else "")
    return (output.short(run.id), run.deployment, run.state, ago(run.ended_at, now), why)


def _worst_first(agent: Agent) -> tuple[bool, bool, bool, str]:
    return agent.stopped, not agent.lost, not agent.troubles, agent.name


def _agent(agent: Agent, now: datetime) -> tuple[str, ...]:
    from shunter_cli.commands.agents import condition

    state, active = condition(agent), f"{agent.active} of {agent.limit}"
    # What is wrong with it says more than what it would serve.
    more = "; ".join(agent.troubles) if state == "unwell" else output.words(agent.pools)
    if state == "paused" and agent.pause is not None:
        more = pausing.brief(agent.pause)
    return (agent.name, state, active, ago(agent.last_seen_at, now), more)


def _for(since: datetime, now: datetime) -> str:
    return in_words(max(0.0, (now - since).total_seconds()))
