"""The ``shunter`` command: what runs before anything heavy is imported.

``--version`` is answered here. Everything else goes to :mod:`shunter_cli.app`, and whatever it raises
becomes one message on stderr and an exit code (:mod:`shunter_cli.faults`).
"""

from __future__ import annotations

import errno
import gc
import os
import sys
from collections.abc import Sequence

#: Exit codes: 2 if what was asked for is wrong, 1 if it could not be done, 130 on Ctrl-C.
INTERRUPTED = 130

#: New objects between two collections, instead of 700: imports alone would make for 90 of them, a
#: tenth of a short command's life. Daemons keep their own pace.
_GARBAGE = 50_000


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
        words = _without_profile(words)
        if words[:1] not in (["server"], ["agent"]):
            gc.set_threshold(_GARBAGE)
        from shunter_cli.app import run

        code = run(words)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough
        _abandon_output()
        return 1
    except OSError as exc:
        if exc.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        _abandon_output()
        print(f"Error: the output cannot be written: {exc.strerror}", file=sys.stderr)  # noqa: T201
        return 1


def _without_profile(words: list[str]) -> list[str]:
    """Take a leading ``--profile NAME`` as the variable, which reaches what the command starts, too."""
    name, rest = "", words
    if words[:1] == ["--profile"] and len(words) > 1:
        name, rest = words[1], words[2:]
    elif words and words[0].startswith("--profile="):
        name, rest = words[0].removeprefix("--profile="), words[1:]
    if not name:
        return words
    os.environ["SHUNTER_PROFILE"] = name
    return rest


def _abandon_output() -> None:
    """What is left of the output must not be tried again when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"shunter {version('shunter')}"
    except PackageNotFoundError:
        return "shunter (not installed)"


if __name__ == "__main__":
    sys.exit(main())
