"""systemd units of agent and server: what is in them and why, as pure functions.

Sources: systemd.service(5), systemd.exec(5), systemd.kill(5), systemd.resource-control(5),
https://systemd.io/CGROUP_DELEGATION.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shunter_work_pools.contracts.errors import InvalidInput

#: The account of services of the whole machine, unless another is named.
ACCOUNT = "shunter"
#: Versions of systemd that start a delegated service again while runs of its former life are in cgroups below it
#: (docs/decisions/0007).
SUBGROUP = range(254, 257)
#: How the first line begins of every unit that is ours to write and to remove.
MARK = "# Written by `shunter "


@dataclass(frozen=True)
class Service:
    """What a unit is to start.

    Attributes:
        unit: its name, without ``.service``.
        command: the words that start the daemon, an absolute path first.
        environment: variables that it is given.
        account: the user it runs as; None: it is one of the user's own services.
        home: folder of its state; None: as the user's environment says. With an account it is that account's
            below /var/lib unless another is named.
        writes: further folders that a server writes into.
        secrets: variables that it is not given, since everybody may read a unit.
    """

    unit: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    account: str | None = None
    home: Path | None = None
    writes: Sequence[Path] = ()
    secrets: Sequence[str] = ()


def own_home(account: str) -> Path:
    """The home of an account's services: one for each, for systemd gives the folder to whom it starts."""
    return Path("/var/lib") / (account if account == ACCOUNT else f"{ACCOUNT}-{account}")


def agent_unit(service: Service, name: str, systemd: int | None) -> str:
    """The unit of an agent.

    Args:
        systemd: version of the systemd that is to read it; None: not known.

    Raises:
        InvalidInput: something of it cannot be written into a unit.
    """
    return f"""\
{MARK}agent install`, which may write it anew.
# Changes of your own belong into `{_systemctl(service)} edit {service.unit}`.

[Unit]
Description=Shunter agent {name}
{_ordering(service, "After=shunter-server.service")}\
# However often it ends, it is started again: runs that it left wait for it.
StartLimitIntervalSec=0

[Service]
{_identity(service)}\
ExecStart={exec_line(service.command)}
SyslogIdentifier=shunter-agent

# It says that it is ready when it has taken up the runs of its former life and the server has answered, or
# is known to be away. One that the server refuses (token, pool, name) ends with an error instead.
Type=notify
NotifyAccess=main
TimeoutStartSec=3min
Restart=always
RestartSec=5
# It gives signs of life while its main loop comes around. One that hangs is ended; its runs go on. Not before a
# disk that does not answer has had the three minutes for which the agent is heard of all the same.
WatchdogSec=4min

# Stopping drains: nothing new is taken, runs may finish, for as long as the setting agent.drain_grace says.
# While that goes well the agent asks for more time; this limit is for one that hangs.
TimeoutStopSec=1min
# Only the agent is stopped. What keeps a run outlives it, and the next start finds it.
KillMode=process
# A run that was killed for want of memory is one run's misfortune, not the agent's.
OOMPolicy=continue
# The agent may make cgroups for limits of memory below its own.
Delegate=yes
{_subgroup(systemd)}\
# Runs count as the agent's tasks; how many there may be is for the setting agent.limit to say.
TasksMax=infinity

# No sandbox (NoNewPrivileges, ProtectSystem, PrivateTmp, SystemCallFilter, CapabilityBoundingSet, UMask, ...), no
# OOMScoreAdjust and no limits: runs inherit them, and outlive the service, which would take a private /tmp along.
# What runs may do is what the account may do.

[Install]
WantedBy={_target(service)}
"""


def _subgroup(systemd: int | None) -> str:
    if systemd not in SUBGROUP:
        return ""
    return (
        "# Itself it is in a cgroup beside those of its runs: so they do not stand in the way of its next start.\n"
        "DelegateSubgroup=shunter-agent\n"
    )


def server_unit(service: Service) -> str:
    """The unit of the server.

    Raises:
        InvalidInput: something of it cannot be written into a unit.
    """
    return f"""\
{MARK}server install`, which may write it anew.
# Changes of your own belong into `{_systemctl(service)} edit {service.unit}`.

[Unit]
Description=Shunter server
{_ordering(service, "After=postgresql.service")}\
# However often it ends, it is started again: agents wait for it.
StartLimitIntervalSec=0

[Service]
{_identity(service)}\
ExecStart={exec_line(service.command)}
SyslogIdentifier=shunter-server

# It says that it is ready when it serves. Before that it may bring the database to a new schema, which takes
# as long as it takes.
Type=notify
NotifyAccess=main
TimeoutStartSec=infinity
Restart=always
RestartSec=2
# It gives signs of life while its loops come around. One that hangs is ended and started again.
WatchdogSec=30
# It answers what is under way within ten seconds, then writes down what it knows.
TimeoutStopSec=30
# Each agent keeps a connection open.
LimitNOFILE=65536
{_server_sandbox(service)}
[Install]
WantedBy={_target(service)}
"""


def _server_sandbox(service: Service) -> str:
    if service.account is None:
        return """
# More needs rights that a user's own services do not have everywhere.
NoNewPrivileges=yes
UMask=0077
"""
    assert service.home is not None
    inside = {service.home} if _is_own(service) else set()
    writes = [path for path in dict.fromkeys([service.home, *service.writes]) if path not in inside]
    return f"""
# Without it nothing is started, and agents wait: it goes last when memory is short.
OOMScoreAdjust=-500

# It starts nothing, needs the network and its folder, and gets no more. Not MemoryDenyWriteExecute: Python's
# foreign functions want such memory. Not ProtectHome=yes: it may be installed in a home.
UMask=0077
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
{"".join(f"ReadWritePaths={word(str(path))}" + chr(10) for path in writes)}\
ProtectHome=read-only
PrivateTmp=yes
PrivateDevices=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
"""


def _identity(service: Service) -> str:
    """Who it runs as, and where its state is."""
    environment = dict(service.environment)
    lines = ["WorkingDirectory=/"]  # nothing in a home is to come before what Python imports
    if service.account is not None:
        lines.append(f"User={_account(service.account)}")
        if _is_own(service):
            assert service.home is not None
            lines += [f"StateDirectory={service.home.name}", "StateDirectoryMode=0700"]
    if service.home is not None:
        environment = {"SHUNTER_HOME": str(service.home), **environment}
    lines += [f"Environment={word(f'{name}={value}')}" for name, value in environment.items()]
    return "".join(f"{line}\n" for line in lines)


def _is_own(service: Service) -> bool:
    return service.account is not None and service.home == own_home(service.account)


def _ordering(service: Service, after: str) -> str:
    if service.account is None:
        return f"{after}\n"
    return f"Wants=network-online.target\n{after} network-online.target\n"


def _target(service: Service) -> str:
    return "default.target" if service.account is None else "multi-user.target"


def _systemctl(service: Service) -> str:
    return "systemctl --user" if service.account is None else "systemctl"


def exec_line(command: Sequence[str]) -> str:
    """A command as ``ExecStart=`` reads it; of the program ``$`` means itself, elsewhere a variable.

    Raises:
        InvalidInput: systemd would not start such a program, or :func:`word` refuses a word.
    """
    if set(command[0]) & set("\"'\\"):
        raise InvalidInput(
            f"systemd starts no program with quotes or backslashes in its path: {command[0]}",
            "Install shunter in another folder.",
        )
    return " ".join([word(command[0]), *(word(each).replace("$", "$$") for each in command[1:])])


def word(text: str) -> str:
    """One word as systemd.syntax(7) reads it, specifiers included.

    Raises:
        InvalidInput: it has characters that no unit should have: control characters, what is not UTF-8.
    """
    if re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", text):
        raise InvalidInput(
            f"{text!r} cannot be written into a unit", "Use a text without line ends and control characters."
        )
    text = text.replace("%", "%%")
    if re.fullmatch(r"[\w@%+=:,./$-]+", text, re.ASCII):
        return text
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _account(name: str) -> str:
    """An account's name, which ``User=`` takes without quotes, by the rule that systemd calls strict."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]{0,30}", name):
        raise InvalidInput(f"{name!r} cannot be an account of a service", "Use letters, digits, - and _.")
    return name
