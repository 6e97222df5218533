"""``shunter run``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shunter_cli import durations, faults, output, parameters
from shunter_cli.connection import connect, deployment_names, pool_names
from shunter_cli.durations import ago, in_words, local
from shunter_cli.output import Output, OutputOption, QuietOption

if TYPE_CHECKING:
    from shunter_work_pools.client import Client
    from shunter_work_pools.contracts.runs import Attempt, Run

group = typer.Typer(no_args_is_help=True, help="Runs: one execution of a deployment each.")

RunArgument = Annotated[str, typer.Argument(help="Its id, or any unique end of it.", metavar="RUN")]

_PAGE = 200


def attach(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(group, name="run")


@group.command("start")
def start(
    deployment: Annotated[str, typer.Argument(help="The deployment to run.", metavar="NAME")],
    param: Annotated[
        list[str] | None,
        typer.Option("--param", "-p", help="A parameter. Repeatable.", metavar="KEY=VALUE"),
    ] = None,
    params_file: Annotated[
        str | None, typer.Option(help="Parameters as a JSON object in a file, - for stdin.", metavar="FILE")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A further label. Repeatable.", metavar="TAG")] = None,
    at: Annotated[str | None, typer.Option(help="When: 2027-03-28T06:00, or +10m.", metavar="TIME")] = None,
    priority: Annotated[int | None, typer.Option(help="Over the deployment's.", metavar="N")] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="The same key twice makes one run.", metavar="KEY")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow it; exit like `run wait`.")] = False,
    output_as: OutputOption = Output.TABLE,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the run's id only.")] = False,
) -> int:
    """Make a run of a deployment."""
    from shunter_work_pools.contracts.runs import RunRequest

    listing = "`shunter deployment list` shows the deployments there are."
    with connect() as client, faults.suggesting(deployment, lambda: deployment_names(client), listing):
        schema = client.get_deployment(deployment).spec.parameter_schema if param else None
        request = RunRequest(
            deployment=deployment,
            parameters=parameters.parse(param or [], schema, params_file),
            tags=tag or [],
            scheduled_at=durations.moment(at, "--at") if at is not None else None,
            priority=priority,
            idempotency_key=idempotency_key,
        )
        made = client.create_run(request)
    if output_as is Output.JSON:
        output.show_object(made)
    elif quiet:
        output.say(str(made.id))
    else:
        output.say(f"run {made.id} {'created' if made.created else 'exists already, by its idempotency key'}")
    if not watch:
        return 0
    from shunter_cli import watch as view

    return view.watch(made.id, to_stderr=quiet or output_as is Output.JSON)


@group.command("list")
def list_(
    state: Annotated[
        list[str] | None, typer.Option(help="In this state. Repeatable: any of them.", metavar="STATE")
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="With this tag. Repeatable: all of them.", metavar="TAG")
    ] = None,
    pool: Annotated[str | None, typer.Option(help="In this pool.", metavar="NAME")] = None,
    deployment: Annotated[str | None, typer.Option(help="Of this deployment.", metavar="NAME")] = None,
    late: Annotated[bool, typer.Option("--late", help="Only those that wait or waited too long.")] = False,
    limit: Annotated[int, typer.Option(help="At most so many.", min=1, max=100_000, metavar="N")] = 20,
    cursor: Annotated[
        str | None, typer.Option(help="Go on where a page before ended.", metavar="CURSOR")
    ] = None,
    output_as: OutputOption = Output.TABLE,
    quiet: QuietOption = False,
) -> None:
    """Show runs, newest first."""
    states = [_state(word) for word in state or []]
    with connect() as client:
        runs, following = _pages(
            client,
            limit,
            states=states,
            tags=tag or [],
            pool=pool,
            deployment=deployment,
            late=True if late else None,
            cursor=cursor,
        )
    if quiet:
        for run in runs:
            output.say(str(run.id))
    elif output_as is Output.JSON:
        output.show_objects(runs)
    else:
        now = datetime.now(UTC)
        output.table(
            ("ID", "DEPLOYMENT", "STATE", "CAUSE", "DUE", ">TOOK", "POOL", "TAGS"),
            [_row(run, now) for run in runs],
            elastic=("DEPLOYMENT", "CAUSE", "POOL", "TAGS"),
        )
    if following and output_as is Output.TABLE and not quiet:
        faults.tell(f"There are more: --limit {limit} --cursor {following}")


@group.command("inspect")
def inspect(run: RunArgument, output_as: OutputOption = Output.TABLE) -> None:
    """Show one run and its attempts."""
    with connect() as client:
        found = client.get_run(run)
    if output_as is Output.JSON:
        output.show_object(found)
    else:
        _show(found)


@group.command("logs")
def logs(
    run: RunArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
    attempt: Annotated[
        int | None,
        typer.Option(help="Of this attempt only; by default of all, in order.", min=1, metavar="N"),
    ] = None,
) -> None:
    """Print exactly the bytes that a run wrote, in order.

    Of an attempt that has ended all bytes are printed, if need be after waiting for the last ones to
    arrive. Of one that still runs those that are there; --follow waits for the others too.
    """
    from shunter_cli import logs as reader

    with connect() as client:
        reader.copy(client, run, attempt=attempt, follow=follow)


@group.command("cancel")
def cancel(run: RunArgument, output_as: OutputOption = Output.TABLE) -> None:
    """Stop a run, or keep it from starting.

    Its processes get SIGTERM, after the deployment's grace SIGKILL.
    """
    with connect() as client:
        found = client.cancel_run(run)
    if output_as is Output.JSON:
        output.show_object(found)
    else:
        output.say(f"run {found.id} is {_state_text(found)}")


@group.command("retry")
def retry(run: RunArgument, output_as: OutputOption = Output.TABLE) -> None:
    """Try an ended run again: same run, next attempt."""
    with connect() as client:
        found = client.retry_run(run)
    if output_as is Output.JSON:
        output.show_object(found)
    else:
        output.say(f"run {found.id} is {_state_text(found)}")


@group.command("wait")
def wait(
    run: RunArgument,
    timeout: Annotated[
        str | None, typer.Option(help="Give up after 60s, 5m, ...; by default never.", metavar="TIME")
    ] = None,
    output_as: OutputOption = Output.TABLE,
) -> int:
    """Wait until a run has ended.

    Exit code 0 if it is Completed, 1 at any other end, 124 if the time ran out.
    """
    from shunter_cli import waiting

    limit = durations.seconds(timeout, "--timeout") if timeout is not None else None
    with connect() as client:
        found = waiting.until_end(client, run, limit)
    if output_as is Output.JSON:
        output.show_object(found)
    else:
        output.say(f"run {found.id} is {_state_text(found)}")
    return waiting.exit_code(found)


@group.command("events")
def events(run: RunArgument, output_as: OutputOption = Output.TABLE) -> None:
    """Show what happened to a run, oldest first."""
    with connect() as client:
        found = client.list_events(run).events
    if output_as is Output.JSON:
        output.show_objects(found)
        return
    output.table(
        ("TIME", "EVENT", ">ATTEMPT", "BY", "DATA"),
        [
            (
                local(event.at, fine=True)[:23],
                event.kind,
                str(event.attempt) if event.attempt else "-",
                event.actor,
                " ".join(f"{key}={output.compact(value)}" for key, value in event.data.items()),
            )
            for event in found
        ],
        elastic=("DATA",),
    )


def _pages(client: Client, limit: int, **filters: Any) -> tuple[list[Run], str | None]:
    """Up to ``limit`` runs, and the cursor after them."""
    runs: list[Run] = []
    pool, deployment = filters["pool"], filters["deployment"]
    cursor = filters.pop("cursor")
    while True:
        with (
            faults.suggesting(deployment or "", lambda: deployment_names(client), _DEPLOYMENTS),
            faults.suggesting(pool or "", lambda: pool_names(client), _POOLS),
        ):
            page = client.list_runs(cursor=cursor, limit=min(_PAGE, limit - len(runs)), **filters)
        runs += page.runs
        cursor = page.next
        if cursor is None or len(runs) >= limit:
            return runs, cursor


def _state(word: str) -> str:
    from shunter_work_pools.contracts.errors import InvalidInput
    from shunter_work_pools.contracts.states import AttemptState, RunState

    known = list(
        dict.fromkeys([*(state.value for state in RunState), *(state.value for state in AttemptState)])
    )
    for name in known:
        if name.lower() == word.lower():
            return name
    question = faults.nearest(word, known)
    raise InvalidInput(
        f"--state {word!r} is not a state", f"{question} There are: {', '.join(known)}.".strip()
    )


def _row(run: Run, now: datetime) -> tuple[str, ...]:
    return (
        output.short(run.id),
        run.deployment,
        _state_text(run, cause=False),
        run.cause.value if run.cause else "-",
        ago(run.due_at or run.scheduled_at, now),
        _took(run.started_at, run.ended_at, now),
        run.pool or "none yet",
        output.words(run.tags),
    )


def _state_text(run: Run, *, cause: bool = True) -> str:
    why = f" ({run.cause.value})" if cause and run.cause else ""
    marks = "".join(f" {mark}" for mark, set_ in (("lost", run.lost), ("late", run.late)) if set_)
    return run.state + why + marks


def _took(start: datetime | None, end: datetime | None, now: datetime) -> str:
    if start is None:
        return "-"
    return in_words(max(0.0, ((end or now) - start).total_seconds()))


def _show(run: Run) -> None:
    now = datetime.now(UTC)
    pairs = [
        ("id", str(run.id)),
        ("deployment", f"{run.deployment}, revision {run.revision}"),
        ("state", _state_text(run)),
        ("message", run.message or ""),
        ("pool", f"{run.pool}, queue {run.queue}" if run.pool else "none matches yet"),
        ("tags", ", ".join(run.tags)),
        ("parameters", output.compact(run.parameters) if run.parameters else ""),
        ("schedule", f"{run.schedule}, slot {local(run.slot)}" if run.slot else ""),
        ("priority", str(run.priority) if run.priority else ""),
        ("created", _moment(run.created_at, now)),
        ("scheduled", _moment(run.scheduled_at, now)),
        ("due", _moment(run.due_at, now) if run.due_at and run.due_at != run.scheduled_at else ""),
        ("started", _moment(run.started_at, now) if run.started_at else ""),
        ("ended", _moment(run.ended_at, now) if run.ended_at else ""),
        ("took", _took(run.started_at, run.ended_at, now) if run.started_at else ""),
        ("result", output.compact(run.result) if run.result is not None else ""),
    ]
    output.facts([(key, value) for key, value in pairs if value])
    for attempt in run.attempts:
        output.say("")
        output.facts([(key, value) for key, value in _attempt(attempt, now) if value])


def _attempt(one: Attempt, now: datetime) -> list[tuple[str, str]]:
    ended = one.exit_code is not None or one.signal
    how = f"signal {one.signal}" if one.signal else f"exit code {one.exit_code}"
    cause = f" ({one.cause.value})" if one.cause else ""
    return [
        (f"attempt {one.number}", one.state + cause + (" lost" if one.lost else "")),
        ("  message", one.message or ""),
        ("  agent", f"{one.agent}, pid {one.pid}" if one.pid else one.agent),
        ("  ended by", how if ended else ""),
        ("  started", _moment(one.started_at, now) if one.started_at else ""),
        ("  took", _took(one.started_at, one.ended_at, now) if one.started_at else ""),
        ("  memory", _bytes(one.max_rss_bytes) if one.max_rss_bytes is not None else ""),
        ("  processor", f"{one.cpu_seconds:.3g} s" if one.cpu_seconds is not None else ""),
        ("  output", _bytes(one.log_size) if one.log_size is not None else ""),
    ]


def _moment(when: datetime | None, now: datetime) -> str:
    return f"{local(when)} ({ago(when, now)})"


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"


_DEPLOYMENTS = "`shunter deployment list` shows the deployments there are."
_POOLS = "`shunter pool list` shows the pools there are."
