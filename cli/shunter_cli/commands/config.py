"""``shunter config``: every setting, its value, and where that comes from."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from shunter_cli import config_file, output
from shunter_cli.output import Output, OutputOption
from shunter_work_pools.contracts.configuration import DEFAULT, Values, load
from shunter_work_pools.contracts.home import home_from_env
from shunter_work_pools.contracts.profiles import known
from shunter_work_pools.contracts.settings import PROFILE_VARIABLE, SETTINGS, Setting
from shunter_work_pools.proxies import proxy_for

group = typer.Typer(no_args_is_help=True, help="Settings, and where each comes from.")


def _names(incomplete: str) -> list[str]:
    return [name for name in SETTINGS if name.startswith(incomplete)]


NameArgument = Annotated[
    str, typer.Argument(help="The setting's name, such as log.level.", metavar="NAME", autocompletion=_names)
]
ProfileOption = Annotated[
    str | None, typer.Option(help="The profile to change, by default the one in use.", metavar="NAME")
]


def attach(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(group, name="config")


@group.command("show")
def show(
    name: Annotated[
        str | None,
        typer.Argument(help="Only this setting.", metavar="[NAME]", autocompletion=_names),
    ] = None,
    show_secrets: Annotated[bool, typer.Option(help="Show tokens and passwords in full.")] = False,
    output_as: OutputOption = Output.TABLE,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print names only; with NAME, its value only.")
    ] = False,
) -> None:
    """Show the value of each setting, and where it comes from.

    From a flag, a variable, the line of a file, or the default.
    """
    if name is not None:
        known(name, "config show")
    values = load()
    chosen = [SETTINGS[name]] if name is not None else list(SETTINGS.values())
    if quiet:
        for setting in chosen:
            output.say(_shown(setting, values, show_secrets) if name is not None else setting.name)
    elif output_as is not Output.TABLE:
        output.show_data([_entry(setting, values, show_secrets) for setting in chosen], output_as)
    else:
        rows = [
            (
                setting.name,
                _shown(setting, values, show_secrets) or f"({setting.otherwise.replace('`', '')})",
                values.origin(setting.name),
            )
            for setting in chosen
        ]
        output.table(("NAME", "VALUE", "FROM"), rows, elastic=("VALUE", "FROM"))
        if name is None:
            path = home_from_env().config_file
            output.say(
                f"\nprofile {values.profile or '-'} of {path}{'' if path.exists() else ' (not there)'}"
            )
            if (proxy := proxy_for(values["api_url"])) is not None:
                output.say(f"the server is reached by the proxy {proxy}")


@group.command("set")
def set_(
    name: NameArgument,
    value: Annotated[str, typer.Argument(help="Its value, such as 5m or debug.", metavar="VALUE")],
    profile: ProfileOption = None,
) -> None:
    """Write a setting into a profile of the configuration file.

    The profile is made if there is none of the name. `config set profile NAME` chooses the one in use.
    """
    path = home_from_env().config_file
    chosen = config_file.set_value(path, _profile(profile), name, value)
    if name == config_file.PROFILE_KEY:
        output.say(f"profile {chosen} is in use from now on ({path})")
        return
    output.say(f"{name} set in profile {chosen} of {path}")


@group.command("unset")
def unset(name: NameArgument, profile: ProfileOption = None) -> None:
    """Take a setting out of a profile of the configuration file."""
    path = home_from_env().config_file
    chosen = config_file.unset_value(path, _profile(profile), name)
    if name == config_file.PROFILE_KEY:
        output.say(f"profile {chosen} is in use from now on, if it is there ({path})")
        return
    output.say(f"{name} no longer set in profile {chosen} of {path}")


def _profile(given: str | None) -> str | None:
    return given or os.environ.get(PROFILE_VARIABLE)


def _shown(setting: Setting, values: Values, secrets: bool) -> str:
    value = values[setting.name]
    return setting.written(value, secrets=secrets) if value is not None else ""


def _entry(setting: Setting, values: Values, secrets: bool) -> dict[str, Any]:
    value: Any = values[setting.name]
    if setting.mask is not None and value is not None:
        value = setting.written(value, secrets=secrets)
    return {
        "name": setting.name,
        "value": list(value) if isinstance(value, tuple) else value,
        "from": values.origin(setting.name),
        "set": values.origin(setting.name) != DEFAULT,
        "variable": setting.variable,
    }
