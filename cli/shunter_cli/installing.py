"""Services of agent and server: their unit files written and removed, and systemd told about it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from shunter_cli import output
from shunter_cli.faults import tell
from shunter_cli.service_units import ACCOUNT, MARK, Service, own_home
from shunter_work_pools.contracts.errors import InvalidInput, ShunterError
from shunter_work_pools.contracts.home import Home, home_from_env
from shunter_work_pools.contracts.settings import BY_VARIABLE, HOME_VARIABLE, PROFILE_VARIABLE, SETTINGS

UserOption = Annotated[
    bool, typer.Option("--user", help="A service of your own instead of one of the whole machine.")
]
RunAsOption = Annotated[
    str | None,
    typer.Option(help=f"The account it runs as. Default: {ACCOUNT}.", metavar="USER"),
]
NowOption = Annotated[bool, typer.Option("--now", help="Start it, and at each boot from now on.")]
PrintOption = Annotated[bool, typer.Option("--print", help="Print the unit and do nothing.")]

#: Variables that say where the folders of one's own services are.
_XDG = ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")


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
    for name, given in flags.items():
        setting = SETTINGS[name]
        if given is not None and setting.mask is not None and setting.mask(str(given)) != str(given):
            raise InvalidInput(
                f"{setting.flag} holds a secret, and everybody may read a unit",
                f"Write it into the configuration file of the service's home: shunter config set {name} VALUE",
            )
    command = [sys.executable, "-m", "shunter_cli.main", *words]
    account = None if user else run_as or ACCOUNT
    home = home_from_env().config if os.environ.get(HOME_VARIABLE) else None
    if account is not None and home is None:
        home = own_home(account)
    return Service(unit, command, _environment(of, user=user), account, home)


def _environment(of: str, *, user: bool) -> dict[str, str]:
    """What of the environment the service is given, too: settings that matter to it, but no secrets."""
    kept = {PROFILE_VARIABLE, *(_XDG if user and not os.environ.get(HOME_VARIABLE) else ())}
    for variable, setting in BY_VARIABLE.items():
        given = os.environ.get(variable, "")
        ours = setting.name == "api_url" or setting.name.startswith(
            ("log.", "agent.") if of == "agent" else ("log.", "server.", "keep.")
        )
        if ours and (setting.mask is None or setting.mask(given) == given):
            kept.add(variable)
    return {name: os.environ[name] for name in sorted(kept) if os.environ.get(name)}


def install(service: Service, text: str, *, now: bool) -> None:
    """Write the unit, and start it if that was asked for.

    Raises:
        InvalidInput: it may not be written: no right, no such account, a unit of somebody else.
        ShunterError: systemd does not start it.
    """
    path = unit_file(service.unit, user=service.account is None)
    _check_right(service.account is None)
    if service.account is not None:
        _check_account(service.account)
    before = _ours(path)
    if before != text:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f".{path.name}.new")
            draft.write_text(text)
            draft.chmod(0o644)
            draft.replace(path)
        except OSError as exc:
            raise InvalidInput(
                f"{path} cannot be written: {exc.strerror}", "Free space, or get the right."
            ) from exc
    output.say(
        f"{path}: {'written' if before is None else 'as it was' if before == text else 'written anew'}"
    )
    systemctl = _systemctl(service.account is None)
    if not _booted() or not now:
        to_do = [f"{systemctl} daemon-reload", f"{systemctl} enable --now {service.unit}"]
        reason = "" if _booted() else ", where systemd runs (here it does not)"
        tell("\n  ".join([f"To start it, now and at each boot{reason}:", *to_do]))
    else:
        _run(systemctl, "daemon-reload")
        _run(systemctl, "enable", "--now", service.unit)
        output.say(f"{service.unit} runs: {systemctl} status {service.unit}")
        if before not in (None, text):
            tell(f"If it ran before, it goes by the new unit after: {systemctl} restart {service.unit}")
    _tell_what_it_needs(service)


def _tell_what_it_needs(service: Service) -> None:
    if service.account is None:
        tell("It ends when you log out, unless you are allowed to linger: loginctl enable-linger")
    home = Home(*[service.home] * 3) if service.home is not None else home_from_env()
    if service.unit != "shunter-server" and not home.token_file.exists():
        whose = f"owned by {service.account}" if service.account is not None else "yours"
        tell(
            f"It needs the server's token in {home.token_file}, mode 0600, {whose}; a server with the same home "
            "makes it at its first start. A unit holds no secrets, so SHUNTER_TOKEN is not in it."
        )


def uninstall(unit: str, *, user: bool) -> None:
    """Stop the service and remove its unit. Its state stays.

    Raises:
        InvalidInput: there is no such unit of ours, or no right to remove it.
        ShunterError: systemd does not stop it.
    """
    path = unit_file(unit, user=user)
    if _ours(path) is None:
        raise InvalidInput(f"there is no unit {path}", "`systemctl list-unit-files 'shunter-*'` lists them.")
    _check_right(user)
    systemctl = _systemctl(user)
    if _booted():
        _run(systemctl, "disable", "--now", unit)
    path.unlink()
    if _booted():
        _run(systemctl, "daemon-reload")
    output.say(f"{path}: removed; its state stays where it is")


def unit_file(unit: str, *, user: bool) -> Path:
    """Where a unit's file is (systemd.unit(5))."""
    if not user:
        return Path("/etc/systemd/system") / f"{unit}.service"
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


def _booted() -> bool:
    """Whether systemd runs here (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()


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
