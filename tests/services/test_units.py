"""What stands in units: word for word, and escaped so that systemd reads what was meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shunter_agents import heartbeat
from shunter_cli.service_units import SUBGROUP, Service, agent_unit, exec_line, server_unit, word
from shunter_work_pools import service_manager
from shunter_work_pools.contracts.errors import InvalidInput
from tests.engines.systemd import Analyze

UNITS = Path(__file__).parent / "units"
PYTHON = "/opt/shunter/bin/python"
#: All that may stand in a word of a unit.
TEXTS = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=30)
#: The same, but mostly of what has a meaning in units.
NASTY = st.text(st.sampled_from(" %$\\\"'{};#=|&~nx0iä"), max_size=12) | TEXTS


def _agent(user: bool) -> Service:
    words = "-m shunter_cli.main agent start --limit 4 --pool default --tag a$b --name a1"
    return Service(
        "shunter-agent-a1",
        [PYTHON, *words.split()],
        {"SHUNTER_API_URL": "http://10.0.0.7:4400/api"},
        account=None if user else "shunter",
        home=None if user else Path("/var/lib/shunter"),
    )


def _server(user: bool) -> Service:
    return Service(
        "shunter-server",
        [PYTHON, "-m", "shunter_cli.main", "server", "start", "--host", "0.0.0.0"],
        {"SHUNTER_LOG_FORMAT": "json"},
        account=None if user else "robots",
        home=Path("/srv/shunter data"),
        writes=() if user else [Path("/srv/db")],
    )


DOCUMENTS = {
    "agent.service": agent_unit(_agent(user=False), "a1", 256),
    "agent-user.service": agent_unit(_agent(user=True), "a1", None),
    "server.service": server_unit(_server(user=False)),
    "server-user.service": server_unit(_server(user=True)),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_unit_is_this_document(name: str) -> None:
    kept, made = (UNITS / name).read_text(), DOCUMENTS[name]
    assert made == kept, "\n".join(difflib.unified_diff(kept.splitlines(), made.splitlines(), lineterm=""))


def test_an_agent_is_beside_its_runs_only_where_systemd_can_start_it_again_there() -> None:
    having = [
        version
        for version in (None, 219, 252, 253, 254, 255, 256, 257, 258, 259, 300)
        if "DelegateSubgroup" in agent_unit(_agent(user=False), "a1", version)
    ]
    assert having == [254, 255, 256] == list(SUBGROUP)


def test_an_agent_whose_disk_hangs_is_heard_of_for_as_long_as_it_promises_before_it_is_ended() -> None:
    (minutes,) = re.findall(
        r"^WatchdogSec=(\d+)min$", agent_unit(_agent(user=False), "a1", 256), re.MULTILINE
    )
    # Its last sign of life may have come a while before the disk fell silent.
    assert int(minutes) * 60 - service_manager.INTERVAL > heartbeat.HELD_UP + heartbeat.LIMIT


# -- escaping


def read(line: str) -> list[str]:
    """The words of a line by systemd.syntax(7): quotes, backslashes, then specifiers; nothing else is known here."""
    words = []
    for quoted, plain in re.findall(r'"((?:[^"\\]|\\.)*)"(?: |$)|([^ "\'\\]+)(?: |$)', line):
        text = plain or re.sub(r"\\(.)", lambda found: _unescaped(found[1]), quoted)
        assert not re.search(r"%(?!%)", text.replace("%%", "")), f"a specifier: {text}"
        words.append(text.replace("%%", "%"))
    return words


def _unescaped(character: str) -> str:
    assert character in '\\"', f"an escape that was not meant: \\{character}"
    return character


def expand(words: Sequence[str]) -> list[str]:
    """The words of a command after ``$$`` has become ``$`` in all but the first (systemd.service(5))."""
    for one in words[1:]:
        assert not re.search(r"\$", one.replace("$$", "")), f"a variable: {one}"
    return [words[0], *(one.replace("$$", "$") for one in words[1:])]


@given(st.lists(NASTY, max_size=5))
def test_words_are_read_as_they_were_meant(texts: list[str]) -> None:
    line = " ".join(map(word, texts))
    assert "\n" not in line
    assert read(line) == texts


@given(st.lists(NASTY, max_size=5))
def test_a_command_is_read_as_it_was_meant(texts: list[str]) -> None:
    line = exec_line(["/opt/a b/$c%d", *texts])
    assert not re.search(r"(^| );( |$)", line), "the end of a command"
    assert expand(read(line)) == ["/opt/a b/$c%d", *texts]


@given(TEXTS, st.sampled_from(["\n", "\r", "\0", "\x1b", "\x7f", "\udc80", "\t"]), TEXTS)
def test_what_no_unit_should_have_is_refused(before: str, bad: str, after: str) -> None:
    with pytest.raises(InvalidInput, match="cannot be written into a unit"):
        word(before + bad + after)


@pytest.mark.parametrize("account", ["", "0day", "a b", "a\nExecStart=/bin/sh", "%i", "-x", "a.b", "x" * 40])
def test_an_account_that_systemd_would_not_take_is_refused(account: str) -> None:
    with pytest.raises(InvalidInput, match="cannot be an account"):
        agent_unit(Service("u", ["/bin/true"], account=account, home=Path("/srv/x")), "u", None)


# -- what systemd says


@pytest.mark.parametrize("user", [False, True], ids=["system", "user"])
@pytest.mark.parametrize("kind", ["agent", "server"])
def test_systemd_has_nothing_against_it(analyze: Analyze, kind: str, user: bool) -> None:
    service = _agent(user) if kind == "agent" else _server(user)
    service = Service(**{**vars(service), "command": ["/bin/true", *service.command[1:]]})
    text = agent_unit(service, "a1", analyze.version) if kind == "agent" else server_unit(service)
    assert analyze.complaints(f"{service.unit}.service", text, user=user) == ""


def test_systemd_would_have_told(analyze: Analyze) -> None:
    """The judge is awake."""
    text = DOCUMENTS["server.service"].replace(PYTHON, "/bin/true")
    unknown = text.replace("LockPersonality=", "LockPersonalty=")
    assert "LockPersonalty" in analyze.complaints("shunter-server.service", unknown)
    assert "/nowhere" in analyze.complaints("shunter-server.service", text.replace("/bin/true", "/nowhere"))
    unquoted = text.replace('"SHUNTER_HOME=/srv/shunter data"', '"SHUNTER_HOME=/srv/shunter data')
    assert analyze.complaints("shunter-server.service", unquoted)


def test_systemd_finds_programs_by_any_path(analyze: Analyze, tmp_path: Path) -> None:
    for name in ("a b", "$HOME", "100%n", "semi;colon", "ä", "{x}", "#", "@x"):
        program = tmp_path / name / "run"
        program.parent.mkdir()
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        service = Service(
            "u", [str(program), "$HOME", ";", "%n", '"'], {"X": name}, "robots", tmp_path / name
        )
        assert analyze.complaints("u.service", agent_unit(service, "u", analyze.version)) == "", name


@pytest.mark.parametrize("bad", ['say "x"', "it's", "back\\slash"])
def test_a_path_that_systemd_would_not_start_is_refused(bad: str) -> None:
    with pytest.raises(InvalidInput, match="quotes or backslashes"):
        exec_line([f"/opt/{bad}/python"])


def test_systemd_reads_any_variable(analyze: Analyze) -> None:
    """Many at once, for each judgement takes a while; a line that it cannot read it complains of."""
    found: list[str] = []

    @settings(max_examples=300, database=None)
    @given(NASTY)
    def find(text: str) -> None:
        found.append(text)

    find()
    service = Service("u", ["/bin/true", *found], {f"V{n}": one for n, one in enumerate(found)})
    assert len(found) >= 100
    assert analyze.complaints("u.service", server_unit(service), user=True) == ""
