"""What is unknown or wrong is refused with its place, before anything starts or changes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shunter_work_pools.client import Client
from shunter_work_pools.contracts.configuration import Values
from shunter_work_pools.contracts.errors import InvalidInput
from shunter_work_pools.contracts.profiles import value_of
from shunter_work_pools.contracts.settings import SETTINGS
from tests.cli.console import Console, free_port
from tests.cli.test_bad_input import refused

COMMANDS = (
    ("server", "start", "--port", "0"),
    ("up", "--port", "0"),
    ("agent", "start", "--pool", "p"),
    ("run", "list"),
    ("deploy", "--dry-run"),
)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_no_command_passes_over_an_unknown_variable(
    shunter: Console, home: Path, words: tuple[str, ...]
) -> None:
    done = shunter.having(SHUNTER_SERVER_LATE_AFTR="5m")(*words)
    refused(done, "SHUNTER_SERVER_LATE_AFTR", "Did you mean SHUNTER_SERVER_LATE_AFTER", code=2)
    assert list(home.iterdir()) == []


def test_nor_does_the_daemon_or_the_client(shunter: Console, loaded: Callable[..., Values]) -> None:
    agent = shunter.having(SHUNTER_TOKN="x").execute([sys.executable, "-m", "shunter_agents", "--pool", "p"])
    assert (agent.code, "SHUNTER_TOKN" in agent.err) == (2, True)
    loaded()
    os.environ["SHUNTER_TOKN"] = "x"
    try:
        with pytest.raises(InvalidInput, match="SHUNTER_TOKN"):
            Client()
        Client("http://127.0.0.1:1/api", "t")  # told all, it reads nothing
    finally:
        del os.environ["SHUNTER_TOKN"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["gpu"], ["'gpu' is no amount", "gpu=2, cpu=1.5 or memory=8GiB"]),
        (["gpu=2", "gpu=2"], ["says twice how much gpu there is"]),
        (["gpu=-1"], ["'-1' is no amount of gpu"]),
        (["cpu=nan"], ["'nan' is no amount of cpu"]),
        (["cpu=inf"], ["'inf' is no amount of cpu"]),
        (["gpu=0.5"], ["a device cannot be divided"]),
        (["gpu=1025"], ["1024 devices of one name at the most"]),
        (["memory=8XB"], ["'8XB' is no amount of memory", "512MiB"]),
        (["GPU=1"], ["'GPU' is no name"]),
        ([f"d{number}=1" for number in range(19)], ["has too many names", "There can be 20"]),
        (7, ["is not a list of amounts"]),
        ([7], ["is not a list of amounts"]),
    ],
)
def test_what_an_agent_cannot_have(given: object, says: list[str]) -> None:
    with pytest.raises(InvalidInput) as refusal:
        value_of(SETTINGS["agent.capacity"], given, "--capacity")
    assert [word for word in says if word not in refusal.value.told] == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--capacity", "gpu=2", "--capacity", "gpu=x"], ["--capacity", "'x' is no amount of gpu"]),
        (["--metrics-port", "0"], ["--metrics-port", "'0' is out of range"]),
    ],
)
def test_an_agent_does_not_start_with_it(
    shunter: Console, home: Path, words: list[str], says: list[str]
) -> None:
    refused(shunter("agent", "start", "--pool", "p", *words), *says, code=2)
    daemon = [sys.executable, "-m", "shunter_agents", "--pool", "p", *words]
    alone = shunter.execute(daemon)
    assert (alone.code, [word for word in says if word not in alone.err]) == (2, [])
    assert list(home.iterdir()) == []


def test_switches_and_amounts_come_from_wherever_settings_come(
    shunter: Console, home: Path, loaded: Callable[..., Values]
) -> None:
    values = loaded(
        '[profiles.default]\nagent = { capacity = ["gpu=2", "memory=8GiB"], cloud_tags = true, find_tags = "no" }\n'
    )
    assert values["agent.capacity"] == {"gpu": 2.0, "memory": 2.0**33}
    assert (values["agent.cloud_tags"], values["agent.find_tags"]) == (True, False)
    values = loaded(None, SHUNTER_AGENT_CAPACITY="cpu=1.5, fpga=1", SHUNTER_AGENT_FIND_TAGS="0")
    assert (values["agent.capacity"], values["agent.find_tags"]) == ({"cpu": 1.5, "fpga": 1.0}, False)
    unit = shunter.ok(
        *("agent", "install", "--print", "--user", "--pool", "p", "--no-find-tags", "--cloud-tags"),
        *("--capacity", "gpu=2", "--capacity", "cpu=4", "--metrics-port", "9100"),
    ).text
    assert "--capacity gpu=2 --capacity cpu=4 --no-find-tags --cloud-tags --metrics-port 9100" in unit
    refused(
        shunter.having(SHUNTER_AGENT_CLOUD_TAGS="perhaps")("config", "show"), "neither true nor false", code=2
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["--lost-after", "10m"],
            ["server.lost_after 10m (--lost-after)", "less than server.give_up_after 5m"],
        ),
        (["--lost-after", "5m"], ["server.lost_after 5m", "server.give_up_after 5m (default)"]),
        (["--lost-after", "5s"], ["--lost-after", "'5s' is less than 15s", "ten seconds"]),
        (["--late-after", "0"], ["--late-after", "more than nothing"]),
        (["--late-after", "soon"], ["--late-after", "'soon' is not a duration", "1h30m"]),
        (
            ["--keep-runs", "5", "--keep-logs", "6"],
            ["keep.logs 6 (--keep-logs)", "keep.runs 5 (--keep-runs)"],
        ),
        (["--keep-runs-for", "1d", "--keep-events-for", "2d"], ["keep.events_for 2d", "keep.runs_for 1d"]),
        (["--keep-runs", "-1"], ["--keep-runs", "'-1' is out of range"]),
        (["--keep-runs", "1.5"], ["--keep-runs", "'1.5' is not a whole number"]),
        (["--port", "65536"], ["--port", "'65536' is out of range"]),
        (["--database-url", "mysql://u:geheim@h/x"], ["--database-url", "'mysql://u:***@h/x'"]),
        (["--allowed-host", "http://x/"], ["--allowed-host", "without scheme"]),
        (["--host", " "], ["--host", "' ' is not a text"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("-") else "",
)
def test_a_server_does_not_start_with(
    shunter: Console, home: Path, words: list[str], says: list[str]
) -> None:
    done = shunter("server", "start", *([] if "--port" in words else ["--port", "0"]), *words)
    refused(done, *says, code=2)
    assert "geheim" not in done.err
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"SHUNTER_SERVER_GIVE_UP_AFTER": "20s"}, "server.give_up_after 20s (SHUNTER_SERVER_GIVE_UP_AFTER)"),
        ({"SHUNTER_LOG_LEVEL": "loud"}, "SHUNTER_LOG_LEVEL: 'loud'"),
        ({"SHUNTER_LOG_FORMAT": "xml"}, "SHUNTER_LOG_FORMAT: 'xml' is neither console nor json"),
        ({"SHUNTER_API_URL": "127.0.0.1:4400"}, "SHUNTER_API_URL: '127.0.0.1:4400'"),
        ({"SHUNTER_API_URL": "http://x:99999/"}, "SHUNTER_API_URL"),
        ({"SHUNTER_AGENT_LIMIT": "many"}, "SHUNTER_AGENT_LIMIT: 'many'"),
        ({"SHUNTER_PROFILE": "nowhere"}, "there is no profile 'nowhere', which --profile or SHUNTER_PROFILE"),
        ({"SHUNTER_SERVER_PORT": "٤"}, "SHUNTER_SERVER_PORT"),
        ({"SHUNTER_SERVER_LATE_AFTER": "1e400"}, "SHUNTER_SERVER_LATE_AFTER"),
        ({"SHUNTER_SERVER_LATE_AFTER": "99999d"}, "at most ten years"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "=".join(next(iter(value.items()))),
)
def test_a_wrong_variable_is_named(
    loaded: Callable[..., Values], variables: dict[str, str], says: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        loaded(**variables)
    assert says in caught.value.detail
    assert caught.value.remedy


def test_a_wrong_token_is_not_shown(loaded: Callable[..., Values]) -> None:
    with pytest.raises(InvalidInput) as caught:
        loaded(SHUNTER_TOKEN="geheim geheim")
    assert "SHUNTER_TOKEN" in caught.value.detail
    assert "geheim" not in caught.value.detail + caught.value.remedy


FILES = {
    "an unknown setting": ('[profiles.default]\n\nserver.lots_after = "5m"\n', ":3: ", "server.lost_after"),
    "an unknown setting in a table": ("[profiles.work.log]\nlevle = 'info'\n", ":2: ", "log.level"),
    "one in a profile that is not in use": ("[profiles.other]\nx = 1\n", ":2: ", "config show"),
    "a key beside the profiles": ("[profile]\nx = 1\n", ":1: profile {'x': 1} is not a name", "NAME"),
    "a setting beside the profiles": ("log.level = 'info'\n", ":1: unknown key 'log'", "profiles.default"),
    "a wrong value": ("[profiles.default]\nlog.level = 'loud'\n", ":2: 'loud'", "debug"),
    "a value of another type": ("[profiles.default]\nkeep.runs = true\n", ":2: True is not", "number"),
    "a time": ("[profiles.default]\nserver.late_after = 2026-01-01\n", ":2: ", "Write it like"),
    "a list for a word": ("[profiles.default]\nlog.level = ['info']\n", ":2: ", "debug"),
    "not a number": ("[profiles.default]\nserver.late_after = nan\n", ":2: nan", "Write it like"),
    "a table for a value": ("[profiles.default.token]\nx = 'y'\n", "'token.x'", "token"),
    "values that do not fit": ("[profiles.default]\nserver.lost_after = 400\n", ":2)", "Make the first"),
    "profiles that are none": ("profiles = 3\n", "not a table", "[profiles.NAME]"),
    "a profile that is none": ("[profiles]\nx = 3\n", "not a table", "[profiles.NAME]"),
    "a profile in use that is not there": (
        "profile = 'wrk'\n[profiles.work]\n",
        "'wrk'",
        "Did you mean work?",
    ),
    "a profile without a name": ("profile = 3\n", ":1: profile 3", "NAME"),
    "no TOML": ("[profiles.default\nx", ":1:18: this is not TOML", "editor"),
    "a key twice": ("[profiles.default]\ntoken = 'a'\ntoken = 'b'\n", ":3:12: this is not TOML", "editor"),
    "a table twice": ("[profiles.a]\n[profiles.a]\n", ":2:", "editor"),
    "a name twice, in two ways": (
        "[profiles.default]\n'log.level' = 'info'\nlog.level = 'info'\n",
        "log.level is written twice",
        "Leave one",
    ),
    "a NUL": ("x = '\0'\n", "this is not TOML", "editor"),
    "tables without end": ("x = " + "[" * 100_000, "this is not TOML", "editor"),
}


@pytest.mark.parametrize("which", FILES)
def test_a_file_with(loaded: Callable[..., Values], home: Path, which: str) -> None:
    text, says, remedy = FILES[which]
    with pytest.raises(InvalidInput) as caught:
        loaded(text)
    assert str(home / "config.toml") in caught.value.detail
    assert says in caught.value.detail
    assert remedy in caught.value.remedy


def test_a_file_that_is_not_utf8(shunter: Console, home: Path) -> None:
    (home / "config.toml").write_bytes(b"[profiles.default]\n# gr\xfc\xdfe\n")
    refused(shunter("run", "list"), f"{home / 'config.toml'}:2: this is not UTF-8", code=2)


def test_a_file_that_is_none(shunter: Console, home: Path) -> None:
    (home / "config.toml").mkdir()
    refused(shunter("run", "list"), str(home / "config.toml"), "not a file", code=2)


def test_a_file_that_is_a_pipe_holds_nothing_up(shunter: Console, home: Path) -> None:
    os.mkfifo(home / "config.toml")
    refused(shunter("run", "list", timeout=20), "not a file", code=2)


def test_a_file_that_is_too_large(shunter: Console, home: Path) -> None:
    (home / "config.toml").write_text("# \n" * 500_000)
    refused(shunter("run", "list"), "larger than 1 MB", code=2)


def test_a_file_that_may_not_be_read(home: Path, shunter: Console) -> None:
    file = home / "config.toml"
    file.write_text("[profiles.default]\n")
    file.chmod(0)
    for folder in (home, *home.parents[:3]):
        folder.chmod(0o755)
    # The superuser may read everything: somebody else asks in his place.
    script = (
        "import os\n"
        "from shunter_work_pools.contracts.configuration import load\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "try: load()\n"
        "except Exception as exc: print(type(exc).__name__, exc.detail)\n"
    )
    done = shunter.execute([sys.executable, "-c", script])
    assert done.text.startswith(f"InvalidInput the configuration file {file} cannot be read"), done.err


def test_help_and_what_mends_settings_work_with_wrong_ones(shunter: Console, home: Path) -> None:
    wrong = shunter.having(SHUNTER_NONSENSE="1")
    assert "Usage" in wrong.ok("server", "start", "--help").text
    (home / "config.toml").write_text("[profiles.default]\nlog.level = 'loud'\nnonsense = 1\n")
    refused(shunter("config", "show"), ":2: 'loud'", code=2)
    shunter.ok("config", "set", "log.level", "debug")
    refused(shunter("config", "show"), ":3: there is no setting 'nonsense'", code=2)
    shunter.ok("config", "unset", "nonsense")
    assert shunter.ok("config", "show", "log.level", "-q").text == "debug\n"


def test_profile_is_an_option_of_the_whole(shunter: Console) -> None:
    refused(shunter("--profile", "a", "--profile", "b", "run", "list"), "--profile", code=2)
    refused(shunter("--profile"), "--profile", code=2)
    refused(shunter("--profile", "nowhere", "run", "list"), "nowhere", code=2)


def test_a_name_that_is_none(shunter: Console) -> None:
    refused(shunter("config", "show", "log.levle"), "log.levle", "Did you mean log.level?", code=2)


def test_a_server_that_does_not_answer_has_no_status(shunter: Console) -> None:
    gone = shunter.having(SHUNTER_API_URL=f"http://127.0.0.1:{free_port()}/api")
    refused(gone("server", "status"), "no server answers", code=1)
