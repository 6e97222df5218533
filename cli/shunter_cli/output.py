"""What commands print on stdout: tables for people, JSON and YAML for programs, ids for pipes."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from io import StringIO
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from shunter_work_pools.contracts.plain_text import plain

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console
    from rich.table import Table


class Output(StrEnum):
    """The form of what is printed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def _preferred(ctx: typer.Context, param: typer.CallbackParam, value: Output) -> Output:
    """What was asked for, else what the setting says."""
    source = ctx.get_parameter_source(param.name or "")
    if source is None or source.name != "DEFAULT" or ctx.params.get("quiet") or ctx.resilient_parsing:
        return value
    from shunter_work_pools.contracts.configuration import load

    return Output(load()["cli.output"])


OutputOption = Annotated[
    Output,
    typer.Option(
        "--output", "-o", help="For people, or for programs.", show_default=True, callback=_preferred
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print ids or names only, one a line.")]
WatchOption = Annotated[bool, typer.Option("--watch", "-w", help="Go on showing it until Ctrl-C.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")]

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
    "Cached": "green",
    "Skipped": "bright_black",
    "Pending": "bright_black",
    "lost": "red",
    "late": "yellow",
    "paused": "yellow",
    "ready": "green",
    "unwell": "yellow",
    "draining": "yellow",
}
#: Characters of an id's end that a table shows; the random part of a UUIDv7, good as an argument.
SHORT = 8
#: Blanks between the columns of a table; characters below which none is shortened, and from which on a
#: shortened one is of use.
_GAP, _NARROWEST, _USEFUL = 2, 4, 12


#: Strings that every reader of YAML, of 1.1 too, takes for strings without quotes.
_BARE = re.compile(r"[A-Za-z_][A-Za-z0-9_./@-]*")
_NOT_BARE = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})

#: What is printed is kept here, while something keeps it.
_kept: StringIO | None = None


@contextmanager
def kept() -> Iterator[StringIO]:
    """Keep what is printed on stdout meanwhile, as it would have been printed there."""
    global _kept
    before, _kept = _kept, StringIO()
    try:
        yield _kept
    finally:
        _kept = before


def say(text: str) -> None:
    """One line on stdout, or several; nothing in it steers the terminal."""
    _write(plain(text, lines=True) + "\n")


def say_drawn(text: str) -> None:
    """What rich has drawn, colours and all; what others wrote has been made plain in it."""
    _write(text + "\n")


def show_object(message: BaseModel, form: Output = Output.JSON) -> None:
    """One message as the contract's JSON, or the same as YAML."""
    show_data(message.model_dump(mode="json"), form)


def show_objects(messages: Iterable[BaseModel], form: Output = Output.JSON) -> None:
    """Messages as an array."""
    show_data([message.model_dump(mode="json") for message in messages], form)


def show_data(value: Any, form: Output = Output.JSON) -> None:
    """A value of JSON, as JSON or YAML, in UTF-8 whatever the locale; what is not printable is written as escapes."""
    text = _yaml(value) if form is Output.YAML else json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    text = escaped(text, form)
    if _kept is not None:
        _kept.write(text)
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace"))
    sys.stdout.buffer.flush()


def escaped(text: str, form: Output) -> str:
    """A document of JSON, or of YAML whose strings are bare ASCII or in double quotes, that steers no terminal.

    What is not printable stands in strings only, where both have escapes for it: the value is the same.
    """
    if text.isascii() and "\x7f" not in text:
        return text
    escape = _of_yaml if form is Output.YAML else _of_json
    return "".join(char if char == "\n" or char.isprintable() else escape(char) for char in text)


def _of_json(char: str) -> str:
    return json.dumps(char)[1:-1] if char != "\x7f" else "\\u007f"


def _of_yaml(char: str) -> str:
    return f"\\U{ord(char):08x}"


def _yaml(value: Any) -> str:
    from ruamel.yaml import YAML

    yaml: Any = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.allow_unicode = True
    yaml.width = 1_000_000
    yaml.sort_base_mapping_type_on_output = False
    yaml.representer.add_representer(str, _yaml_text)
    yaml.representer.add_representer(float, _yaml_float)
    text = StringIO()
    yaml.dump(value, text)
    return text.getvalue()


def _yaml_text(representer: Any, value: str) -> Any:
    bare = _BARE.fullmatch(value) and value.lower() not in _NOT_BARE
    return representer.represent_scalar("tag:yaml.org,2002:str", value, style=None if bare else '"')


def _yaml_float(representer: Any, value: float) -> Any:
    mantissa, e, exponent = repr(value).partition("e")
    if e and "." not in mantissa:  # YAML 1.1 takes 1e22 for a string
        return representer.represent_scalar("tag:yaml.org,2002:float", f"{mantissa}.0e{exponent}")
    return representer.represent_float(value)


def console(*, stderr: bool = False) -> Console:
    """The terminal; without colour if it is none, or NO_COLOR is set."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=False, emoji=False, markup=False)


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    elastic: Sequence[str] = (),
    wrapped: str = "",
    spare: Sequence[str] = (),
    header: bool = True,
    indent: int = 0,
) -> None:
    """A table without lines that fits the terminal (80 columns if there is none).

    Args:
        columns: headings; a leading ``>`` aligns right.
        elastic: columns that are shortened if there is not room for all.
        wrapped: the one of them that goes on below itself instead.
        spare: columns that are left out, one after the other, before the elastic ones get too short.
        header: whether the headings are shown.
        indent: blanks before each row.
    """
    from rich.table import Table
    from rich.text import Text

    cells = [[Text(plain(cell), style=STYLES.get(cell.split(" ")[0], "")) for cell in row] for row in rows]
    names = [heading.removeprefix(">") for heading in columns]
    heads = [len(name) if header else 0 for name in names]
    natural = [max([heads[index], *(row[index].cell_len for row in cells)]) for index in range(len(names))]
    terminal = console()
    widths = dict(zip(names, natural, strict=True))
    _leave_out(widths, elastic, spare, terminal.width - indent)
    _shorten(widths, elastic, terminal.width - indent)
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0), show_header=header)
    for name, width in widths.items():
        justify: Literal["left", "right"] = "left" if name in columns else "right"
        grid.add_column(name, justify=justify, no_wrap=name != wrapped, overflow="ellipsis", width=width)
    for row in cells:
        grid.add_row(*(cell for name, cell in zip(names, row, strict=True) if name in widths))
    _print(grid, terminal, indent)


def _needed(widths: dict[str, int]) -> int:
    return sum(widths.values()) + _GAP * (len(widths) - 1)


def _leave_out(widths: dict[str, int], elastic: Sequence[str], spare: Sequence[str], room: int) -> None:
    """Take out spare columns until the elastic ones have room enough to be of use."""
    for name in spare:
        least = {one: min(width, _USEFUL) if one in elastic else width for one, width in widths.items()}
        if _needed(least) <= room:
            return
        del widths[name]


def _shorten(widths: dict[str, int], elastic: Sequence[str], room: int) -> None:
    """Take from the widest elastic column, again and again, until all fit or none can give more."""
    while _needed(widths) > room:
        widest = max(
            (name for name in elastic if name in widths), key=lambda name: widths[name], default=None
        )
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


def _print(grid: Table, terminal: Console, indent: int = 0) -> None:
    with terminal.capture() as captured:
        terminal.print(grid)
    # Columns are padded, the last one to no purpose.
    _write("".join(" " * indent + line.rstrip() + "\n" for line in captured.get().splitlines()))


def heading(text: str) -> None:
    """A line that stands out in a terminal."""
    from rich.text import Text

    terminal = console()
    with terminal.capture() as captured:
        terminal.print(Text(plain(text), style="bold"), soft_wrap=True)
    _write(captured.get())


def _write(text: str) -> None:
    if _kept is not None:
        _kept.write(text)
        return
    sys.stdout.write(text)
    sys.stdout.flush()


def short(identifier: object) -> str:
    """The end of an id, unique enough to be typed."""
    return str(identifier)[-SHORT:]


def words(items: Iterable[str]) -> str:
    """Items with commas; a dash if there are none."""
    return ", ".join(items) or "-"


def number(value: int | None) -> str:
    """A number; a dash for None."""
    return "-" if value is None else str(value)


def compact(value: Any) -> str:
    """A value as JSON on one line."""
    return json.dumps(value, ensure_ascii=False)


def counted(count: int, one: str, *, most: int | None = None) -> str:
    """``1 run``, ``12 runs``; ``more than 500 runs`` if only so many were counted."""
    if most is not None and count > most:
        return f"more than {most:,} {one}s"
    return f"{count:,} {one}" if count == 1 else f"{count:,} {one}s"


def size(count: int) -> str:
    """Bytes in a unit that fits: ``512 B``, ``1.5 MiB``."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def amounts(had: Mapping[str, float]) -> str:
    """Amounts of what one has, memory in a unit that fits: ``cpu=7.5 gpu=1 memory=15.6GiB``; a dash if there are none."""
    from shunter_work_pools.contracts.capacity import rounded

    return rounded(had) or "-"


def clipped(text: str) -> str:
    """As much of a line as the terminal is wide."""
    width = console().width
    return text if len(text) <= width else text[: width - 1] + "…"
