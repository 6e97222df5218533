"""``shunter key``: who may ask the server, and as what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from shunter_cli import checks, output
from shunter_cli.connection import connect
from shunter_cli.durations import ago, local, seconds
from shunter_cli.output import Output, OutputOption, QuietOption
from shunter_work_pools.contracts.errors import InvalidInput, NotFound
from shunter_work_pools.contracts.key_kinds import Kind, Role

if TYPE_CHECKING:
    from shunter_work_pools.client import Client
    from shunter_work_pools.contracts.identities import Key

group = typer.Typer(
    no_args_is_help=True,
    help="Keys of people; the credentials of agents and invitations are listed and revoked here, too.",
)

NameArgument = Annotated[
    str, typer.Argument(help="Whose key it is: of a person or a program.", metavar="NAME")
]


def attach(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(group, name="key")


@group.command("create")
def create(
    name: NameArgument,
    role: Annotated[
        Role,
        typer.Option(
            help="viewer reads; operator also starts, cancels and pauses; deployer also changes deployments and "
            "secrets; admin does everything."
        ),
    ],
    expires: Annotated[
        str | None, typer.Option(help="How long it holds. Default: until it is revoked.", metavar="DURATION")
    ] = None,
    output_as: OutputOption = Output.TABLE,
    quiet: QuietOption = False,
) -> None:
    """Make a key; it is shown this once.

    \b
      shunter key create ann --role operator --expires 90d
      shunter login https://shunter.example.com    (there, with the key)

    A program takes it from SHUNTER_TOKEN.
    """
    from shunter_work_pools.contracts.identities import KeyRequest

    checks.names("the key's name", [name])
    expires_in = None if expires is None else seconds(expires, "--expires", zero=False)
    with connect() as client:
        made = client.create_key(KeyRequest(name=name, role=role, expires_in=expires_in))
    if output_as is not Output.TABLE:
        output.show_object(made, output_as)
    elif quiet:
        output.say(made.token)
    else:
        until = "" if made.key.expires_at is None else f" until {local(made.key.expires_at)}"
        output.say(f"{name} is {role.value}{until} by this key, which is not shown again:\n\n  {made.token}")


@group.command("list")
def list_(
    ended: Annotated[
        bool, typer.Option("--ended", help="Those that were revoked or have expired, too.")
    ] = False,
    output_as: OutputOption = Output.TABLE,
    quiet: QuietOption = False,
) -> None:
    """Show the keys that there are; none of them is shown itself."""
    with connect() as client:
        found = client.list_keys(ended=ended).keys
    if quiet:
        for key in found:
            output.say(key.name)
    elif output_as is not Output.TABLE:
        output.show_objects(found, output_as)
    else:
        output.table(
            ("NAME", "KIND", "MAY", "ENDS", "LAST USED", "FROM", "CREATED"),
            [
                (
                    key.name,
                    key.kind.value,
                    _may(key),
                    _ends(key),
                    ago(key.last_used_at),
                    key.last_used_from or "-",
                    f"{ago(key.created_at)} by {key.created_by}",
                )
                for key in found
            ],
            elastic=("MAY", "CREATED", "NAME"),
            spare=("FROM",),
        )


def _may(key: Key) -> str:
    if key.role is not None:
        return key.role.value
    uses = f" ({output.counted(key.uses_left, 'use')} left)" if key.uses_left is not None else ""
    return output.words(key.pools) + (", manages" if key.manage_pools else "") + uses


def _ends(key: Key) -> str:
    if key.revoked_at is not None:
        return f"revoked {ago(key.revoked_at)}"
    return ago(key.expires_at)


@group.command("revoke")
def revoke(
    name: NameArgument,
    kind: Annotated[
        Kind | None, typer.Option(help="Needed where a person and an agent have the same name.")
    ] = None,
) -> None:
    """Make a key worthless, with effect at once.

    What is under way with it is not answered any more; an agent is given nothing new, and runs that it has are lost
    when it has been silent for long enough.
    """
    with connect() as client:
        chosen = kind if kind is not None else _kind(client, name)
        client.revoke_key(chosen.value, name)
    output.say(f"key of {chosen.value} {name} revoked")


def _kind(client: Client, name: str) -> Kind:
    kinds = sorted({key.kind for key in client.list_keys().keys if key.name == name})
    if not kinds:
        raise NotFound(f"there is no key of {name!r} that holds", "See `shunter key list`.")
    if len(kinds) > 1:
        raise InvalidInput(
            f"{name!r} is the name of {' and '.join(f'a key of kind {kind.value}' for kind in kinds)}",
            "Say which with --kind.",
        )
    return Kind(kinds[0])
