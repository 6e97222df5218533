"""The ``shunter`` command: what runs before anything heavy is imported.

``--version`` is answered here. Everything else goes to :mod:`shunter_cli.app`, and whatever it raises
becomes one message on stderr and an exit code (:mod:`shunter_cli.faults`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

#: Exit codes: 2 if what was asked for is wrong, 1 if it could not be done, 130 on Ctrl-C.
INTERRUPTED = 130


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        args: the words after ``shunter``; default: those of the process.
    """
    words = list(sys.argv[1:] if args is None else args)
    try:
        if words in (["--version"], ["-V"]):
            print(_version())  # noqa: T201
            sys.stdout.flush()
            return 0
        from shunter_cli.app import run

        code = run(words)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough. Nothing may be flushed into the pipe at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"shunter {version('shunter')}"
    except PackageNotFoundError:
        return "shunter (not installed)"


if __name__ == "__main__":
    sys.exit(main())
