"""What `agent invite` prints, and where `agent join` has its token from."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from shunter_cli.faults import tell
from shunter_work_pools.contracts.errors import InvalidInput, ServerUnreachable, Unavailable
from shunter_work_pools.contracts.settings import JOIN_VARIABLE
from shunter_work_pools.version import version

T = TypeVar("T")

#: Seconds between two tries to join a server that is away.
EVERY = 1.0
#: Where a container keeps its agent's state: on a volume, so that it joins once.
_HOME = "/var/lib/shunter"


def lines(url: str, token: str, image: str | None = None) -> Mapping[str, str]:
    """Where the agent is to be -> a line to paste there.

    Args:
        image: of the Docker line, whose entrypoint is ``shunter``. Default: what ``make images`` makes of this version.

    The token is a variable in each, never an argument: arguments are seen by everybody on a machine. With sudo and
    Docker the variable is only named.
    """
    given, address = f"{JOIN_VARIABLE}={shlex.quote(token)}", shlex.quote(url)
    join = f"shunter agent join {address}"
    return {
        "a machine": f"{given} {join} --start",
        "a service of systemd": f"{given} sudo --preserve-env={JOIN_VARIABLE} {join} --install",
        # The agent, and whose its folder is, are known by the host's name: a container that is made anew has it, too.
        "Docker": f'{given} docker run -d --restart unless-stopped --hostname "$(hostname)" -v shunter-agent:{_HOME} '
        f"-e {JOIN_VARIABLE} {shlex.quote(image or f'localhost/shunter-agent:{version()}')} "
        f"agent join {address} --start",
    }


def line_for_helm(url: str, token: str, pool: str, pool_type: str, *, manage_pools: bool) -> str:
    """The line for a Kubernetes cluster, with the chart of this repository; the token comes by a pipe.

    Args:
        manage_pools: the agents may make the pool and change it, as the chart has them do unless told.
    """
    values = {
        "auth.mode": "enrolment",
        "auth.enrolment.name": "shunter-join",
        "api.url": url,
        "pools": f"{{{pool}}}",
        **({"poolType": pool_type} if pool_type != "kubernetes" else {}),
        **({} if manage_pools else {"createPools": "false"}),
    }
    settings = " ".join(f"--set {shlex.quote(f'{name}={value}')}" for name, value in values.items())
    return (
        f"printf %s {shlex.quote(token)} | kubectl create secret generic shunter-join --from-file=token=/dev/stdin "
        f"&& helm install agents helm/shunter-agent {settings}"
    )


def is_of_this_machine(url: str) -> bool:
    """Whether no other machine reaches it."""
    return urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")


def when_there(join: Callable[[], T], *, waits: bool) -> T:
    """What joining gives; a server that is away is waited for, if asked: a container starts together with it.

    Raises:
        ShunterError: as ``join`` does.
    """
    said = False
    while True:
        try:
            return join()
        except (ServerUnreachable, Unavailable) as exc:
            if not waits:
                raise
            if not said:
                tell(f"{exc.detail}; waiting for it")
            said = True
        time.sleep(EVERY)


def given_token(file: str | None) -> str:
    """The enrolment token: of a file (``-``: standard input), of the variable, or typed in unseen.

    Raises:
        InvalidInput: there is none, or what is there is none.
    """
    from shunter_agents.joining import enrolment

    if file == "-":
        return enrolment(sys.stdin.read(), "standard input")
    if file is not None:
        try:
            return enrolment(Path(file).expanduser().read_text("utf-8"), file)
        except (OSError, UnicodeDecodeError) as exc:
            raise InvalidInput(f"the token file {file} cannot be read: {exc}") from exc
    if given := os.environ.get(JOIN_VARIABLE):
        return enrolment(given, JOIN_VARIABLE)
    if not sys.stdin.isatty():
        raise InvalidInput(
            "there is no enrolment token",
            f"Set {JOIN_VARIABLE}, or name a file that holds it with --token-file (- for stdin).",
        )
    import typer

    return enrolment(str(typer.prompt("Enrolment token", hide_input=True, err=True)), "what was typed")
