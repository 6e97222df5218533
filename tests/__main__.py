"""All suites, in two lines side by side: those of engines, which wait most of the time, and all others.

``make test`` runs this. What the line of engines prints is marked, line by line; what failed in either line comes
last, so that the end of a log tells it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO
from xml.etree import ElementTree

_TESTS = Path(__file__).parent
#: Suites that start engines. All of them are in one line: there is one of each engine.
ENGINES = ("chaos", "cluster", "helm", "images", "joining", "launchers", "secrets")
#: Characters of a failure's first line that are told at the end; the whole of it stands above.
_TOLD = 160


def main() -> int:
    """Run all; 0 if both lines are green."""
    others = [
        folder.name
        for folder in sorted(_TESTS.iterdir())
        if any(folder.glob("test_*.py")) and folder.name not in ENGINES
    ]
    with tempfile.TemporaryDirectory(prefix="shunter-tests-") as folder:
        reports = [Path(folder, f"{line}.xml") for line in ("engines", "others")]
        with _pytest(ENGINES, reports[0], subprocess.PIPE) as engines, _pytest(others, reports[1]) as second:
            assert engines.stdout is not None
            telling = threading.Thread(target=_tell, args=[engines.stdout])
            telling.start()
            codes = [_end(engines), _end(second)]
            telling.join()
        for words in closing_words(reports, codes):
            print(words)
    return next((code for code in codes if code), 0)


def closing_words(reports: Iterable[Path], codes: Iterable[int]) -> Iterator[str]:
    """What failed in both lines, one line of text each, and how many passed, failed and were skipped.

    Args:
        reports: the JUnit file that pytest wrote of each line; one is not there if its pytest was killed.
        codes: what pytest exited with, in the same order.
    """
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    for report, code in zip(reports, codes, strict=True):
        if not report.is_file():
            yield f"{report.stem}: pytest exited with {code} and left no report; what it printed stands above"
            continue
        failed = 0
        for case in ElementTree.parse(report).iter("testcase"):
            wrong = [told for told in case if told.tag in ("failure", "error")]
            skipped = case.find("skipped") is not None
            counts["failed" if wrong else "skipped" if skipped else "passed"] += 1
            failed += bool(wrong)
            for told in wrong[:1]:
                first = next(iter(told.get("message", "").splitlines()), "")
                yield f"FAILED {case.get('file')}::{case.get('name')} {first[:_TOLD]}"
        if code and not failed:
            yield f"{report.stem}: pytest exited with {code} though no test failed; what it printed stands above"
    yield ", ".join(f"{count} {outcome}" for outcome, count in counts.items())


def _pytest(suites: Iterable[str], report: Path, stdout: int | None = None) -> subprocess.Popen[bytes]:
    words = [
        *(sys.executable, "-m", "pytest", f"--junitxml={report}", "-o", "junit_family=xunit1"),
        *(str(_TESTS / name) for name in suites),
    ]
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
