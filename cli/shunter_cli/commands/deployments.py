"""``shunter deployment``."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from shunter_cli import faults, output
from shunter_cli.connection import connect, deployment_names
from shunter_cli.durations import ago, exactly, local
from shunter_cli.output import Output, OutputOption, QuietOption

if TYPE_CHECKING:
    from datetime import datetime

    from shunter_work_pools.contracts.deployments import Deployment, ScheduleView

group = typer.Typer(no_args_is_help=True, help="Deployments: named, runnable things.")

NameArgument = Annotated[str, typer.Argument(help="The deployment's name.", metavar="NAME")]


def attach(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(group, name="deployment")


@group.command("list")
def list_(output_as: OutputOption = Output.TABLE, quiet: QuietOption = False) -> None:
    """Show all deployments."""
    with connect() as client:
        deployments = list(client.each_deployment())
    if quiet:
        for deployment in deployments:
            output.say(deployment.name)
    elif output_as is Output.JSON:
        output.show_objects(deployments)
    else:
        output.table(
            ("NAME", ">REV", "STATE", "POOL", "SCHEDULE", "NEXT", "TAGS"),
            [
                (
                    one.name,
                    str(one.revision),
                    "paused" if one.paused else "ready",
                    one.spec.pool or "by tags",
                    output.words(timing(schedule) for schedule in one.schedules),
                    ago(next_slot(one)),
                    output.words(one.spec.tags),
                )
                for one in deployments
            ],
            elastic=("NAME", "POOL", "SCHEDULE", "TAGS"),
        )


@group.command("inspect")
def inspect(name: NameArgument, output_as: OutputOption = Output.TABLE) -> None:
    """Show one deployment with its current revision."""
    with connect() as client, faults.suggesting(name, lambda: deployment_names(client), LIST):
        found = client.get_deployment(name)
    if output_as is Output.JSON:
        output.show_object(found)
        return
    spec, work = found.spec, found.spec.work
    pairs = [
        ("name", found.name),
        ("description", spec.description),
        ("revision", f"{found.revision}, of {ago(found.updated_at)}"),
        ("state", "paused" if found.paused else "ready"),
        ("command" if work.command else "entrypoint", shlex.join(work.command or [work.entrypoint or ""])),
        ("source", work.source or ""),
        ("working dir", work.working_dir or ""),
        ("python", work.python or ""),
        ("parameters", output.compact(spec.parameters) if spec.parameters else ""),
        ("pool", f"{spec.pool}, queue {spec.queue or 'default'}" if spec.pool else "by tags"),
        ("tags", ", ".join(spec.tags)),
        ("requires", ", ".join(spec.require)),
        ("priority", str(spec.priority) if spec.priority else ""),
        (
            "retries",
            f"{spec.retries.count}, after {exactly(spec.retries.delay)}" if spec.retries.count else "",
        ),
        ("time-out", exactly(work.timeout) if work.timeout else ""),
        ("grace", exactly(work.grace)),
        ("if its agent is lost", spec.on_lost),
        ("environment", ", ".join([*work.env, *work.pass_env])),
    ]
    for schedule in found.schedules:
        state = "paused" if schedule.paused else f"next {local(schedule.next_at)} ({ago(schedule.next_at)})"
        pairs.append((f"schedule {schedule.name}", f"{timing(schedule)}; {state}"))
    output.facts([(key, value) for key, value in pairs if value])


@group.command("pause")
def pause(name: NameArgument, output_as: OutputOption = Output.TABLE) -> None:
    """Make no more runs by its schedules, and start none that wait."""
    _set_paused(name, True, output_as)


@group.command("resume")
def resume(name: NameArgument, output_as: OutputOption = Output.TABLE) -> None:
    """Let it run again."""
    _set_paused(name, False, output_as)


def _set_paused(name: str, paused: bool, output_as: Output) -> None:
    from shunter_work_pools.contracts.deployments import DeploymentPatch

    with connect() as client, faults.suggesting(name, lambda: deployment_names(client), LIST):
        found = client.update_deployment(name, DeploymentPatch(paused=paused))
    if output_as is Output.JSON:
        output.show_object(found)
    else:
        output.say(f"deployment {found.name} {'paused' if found.paused else 'resumed'}")


def timing(schedule: ScheduleView) -> str:
    """A schedule in a few words."""
    if schedule.when.kind == "interval":
        return f"every {exactly(schedule.when.seconds)}"
    return schedule.words


def next_slot(deployment: Deployment) -> datetime | None:
    """The earliest next slot of its schedules; None without one."""
    return min((one.next_at for one in deployment.schedules if one.next_at), default=None)


LIST = "`shunter deployment list` shows the deployments there are."
