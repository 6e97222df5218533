"""``deployment backfill``: the runs of past slots, schedule by schedule, a piece at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from shunter_cli import durations, naming
from shunter_cli.output import counted
from shunter_cli.progress import progress
from shunter_work_pools.contracts.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from shunter_work_pools.client import Client
    from shunter_work_pools.contracts.deployments import BackfillAnswer, BackfillRequest, ScheduleView


@dataclass(frozen=True)
class Filled:
    """What became of one schedule.

    Attributes:
        answer: the sums; ``next`` is None, as all of it is done.
    """

    deployment: str
    answer: BackfillAnswer

    def in_words(self, dry_run: bool) -> str:
        """One sentence."""
        made, had = self.answer.made, self.answer.slots - self.answer.made
        would = "would be made" if dry_run else "made"
        text = f"schedule {self.answer.schedule} of {self.deployment}: {counted(made, 'run')} {would}"
        if not self.answer.slots:
            return f"{text}, it has no slot in this time"
        return f"{text}, {counted(had, 'slot')} had one already" if had else text


def fill(
    client: Client,
    deployment: str,
    schedule: str | None,
    start: str,
    end: str,
    concurrency: int | None,
    dry_run: bool,
) -> list[Filled]:
    """Make the runs of one schedule, or of all in turn.

    Args:
        start, end: as typed; without a zone of their own in that of each schedule.

    Raises:
        InvalidInput: a time that is none, an end that is not after the start, no schedule.
        ShunterError: the server said no; what was made before stays.
    """
    from shunter_work_pools.contracts.deployments import BackfillRequest
    from shunter_work_pools.schedules import zone_of

    requests = []
    for one in _schedules(client, deployment, schedule):
        zone = zone_of(one.when.timezone)
        begins = durations.on_the_wall(start, "--from", zone)
        ends = durations.on_the_wall(end, "--to", zone)
        if ends <= begins:
            raise InvalidInput(f"--to {end!r} is not after --from {start!r}", "The end itself is left out.")
        requests.append(
            BackfillRequest(
                schedule=one.name, start=begins, end=ends, concurrency=concurrency, dry_run=dry_run
            )
        )
    counts = [client.backfill(deployment, one.model_copy(update={"dry_run": True})) for one in requests]
    if dry_run:
        return [Filled(deployment, answer) for answer in counts]
    with progress("making runs", sum(answer.slots for answer in counts)) as step:
        return [Filled(deployment, _fill(client, deployment, one, step)) for one in requests]


def _schedules(client: Client, deployment: str, schedule: str | None) -> list[ScheduleView]:
    found = client.get_deployment(deployment).schedules
    if schedule is not None:

        def named(name: str) -> list[ScheduleView]:
            one = [one for one in found if one.name == name]
            if not one:
                raise NotFound(f"deployment '{deployment}' has no schedule '{name}'")
            return one

        return naming.found(client, naming.schedules_of(deployment), schedule, named)
    if not found:
        raise InvalidInput(
            f"deployment {deployment!r} has no schedule, so there are no slots", "A deploy gives it one."
        )
    return found


def _fill(
    client: Client, deployment: str, request: BackfillRequest, step: Callable[[int], None]
) -> BackfillAnswer:
    """Piece after piece; the sums of all."""
    slots = made = 0
    after: datetime | None = None
    while True:
        answer = client.backfill(deployment, request.model_copy(update={"after": after}))
        slots, made, after = slots + answer.slots, made + answer.made, answer.next
        step(answer.slots)
        if after is None:
            return answer.model_copy(update={"slots": slots, "made": made})
