"""What a flow's tasks do, line by line, in a file of the attempt's folder.

One JSON object a line; the first names the version and the flow (``h``: it has hooks for a crash). A task run's line:

``k`` key, ``p`` key of the run around it, ``t`` name, ``s`` letter of the state, ``n`` number of the try, ``at`` and, of an
end, ``b`` (began), in microseconds since 1970, ``u`` keys upstream, ``e`` error (type, message, traceback), ``r`` result
(``i`` JSON | ``p`` pickled, base64 | ``f`` file in ``results`` beside the journal | ``url``; ``n`` bytes, ``z`` "j" or "p"),
``c`` version of the code; ``y: "flow"`` of a flow run. Other lines: ``art`` an artifact, ``pr`` progress.

A state that another one follows within 50 ms is left out, so that a short task has one line. An end is in the file (in
the kernel's hands, which a ``kill -9`` leaves alone) before anybody gets the result. Lines are appended whole, by one
write; a line that is not whole is passed over when the journal is read.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from shunter.clock import clock
from shunter.scopes import current
from shunter.states import GOOD, LETTERS

if TYPE_CHECKING:
    from shunter.futures import TaskFuture
    from shunter.messages import Messages
    from shunter.runs import FlowRun

    Run: TypeAlias = TaskFuture[Any] | FlowRun

VERSION = 1
#: Seconds that a line which is no end may wait for the next one, and lines that may wait.
PAUSE = 0.05
WAITING = 500
_GOOD = frozenset(LETTERS[state] for state in GOOD)
_TEXT = 4000
_TRACE = 8000


class Lines:
    """A journal's end, to which lines are added.

    Args:
        path: the file; made if it is not there.

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._lock = threading.Lock()
        self._torn = False
        self._failed = False

    def tell(self, what: dict[str, Any]) -> None:
        """A line that is no state of a run."""
        self._write(_encoded(what | {"at": _now()}))

    def _write(self, line: bytes) -> None:
        with self._lock:
            self._append(line)

    def _append(self, data: bytes) -> None:
        if self._torn:
            data = b"\n" + data
        try:
            while data:
                data = data[os.write(self._file, data) :]
                self._torn = bool(data)
        except OSError as exc:
            if not self._failed:
                self._failed = True
                from shunter.loggers import get_logger

                get_logger("shunter").error(
                    "the journal %s cannot be written (%s): what is done from here on will be done again "
                    "if this run is retried",
                    self.path,
                    exc.strerror,
                )


class Journal(Lines):
    """The journal of this process. What is in the file already was done by earlier attempts of the same run.

    Args:
        path: the file; made if it is not there.
        completed: what others know of completed runs (key to line), beside the file.
        fetch: gives a result of theirs by its name.

    Raises:
        OSError: the file cannot be read or made.
        ValueError: it was written by a newer version.
    """

    def __init__(
        self,
        path: str,
        completed: Mapping[str, dict[str, Any]] | None = None,
        fetch: Callable[[str], bytes] | None = None,
    ) -> None:
        self.fetch = fetch
        self.folder = os.path.join(os.path.dirname(os.path.abspath(path)), "results")
        self.completed: dict[str, dict[str, Any]] = dict(completed or {})
        if os.path.exists(path):
            self.completed.update(completed_in(path))
            _without_torn_end(path)
        else:
            os.makedirs(os.path.dirname(os.path.abspath(path)), mode=0o700, exist_ok=True)
        super().__init__(path)
        #: How often an outermost flow was run with the same parameters in this process.
        self.counts: dict[Any, int] = {}
        self._held: dict[str, tuple[Run, str, int, int]] = {}
        self._alarm = False

    def head(self, flow: str, version: str, crash_hooks: bool = False) -> None:
        """The line that names a flow."""
        line = {
            "v": VERSION,
            "flow": flow,
            "c": version,
            "run": os.environ.get("SHUNTER_RUN_ID"),
            "a": int(os.environ.get("SHUNTER_ATTEMPT") or 1),
            "at": _now(),
        }
        self._write(_encoded(line | ({"h": True} if crash_hooks else {})))

    def note(self, run: Run) -> None:
        """A state that is no end: written soon, unless the next one is sooner. Nothing of one that is about to end: that may
        have been written meanwhile, and nothing may follow it."""
        with self._lock:
            if run._ending:
                return
            self._held[run.key] = (run, run.state, run.attempt, _now())
            if len(self._held) >= WAITING:
                self._flush()
            elif not self._alarm:
                self._alarm = True
                clock.later(PAUSE, self._wake)

    def end(self, run: Run, state: str, error: BaseException | None, result: dict[str, Any] | None) -> None:
        """An end: written when this returns."""
        line = _line(run, state, run.attempt, _now())
        if run._started:
            line["b"] = run._started
        if error is not None:
            line["e"] = described(error)
        if result is not None:
            line["r"] = result
        encoded = _encoded(line)
        with self._lock:
            self._held.pop(run.key, None)
            self._append(encoded)

    def close(self) -> None:
        """Write what is held. The file stays open, as tasks that were given up may still end."""
        with self._lock:
            self._flush()

    def _wake(self) -> None:
        with self._lock:
            self._alarm = False
            self._flush()

    def _flush(self) -> None:
        if self._held:
            lines = b"".join(_encoded(_line(*held)) for held in self._held.values())
            self._held.clear()
            self._append(lines)


_opened: Journal | None = None
_opening = threading.Lock()


def of_process() -> Journal | None:
    """The journal that ``SHUNTER_JOURNAL`` names; None: there is none. Processes started from here have none.

    Raises:
        ServerAway, ServerRefused: the run is tried again, and what was completed before cannot be known.
    """
    global _opened
    if _opened is None and "SHUNTER_JOURNAL" in os.environ:
        with _opening:
            path = os.environ.get("SHUNTER_JOURNAL", "")
            if path:
                _opened = _of_run(path)
            os.environ.pop("SHUNTER_JOURNAL", None)
    return _opened


_lent: Lines | None = None


def lent(path: str | None) -> None:
    """What this process has to tell goes into the journal of the one that has started it."""
    global _lent
    _lent = Lines(path) if path is not None else None


def told_to() -> Lines | Messages | None:
    """Where artifacts and progress go."""
    scope = current.get()
    if scope is not None and scope.root.messages is not None:
        return scope.root.messages
    return _lent or of_process()


def _of_run(path: str) -> Journal:
    """That of a run, with what earlier attempts of it completed."""
    retried = int(os.environ.get("SHUNTER_ATTEMPT") or 1) > 1
    brings = bool(os.environ.get("SHUNTER_BRING_JOURNAL"))
    if not (retried or brings):
        return Journal(path)
    from shunter import own_server

    server = own_server.of_process()
    if server is None:
        return Journal(path)
    if retried:
        from shunter.earlier_attempts import EarlierAttempts

        earlier = EarlierAttempts(server)
        journal = Journal(path, earlier.completed, earlier.result)
    else:
        journal = Journal(path)
    if brings:
        import atexit

        from shunter.bringing import Bringer

        atexit.register(Bringer(path, server).finish)
    return journal


def lines(path: str) -> Iterator[dict[str, Any]]:
    """The whole lines of a journal; what is not one is passed over."""
    with open(path, "rb") as file:
        for raw in file:
            if raw.endswith(b"\n"):
                try:
                    line = json.loads(raw)
                except ValueError:
                    continue
                if isinstance(line, dict):
                    yield line


def completed_in(path: str) -> dict[str, dict[str, Any]]:
    """The runs that a journal has as completed, with a result that was kept: key to line; under "" the first line of all.

    Raises:
        ValueError: the journal is of a newer version.
    """
    found: dict[str, dict[str, Any]] = {}
    for line in lines(path):
        if line.get("v", VERSION) > VERSION:
            raise ValueError(f"the journal {path} was written by a newer version of Shunter: update this one")
        if "flow" in line:
            found.setdefault("", line)
        elif line.get("s") in _GOOD and "r" in line:
            found[line["k"]] = line
    return found


def described(error: BaseException) -> dict[str, str]:
    """An exception in the words of a journal."""
    import traceback

    try:
        message = str(error)
    except Exception:
        message = "<exception str() failed>"
    trace = "".join(traceback.format_exception(error))
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return {"type": name, "message": message[:_TEXT], "traceback": trace[-_TRACE:]}


def _line(run: Run, state: str, attempt: int, at: int) -> dict[str, Any]:
    line: dict[str, Any] = {"k": run.key, "t": run.name, "s": LETTERS[state], "n": attempt, "at": at}
    if run.parent_key:
        line["p"] = run.parent_key
    if run.upstream:
        line["u"] = [one.key for one in run.upstream]
    if run.version:
        line["c"] = run.version
    if run.is_flow:
        line["y"] = "flow"
    return line


def _without_torn_end(path: str) -> None:
    with open(path, "r+b") as file:
        end = file.seek(0, os.SEEK_END)
        keep, step = end, 64 * 1024
        while keep:
            start = max(0, keep - step)
            file.seek(start)
            at = file.read(keep - start).rfind(b"\n")
            if at >= 0:
                keep = start + at + 1
                break
            keep = start
        if keep != end:
            file.truncate(keep)


def _encoded(line: dict[str, Any]) -> bytes:
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def _now() -> int:
    return time.time_ns() // 1000
