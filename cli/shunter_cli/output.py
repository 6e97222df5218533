"""What commands print on stdout: tables for people, JSON for programs, ids for pipes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console
    from rich.table import Table


class Output(StrEnum):
    """The form of what is printed."""

    TABLE = "table"
    JSON = "json"


OutputOption = Annotated[
    Output, typer.Option("--output", "-o", help="For people, or JSON for programs.", show_default=True)
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print ids or names only, one a line.")]

#: Colours of states.
STYLES = {
    "Completed": "green",
    "Failed": "red",
    "Crashed": "magenta",
    "TimedOut": "yellow",
    "Cancelled": "bright_black",
    "Cancelling": "yellow",
    "Running": "cyan",
    "Starting": "cyan",
    "Claimed": "cyan",
    "Retrying": "yellow",
    "lost": "red",
    "late": "yellow",
    "paused": "yellow",
    "ready": "green",
}
#: Characters of an id's end that a table shows; the random part of a UUIDv7, good as an argument.
SHORT = 8
#: Blanks between the columns of a table; characters below which none is shortened.
_GAP, _NARROWEST = 2, 4


def say(text: str) -> None:
    """One line on stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def show_json(value: Any) -> None:
    """A value of JSON, indented, in UTF-8 whatever the locale."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace"))
    sys.stdout.buffer.flush()


def show_object(message: BaseModel) -> None:
    """One message as the contract's JSON."""
    show_json(message.model_dump(mode="json"))


def show_objects(messages: Iterable[BaseModel]) -> None:
    """Messages as a JSON array."""
    show_json([message.model_dump(mode="json") for message in messages])


def console() -> Console:
    """The terminal; without colour if it is none, or NO_COLOR is set."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False, emoji=False, markup=False)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, elastic: Sequence[str] = ()) -> None:
    """A table without lines that fits the terminal (80 columns if there is none).

    Args:
        columns: headings; a leading ``>`` aligns right.
        elastic: columns that are shortened if there is not room for all.
    """
    from rich.table import Table
    from rich.text import Text

    cells = [[Text(plain(cell), style=STYLES.get(cell.split(" ")[0], "")) for cell in row] for row in rows]
    names = [heading.removeprefix(">") for heading in columns]
    widths = [max([len(name), *(row[index].cell_len for row in cells)]) for index, name in enumerate(names)]
    terminal = console()
    room = terminal.width - _GAP * (len(names) - 1)
    _shorten(widths, [index for index, name in enumerate(names) if name in elastic], room)
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
    for heading, name, width in zip(columns, names, widths, strict=True):
        justify: Literal["left", "right"] = "right" if heading != name else "left"
        grid.add_column(name, justify=justify, no_wrap=True, overflow="ellipsis", width=width)
    for row in cells:
        grid.add_row(*row)
    _print(grid, terminal)


def _shorten(widths: list[int], elastic: Sequence[int], room: int) -> None:
    """Take from the widest elastic column, again and again, until all fit or none can give more."""
    while sum(widths) > room:
        widest = max(elastic, key=lambda index: widths[index], default=None)
        if widest is None or widths[widest] <= _NARROWEST:
            return
        widths[widest] -= 1


def facts(pairs: Iterable[tuple[str, str]]) -> None:
    """Names and values of one thing, aligned, long values wrapped under themselves."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    for name, value in pairs:
        grid.add_row(name, Text(plain(value, lines=True), style=STYLES.get(value.split(" ")[0], "")))
    _print(grid, console())


def _print(grid: Table, terminal: Console) -> None:
    with terminal.capture() as captured:
        terminal.print(grid)
    for line in captured.get().splitlines():
        sys.stdout.write(line.rstrip() + "\n")  # columns are padded, the last one to no purpose
    sys.stdout.flush()


def plain(text: str, *, lines: bool = False) -> str:
    """Text that cannot steer the terminal: control characters shown as escapes."""
    return "".join(
        char if char.isprintable() or (lines and char == "\n") else char.encode("unicode_escape").decode()
        for char in text
    )


def short(identifier: object) -> str:
    """The end of an id, unique enough to be typed."""
    return str(identifier)[-SHORT:]


def words(items: Iterable[str]) -> str:
    """Items with commas; a dash if there are none."""
    return ", ".join(items) or "-"


def compact(value: Any) -> str:
    """A value as JSON on one line."""
    return json.dumps(value, ensure_ascii=False)
