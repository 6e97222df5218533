"""The few things the keeper needs of larger modules, at a tenth of their memory.

``json`` brings ``re``, ``signal`` brings ``enum``, ``ctypes`` brings ``struct`` and dozens of classes: two
megabytes, copied into the page tables of every keeper. Below are the C parts that those modules wrap,
with the public module as a fall-back where an interpreter lacks them.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # as type checkers read it; importing typing would cost a megabyte
if TYPE_CHECKING:
    import signal as signals
    from typing import Any
else:
    try:
        import _signal as signals
    except ImportError:
        import signal as signals

__all__ = ["USED", "decode_json", "quote", "signals", "subreaper"]


class _Plain:
    """What the C scanner wants to know: nothing but plain JSON."""

    strict = False
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float
    memo: dict[str, str] = {}


try:
    from _json import encode_basestring_ascii as quote
    from _json import make_scanner

    _scan: Any = make_scanner(_Plain)  # type: ignore[arg-type]  # it reads attributes, whatever holds them

    def decode_json(text: str) -> Any:
        """The value of a JSON text without leading blanks.

        Raises:
            ValueError: it is not JSON, or torn.
        """
        try:
            return _scan(text, 0)[0]
        except StopIteration as exc:
            raise ValueError("not JSON") from exc
except ImportError:  # an interpreter without the C accelerator
    import json

    quote = json.dumps
    decode_json = json.loads  # type: ignore[assignment]  # takes more than is asked of it


#: Ending of files of an earlier attempt that wait in a recycled folder to be written anew.
USED = ".used"


def _find_prctl() -> Any:
    try:
        import _ctypes

        address = _ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl")  # type: ignore[arg-type]  # None: this program
        return lambda *args: _ctypes.call_function(address, args)
    except (ImportError, AttributeError):
        import ctypes

        return ctypes.CDLL(None).prctl


_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_prctl = _find_prctl() if sys.platform == "linux" else None


def subreaper() -> bool:
    """Make this process the parent of every orphan among its descendants; False where that is not possible.

    The mark is not inherited by forks (prctl(2)), so each keeper sets its own.
    """
    return _prctl is not None and _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
