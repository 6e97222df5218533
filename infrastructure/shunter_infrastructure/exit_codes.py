"""What exit codes and output say of an end, where engines say no more."""

from __future__ import annotations

import re
import signal
from pathlib import Path

#: Signals that end nothing by themselves: an exit code that would mean them is the command's own.
_HARMLESS = {"SIGCHLD", "SIGCONT", "SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGURG", "SIGWINCH"}
#: What is all the output where the command cannot be executed: by the init that engines put first (tini; Podman's
#: catatonit), and by runc, which finds out only in the container that a program is for another machine.
_NOT_EXECUTED = re.compile(
    rb"(\[FATAL tini \(\d+\)\] exec .* failed: .*|ERROR \(catatonit:\d+\): failed to exec .*|exec .*: exec format error)\n?"
)
#: Bytes of output beyond which it is not that alone.
_LONGEST = 2000


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


def not_executed(output: Path) -> str | None:
    """What was said, if the whole output says that the command could not be executed."""
    try:
        if output.stat().st_size > _LONGEST:
            return None
        text = output.read_bytes()
    except FileNotFoundError:
        return None
    return text.decode(errors="replace").strip() if _NOT_EXECUTED.fullmatch(text) else None
