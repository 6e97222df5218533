"""A keeper that is killed with SIGKILL at one instruction of its beginning.

``python -I -S dying_keeper.py ROOT FOLDER CALL N``: it dies just before its N-th call of ``os.CALL`` (counted from
the moment at which it takes the folder in hand).
"""

from __future__ import annotations

import os
import sys
from typing import Any

sys.path.append(sys.argv[1])
from shunter_infrastructure.process import keeper
from shunter_infrastructure.process.lean import signals


def main(folder: str, call: str, time: int) -> None:
    """Be a keeper up to there."""
    real, calls = getattr(os, call), 0

    def deadly(*words: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == time:
            os.kill(os.getpid(), signals.SIGKILL)
        return real(*words, **more)

    signals.pthread_sigmask(signals.SIG_BLOCK, signals.valid_signals())
    line = keeper.Line(os.open(os.devnull, os.O_WRONLY))
    setattr(os, call, deadly)
    keeper.keep(line, 1, folder)


if __name__ == "__main__":
    main(sys.argv[2], sys.argv[3], int(sys.argv[4]))
