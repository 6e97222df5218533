"""Services of agent and server: their unit files written and removed, and systemd told about it."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from shunter_cli import output
from shunter_cli.faults import tell
from shunter_cli.service_units import ACCOUNT, MARK, Service, own_home
from shunter_work_pools.contracts.errors import InvalidInput, ShunterError
from shunter_work_pools.contracts.home import Home, home_from_env
from shunter_work_pools.contracts.settings import (
    BY_VARIABLE,
    HOME_VARIABLE,
    PROFILE_VARIABLE,
    SETTINGS,
    Setting,
)

UserOption = Annotated[
    bool, typer.Option("--user", help="A service of your own instead of one of the whole machine.")
]
RunAsOption = Annotated[
    str | None,
    typer.Option(help=f"The account it runs as. Default: {ACCOUNT}.", metavar="USER"),
]
NowOption = Annotated[bool, typer.Option("--now", help="Start it, and at each boot from now on.")]
PrintOption = Annotated[bool, typer.Option("--print", help="Print the unit and do nothing.")]

#: Where units of the whole machine are (systemd.unit(5)).
SYSTEM_UNITS = Path("/etc/systemd/system")
#: There if systemd runs here (sd_booted(3)).
BOOTED = Path("/run/systemd/system")
#: Variables that say where the folders of one's own services are.
_XDG = ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")
#: By which proxy an agent reaches its server.
_PROXIES = tuple(
    name for one in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY") for name in (one, one.lower())
)
#: Settings that a service is given if they are set where it is installed, by how their names begin.
_OURS = {
    "agent": ("api_url", "token", "tls_", "log.", "agent."),
    "server": ("api_url", "token", "log.", "server.", "keep."),  # api_url: it may say the port
}


def planned(
    unit: str, words: Sequence[str], flags: Mapping[str, Any], *, user: bool, run_as: str | None, of: str
) -> Service:
    """The service that starts a daemon as it would be started here and now.

    Args:
        words: the command and its options.
        flags: the settings among them.
        user: a service of one's own.
        of: the settings that the daemon goes by: ``agent`` or ``server``.

    Raises:
        InvalidInput: the command line holds a secret, or contradicts itself.
    """
    if user and run_as is not None:
        raise InvalidInput("--run-as is for services of the whole machine, and --user is not one")
    for name, typed in flags.items():
        if typed is not None and _is_secret(SETTINGS[name], str(typed)):
            raise InvalidInput(
                f"{SETTINGS[name].flag} holds a secret, and everybody may read a unit",
                f"Write it into the configuration of the service's home: shunter config set {name} VALUE",
            )
    command = [sys.executable, "-m", "shunter_cli.main", *words]
    account = None if user else run_as or ACCOUNT
    home = home_from_env().config if os.environ.get(HOME_VARIABLE) else None
    if account is not None and home is None:
        home = own_home(account)
    ours = {name for name, setting in BY_VARIABLE.items() if setting.name.startswith(_OURS[of])}
    ours |= {*(_PROXIES if of == "agent" else ())}
    ours |= {PROFILE_VARIABLE, *(_XDG if user and home is None else ())}
    given = {name: os.environ[name] for name in sorted(ours) if os.environ.get(name)}
    secrets = [name for name in given if _holds_secret(name, given[name])]
    environment = {name: value for name, value in given.items() if name not in secrets}
    return Service(unit, command, environment, account, home, secrets=secrets)


def _holds_secret(variable: str, given: str) -> bool:
    if variable in _PROXIES:
        return "@" in given
    return variable in BY_VARIABLE and _is_secret(BY_VARIABLE[variable], given)


def prepare_home(*, user: bool, run_as: str | None) -> str | None:
    """Go by the home of the service from now on; the account that its files are to belong to, None: one's own.

    Raises:
        InvalidInput: a service cannot be made here, or contradicts itself.
    """
    if user and run_as is not None:
        raise InvalidInput("--run-as is for services of the whole machine, and --user is not one")
    _check_right(user)
    if not BOOTED.is_dir():
        raise InvalidInput("systemd does not run here, so nothing can be started", "Leave out --install.")
    if user:
        return None
    account = run_as or ACCOUNT
    _check_account(account)
    if not os.environ.get(HOME_VARIABLE):
        os.environ[HOME_VARIABLE] = str(own_home(account))
    return account


def give(folder: Path, agents: Path, account: str | None) -> None:
    """Give an agent's state folder, and those above it in the home, to the account of its service.

    Raises:
        OSError: they cannot be given.
    """
    if account is None:
        return
    import pwd

    known = pwd.getpwnam(account)
    for path in (agents.parent, agents, folder, *folder.rglob("*")):
        os.chown(path, known.pw_uid, known.pw_gid, follow_symlinks=False)


def _is_secret(setting: Setting, given: str) -> bool:
    return setting.mask is not None and setting.mask(given) != given


def systemd_version() -> int | None:
    """The version of this machine's systemd, None if it has none."""
    try:
        done = subprocess.run(  # nosec B607 # found on PATH as for everybody who types it
            ["systemctl", "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    found = re.match(r"systemd (\d+)", done.stdout)
    return int(found[1]) if found else None


def show(service: Service, text: str) -> None:
    """Print the unit, and say which secrets are not in it."""
    output.say(text.rstrip("\n"))
    _tell_of_secrets(service)


def install(service: Service, text: str, *, now: bool, joined: bool = False) -> None:
    """Write the unit, and start it if that was asked for.

    Args:
        joined: it has a credential of its own, and needs no token.

    Raises:
        InvalidInput: it may not be written: no right, no such account, a unit of somebody else; or it may not be
            started: there is no systemd here, or it would lack a secret that is set here.
        ShunterError: systemd does not start it.
    """
    if now and service.secrets:
        # Without the address of its database a server would begin on an empty one.
        these = " and ".join(service.secrets)
        raise InvalidInput(
            f"it cannot be started with what {these} says: that is a secret, and everybody may read a unit",
            "Write it into the configuration of the service's home (shunter config set), unset the variable, and "
            "say this again. Or leave out --now to write the unit alone.",
        )
    user = service.account is None
    path = unit_file(service.unit, user=user)
    _check_right(user)
    if service.account is not None:
        _check_account(service.account)
    if now and not BOOTED.is_dir():
        raise InvalidInput(
            "systemd does not run here, so nothing can be started", "Leave out --now to write the unit alone."
        )
    before = _ours(path)
    if before != text:
        with _changing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f".{path.name}.new")
            draft.write_text(text, "utf-8")
            draft.chmod(0o644)
            draft.replace(path)
    output.say(
        f"{path}: {'written' if before is None else 'as it was' if before == text else 'written anew'}"
    )
    _tell_what_it_needs(service, joined)
    systemctl = _systemctl(user)
    if not now:
        reason = "" if BOOTED.is_dir() else ", where systemd runs (here it does not)"
        tell(f"To start it, now and at each boot{reason}:")
        tell(f"  {systemctl} daemon-reload\n  {systemctl} enable --now {service.unit}")
        return
    _run(systemctl, "daemon-reload")
    _run(systemctl, "enable", "--now", service.unit)
    output.say(f"{service.unit} runs: {systemctl} status {service.unit}")
    if before not in (None, text):
        tell(f"If it ran before, it goes by the new unit after: {systemctl} restart {service.unit}")


def _tell_of_secrets(service: Service) -> None:
    for variable in service.secrets:
        tell(f"{variable} holds a secret: it is not in the unit, which everybody may read.")
    if set(service.secrets) - set(_PROXIES):
        tell("  Write it into the configuration of the service's home: shunter config set")
    if set(service.secrets) & set(_PROXIES):
        tell(
            f"  Write it into a file that only root may read, and name that: EnvironmentFile=, by systemctl edit {service.unit}"
        )


def _tell_what_it_needs(service: Service, joined: bool) -> None:
    _tell_of_secrets(service)
    if service.account is None:
        tell("It ends when you log out, unless you are allowed to linger: loginctl enable-linger")
    home = (
        Home(service.home, service.home, service.home, service.home / "cache")
        if service.home is not None
        else home_from_env()
    )
    if service.unit != "shunter-server" and not joined and not home.token_file.exists():
        whose = f"owned by {service.account}" if service.account is not None else "yours"
        tell(
            f"It needs the server's token in {home.token_file}, mode 0600, {whose}; a server with the same home "
            "makes it at its first start."
        )


def uninstall(unit: str, *, user: bool) -> None:
    """Stop the service and remove its unit. Its state stays.

    Raises:
        InvalidInput: there is no such unit of ours, or no right to remove it.
        ShunterError: systemd does not stop it.
    """
    path = unit_file(unit, user=user)
    systemctl = _systemctl(user)
    if _ours(path) is None:
        raise InvalidInput(
            f"there is no unit {path}", f"`{systemctl} list-unit-files 'shunter-*'` lists them."
        )
    _check_right(user)
    booted = BOOTED.is_dir()
    if booted:
        _run(systemctl, "disable", "--now", unit)
    with _changing(path):
        path.unlink()
    if booted:
        _run(systemctl, "daemon-reload")
    output.say(f"{path}: removed; its state stays where it is")


def unit_file(unit: str, *, user: bool) -> Path:
    """Where a unit's file is (systemd.unit(5))."""
    if not user:
        return SYSTEM_UNITS / f"{unit}.service"
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(config) / "systemd/user" / f"{unit}.service"


def _ours(path: Path) -> str | None:
    """What is in it; None if it is not there.

    Raises:
        InvalidInput: it is not ours, or cannot be read.
    """
    try:
        text = path.read_text("utf-8", "replace")
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise InvalidInput(f"{path} cannot be read: {exc.strerror}", "Move it out of the way.") from exc
    if not text.startswith(MARK):
        raise InvalidInput(
            f"{path} was not written by shunter, and is left alone",
            "Move it out of the way, or go on without `install`.",
        )
    return text


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise InvalidInput(
            f"{path} cannot be changed: {exc.strerror}", "Free space, or get the right."
        ) from exc


def _check_right(user: bool) -> None:
    if not user and os.geteuid() != 0:
        raise InvalidInput(
            "services of the whole machine are for root", "Use sudo, or --user for a service of your own."
        )


def _check_account(account: str) -> None:
    import pwd

    try:
        pwd.getpwnam(account)
    except KeyError:
        raise InvalidInput(
            f"there is no account {account!r}",
            f"Make it: useradd --system --user-group --home-dir {own_home(account)} "
            f"--shell /usr/sbin/nologin {account}\nOr name another one with --run-as.",
        ) from None


def _systemctl(user: bool) -> str:
    return "systemctl --user" if user else "systemctl"


def _run(systemctl: str, *words: str) -> None:
    line = [*systemctl.split(), *words]
    try:
        code = subprocess.run(line, stdin=subprocess.DEVNULL, check=False).returncode
    except OSError as exc:
        raise ShunterError(f"{line[0]} cannot be run: {exc.strerror}") from exc
    if code != 0:
        journal = "journalctl --user" if "--user" in line else "journalctl"
        raise ShunterError(f"`{' '.join(line)}` failed", f"`{journal} -u {words[-1]}` tells why.")
