"""``shunter run tasks``, ``run graph`` and ``run artifacts``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from shunter_cli import durations, faults, live, output
from shunter_cli.completing import runs
from shunter_cli.connection import connect
from shunter_cli.durations import in_words, local
from shunter_cli.output import Output, OutputOption, QuietOption, WatchOption

if TYPE_CHECKING:
    from shunter_work_pools.client import Client
    from shunter_work_pools.contracts.tasks import GraphNode, TaskGraph, TaskRun

RunArgument = Annotated[
    str, typer.Argument(help="Its id, or any unique end of it.", metavar="RUN", autocompletion=runs)
]

_PAGE = 1000
#: Task runs that a table shows if it is not told.
_SHOWN = 100
_MARKS = {
    "Completed": "●",
    "Cached": "●",
    "Failed": "✗",
    "Running": "◐",
    "Retrying": "◐",
    "Pending": "○",
    "Skipped": "◌",
    "Cancelled": "◌",
}


def attach(group: typer.Typer) -> None:
    """Add the commands to the group of runs."""
    group.command("tasks")(tasks)
    group.command("graph")(graph)
    group.command("artifacts")(artifacts)


def tasks(
    run: RunArgument,
    state: Annotated[
        list[str] | None,
        typer.Option(help="Pending, Running, Failed, ... Repeatable: any of them.", metavar="STATE"),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the task.", metavar="NAME")] = None,
    limit: Annotated[
        int | None,
        typer.Option(help="At most so many; by default all, in a table 100.", min=1, metavar="N"),
    ] = None,
    watch: WatchOption = False,
    output_as: OutputOption = Output.TABLE,
    quiet: QuietOption = False,
) -> None:
    """Show what the tasks of a run do, in the order in which they were made.

    An id stays the same when the run is tried again.
    """
    states = [_state(word) for word in state or []]
    table = output_as is Output.TABLE and not quiet
    most = limit or (_SHOWN if table else sys.maxsize)

    def draw(found: tuple[list[TaskRun], bool]) -> None:
        _draw_tasks(found[0], output_as, quiet)
        if found[1] and table and limit is None and not watch:
            faults.tell(f"There are more: --limit N, --state failed, or --output json. These are {most}.")

    with connect() as client:
        live.show(lambda: _some(client, run, states, name, most), draw, watch=watch)


def _state(word: str) -> str:
    from shunter_work_pools.contracts.errors import InvalidInput
    from shunter_work_pools.contracts.tasks import TaskState

    for known in TaskState:
        if known.value.lower() == word.lower():
            return known.value
    raise InvalidInput(f"--state: there is no state {word!r} of tasks", f"States: {', '.join(TaskState)}.")


def _some(
    client: Client, run: str, states: Sequence[str], name: str | None, most: int
) -> tuple[list[TaskRun], bool]:
    """Up to ``most`` task runs, and whether there are more."""
    found: list[TaskRun] = []
    cursor: str | None = None
    while True:
        left = min(_PAGE, most - len(found))
        page = client.list_tasks(run, states=states, name=name, cursor=cursor, limit=left)
        found += page.tasks
        cursor = page.next
        if cursor is None or len(found) >= most:
            return found, cursor is not None


def _draw_tasks(found: Sequence[TaskRun], output_as: Output, quiet: bool) -> None:
    if quiet:
        for one in found:
            output.say(one.id)
    elif output_as is not Output.TABLE:
        output.show_objects(found, output_as)
    else:
        now = durations.now()
        depths: dict[str, int] = {}
        rows = []
        for one in found:
            depth = depths[one.id] = depths.get(one.parent or "", -1) + 1
            rows.append(_task(one, depth, now))
        output.table(
            ("TASK", "STATE", ">TRY", ">ATTEMPT", "STARTED", ">TOOK", "ERROR", "ID"),
            rows,
            elastic=("TASK", "ERROR"),
            spare=("ID", "ATTEMPT", "STARTED"),
        )


def _task(one: TaskRun, depth: int, now: datetime) -> tuple[str, ...]:
    error = ""
    if one.error is not None:
        error = ": ".join(filter(None, (one.error.type, one.error.message.partition("\n")[0])))
    return (
        "  " * min(depth, 10) + one.name,
        one.state,
        str(one.attempt) if one.attempt else "-",
        str(one.run_attempt),
        local(one.started_at) if one.started_at else "-",
        _took(one.started_at, one.ended_at, now),
        error or "-",
        one.id,
    )


def _took(start: datetime | None, end: datetime | None, now: datetime) -> str:
    if start is None:
        return "-"
    return in_words(max(0.0, ((end or now) - start).total_seconds()))


def graph(
    run: RunArgument,
    svg: Annotated[
        str | None, typer.Option(help="Write it as an image to a file, - for stdout.", metavar="FILE")
    ] = None,
    each: Annotated[
        bool,
        typer.Option("--each", help="Each task by itself; otherwise equals are one: the elements of a map."),
    ] = False,
    watch: WatchOption = False,
    output_as: OutputOption = Output.TABLE,
) -> None:
    """Draw how the tasks of a run follow each other, as far as they are known.

    While the run is at work, too.
    """
    from shunter_work_pools.contracts.errors import InvalidInput

    if svg is not None and (watch or output_as is not Output.TABLE):
        raise InvalidInput("--svg writes an image once", "Leave --watch and --output away.")
    with connect() as client:
        if svg is not None:
            _write_svg(client.get_graph(run, each=each), svg)
            return
        live.show(
            lambda: client.get_graph(run, each=each), lambda found: _draw(found, output_as), watch=watch
        )


def _write_svg(found: TaskGraph, file: str) -> None:
    from shunter_cli.exporting import target
    from shunter_cli.task_graphs import svg

    image = svg.drawn(found, f"The tasks of run {found.run}")
    with target(None if file == "-" else file, "--svg") as out:
        out.write(image.encode())
    if file != "-":
        faults.tell(f"{output.counted(len(found.nodes), 'node')} drawn to {file}")


def _draw(found: TaskGraph, output_as: Output) -> None:
    from shunter_cli.task_graphs.blocks import Block, blocks, label, states, worst

    if output_as is not Output.TABLE:
        output.show_object(found, output_as)
        return
    if not found.nodes:
        output.say("This run has told of no tasks.")
        return
    from shunter_cli.task_graphs import lanes
    from shunter_cli.task_graphs.numbered import numbered

    # What goes beyond leaves no room for names.
    widest = output.console().width // 2
    now = durations.now()

    def row(drawn: str, node: GraphNode) -> tuple[str, ...]:
        return f"{drawn}{label(node)}", states(node), _took(node.started_at, node.ended_at, now)

    def rows(block: Block) -> list[tuple[str, ...]]:
        by_id = {node.id: node for node in block.nodes}
        marks = {node.id: _MARKS.get(worst(node), "○") for node in block.nodes}
        drawn = lanes.drawn(list(by_id), block.before, marks)
        wide = max(len(line) for line, _ in drawn) + 2
        if wide > widest:
            named = max(len(label(node)) for node in block.nodes) + 2
            return [
                (
                    f"{line}  {label(by_id[node]).ljust(named if after else 0)}{after}",
                    *row("", by_id[node])[1:],
                )
                for line, node, after in numbered(list(by_id), block.before, marks)
            ]
        return [
            (line, "", "") if node is None else row(line.ljust(wide), by_id[node]) for line, node in drawn
        ]

    lines: list[tuple[str, ...]] = []
    for block in blocks(found):
        if block.around is None:
            # A flow around all of it is the heading.
            lines += rows(block) if len(block.nodes) > 1 else [row("", block.nodes[0])]
            continue
        inner = rows(block)
        if len(lines) > 1:
            lines += [("", "", ""), (f"in {label(block.around)}", "", "")]
        lines += inner
    output.table(("GRAPH", "STATE", ">TOOK"), lines, elastic=("GRAPH", "STATE"), header=False)


def artifacts(
    run: RunArgument,
    key: Annotated[str | None, typer.Argument(help="Print this one.", metavar="KEY")] = None,
    output_as: OutputOption = Output.TABLE,
) -> None:
    """Show what a run left to be looked at, or one of it.

    A table is printed as one, of an image the bytes (send them to a file), of the others the text, or the address.
    `--output json` has all of it.
    """
    from shunter_cli import artifacts as shown

    with connect() as client:
        if key is not None:
            one = client.get_artifact(run, key)
            if output_as is Output.TABLE:
                shown.show(one)
            else:
                output.show_object(one, output_as)
            return
        found = client.list_artifacts(run).artifacts
    if output_as is not Output.TABLE:
        output.show_objects(found, output_as)
        return
    output.table(
        ("KEY", "KIND", ">SIZE", "LEFT", "DESCRIPTION"),
        [(one.key, one.kind, output.size(one.bytes), local(one.at), one.description or "-") for one in found],
        elastic=("KEY", "DESCRIPTION"),
        spare=("LEFT",),
    )
