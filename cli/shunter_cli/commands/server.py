"""``shunter server`` and ``shunter up``."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

import typer

from shunter_cli.commands.agents import DEFAULT_LIMIT

group = typer.Typer(no_args_is_help=True, help="The server: keeps deployments, schedules, pools and runs.")

HostOption = Annotated[str, typer.Option(help="Address to listen on.", metavar="ADDRESS")]
PortOption = Annotated[
    int | None,
    typer.Option(
        help="Port to listen on, by default that of SHUNTER_API_URL or 4400.", min=0, max=65535, metavar="N"
    ),
]
DatabaseOption = Annotated[
    str | None,
    typer.Option(
        help="postgresql://... or sqlite:///FILE, by default a file in SHUNTER_HOME.", metavar="URL"
    ),
]
AllowedOption = Annotated[
    list[str] | None,
    typer.Option(help="A further name clients may call it by (Host header). Repeatable.", metavar="NAME"),
]


def attach(app: typer.Typer) -> None:
    """Add the group and ``up``."""
    app.add_typer(group, name="server")
    app.command("up")(up)


@group.command("start")
def start(
    host: HostOption = "127.0.0.1",
    port: PortOption = None,
    database_url: DatabaseOption = None,
    allowed_host: AllowedOption = None,
) -> None:
    """Serve until told to stop by SIGTERM or Ctrl-C."""
    from shunter_work_pools.contracts.errors import InvalidInput

    try:
        from shunter_work_pools.server import serve
    except ModuleNotFoundError as exc:
        if exc.name and exc.name.startswith("shunter"):
            raise
        raise InvalidInput(
            f"the server's parts are not installed: {exc.name} is missing",
            "Install them: pip install 'shunter[server]'",
        ) from exc
    serve(host, _port(port), database_url, allowed_host or [])


def up(
    host: HostOption = "127.0.0.1",
    port: PortOption = None,
    database_url: DatabaseOption = None,
    limit: Annotated[
        int, typer.Option(help="Runs at once of the agent.", min=1, metavar="N")
    ] = DEFAULT_LIMIT,
    tag: Annotated[
        list[str] | None, typer.Option(help="What runs may require of the agent. Repeatable.", metavar="TAG")
    ] = None,
) -> int:
    """Start a server and an agent for the pool default, in one.

    The pool is made if it is not there. Ctrl-C stops both: runs may finish, a second one cancels them.
    """
    from shunter_cli.up import Plan, up

    return up(Plan(host=host, port=_port(port), database_url=database_url, limit=limit, tags=tag or []))


def _port(given: int | None) -> int:
    """The port: as given, else that of SHUNTER_API_URL if it is this machine's, else the default."""
    from shunter_work_pools.contracts.home import DEFAULT_PORT, api_url_from_env

    if given is not None:
        return given
    try:
        url = urlsplit(api_url_from_env())
        if url.scheme == "http" and url.hostname in ("127.0.0.1", "localhost", "::1"):
            return url.port or 80
    except ValueError:
        pass
    return DEFAULT_PORT
