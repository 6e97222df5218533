"""``shunter server`` and ``shunter up``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shunter_cli import installing, output, pausing
from shunter_cli.installing import NowOption, PrintOption, RunAsOption, UserOption
from shunter_cli.output import Output, OutputOption
from shunter_cli.pausing import ReasonOption
from shunter_cli.service_units import server_unit
from shunter_cli.setting_flags import OF_SERVER, as_words, taking
from shunter_work_pools.contracts.configuration import listening_port, load
from shunter_work_pools.contracts.errors import InvalidInput, Unavailable
from shunter_work_pools.contracts.exposure import check_exposure

if TYPE_CHECKING:
    from types import ModuleType

    from shunter_work_pools.client import Client
    from shunter_work_pools.contracts.agents import ServerInfo

_UNIT = "shunter-server"

group = typer.Typer(no_args_is_help=True, help="The server: keeps deployments, schedules, pools and runs.")


def attach(app: typer.Typer) -> None:
    """Add the group and ``up``."""
    app.add_typer(group, name="server")
    app.command("up")(up)


@group.command("start")
@taking(OF_SERVER)
def start(flags: dict[str, Any]) -> None:
    """Serve until told to stop by SIGTERM or Ctrl-C.

    What is not given here comes from the environment, the profile, the defaults: `shunter config show`.
    """
    _part("server").serve(flags)


@taking(["agent.limit", *OF_SERVER])
def up(
    flags: dict[str, Any],
    tag: Annotated[
        list[str] | None, typer.Option(help="What runs may require of the agent. Repeatable.", metavar="TAG")
    ] = None,
) -> int:
    """Start a server and an agent for the pool default, in one.

    The pool is made if it is not there. Ctrl-C stops both: runs may finish, a second one cancels them.
    """
    from shunter_cli.up import Plan, up

    values = load(flags)
    check_exposure(values)
    mine = {name: given for name, given in flags.items() if name not in ("server.host", "server.port")}
    plan = Plan(
        host=values["server.host"],
        port=listening_port(values),
        limit=values["agent.limit"],
        server_words=as_words({name: given for name, given in mine.items() if name != "agent.limit"}),
        tags=tag or [],
        tls=values["server.tls_cert"] is not None,
        api_url=values["api_url"],
    )
    return up(plan)


@group.command("install")
@taking(OF_SERVER)
def install(
    flags: dict[str, Any],
    user: UserOption = False,
    run_as: RunAsOption = None,
    now: NowOption = False,
    print_: PrintOption = False,
) -> None:
    """Make a service of it, which systemd starts at each boot and whenever it ends.

    It is written as the unit shunter-server with the options given here and the variables SHUNTER_... that are
    set now; its home is /var/lib/shunter unless SHUNTER_HOME says otherwise.
    """
    values = load(flags)
    check_exposure(values)
    words = ["server", "start", *as_words(flags)]
    service = installing.planned(_UNIT, words, flags, user=user, run_as=run_as, of="server")
    service = replace(service, writes=_database_folders(values["server.database_url"]))
    text = server_unit(service)
    if print_:
        installing.show(service, text)
    else:
        installing.install(service, text, now=now)


@group.command("uninstall")
def uninstall(user: UserOption = False) -> None:
    """Stop the server's service and remove its unit. Its database and all else of its home stay."""
    installing.uninstall(_UNIT, user=user)


@group.command("status")
def status(output_as: OutputOption = Output.TABLE) -> int:
    """Show what the server is, and whether it is ready to serve. The exit code is 1 if it is not."""
    from shunter_cli.connection import connect

    with connect() as client:
        ready, why = _readiness(client)
        info = client.server()
    uptime = (info.server_time - info.started_at).total_seconds() if info.started_at is not None else None
    if output_as is Output.TABLE:
        output.facts(_status_facts(client.api_url, info, uptime, ready, why))
    else:
        told = {"api_url": client.api_url, "ready": ready, "uptime": uptime, **info.model_dump(mode="json")}
        output.show_data(told, output_as)
    return 0 if ready else 1


@group.command("pause")
def pause(reason: ReasonOption = "", output_as: OutputOption = Output.TABLE) -> None:
    """Begin maintenance: no server of this database hands out runs until it is resumed.

    What runs goes on and is reported, slots are made into runs, and these wait.
    """
    _set_paused(True, output_as, reason)


@group.command("resume")
def resume(output_as: OutputOption = Output.TABLE) -> None:
    """End maintenance: runs that wait are handed out at once."""
    _set_paused(False, output_as)


def _set_paused(paused: bool, output_as: Output, reason: str = "") -> None:
    from shunter_cli.connection import connect
    from shunter_work_pools.contracts.agents import ServerPatch

    with connect() as client:
        info = client.update_server(pausing.patch(ServerPatch, paused, reason))
    if output_as is not Output.TABLE:
        output.show_object(info, output_as)
    else:
        output.say("maintenance: runs wait until `shunter server resume`" if info.pause else "server resumed")


@group.command("bootstrap")
def bootstrap(
    secret: Annotated[str, typer.Option(help="The Secret's name.", metavar="NAME")],
    namespace: Annotated[
        str | None, typer.Option(help="Its namespace; by default that of this pod.", metavar="NAME")
    ] = None,
    wait: Annotated[
        str, typer.Option(help="How long an API server that does not answer is asked again.", metavar="TIME")
    ] = "1m",
) -> None:
    """In a pod: make a Kubernetes Secret with a token and a secret key for the server, unless it is there.

    Its keys are `token` (an admin's, for SHUNTER_TOKEN) and `secret-key` (for SHUNTER_SERVER_SECRET_KEYS). One that
    is there is not changed, but looked into. The pod's service account needs the verb create for secrets, better get, too.
    """
    from shunter_cli.durations import seconds

    made = _part("bootstrap").bootstrap(secret, namespace, wait=seconds(wait, "--wait"))
    where = f"the Secret {made.namespace}/{made.name}"
    if made.made:
        output.say(f"{where} is made, with a token and a secret key")
    elif made.checked:
        output.say(f"{where} is there already, with a token and a secret key: it stays as it is")
    else:
        output.say(f"{where} is there already and stays as it is; this service account may not look into it")
    output.say(
        f"Read the token: kubectl --namespace {made.namespace} get secret {made.name} "
        "--output jsonpath='{.data.token}' | base64 --decode"
    )


@group.command("upgrade-db")
@taking(["server.database_url"])
def upgrade_db(
    flags: dict[str, Any],
    wait: Annotated[
        str,
        typer.Option(
            help="How long a database that does not answer, or that another server has, is tried again.",
            metavar="TIME",
        ),
    ] = "0s",
) -> None:
    """Bring the database to this version's schema.

    A server does so by itself at its start; this is for those who want it done before, or by another user. Of several
    at once one does it, and the others wait for that. The exit code is 0 also if there was nothing to do.
    """
    from shunter_cli.durations import seconds

    url = load(flags)["server.database_url"]
    before, after = _part("storage.upkeep").upgrade(url, seconds(wait, "--wait"))
    output.say(f"schema {after}: up to date" if before == after else f"schema {before or 'none'} -> {after}")


@group.command("backup")
@taking(["server.database_url"])
def backup(
    flags: dict[str, Any],
    file: Annotated[Path, typer.Argument(help="The file to write; it must not exist yet.", metavar="FILE")],
) -> None:
    """Write a copy of the database into a file, whether a server uses it now or not.

    Of SQLite it is a database, of Postgres an archive for pg_restore. What runs have written is not part
    of it: that lies in the folder logs of the home.
    """
    url = load(flags)["server.database_url"]
    _part("storage.upkeep").backup(url, file)
    output.say(f"written: {file} ({_size(file.stat().st_size)})")


def _database_folders(url: str | None) -> list[Path]:
    """Where SQLite writes, if that is said here.

    Raises:
        InvalidInput: it is said from where this command runs; the service runs elsewhere.
    """
    if url is None or not url.startswith("sqlite:///"):
        return []
    file = Path(url.removeprefix("sqlite:///"))
    if not file.is_absolute():
        raise InvalidInput(
            f"{url} is meant from the current folder, and a service has another",
            f"Write the whole path: sqlite:///{file.absolute()}",
        )
    return [file.parent]


def _part(name: str) -> ModuleType:
    """A module of the server, which is an extra.

    Raises:
        InvalidInput: what it needs is not installed.
    """
    from importlib import import_module

    try:
        return import_module(f"shunter_work_pools.{name}")
    except ModuleNotFoundError as exc:
        if exc.name and exc.name.startswith("shunter"):
            raise
        raise InvalidInput(
            f"the server's parts are not installed: {exc.name} is missing",
            "Install them: pip install 'shunter[server]'",
        ) from exc


def _readiness(client: Client) -> tuple[bool, str]:
    try:
        return client.ready(), ""
    except Unavailable as exc:
        return False, exc.detail


def _status_facts(
    api_url: str, info: ServerInfo, uptime: float | None, ready: bool, why: str
) -> list[tuple[str, str]]:
    from shunter_cli.durations import in_words

    return [
        ("address", api_url),
        ("state", "ready" if ready else f"not ready: {why}"),
        *([("maintenance", pausing.in_words(info.pause))] if info.pause else []),
        ("version", info.version),
        ("protocol", str(info.protocol)),
        ("up for", in_words(uptime) if uptime is not None else "-"),
        ("store", info.store),
        ("schema", info.schema_version or "-"),
        ("database", _size(info.database_bytes) if info.database_bytes is not None else "-"),
    ]


def _size(count: int) -> str:
    size, units = float(count), ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.0f} {units[0]}" if units[0] == "bytes" else f"{size:.1f} {units[0]}"
