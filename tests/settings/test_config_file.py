"""``config set`` and ``unset``: the file is changed as a whole or not at all, and keeps what it does not concern."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import tomllib
from pathlib import Path

import pytest

from shunter_work_pools.contracts.settings import SETTINGS
from tests.cli.console import SHUNTER, Console
from tests.cli.test_bad_input import refused

WRITTEN = """\
# Mine.
profile = "work"   # for now

[profiles.default]
token = "abc"      # not to be told

[profiles.work]
# patience
server.late_after = "1m"

[profiles.work.keep]
runs = 10
"""


def test_what_is_set_is_there_and_the_rest_as_it_was(shunter: Console, home: Path) -> None:
    file = home / "config.toml"
    file.write_text(WRITTEN)
    shunter.ok("config", "set", "server.late_after", "2m")
    assert file.read_text() == WRITTEN.replace('"1m"', '"2m"')
    shunter.ok("config", "set", "keep.runs", "20")
    shunter.ok("config", "set", "keep.logs_for", "1d")
    shunter.ok("config", "set", "log.level", "debug", "--profile", "default")
    shunter.ok("config", "set", "server.allowed_hosts", "a.example,b.example", "--profile", "third")
    after = tomllib.loads(file.read_text())
    assert after == {
        "profile": "work",
        "profiles": {
            "default": {"token": "abc", "log": {"level": "debug"}},
            "work": {"server": {"late_after": "2m"}, "keep": {"runs": 20, "logs_for": "1d"}},
            "third": {"server": {"allowed_hosts": ["a.example", "b.example"]}},
        },
    }
    for comment in ("# Mine.", "# for now", "# not to be told", "# patience"):
        assert comment in file.read_text()
    for name in ("keep.runs", "keep.logs_for", "server.late_after"):
        shunter.ok("config", "unset", name)
    assert {**shunter.ok("config", "show", "keep.runs", "-o", "json").json[0]}["from"] == "default"


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_can_be_set_shown_and_unset(shunter: Console, name: str, home: Path) -> None:
    setting = SETTINGS[name]
    values = {
        "token": "t",
        "log.format": "json",
        "server.port": "4401",
        "server.database_url": "sqlite:////tmp/x.db",
        "server.allowed_hosts": "a,b",
        "agent.drain_grace": "5m",
        "agent.health_check": "/usr/bin/true --well",
        "agent.capacity": "gpu=2,memory=8GiB",
        "agent.metrics_port": "9100",
        "server.path_prefix": "/shunter",
        "server.oidc_issuer": "https://id.example.com",
        "agent.policy": "/etc/shunter/agent.toml",
    }
    values |= {
        name: "/etc/shunter/file.pem" for name in SETTINGS if re.search(r"tls_(ca|cert|key|client_ca)$", name)
    }
    given = values.get(name) or ("7" if name.startswith("keep.") else setting.written(setting.default))
    shunter.ok("config", "set", name, given)
    [shown] = shunter.ok("config", "show", name, "-o", "json", "--show-secrets").json
    assert shown["from"].startswith(str(home / "config.toml:"))
    value = setting.read(given)
    assert shown["value"] in (
        list(value) if isinstance(value, tuple) else value,
        setting.written(value, secrets=True),
    )
    shunter.ok("config", "unset", name)
    assert shunter.ok("config", "show", name, "-o", "json").json[0]["from"] == "default"


def test_the_file_is_for_its_user_alone(shunter: Console, home: Path) -> None:
    file = home / "config.toml"
    shunter.ok("config", "set", "token", "abc")
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o644)
    shunter.ok("config", "set", "log.level", "debug")
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in home.iterdir()] == ["config.toml"]


def test_a_link_stays_one(shunter: Console, home: Path, tmp_path: Path) -> None:
    kept = tmp_path / "dotfiles.toml"
    kept.write_text(WRITTEN)
    (home / "config.toml").symlink_to(kept)
    shunter.ok("config", "set", "keep.runs", "11")
    assert (home / "config.toml").is_symlink()
    assert "runs = 11" in kept.read_text()


def test_changes_at_the_same_time_are_all_kept_and_nobody_sees_half_a_file(
    shunter: Console, home: Path
) -> None:
    file = home / "config.toml"
    file.write_text("# " + "x" * 200_000 + "\n[profiles.default]\ntoken = 'abc'\n")
    seen: list[str] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            try:
                seen.append(tomllib.loads(file.read_text())["profiles"]["default"]["token"])
            except (KeyError, ValueError) as exc:
                seen.append(repr(exc))

    reader = threading.Thread(target=look)
    reader.start()
    wanted = {f"p{number}": str(number + 1) for number in range(12)}
    try:
        running = [
            subprocess.Popen(
                [SHUNTER, "config", "set", "keep.runs", value, "--profile", profile],
                env=shunter.env,
                stdout=subprocess.DEVNULL,
            )
            for profile, value in wanted.items()
        ]
        assert [one.wait(60) for one in running] == [0] * len(wanted)
    finally:
        done.set()
        reader.join()
    after = tomllib.loads(file.read_text())["profiles"]
    assert {profile: str(after[profile]["keep"]["runs"]) for profile in wanted} == wanted
    assert len(seen) > 10
    assert set(seen) == {"abc"}


REFUSED = {
    "an unknown name": (["set", "log.levle", "info"], "Did you mean log.level?"),
    "a wrong value": (["set", "log.level", "loud"], "'loud'"),
    "no value": (["set", "log.level"], "VALUE"),
    "what does not fit": (["set", "server.lost_after", "10m"], "less than server.give_up_after 5m"),
    "what does not fit in the profile": (["set", "keep.logs", "11"], "keep.runs 10 (profile work)"),
    "a profile that is not there": (["set", "profile", "nowhere"], "no profile 'nowhere'"),
    "unset of what is not set": (["unset", "log.level"], "log.level is not set in profile 'work'"),
}


@pytest.mark.parametrize("which", REFUSED)
def test_it_changes_nothing_for(shunter: Console, home: Path, which: str) -> None:
    words, says = REFUSED[which]
    file = home / "config.toml"
    file.write_text(WRITTEN)
    refused(shunter("config", *words), says, code=2)
    assert file.read_text() == WRITTEN


@pytest.mark.parametrize(
    "text", ["[profiles.default\n", "[profiles.a]\ntoken='x'\ntoken='y'\n", "profiles = 3\n"]
)
def test_a_file_that_is_wrong_is_left_as_it_is(shunter: Console, home: Path, text: str) -> None:
    (home / "config.toml").write_text(text)
    refused(shunter("config", "set", "log.level", "debug"), "config.toml", code=2)
    assert (home / "config.toml").read_text() == text


def test_a_full_disk_leaves_the_old_file(shunter: Console, home: Path) -> None:
    file = home / "config.toml"
    file.write_text(WRITTEN)
    limited = ["sh", "-c", f"ulimit -f 0; exec {SHUNTER} config set keep.runs 11"]
    done = shunter.having(PYTHONDONTWRITEBYTECODE="1").execute(limited)
    assert done.code != 0
    assert file.read_text() == WRITTEN
    assert sorted(os.listdir(home)) == ["config.toml"]
