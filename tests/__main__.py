"""All suites, in two lines side by side: those of engines, which wait most of the time, and all others.

``make test`` runs this. What the line of engines prints is marked, line by line.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import IO

_TESTS = Path(__file__).parent
#: Suites that start engines. All of them are in one line: there is one of each engine.
ENGINES = ("chaos", "cluster", "helm", "images", "joining", "launchers", "secrets")


def main() -> int:
    """Run all; 0 if both lines are green."""
    others = [
        folder.name
        for folder in sorted(_TESTS.iterdir())
        if any(folder.glob("test_*.py")) and folder.name not in ENGINES
    ]
    with _pytest(ENGINES, subprocess.PIPE) as engines, _pytest(others) as second:
        assert engines.stdout is not None
        telling = threading.Thread(target=_tell, args=[engines.stdout])
        telling.start()
        codes = [_end(second), _end(engines)]
        telling.join()
    return next((code for code in codes if code), 0)


def _pytest(suites: Iterable[str], stdout: int | None = None) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "pytest", *(str(_TESTS / name) for name in suites)]
    return subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stdout and subprocess.STDOUT
    )


def _tell(printed: IO[bytes]) -> None:
    for line in printed:
        sys.stdout.buffer.write(b"engines | " + line)
        sys.stdout.flush()


def _end(line: subprocess.Popen[bytes]) -> int:
    while True:
        try:
            return line.wait()
        except KeyboardInterrupt:
            continue  # the terminal has told it, too: it stops its engines and says how far it came


if __name__ == "__main__":
    sys.exit(main())
