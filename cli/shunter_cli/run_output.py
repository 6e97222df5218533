"""Where the output of runs goes: byte for byte into files and pipes, readable and harmless onto a terminal.

What a run writes may be anything, also what somebody else had it write. On a terminal, as with ``less -R``, colours
(SGR, ECMA-48 8.3.117) are let through and all else that steers is shown as an escape: moves of the cursor, titles,
the clipboard (OSC 52), links (OSC 8), BEL, backspace, C1, marks that turn the direction of text. A carriage return
begins a new line, so that nothing is written over.
"""

from __future__ import annotations

import codecs
import re
import sys
from typing import Literal, Protocol, Self

from shunter_work_pools.contracts.plain_text import plain

_COLOUR = re.compile(r"(\x1b\[[0-9;:]{0,64}m)")
#: What may be the beginning of a colour, or of a line end, and is looked at again with what follows.
_BEGUN = re.compile(r"(\x1b(\[[0-9;:]{0,64})?|\r)\Z")
_RESET = "\x1b[0m"


class Sink(Protocol):
    """Takes output; used in ``with``."""

    def write(self, data: bytes) -> None:
        """Some bytes, in order."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> Literal[False]: ...


def stdout() -> Sink:
    """Stdout, as fits what it is."""
    return _Terminal() if sys.stdout.isatty() else _Bytes()


class _Bytes:
    def write(self, data: bytes) -> None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> Literal[False]:
        return False


class _Terminal(_Bytes):
    def __init__(self) -> None:
        self._harmless = Harmless()

    def write(self, data: bytes) -> None:
        self._show(self._harmless.text(data))

    def _show(self, text: str) -> None:
        super().write(text.encode(sys.stdout.encoding or "utf-8", "backslashreplace"))

    def __exit__(self, *exc: object) -> Literal[False]:
        self._show(self._harmless.end())
        return False


class Harmless:
    """Turns bytes, piece by piece, into text for a terminal."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._held = ""
        self._coloured = False

    def text(self, data: bytes) -> str:
        """What can be shown by now of all that came."""
        text = self._held + self._decoder.decode(data)
        begun = _BEGUN.search(text)
        self._held = begun[0] if begun else ""
        return self._cleaned(text[: begun.start()] if begun else text)

    def end(self) -> str:
        """The rest; colours end with it."""
        rest = self._cleaned(self._held + self._decoder.decode(b"", final=True))
        self._held = ""
        reset = _RESET if self._coloured else ""
        self._coloured = False
        return rest + reset

    def _cleaned(self, text: str) -> str:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        pieces = _COLOUR.split(text)
        for at in range(1, len(pieces), 2):
            self._coloured = pieces[at] not in (_RESET, "\x1b[m")
        pieces[::2] = [
            "\t".join(plain(cell, lines=True) for cell in piece.split("\t")) for piece in pieces[::2]
        ]
        return "".join(pieces)
