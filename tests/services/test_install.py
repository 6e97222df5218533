"""``install`` and ``uninstall``: what they write, refuse and say, with a systemctl that only writes down its calls."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from shunter_cli import installing
from shunter_cli.main import main
from tests.engines.systemd import Analyze

AGENT = ("agent", "install", "--pool", "default", "--name", "a1")
SERVER = ("server", "install")
ME = pwd.getpwuid(os.geteuid()).pw_name
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="services of the whole machine are for root")


@dataclass
class Machine:
    """A machine with systemd on it, as ``install`` sees it: all of it is below ``base``."""

    base: Path
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *words: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of ``shunter WORDS``."""
        self.capsys.readouterr()
        code = main(list(words))
        return code, *self.capsys.readouterr()

    def ok(self, *words: str) -> tuple[str, str]:
        code, out, err = self(*words)
        assert code == 0, err
        return out, err

    def unit(self, name: str, user: bool = True) -> Path:
        return self.base / ("config/systemd/user" if user else "system") / f"{name}.service"

    @property
    def calls(self) -> list[str]:
        """What systemctl was called with, but for ``--version``."""
        log = self.base / "calls"
        return log.read_text().splitlines() if log.exists() else []

    def systemctl(self, version: int = 252, fails: str = "") -> None:
        """Have a systemctl that fails with what begins so."""
        program = self.base / "bin/systemctl"
        program.parent.mkdir(exist_ok=True)
        program.write_text(
            "#!/bin/sh\n"
            f'if [ "$1" = --version ]; then echo "systemd {version} (test)"; exit; fi\n'
            f'echo "$*" >> {self.base}/calls\n'
            f'case "$*" in {fails or "nothing"}*) exit 5;; esac\n'
        )
        program.chmod(0o755)

    def shuts_down(self) -> None:
        """systemd runs no more."""
        (self.base / "booted").rmdir()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Machine:
    made = Machine(tmp_path, capsys)
    made.systemctl()
    (tmp_path / "booted").mkdir()
    for name in [name for name in os.environ if name.startswith(("SHUNTER_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(installing, "SYSTEM_UNITS", tmp_path / "system")
    monkeypatch.setattr(installing, "BOOTED", tmp_path / "booted")
    return made


@pytest.mark.parametrize("words", [AGENT, SERVER])
@pytest.mark.parametrize("user", [False, True], ids=["system", "user"])
def test_print_prints_the_unit_and_changes_nothing(
    machine: Machine, words: tuple[str, ...], user: bool
) -> None:
    out, err = machine.ok(*words, "--print", *(["--user"] if user else []))
    assert out.startswith("# Written by `shunter ")
    assert "\nType=notify\n" in out
    assert ("\nUser=shunter\n" in out) is not user
    assert err == ""
    assert machine.calls == []
    assert not machine.unit("x").parent.exists()
    assert not machine.unit("x", user=False).parent.exists()


def test_what_is_printed_is_what_is_written(machine: Machine) -> None:
    printed, _ = machine.ok(*AGENT, "--user", "--print")
    machine.ok(*AGENT, "--user")
    assert machine.unit("shunter-agent-a1").read_text() == printed


def test_it_is_written_and_what_is_left_to_do_is_said(machine: Machine) -> None:
    out, err = machine.ok(*AGENT, "--user")
    path = machine.unit("shunter-agent-a1")
    assert out == f"{path}: written\n"
    assert "To start it, now and at each boot:\n" in err
    assert "  systemctl --user enable --now shunter-agent-a1\n" in err
    assert f"token in {machine.base}/config/shunter/token" in err
    assert "loginctl enable-linger" in err
    assert path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(path.parent) == [path.name]
    assert machine.calls == []


def test_once_more_changes_nothing_and_other_options_write_it_anew(machine: Machine) -> None:
    machine.ok(*AGENT, "--user")
    path = machine.unit("shunter-agent-a1")
    before = path.stat().st_ino, path.stat().st_mtime_ns
    assert machine.ok(*AGENT, "--user")[0] == f"{path}: as it was\n"
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == before
    assert machine.ok(*AGENT, "--user", "--limit", "3")[0] == f"{path}: written anew\n"
    assert "--limit 3" in path.read_text()


def test_now_starts_it(machine: Machine) -> None:
    out, _ = machine.ok(*SERVER, "--user", "--now")
    assert machine.calls == ["--user daemon-reload", "--user enable --now shunter-server"]
    assert "shunter-server runs: systemctl --user status shunter-server\n" in out
    _, err = machine.ok(*SERVER, "--user", "--now", "--port", "4500")
    assert "systemctl --user restart shunter-server" in err


def test_what_systemd_does_not_start_is_an_error(machine: Machine) -> None:
    machine.systemctl(fails="'--user enable'")
    code, _, err = machine(*SERVER, "--user", "--now")
    assert code == 1
    assert "`systemctl --user enable --now shunter-server` failed" in err
    assert "journalctl --user -u shunter-server" in err


@pytest.mark.parametrize("words", [AGENT, SERVER])
def test_where_no_systemd_runs_it_says_what_to_do(machine: Machine, words: tuple[str, ...]) -> None:
    machine.shuts_down()
    code, out, err = machine(*words, "--user", "--now")
    assert (code, out, machine.unit("x").parent.exists()) == (2, "", False)
    assert "systemd does not run here" in err
    assert "Leave out --now" in err
    _, err = machine.ok(*words, "--user")
    assert "To start it, now and at each boot, where systemd runs (here it does not):" in err
    assert machine.calls == []


def test_where_there_is_no_systemctl_the_unit_is_the_oldest_form(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.systemctl(version=255)
    assert "\nDelegateSubgroup=shunter-agent\n" in machine.ok(*AGENT, "--print")[0]
    monkeypatch.setenv("PATH", str(machine.base / "empty"))
    assert "DelegateSubgroup" not in machine.ok(*AGENT, "--print")[0]


def test_what_somebody_else_wrote_is_left_alone(machine: Machine) -> None:
    path = machine.unit("shunter-server")
    path.parent.mkdir(parents=True)
    path.write_text("[Service]\nExecStart=/bin/mine\n")
    for words in (SERVER, ("server", "uninstall")):
        code, _, err = machine(*words, "--user")
        assert code == 2
        assert f"{path} was not written by shunter" in err
    assert path.read_text() == "[Service]\nExecStart=/bin/mine\n"
    assert machine.calls == []


def test_a_folder_that_cannot_be_written_is_told(machine: Machine) -> None:
    (machine.base / "config").write_text("")
    code, _, err = machine(*SERVER, "--user")
    assert code == 2
    assert f"{machine.unit('shunter-server')} cannot be" in err


def test_uninstall_stops_it_and_removes_it(machine: Machine) -> None:
    machine.ok(*AGENT, "--user")
    out, _ = machine.ok("agent", "uninstall", "a1", "--user")
    assert machine.calls == ["--user disable --now shunter-agent-a1", "--user daemon-reload"]
    assert "its state stays where it is" in out
    assert not machine.unit("shunter-agent-a1").exists()
    code, _, err = machine("agent", "uninstall", "a1", "--user")
    assert code == 2
    assert "there is no unit" in err


def test_what_systemd_does_not_stop_is_not_removed(machine: Machine) -> None:
    machine.ok(*SERVER, "--user")
    machine.systemctl(fails="'--user disable'")
    assert machine("server", "uninstall", "--user")[0] == 1
    assert machine.unit("shunter-server").exists()


@as_root
def test_a_service_of_the_machine(machine: Machine) -> None:
    _, err = machine.ok(*AGENT, "--run-as", ME, "--now")
    text = machine.unit("shunter-agent-a1", user=False).read_text()
    assert f"\nUser={ME}\nStateDirectory=shunter-{ME}\n" in text
    assert f"\nEnvironment=SHUNTER_HOME=/var/lib/shunter-{ME}\n" in text
    assert machine.calls == ["daemon-reload", "enable --now shunter-agent-a1"]
    assert f"/var/lib/shunter-{ME}/token, mode 0600, owned by {ME}" in err
    machine.ok("agent", "uninstall", "a1")
    assert machine.calls[2:] == ["disable --now shunter-agent-a1", "daemon-reload"]


@as_root
def test_an_account_that_is_not_there_is_told_with_how_to_make_it(machine: Machine) -> None:
    code, _, err = machine(*AGENT, "--run-as", "nobody-has-it")
    assert code == 2
    assert "useradd --system --user-group --home-dir /var/lib/shunter-nobody-has-it" in err
    assert not machine.unit("x", user=False).parent.exists()


def test_only_root_may_make_services_of_the_machine(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    code, _, err = machine(*SERVER)
    assert code == 2
    assert "--user for a service of your own" in err


# -- what goes into the unit


def test_secrets_never_do(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHUNTER_TOKEN", "s3cret-token-of-the-tests")
    monkeypatch.setenv("SHUNTER_SERVER_DATABASE_URL", "postgresql://me:s3cret@db/x")
    monkeypatch.setenv("SHUNTER_API_URL", "https://me:s3cret@host/api")
    for words in (AGENT, SERVER):
        printed, told = machine.ok(*words, "--user", "--print")
        out, err = machine.ok(*words, "--user")
        assert "s3cret" not in printed + told + out + err
        for text in (told, err):
            assert "SHUNTER_TOKEN holds a secret" in text
            assert "shunter config set" in text
    assert "SHUNTER_SERVER_DATABASE_URL holds a secret" in err
    code, out, err = machine(*SERVER, "--user", "--database-url", "postgresql://me:s3cret@db/x")
    assert (code, out) == (2, "")
    assert "--database-url holds a secret" in err
    assert "s3cret" not in err


@pytest.mark.parametrize(
    ("words", "variable", "value"),
    [
        (SERVER, "SHUNTER_SERVER_DATABASE_URL", "postgresql://me:s3cret@db/x"),
        (AGENT, "SHUNTER_API_URL", "https://me:s3cret@host/api"),
    ],
)
def test_nothing_is_started_without_the_secret_that_is_set_here(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    code, out, err = machine(*words, "--user", "--now")
    assert (code, out) == (2, "")
    assert variable in err
    assert "shunter config set" in err
    assert "s3cret" not in err
    assert machine.calls == []
    assert not machine.unit("x").parent.exists()
    monkeypatch.setenv(variable, value.replace(":s3cret", ""))
    machine.ok(*words, "--user", "--now")


def test_settings_of_the_environment_do(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHUNTER_HOME", "/srv/my home")
    monkeypatch.setenv("SHUNTER_API_URL", "http://10.0.0.7:4400/api")
    monkeypatch.setenv("SHUNTER_AGENT_LIMIT", "5")
    monkeypatch.setenv("SHUNTER_KEEP_LOGS", "7")
    monkeypatch.setenv("SHUNTER_CLI_OUTPUT", "json")
    agent, server = (machine.ok(*words, "--print")[0] for words in (AGENT, SERVER))
    lines = {
        text: [one for one in text.splitlines() if one.startswith("Environment=")] for text in (agent, server)
    }
    home = 'Environment="SHUNTER_HOME=/srv/my home"'
    assert lines[agent] == [
        home,
        "Environment=SHUNTER_AGENT_LIMIT=5",
        "Environment=SHUNTER_API_URL=http://10.0.0.7:4400/api",
    ]
    assert lines[server] == [
        home,
        "Environment=SHUNTER_API_URL=http://10.0.0.7:4400/api",
        "Environment=SHUNTER_KEEP_LOGS=7",
    ]
    assert '\nReadWritePaths="/srv/my home"\n' in server
    assert "StateDirectory" not in server


def test_the_folders_of_one_s_own_services_are_one_s_own(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/srv/state")
    printed, _ = machine.ok(*AGENT, "--user", "--print")
    assert (
        f"\nEnvironment=XDG_CONFIG_HOME={machine.base}/config\nEnvironment=XDG_STATE_HOME=/srv/state\n"
        in printed
    )
    assert "SHUNTER_HOME" not in printed


def test_an_sqlite_file_elsewhere_may_be_written(machine: Machine) -> None:
    url = "--database-url=sqlite:////srv/db/shunter.db"
    assert "\nReadWritePaths=/srv/db\n" in machine.ok(*SERVER, "--print", url)[0]
    code, _, err = machine(*SERVER, "--print", "--database-url=sqlite:///shunter.db")
    assert code == 2
    assert f"sqlite:///{os.getcwd()}/shunter.db" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((*AGENT, "--user", "--run-as", "me"), "--run-as is for services of the whole machine"),
        ((*AGENT, "--limit", "none"), "--limit"),
        (("agent", "install", "--pool", "a b", "--print"), "--pool"),
        (("agent", "uninstall", "../x"), "cannot be a name"),
        ((*AGENT, "--print", "--run-as", "a\nExecStart=/bin/sh"), "cannot be an account"),
        ((*SERVER, "--print", "--host", "a\nb"), ""),
    ],
)
def test_what_is_wrong_is_refused(machine: Machine, words: tuple[str, ...], told: str) -> None:
    code, out, err = machine(*words)
    assert (code, out) == (2, "")
    assert told in err
    assert machine.calls == []


def test_the_command_of_the_unit_is_the_one_that_starts_it(machine: Machine, analyze: Analyze) -> None:
    """The words behind ``ExecStart=`` are accepted by ``agent start``, and the program is there."""
    printed, _ = machine.ok(*AGENT, "--limit", "2", "--queue", "q", "--tag", "gpu", "--user", "--print")
    (line,) = [one for one in printed.splitlines() if one.startswith("ExecStart=")]
    words = line.removeprefix("ExecStart=").split()
    assert words[0] == sys.executable
    done = subprocess.run(
        words,
        env=os.environ | {"SHUNTER_API_URL": "http://127.0.0.1:1/api", "SHUNTER_HOME": "/proc/nothing"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "/proc/nothing" in done.stderr, "its words were taken, and its home not"
    assert analyze.complaints("shunter-agent-a1.service", printed, user=True) == ""
