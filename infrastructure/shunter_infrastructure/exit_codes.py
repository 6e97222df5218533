"""What exit codes say of signals, where engines say no more."""

from __future__ import annotations

import signal

#: Signals that end nothing by themselves: an exit code that would mean them is the command's own.
_HARMLESS = {"SIGCHLD", "SIGCONT", "SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGURG", "SIGWINCH"}


def inferred(code: int) -> str | None:
    """The signal that an exit code stands for by custom; None if it stands for none that ends a process."""
    try:
        name = signal.Signals(code - 128).name
    except ValueError:
        return None
    return None if name in _HARMLESS else name


def told(code: int, name: str) -> str:
    """The sentence that says so."""
    return f"Exit code {code} is taken for {name}: the engine does not say more."
