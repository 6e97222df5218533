"""What runs, agents and deployments say steers no terminal; into files and pipes output goes byte for byte."""

from __future__ import annotations

import json
import re
from io import StringIO
from typing import Any

import pytest
from ruamel.yaml import YAML

from shunter_cli import faults, output
from shunter_cli.output import Output, _yaml, escaped
from shunter_cli.run_output import Harmless
from shunter_work_pools.contracts.plain_text import plain
from shunter_work_pools.daemon_log import configure, get_logger
from tests.cli.console import Live
from tests.cli.test_terminals import screen

#: What steers: a title, the clipboard, a link, moves, erasing, BEL, backspace, C1 (as UTF-8), direction, shift-out.
STEERING = (
    "\x1b]0;title\x07",
    "\x1b]52;c;ZXZpbA==\x07",
    "\x1b]8;;http://evil.example\x1b\\",
    "\x1b[2J",
    "\x1b[1A",
    "\x1b[6n",
    "\x1b(0",
    "\x1bc",
    "\x07",
    "\x08",
    "\x9b2J",
    "\x9d0;t\x9c",
    "\u202e",
    "\u2066",
    "\u200f",
    "\x0e",
    "\x7f",
)
ALL = "A".join(STEERING)
#: What a terminal may get of a command: printable text, line ends, tabs, colours, and what rich draws live views with.
HARMLESS = re.compile(
    r"(?:[^\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]|\x1b\[[0-9;]*m)*"
)


def steers(text: str) -> bool:
    """Whether more than colours would reach the terminal."""
    return HARMLESS.fullmatch(text.replace("\r\n", "\n")) is None


# -- the filters


@pytest.mark.parametrize("text", STEERING)
def test_what_steers_is_shown(text: str) -> None:
    assert steers(text)
    assert not steers(plain(text))
    assert plain(f"a{text}b").startswith("a\\")


def test_what_is_text_stays() -> None:
    for text in ("Grüße, 世界 🙂 é", "a\\b", ""):
        assert plain(text) == text
    assert plain("a\nb") == "a\\nb"
    assert plain("a\nb", lines=True) == "a\nb"


def shown(*pieces: bytes) -> str:
    harmless = Harmless()
    return "".join([*(harmless.text(piece) for piece in pieces), harmless.end()])


OUTPUTS = (
    ALL.encode(),
    b"\x1b[31mred\x1b[0m and \x1b[1;38;5;200mmore\x1b[m\n",
    b"\x9b2J\x80\xff broken \xe4\xb8 utf-8 \xe4\xb8\x96\n",
    b"one\r\ntwo\r  10%\r 100%\n\ttab\n",
    b"\x1b[31",
    b"\r",
    b"\x1b",
    b"\x1b[31;" + b"1;" * 100 + b"m",
)


@pytest.mark.parametrize("output", OUTPUTS)
def test_output_is_the_same_however_it_is_cut(output: bytes) -> None:
    whole = shown(output)
    assert not steers(whole)
    for at in range(len(output)):
        assert shown(output[:at], output[at:]) == whole
    assert shown(*(output[at : at + 1] for at in range(len(output)))) == whole


def test_colours_stay_and_end_with_the_output() -> None:
    assert shown(b"\x1b[31mred\x1b[0m.\n") == "\x1b[31mred\x1b[0m.\n"
    assert shown(b"\x1b[31mred") == "\x1b[31mred\x1b[0m"
    assert shown(b"a\rb\r\nc") == "a\nb\nc"  # nothing is written over


@pytest.mark.parametrize(
    "value", [ALL, {"key\u202e": ["\x7f", "\U000e0041", 'quote " \\ \u2028 \x85']}, "\ud800"]
)
def test_documents_say_the_same_and_steer_nothing(value: Any) -> None:
    for text, form, read in (
        (json.dumps(value, ensure_ascii=False), Output.JSON, json.loads),
        (_yaml(value), Output.YAML, lambda text: YAML(typ="safe", pure=True).load(StringIO(text))),
    ):
        if value == "\ud800" and form is Output.YAML:
            continue  # what no UTF-8 can say comes from no server
        document = escaped(text, form)
        assert not steers(document)
        assert read(document) == value


@pytest.mark.parametrize("form", ["console", "json"])
def test_the_log_of_a_daemon(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure({"log.format": form, "log.level": "info"})
    try:
        log = get_logger().bind()
        try:
            raise RuntimeError(ALL)
        except RuntimeError:
            log.error(f"it says {ALL}", reason=f"first\nsecond {ALL}", exc_info=True, many=[ALL])
    finally:
        import structlog

        structlog.reset_defaults()
    said = capsys.readouterr().err
    assert not steers(said)
    assert "\\u202e" in said
    assert "first\nsecond" not in said  # it would look like a line of its own


# -- the command, at a real terminal


@pytest.fixture(scope="module")
def run(live: Live) -> str:
    """A run that says and writes what steers."""
    words = "printf '%b' \"$EVIL\"; printf '\\033[31mred\\033[0m\\n'; echo; exit 3"
    work = {"command": ["sh", "-c", words], "env": {"EVIL": ALL.replace("\x00", "")}}
    spec = {"work": work, "description": f"described {ALL}", "pool": "default", "parameters": {"evil": ALL}}
    import httpx

    token = (live.home / "token").read_text().strip()
    url = f"http://127.0.0.1:{live.port}/api/v1/deployments/steering"
    made = httpx.put(url, json=spec, headers={"authorization": f"Bearer {token}"}, trust_env=False)
    assert made.status_code == 200, made.text
    identifier = live.shunter.ok("run", "start", "steering", "-q").text.strip()
    live.shunter("run", "wait", identifier)
    return identifier


@pytest.mark.parametrize(
    "words",
    [
        "run logs {run}",
        "run inspect {run}",
        "run inspect {run} -o json",
        "run inspect {run} -o yaml",
        "run list",
        "explain {run}",
        "run events {run}",
        "deployment inspect steering",
        "deployment inspect steering -o json",
        "deployment inspect steering -o yaml",
        "deployment list",
        "run inspect \x1b]0;title\x07",
    ],
)
def test_commands_at_a_terminal(live: Live, run: str, words: str) -> None:
    with screen(live.shunter, *words.format(run=run).split()) as seen:
        seen.end()
    text = seen.seen.decode()
    assert not steers(text), words
    assert "Traceback" not in text
    if "logs" in words:
        assert "\x1b[31mred\x1b[0m" in text
        assert "\\x1b]52;c;ZXZpbA==\\x07" in text


def test_output_goes_into_a_file_as_it_is(live: Live, run: str) -> None:
    done = live.shunter.ok("run", "logs", run)
    assert done.out == ALL.encode() + b"\x1b[31mred\x1b[0m\n\n"


def test_a_watched_run_at_a_terminal(live: Live, run: str) -> None:
    """Live views move the cursor themselves; what the run wrote is shown all the same."""
    with screen(live.shunter, "run", "start", "steering", "--watch") as seen:
        seen.end()
    assert b"\x1b]" not in seen.seen
    assert b"\x07" not in seen.seen
    assert "\\u202e" in seen.seen.decode()


def test_what_is_told_beside_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    """Errors and remarks, which may be the server's or a proxy's words."""
    faults.tell(ALL)
    faults.show(ALL, f"{ALL}\n{ALL}")
    output.say(ALL)
    said = capsys.readouterr()
    assert not steers(said.err)
    assert not steers(said.out)
    assert said.err.count("\\u202e") == 4
