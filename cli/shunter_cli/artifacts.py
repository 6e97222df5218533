"""One artifact, printed: a table as one, an image as what it is, of the others the text."""

from __future__ import annotations

import base64
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from shunter_cli import faults, output

if TYPE_CHECKING:
    from shunter_work_pools.contracts.tasks import Artifact

#: Characters of a column that are shown at the least, and between two columns.
_USEFUL, _GAP = 12, 2


def show(one: Artifact) -> None:
    """Print it for people; an image goes to a file or a pipe, byte by byte, and never to a terminal."""
    image = _image(one.data) if one.kind == "image" and isinstance(one.data, str) else None
    if one.kind == "table" and isinstance(one.data, list):
        _show_table(*_rows(one.data))
    elif image is None:
        output.say(one.data if isinstance(one.data, str) else output.compact(one.data))
    elif sys.stdout.isatty():
        output.say(f"an image of {output.size(len(image))}: send it to a file, > {one.key}")
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(image)
        sys.stdout.buffer.flush()


def _image(data: str) -> bytes | None:
    """The bytes that a data URL holds; None: it is none."""
    head, comma, encoded = data.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        return None
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError:
        return None


def _show_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not names:
        output.say("The table is empty.")
        return
    fit = _fitting(names, rows)
    # Each has a name of its own here; and ">" would be taken for a mark.
    columns = [f"{name}{' ' * names[:at].count(name)}" for at, name in enumerate(names[:fit])]
    columns = [f">{name}" if name.startswith(">") else name for name in columns]
    output.table(columns, [row[:fit] for row in rows], elastic=[name.removeprefix(">") for name in columns])
    if fit < len(names):
        faults.tell(f"{output.counted(len(names) - fit, 'column')} more: --output json has all of them.")


def _fitting(names: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """How many columns there is room for."""
    room, fit = output.console().width, 0
    for at, name in enumerate(names):
        room -= min(_USEFUL, max(len(name), *(len(row[at]) for row in rows), 1))
        if room < 0:
            break
        fit, room = fit + 1, room - _GAP
    return max(1, fit)


def _rows(data: Sequence[object]) -> tuple[list[str], list[list[str]]]:
    """The names and cells of a table: of mappings, or of lists of which the first one has the names."""
    dicts = [row for row in data if isinstance(row, dict)]
    if len(dicts) == len(data):
        names = list(dict.fromkeys(name for row in dicts for name in row))
        return names, [[_cell(row.get(name)) for name in names] for row in dicts]
    lists = [row if isinstance(row, list) else [row] for row in data]
    wide = max(map(len, lists))
    cells = [[_cell(cell) for cell in row] + [""] * (wide - len(row)) for row in lists]
    return cells[0], cells[1:]


def _cell(value: object) -> str:
    return value if isinstance(value, str) else "-" if value is None else output.compact(value)
