"""Raising an exception in another thread.

It takes effect when that thread executes Python code next: what waits in C (``time.sleep``, a socket) goes on until
that returns.
"""

from __future__ import annotations

import threading
from types import TracebackType


class Interruptible:
    """While this is entered, ``interrupt`` raises in the thread that entered it; never afterwards."""

    __slots__ = ("_ident", "_lock", "_sent")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ident: int | None = None
        self._sent = False

    def __enter__(self) -> Interruptible:
        self._ident = threading.get_ident()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def leave(self) -> None:
        """What was sent and has not arrived is taken back."""
        with self._lock:
            ident, self._ident = self._ident, None
            if self._sent and ident is not None:
                _set(ident, None)

    def interrupt(self, error: type[BaseException]) -> None:
        """Raise this there, once."""
        with self._lock:
            if self._ident is not None and not self._sent:
                self._sent = True
                _set(self._ident, error)


def _set(ident: int, error: type[BaseException] | None) -> None:
    import ctypes

    what = ctypes.py_object(error) if error is not None else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), what)
