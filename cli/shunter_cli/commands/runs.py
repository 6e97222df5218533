"""``shunter run``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from shunter_cli import confirm, durations, faults, live, naming, output, parameters, waiting
from shunter_cli.commands import run_tasks
from shunter_cli.completing import deployments, runs
from shunter_cli.connection import connect
from shunter_cli.durations import ago, in_words, local
from shunter_cli.filters import Filters, filtered, with_names
from shunter_cli.output import Output, OutputOption, QuietOption, WatchOption, YesOption
from shunter_work_pools.contracts.errors import NotFound

if TYPE_CHECKING:
    from shunter_work_pools.client import Client
    from shunter_work_pools.contracts.runs import Attempt, Event, Run, RunCreated, RunRequest

group = typer.Typer(no_args_is_help=True, help="Runs: one execution of a deployment each.")

RunArgument = Annotated[
    str, typer.Argument(help="Its id, or any unique end of it.", metavar="RUN", autocompletion=runs)
]
RunsArgument = Annotated[
    list[str], typer.Argument(help="Ids, or any unique ends of them.", metavar="RUN...", autocompletion=runs)
]

_PAGE = 500
#: Runs that a list shows if it is not told.
_SHOWN = 20
#: Runs that one request makes.
_BATCH = 1000


def attach(app: typer.Typer) -> None:
    """Add the group."""
    run_tasks.attach(group)
    app.add_typer(group, name="run")


@group.command("start")
def start(
    deployment: Annotated[
        str, typer.Argument(help="The deployment to run.", metavar="NAME", autocompletion=deployments)
    ],
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
    count: Annotated[
        int | None, typer.Option(help="Make so many of it.", min=1, max=1_000_000, metavar="N")
    ] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="The same key twice makes one run.", metavar="KEY")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow it; exit like `run wait`.")] = False,
    output_as: OutputOption = Output.TABLE,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print ids only.")] = False,
) -> int:
    """Make a run of a deployment, or many.

    With --count and --idempotency-key, run 1 gets KEY-1, run 2 KEY-2 and so on: the same again makes
    only those that are missing.
    """
    from shunter_work_pools.contracts.errors import InvalidInput
    from shunter_work_pools.contracts.runs import RunRequest

    if watch and count is not None:
        raise InvalidInput("--watch follows one run, and --count makes many", "Give one of them.")
    made: list[RunCreated] = []

    def make(name: str) -> str:
        schema = client.get_deployment(name).spec.parameter_schema if param else None
        request = RunRequest(
            deployment=name,
            parameters=parameters.parse(param or [], schema, params_file),
            tags=tag or [],
            scheduled_at=durations.moment(at, "--at") if at is not None else None,
            priority=priority,
            idempotency_key=idempotency_key,
        )
        if count is None:
            made.append(client.create_run(request))
        else:
            _make_many(client, request, count, made)
        return name

    with connect() as client:
        name = naming.found(client, naming.DEPLOYMENT, deployment, make)
    if output_as is not Output.TABLE:
        if count is None:
            output.show_object(made[0], output_as)
        else:
            output.show_objects(made, output_as)
    elif quiet:
        for one in made:
            output.say(str(one.id))
    elif count is None:
        output.say(
            f"run {made[0].id} {'created' if made[0].created else 'exists already, by its idempotency key'}"
        )
        if not watch:
            _say_what_it_wants(made[0])
    else:
        output.say(_made(name, made))
    if not watch:
        return 0
    from shunter_cli import watch as view

    return view.watch(made[0].id, to_stderr=quiet or output_as is not Output.TABLE)


def _say_what_it_wants(made: RunCreated) -> None:
    """Say why a run that was made waits, if it does until somebody does something."""
    from shunter_work_pools.contracts.explanations import WANTS_SOMEBODY

    with connect() as client:
        why = client.explain_run(made.id)
    if why.code in WANTS_SOMEBODY:
        faults.tell(f"It waits: {why.sentence}\n  {why.next_step}")


def _make_many(client: Client, request: RunRequest, count: int, made: list[RunCreated]) -> None:
    from shunter_cli.progress import progress
    from shunter_work_pools.contracts.runs import RunBatch

    key = request.idempotency_key
    with progress("making runs", count) as step:
        for first in range(0, count, _BATCH):
            numbers = range(first + 1, min(first + _BATCH, count) + 1)
            batch = [
                request.model_copy(update={"idempotency_key": f"{key}-{number}"}) if key else request
                for number in numbers
            ]
            made += client.create_runs(RunBatch(runs=batch)).runs
            step(len(batch))


def _made(name: str, made: Sequence[RunCreated]) -> str:
    new = sum(one.created for one in made)
    text = f"{output.counted(new, 'run')} of {name} created"
    return text if new == len(made) else f"{text}, {len(made) - new:,} were there already"


@group.command("list")
@filtered
def list_(
    filters: Filters,
    limit: Annotated[
        int | None, typer.Option(help="At most so many, by default 20.", min=1, max=100_000, metavar="N")
    ] = None,
    cursor: Annotated[
        str | None, typer.Option(help="Go on where a page before ended.", metavar="CURSOR")
    ] = None,
    watch: WatchOption = False,
    output_as: OutputOption = Output.TABLE,
    quiet: QuietOption = False,
) -> None:
    """Show runs, newest first."""
    most = limit or _SHOWN
    for_people = output_as is Output.TABLE and not quiet

    def draw(page: tuple[list[Run], str | None]) -> None:
        _draw(page[0], output_as, quiet)
        # A program that said how many it wants knows that there may be more.
        if page[1] and not watch and (for_people or limit is None):
            faults.tell(f"There are more: --limit {most} --cursor {page[1]}")

    with connect() as client:
        live.show(lambda: _pages(client, filters, most, cursor), draw, watch=watch)


def _draw(found: Sequence[Run], output_as: Output, quiet: bool) -> None:
    if quiet:
        for run in found:
            output.say(str(run.id))
    elif output_as is not Output.TABLE:
        output.show_objects(found, output_as)
    else:
        now = durations.now()
        output.table(
            ("ID", "DEPLOYMENT", "STATE", "CAUSE", "DUE", ">TOOK", "POOL", "TAGS"),
            [_row(run, now) for run in found],
            elastic=("DEPLOYMENT", "CAUSE", "POOL", "TAGS"),
            spare=("TAGS", "POOL"),
        )


@group.command("inspect")
def inspect(
    run: RunArgument,
    manifest: Annotated[
        bool,
        typer.Option(
            "--manifest", help="Print what the engine was asked for to run it instead, without secrets."
        ),
    ] = False,
    attempt: Annotated[
        int | None,
        typer.Option(help="The manifest of this attempt; by default of the last.", min=1, metavar="N"),
    ] = None,
    output_as: OutputOption = Output.TABLE,
) -> None:
    """Show one run and its attempts."""
    from shunter_work_pools.contracts.errors import InvalidInput

    if attempt is not None and not manifest:
        raise InvalidInput("--attempt says whose manifest is printed", "Give --manifest, too.")
    with connect() as client:
        if manifest:
            document = client.get_manifest(run, attempt=attempt).manifest
            output.show_data(document, output_as if output_as is not Output.TABLE else Output.YAML)
            return
        found = client.get_run(run)
        why = ""
        if output_as is Output.TABLE and (waiting.waits(found) or found.lost):
            with suppress(NotFound):  # it is gone by now, or the server is an older one
                why = client.explain_run(found.id).sentence
    if output_as is not Output.TABLE:
        output.show_object(found, output_as)
    else:
        _show(found, why)


@group.command("explain")
def explain(run: RunArgument, output_as: OutputOption = Output.TABLE) -> None:
    """Say why a run is where it is, and what can be done about it.

    What each sentence means is in docs/explanations.md.
    """
    with connect() as client:
        found = client.explain_run(run)
    if output_as is not Output.TABLE:
        output.show_object(found, output_as)
        return
    pairs = [
        ("run", f"{found.run} is {found.state}"),
        ("why", found.sentence),
        ("next step", found.next_step),
        *(("also", one["sentence"]) for one in found.details.get("also", [])),
        ("code", found.code),
    ]
    output.facts(pairs)


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
def cancel(runs: RunsArgument, output_as: OutputOption = Output.TABLE) -> int:
    """Stop runs, or keep them from starting.

    Their processes get SIGTERM, after the deployment's grace SIGKILL.
    """
    with connect() as client:
        return _each(runs, client.cancel_run, output_as)


@group.command("retry")
def retry(runs: RunsArgument, output_as: OutputOption = Output.TABLE) -> int:
    """Try ended runs again: the same run, its next attempt."""
    with connect() as client:
        return _each(runs, client.retry_run, output_as)


@group.command("skip")
def skip(runs: RunsArgument, output_as: OutputOption = Output.TABLE) -> int:
    """End runs that wait, as skipped."""
    with connect() as client:
        return _each(runs, client.skip_run, output_as)


@group.command("update")
def update(
    runs: RunsArgument,
    priority: Annotated[
        int, typer.Option(help="Within its queue, higher first.", min=-1000, max=1000, metavar="N")
    ],
    output_as: OutputOption = Output.TABLE,
) -> int:
    """Change the priority of runs that wait."""
    from shunter_work_pools.contracts.runs import RunPatch

    patch = RunPatch(priority=priority)
    with connect() as client:
        return _each(
            runs, lambda run: client.update_run(run, patch), output_as, f"has priority {priority} now"
        )


@group.command("delete")
def delete(runs: RunsArgument, yes: YesOption = False, output_as: OutputOption = Output.TABLE) -> int:
    """Delete runs that have ended, with their output and events.

    `shunter run export` keeps what is known of them.
    """
    with connect() as client:
        found = {run.id: run for run in map(client.get_run, runs)}

        def remove(run: str) -> Run:
            one = next(one for one in found.values() if str(one.id) == run)
            client.delete_run(one.id)
            return one

        named = ", ".join(f"{output.short(one.id)} ({one.deployment})" for one in list(found.values())[:3])
        more = f" and {len(found) - 3:,} more" if len(found) > 3 else ""
        what = f"{output.counted(len(found), 'run')} with output and events: {named}{more}"
        confirm.removal(what, yes=yes)
        return _each([str(key) for key in found], remove, output_as, "deleted")


def _each(
    words: Sequence[str],
    do: Callable[[str], Run],
    output_as: Output,
    done: str = "",
) -> int:
    """Do it to one run after the other: one that cannot be done does not keep it from the others.

    Raises:
        ShunterError: there is only one, and it cannot be done.
    """
    from shunter_work_pools.contracts.errors import Refused

    if len(words) == 1:
        results, worst = [do(words[0])], 0
    else:
        results, worst = [], 0
        for word in words:
            try:
                results.append(do(word))
            except Refused as exc:
                faults.show(exc.detail, exc.remedy)
                worst = max(worst, faults.exit_code(exc))
    if output_as is Output.TABLE:
        for found in results:
            output.say(f"run {found.id} {done or f'is {_state_text(found)}'}")
    elif len(words) == 1:
        output.show_object(results[0], output_as)
    else:
        output.show_objects(results, output_as)
    return worst


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
    limit = durations.seconds(timeout, "--timeout") if timeout is not None else None
    with connect() as client:
        found = waiting.until_end(client, run, limit)
    if output_as is not Output.TABLE:
        output.show_object(found, output_as)
    else:
        output.say(f"run {found.id} is {_state_text(found)}")
    return waiting.exit_code(found)


@group.command("export")
@filtered
def export(
    filters: Filters,
    file: Annotated[
        str | None,
        typer.Option(help="Where to, by default stdout; there only when complete.", metavar="FILE"),
    ] = None,
    tasks: Annotated[
        bool, typer.Option("--tasks", help="Each with its task runs and artifacts, too.")
    ] = False,
) -> None:
    """Write all that is known of runs, one a line as JSON.

    Newest first, each with its attempts and events.

    `shunter run export --until 90d --file runs.jsonl` keeps what a retention of 90 days deletes.
    """
    from shunter_cli.exporting import export as write

    with connect() as client:
        count = with_names(client, filters, lambda known: write(client, known, file, tasks=tasks))
    faults.tell(f"{output.counted(count, 'run')} exported" + (f" to {file}" if file else ""))


@group.command("events")
def events(run: RunArgument, watch: WatchOption = False, output_as: OutputOption = Output.TABLE) -> None:
    """Show what happened to a run, oldest first."""
    with connect() as client:
        live.show(
            lambda: client.list_events(run).events, lambda found: draw_events(found, output_as), watch=watch
        )


def draw_events(found: Sequence[Event], output_as: Output, *, attempts: bool = True) -> None:
    """Events as a table, or for programs."""
    if output_as is not Output.TABLE:
        output.show_objects(found, output_as)
        return
    rows = [
        (
            local(event.at, fine=True)[:23],
            event.kind,
            str(event.attempt) if event.attempt else "-",
            event.actor,
            " ".join(f"{key}={output.compact(value)}" for key, value in event.data.items()),
        )
        for event in found
    ]
    columns = ("TIME", "EVENT", ">ATTEMPT", "BY", "DATA")
    if not attempts:
        columns, rows = ("TIME", "EVENT", "BY", "DATA"), [(*row[:2], *row[3:]) for row in rows]  # type: ignore[assignment,misc]
    output.table(columns, rows, elastic=("DATA",))


def _pages(client: Client, filters: Filters, limit: int, cursor: str | None) -> tuple[list[Run], str | None]:
    """Up to ``limit`` runs, and the cursor after them."""

    def ask(known: Filters) -> tuple[list[Run], str | None]:
        found: list[Run] = []
        following = cursor
        while True:
            left = min(_PAGE, limit - len(found))
            page = client.list_runs(cursor=following, limit=left, **known.query())
            found += page.runs
            following = page.next
            if following is None or len(found) >= limit:
                return found, following

    return with_names(client, filters, ask)


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
    marks = "".join(
        f" {mark}" for mark, set_ in (("lost", run.lost), ("late", run.late), ("held", run.held)) if set_
    )
    return run.state + why + marks


def _took(start: datetime | None, end: datetime | None, now: datetime) -> str:
    if start is None:
        return "-"
    return in_words(max(0.0, ((end or now) - start).total_seconds()))


def _show(run: Run, why: str) -> None:
    now = durations.now()
    pairs = [
        ("id", str(run.id)),
        ("deployment", f"{run.deployment}, revision {run.revision}"),
        ("state", _state_text(run)),
        ("why", why),
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
        ("  waits for", one.note or ""),
        ("  progress", _progress(one, now)),
        ("  agent", f"{one.agent}, pid {one.pid}" if one.pid else one.agent),
        ("  commit", one.commit or ""),
        ("  ended by", how if ended else ""),
        ("  started", _moment(one.started_at, now) if one.started_at else ""),
        ("  took", _took(one.started_at, one.ended_at, now) if one.started_at else ""),
        ("  memory limit", f"{output.size(one.memory)}, for this attempt" if one.memory is not None else ""),
        ("  memory", output.size(one.max_rss_bytes) if one.max_rss_bytes is not None else ""),
        ("  processor", f"{one.cpu_seconds:.3g} s" if one.cpu_seconds is not None else ""),
        ("  output", output.size(one.log_size) if one.log_size is not None else ""),
        ("  missing", f"{one.log_missing:,} bytes of its output" if one.log_missing else ""),
    ]


def _progress(one: Attempt, now: datetime) -> str:
    if one.progress is None:
        return ""
    percent = "" if one.progress.percent is None else f"{one.progress.percent:g} %"
    return f"{': '.join(filter(None, (percent, one.progress.note))) or '-'} ({ago(one.progress.at, now)})"


def _moment(when: datetime | None, now: datetime) -> str:
    return f"{local(when)} ({ago(when, now)})"
