"""The few things the keeper needs of larger modules, at a tenth of their memory.

``json`` brings ``re``, ``signal`` and ``socket`` bring ``enum``, ``ctypes`` brings ``struct`` and dozens of classes: two
megabytes, copied into the page tables of every keeper. Below are the C parts that those modules wrap,
with the public module as a fall-back where an interpreter lacks them.
"""

from __future__ import annotations

import sys
import time

TYPE_CHECKING = False  # as type checkers read it; importing typing would cost a megabyte
if TYPE_CHECKING:
    import signal as signals
    import socket as sockets
    from typing import Any
else:
    try:
        import _signal as signals
    except ImportError:
        import signal as signals
    try:
        import _socket as sockets
    except ImportError:
        import socket as sockets

__all__ = [
    "LAUNCH_VERSION",
    "USED",
    "VERSION",
    "Channel",
    "alarm_at",
    "clock",
    "decode_json",
    "die_with_parent",
    "keep_capabilities",
    "no_new_privileges",
    "quote",
    "signals",
    "subreaper",
]


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
        except (StopIteration, SystemError) as exc:
            # The scanner wants to raise an error of the module json, which is not loaded.
            raise ValueError("not JSON") from exc
except ImportError:  # an interpreter without the C accelerator
    import json

    quote = json.dumps
    decode_json = json.loads  # type: ignore[assignment]  # takes more than is asked of it


class Channel:
    """A socket that is read message by message, each with the descriptor that came with it.

    Args:
        fd: of the socket; closed by whoever owns it.
    """

    def __init__(self, fd: int) -> None:
        self._socket = sockets.socket(fileno=fd)

    def receive(self, limit: int) -> tuple[bytes, int]:
        """Up to ``limit`` bytes, none at the end of the stream, and the descriptor, or -1.

        One that cannot be taken for want of free ones is lost: the message comes without it.
        """
        room = sockets.CMSG_SPACE(4) if sys.platform == "linux" else 0
        data, ancillary, _, _ = self._socket.recvmsg(limit, room, getattr(sockets, "MSG_CMSG_CLOEXEC", 0))
        for level, kind, value in ancillary:
            if (level, kind) == (sockets.SOL_SOCKET, sockets.SCM_RIGHTS) and len(value) == 4:
                return data, int.from_bytes(value, sys.byteorder)
        return data, -1


#: Versions of ``record`` and of ``launch.json``. Who reads one that is newer than itself says so and leaves it alone;
#: whatever a reader of the version before may pass over without being wrong needs no new one.
#:
#: 1. the first.
#: 2. leases and limits of memory: ``launch.json`` may hold ``lease`` and ``memory``, the record's end ``lease`` and
#:    ``oom_kills``.
#: 3. ``launch.json`` may hold ``secrets`` (they come apart from it), ``user`` and ``limits``.
VERSION = 2
LAUNCH_VERSION = 3

#: Ending of files of an earlier attempt that wait in a recycled folder to be written anew.
USED = ".used"


def _find(name: str) -> Any:
    """A function of the C library, all of whose arguments are int, bytes or None; None where there is none."""
    if sys.platform != "linux":
        return None
    try:
        try:
            import _ctypes

            address = _ctypes.dlsym(_ctypes.dlopen(None, 0), name)  # type: ignore[arg-type]  # None: this program
            return lambda *args: _ctypes.call_function(address, args)
        except (ImportError, AttributeError):
            import ctypes

            return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None


_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_TIMER_ABSTIME = 1  # linux/time.h
_prctl = _find("prctl")
_timer_create = _find("timer_create")
_timer_settime = _find("timer_settime")
_timers: list[int] = []

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def clock() -> float:
    """Seconds of the clock that also counts suspended time, as in ``Stamp.ticks``."""
    return time.clock_gettime(_CLOCK)


def alarm_at(moment: float) -> None:
    """Have SIGALRM sent to this process at that moment of :func:`clock`, or at once if it has passed.

    One alarm at a time. ``setitimer`` would count no suspended time: a machine that wakes up would let run for
    minutes what should have ended while it slept. It serves where there are no POSIX timers (macOS, glibc before
    2.34).
    """
    if not _timers and _timer_create is not None and _timer_settime is not None:
        made = bytes(bytearray(8))  # an object of its own: the id is written into it
        if _timer_create(_CLOCK, None, made) == 0:
            _timers.append(int.from_bytes(made, sys.byteorder))
    if not _timers:
        signals.setitimer(signals.ITIMER_REAL, max(moment - clock(), 1e-6))
        return
    nanoseconds = max(int(moment * 1e9), 1)  # 0 would disarm it
    spec = bytes(16)  # once, not every so often
    for part in divmod(nanoseconds, 1_000_000_000):
        spec += part.to_bytes(8, sys.byteorder)
    _timer_settime(_timers[0], _TIMER_ABSTIME, spec, None)


def die_with_parent() -> None:
    """Have the kernel kill this process, and what it executes, when its parent dies (where that is possible)."""
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, int(signals.SIGKILL), 0, 0, 0)


def no_new_privileges() -> bool:
    """Let no program that is executed from now on give this process more rights; False where that is not possible."""
    return _prctl is not None and _prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0


def keep_capabilities() -> None:
    """Hand no capability of this process on to what it executes: a service manager may have given it some that only
    the agent is to have (AmbientCapabilities= of systemd)."""
    if _prctl is not None:
        _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)


def subreaper() -> bool:
    """Make this process the parent of every orphan among its descendants; False where that is not possible.

    The mark is not inherited by forks (prctl(2)), so each keeper sets its own.
    """
    return _prctl is not None and _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
