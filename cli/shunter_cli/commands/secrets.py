"""``shunter secret``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shunter_cli import checks, confirm, faults, live, naming, output
from shunter_cli.completing import secrets
from shunter_cli.connection import connect
from shunter_cli.durations import ago
from shunter_cli.output import Output, OutputOption, QuietOption, WatchOption, YesOption
from shunter_work_pools.contracts.errors import InvalidInput

if TYPE_CHECKING:
    from shunter_work_pools.contracts.secrets import Secret, SecretValue

group = typer.Typer(
    no_args_is_help=True,
    help="Values that runs are given and nobody is shown: kept encrypted, masked in logs.",
)

#: Characters below which a value is not masked; as the agents' masks have it, which take long to load.
MASKED_FROM = 4

NameArgument = Annotated[
    str, typer.Argument(help="The secret's name.", metavar="NAME", autocompletion=secrets)
]


def attach(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(group, name="secret")


@group.command("set", context_settings={"allow_extra_args": True})
def set_(
    ctx: typer.Context,
    name: NameArgument,
    from_file: Annotated[str | None, typer.Option(help="Take the value from a file.", metavar="FILE")] = None,
    output_as: OutputOption = Output.TABLE,
    quiet: QuietOption = False,
) -> None:
    """Make a secret, or give it another value, which attempts get that start from now on.

    The value is asked for without echo, or read from stdin or a file. It is never an argument:

    \b
      shunter secret set warehouse
      pass show warehouse | shunter secret set warehouse
      shunter deploy --name load --secret-env PASSWORD=warehouse -- ./load.sh

    A value of one line is taken without the end of line that editors and echo put there.
    """
    from shunter_work_pools.contracts.secrets import SecretValue

    checks.names("the secret's name", [name])
    if ctx.args:
        raise InvalidInput(
            "a value was given as an argument, where everybody on this machine can read it",
            "Leave it out: it is asked for. What was typed is in the shell's history: use another value.",
        )
    given = _one_line(_read(name, from_file))
    checked = _checked(given, SecretValue)
    with connect() as client:
        secret = client.set_secret(name, checked)
    if len(given.strip()) < MASKED_FROM:
        faults.tell(f"Warning: values shorter than {MASKED_FROM} characters are not masked in logs.")
    if quiet and output_as is Output.TABLE:
        output.say(secret.name)
    elif output_as is not Output.TABLE:
        output.show_object(secret, output_as)
    else:
        output.say(f"secret {secret.name} set (version {secret.version})")


def _read(name: str, file: str | None) -> str:
    try:
        if file is not None and file != "-":
            return Path(file).read_bytes().decode()
        if file is None and sys.stdin.isatty():
            import getpass

            return getpass.getpass(f"Value of {name}: ")
        return sys.stdin.buffer.read().decode()
    except OSError as exc:
        raise InvalidInput(
            f"--from-file {file!r} cannot be read: {exc.strerror}", "Name a file that is there."
        ) from None
    except UnicodeDecodeError:
        raise InvalidInput("the value is not UTF-8", "Encode it, in base64 for example.") from None


def _one_line(value: str) -> str:
    ended = value.removesuffix("\n").removesuffix("\r")
    return value if "\n" in ended else ended


def _checked(value: str, contract: type[SecretValue]) -> SecretValue:
    from pydantic import ValidationError

    if not value:
        raise InvalidInput("the value is empty", "Type it, or give it by stdin or --from-file.")
    try:
        return contract(value=value)
    except ValidationError as exc:  # it has the value in it
        reason = exc.errors(include_url=False, include_input=False)[0]["msg"].removeprefix("Value error, ")
    raise InvalidInput(f"the value cannot be that of a variable: {reason}", "Give another one.")


@group.command("list")
def list_(
    watch: WatchOption = False, output_as: OutputOption = Output.TABLE, quiet: QuietOption = False
) -> None:
    """Show all secrets, without their values, and which deployments name them."""
    with connect() as client:
        live.show(
            lambda: client.list_secrets().secrets, lambda found: _list(found, output_as, quiet), watch=watch
        )


def _list(found: Sequence[Secret], output_as: Output, quiet: bool) -> None:
    if quiet:
        for secret in found:
            output.say(secret.name)
    elif output_as is not Output.TABLE:
        output.show_objects(found, output_as)
    else:
        output.table(
            ("NAME", ">VERSION", "SET", "USED BY"),
            [(one.name, str(one.version), _since(one), output.words(one.used_by)) for one in found],
            elastic=("NAME", "USED BY"),
        )


def _since(secret: Secret) -> str:
    return ago(secret.updated_at) if secret.readable else "the server has no key for it"


@group.command("delete")
def delete(
    name: NameArgument,
    force: Annotated[
        bool, typer.Option("--force", help="Although deployments name it: their runs do not start then.")
    ] = False,
    yes: YesOption = False,
    output_as: OutputOption = Output.TABLE,
) -> None:
    """Delete a secret; not while a deployment names it, unless forced. What runs keeps what it was given."""
    with connect() as client:
        secret = naming.whole(client, naming.SECRET, name, client.get_secret)
        confirm.removal(f"secret {secret.name}", yes=yes)
        client.delete_secret(secret.name, force=force)
    if output_as is not Output.TABLE:
        output.show_object(secret, output_as)
    else:
        output.say(f"secret {secret.name} deleted")
