"""What a terminal sees and a pipe does not: colours, views that stay up to date, bars; and readers that go."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from shunter_cli.commands.status import shares
from shunter_cli.exporting import target
from tests.cli.console import SHUNTER, Console, Live, live_server, stop, until
from tests.patience import SOON


@pytest.fixture(scope="module")
def shunter(live: Live) -> Console:
    """A terminal, and a deployment whose runs wait."""
    live.shunter.ok("pool", "create", "still")
    live.shunter.ok("deploy", "--name", "tt", "--pool", "still", "--tag", "tt", "--", "true")
    return live.shunter


@dataclass
class Screen:
    """A command that runs in a terminal of 80 columns."""

    process: subprocess.Popen[bytes]
    ours: int
    seen: bytes = field(default=b"")

    def shows(self, text: bytes, seconds: float = 20) -> bool:
        """Whether the text appears."""
        until(lambda: self.read() or text in self.seen, seconds)
        return True

    def read(self) -> None:
        """Take what is there."""
        with suppress(OSError):
            while select.select([self.ours], [], [], 0.05)[0]:
                data = os.read(self.ours, 65536)
                if not data:
                    return
                self.seen += data

    def end(self) -> int:
        """Its exit code, once all is read."""
        until(lambda: self.read() or self.process.poll() is not None)
        self.read()
        return self.process.returncode


@contextmanager
def screen(shunter: Console, *words: str, piped: str = "") -> Iterator[Screen]:
    """Run a command at a terminal; ``piped``: ``stdout`` goes elsewhere."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [SHUNTER, *words],
        env=shunter.having(TERM="xterm-256color", COLUMNS="80", LINES="24").env,
        cwd=shunter.folder,
        stdin=theirs,
        stdout=subprocess.DEVNULL if piped else theirs,
        stderr=theirs,
    )
    os.close(theirs)
    try:
        yield Screen(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_colours_are_for_terminals(shunter: Console) -> None:
    shunter.ok("run", "start", "tt")
    with screen(shunter, "run", "list", "--tag", "tt") as seen:
        assert seen.end() == 0
    assert re.search(rb"\x1b\[1m", seen.seen)
    with screen(shunter.having(NO_COLOR="1"), "run", "list", "--tag", "tt") as seen:
        assert seen.end() == 0
    assert not re.search(rb"\x1b\[[0-9;]*3[0-9]m", seen.seen)
    assert b"\x1b" not in shunter.ok("status").out


@pytest.mark.parametrize(
    "words",
    [
        ("run", "list", "--tag", "watched"),
        ("run", "list", "--tag", "watched", "-q"),
        ("run", "list", "--tag", "watched", "-o", "yaml"),
    ],
)
def test_a_watched_list_shows_what_is_new(shunter: Console, words: tuple[str, ...]) -> None:
    with screen(shunter, *words, "--watch") as seen:
        assert seen.shows(b"\x1b[?25l")  # the cursor is hidden: it is up
        run = shunter.ok("run", "start", "tt", "--tag", "watched", "-q").text.strip()
        assert seen.shows(run[-8:].encode())
        seen.process.send_signal(signal.SIGINT)
        assert seen.end() == 130
    assert b"Traceback" not in seen.seen
    assert b"\x1b[?25h" in seen.seen  # and is back


@pytest.mark.parametrize(
    "what", ["status", "pool list", "queue list", "agent list", "deployment list", "schedule list"]
)
def test_every_list_can_be_watched(shunter: Console, what: str) -> None:
    with screen(shunter, *what.split(), "--watch") as seen:
        assert seen.shows(b"\x1b[?25l")
        first = len(seen.seen)
        until(lambda: seen.read() or len(seen.seen) > first + 20)
        seen.process.send_signal(signal.SIGINT)
        assert seen.end() == 130


def test_a_pipe_gets_a_block_when_something_changes(shunter: Console) -> None:
    with piped(shunter, "agent", "list") as agents, piped(shunter, "queue", "list", "still") as queues:
        until(lambda: agents.blocks(b"NAME") == queues.blocks(b"QUEUE") == 1)
        time.sleep(2.5)  # two looks: an agent that was heard of again is nothing new
        assert agents.blocks(b"NAME") == queues.blocks(b"QUEUE") == 1
        shunter.ok("run", "start", "tt")
        until(lambda: queues.blocks(b"QUEUE") == 2)
        for view in (agents, queues):
            view.process.send_signal(signal.SIGINT)
            assert view.process.wait(SOON) == 130
            assert b"\x1b" not in view.text
            assert view.process.stderr
            assert view.process.stderr.read() == b""


@dataclass
class Piped:
    """A command that writes into a pipe."""

    process: subprocess.Popen[bytes]
    text: bytes = b""

    def blocks(self, heading: bytes) -> int:
        """How often it has shown its table so far."""
        assert self.process.stdout
        self.text += self.process.stdout.read() or b""
        return self.text.count(heading)


@contextmanager
def piped(shunter: Console, *words: str) -> Iterator[Piped]:
    """Run a command that watches."""
    process = shunter.spawn(*words, "--watch", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with process:
        try:
            assert process.stdout
            os.set_blocking(process.stdout.fileno(), False)
            yield Piped(process)
        finally:
            process.kill()


def test_a_server_that_goes_away_is_waited_for(
    tmp_path_factory: pytest.TempPathFactory, module_cache: Path
) -> None:
    with (
        live_server(tmp_path_factory.mktemp("away"), module_cache, agent=False) as live,
        screen(live.shunter, "pool", "list", "--watch") as seen,
    ):
        assert seen.shows(b"default")
        stop(live.server)
        assert seen.shows(b"waiting for it to come back")
        live.server = live.shunter.spawn("server", "start", "--port", str(live.port))
        until(lambda: live.shunter("pool", "create", "after").code == 0)
        assert seen.shows(b"after")


def test_long_work_has_a_bar_in_a_terminal_only(shunter: Console) -> None:
    with screen(shunter, "run", "start", "tt", "--count", "2500", "--tag", "bar", piped="stdout") as seen:
        assert seen.end() == 0
    assert b"making runs" in seen.seen
    assert b"2500/2500" in seen.seen
    plain = shunter.ok("run", "start", "tt", "--count", "10", "--tag", "bar")
    assert (plain.text, plain.err) == ("10 runs of tt created\n", "")
    with screen(shunter, "run", "export", "--tag", "bar", piped="stdout") as seen:
        assert seen.end() == 0
    assert b"exporting runs" in seen.seen
    assert b"2,510 runs exported" in seen.seen


def test_a_reader_that_has_seen_enough_ends_an_export(shunter: Console) -> None:
    run = shunter.ok("run", "start", "tt", "--tag", "read", "-q").text
    done = shunter.shell(
        "shunter run export | head -n 1 | wc -l; shunter run list --tag read -w -q | head -n 1"
    )
    assert (done.code, "Traceback" in done.err) == (0, False)
    assert done.text == f"1\n{run}"


def test_an_export_that_is_interrupted_leaves_no_half_file(shunter: Console, tmp_path: Path) -> None:
    file = tmp_path / "all.jsonl"
    file.write_text("as it was\n")
    gone = shunter.having(SHUNTER_API_URL="http://127.0.0.1:1/api")("run", "export", "--file", str(file))
    assert gone.code == 1

    def interrupted() -> None:
        with target(str(file), "--file") as out:
            out.write(b"half of i")
            out.flush()
            assert len(list(tmp_path.iterdir())) == 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [one.name for one in tmp_path.iterdir()] == ["all.jsonl"]
    assert file.read_text() == "as it was\n"


def test_lines_are_shared_out_in_turn() -> None:
    assert shares([10, 0, 3, 1], 8) == [4, 0, 3, 1]
    assert shares([1, 1], 10) == [1, 1]
    assert shares([5, 5], 0) == [0, 0]
