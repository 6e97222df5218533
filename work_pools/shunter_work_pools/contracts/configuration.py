"""Where the value of each setting comes from: flags, else the environment, else the profile, else the default.

Nothing that is unknown is passed over: a variable ``SHUNTER_...`` that no setting has, a key or a profile
that the file should not have or does not, a value that cannot be, two that do not fit. pydantic-settings
can neither tell where a value came from nor refuse an unknown variable, see docs/decisions.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shunter_work_pools.contracts.bearer import Bearer, TokenFile, staying
from shunter_work_pools.contracts.errors import InvalidInput
from shunter_work_pools.contracts.home import home_from_env, stored_token
from shunter_work_pools.contracts.profiles import DEFAULT_PROFILE, Profiles, near, read_profiles, value_of
from shunter_work_pools.contracts.settings import (
    BY_VARIABLE,
    DEFAULT_PORT,
    HOME_VARIABLE,
    JOIN_VARIABLE,
    PREFIX,
    PROFILE_VARIABLE,
    RELATIONS,
    RUN_VARIABLES,
    SETTINGS,
    TEST_PREFIX,
)

DEFAULT = "default"
#: What Kubernetes sets in each pod for a Service named shunter or shunter-...; SHUNTER_SERVER_PORT is one of
#: them for a Service shunter-server, and told apart by its value.
#: https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
_SERVICE_LINK = (
    r"SHUNTER_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_SERVICE_ADDRESSES = ("tcp://", "udp://", "sctp://")


class Values(Mapping[str, Any]):
    """The value of every setting, by name, and where it came from.

    Attributes:
        profile: the profile in use; None if there is none.
    """

    def __init__(self, found: Mapping[str, tuple[Any, str]], profile: str | None, profiles: Profiles) -> None:
        self._found = found
        self._profiles = profiles
        self.profile = profile

    def __getitem__(self, name: str) -> Any:
        return self._found[name][0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def origin(self, name: str) -> str:
        """The flag, the variable, ``FILE:LINE``, or ``default``."""
        origin = self._found[name][1]
        # Looked up only when asked for: few want to know.
        return origin or self._profiles.origin(self.profile or "", name)


def load(flags: Mapping[str, object] | None = None) -> Values:
    """The value of every setting.

    Args:
        flags: name of a setting -> what was given on the command line; None: not given.

    Raises:
        InvalidInput: something is unknown or wrong, wherever it was said.
    """
    from_environment = _from_environment(os.environ)
    profiles = read_profiles(home_from_env().config_file)
    profile = _in_use(profiles)
    table = profiles.tables[profile] if profile is not None else {}
    found: dict[str, tuple[Any, str]] = {}
    for name, setting in SETTINGS.items():
        given = (flags or {}).get(name)
        if given is not None:
            found[name] = (value_of(setting, given, setting.flag), setting.flag)
        elif name in from_environment:
            found[name] = (from_environment[name], setting.variable)
        elif name in table:
            found[name] = (table[name], "")
        else:
            found[name] = (setting.default, DEFAULT)
    values = Values(found, profile, profiles)
    check_relations(values)
    return values


def check_relations(values: Values) -> None:
    """Refuse values that do not fit together.

    Raises:
        InvalidInput: two do not.
    """
    for relation in RELATIONS:
        if not relation.holds(values):
            told = [
                f"{name} {SETTINGS[name].written(values[name])} ({values.origin(name)})"
                for name in (relation.small, relation.large)
            ]
            rule = "must be at most" if relation.equal else "must be less than"
            raise InvalidInput(
                f"{told[0]} {rule} {told[1]}: {relation.why}", "Make the first less, or the second more."
            )


def connection(api_url: str | None = None, token: str | Bearer | None = None) -> tuple[str, Bearer]:
    """The server's API root, and what gives its token; what is given is taken as it is.

    Raises:
        InvalidInput: the settings are wrong, or the token file cannot be read.
    """
    if token is not None and not callable(token):
        token = staying(token)
    if api_url is not None and token is not None:
        return api_url, token
    values = load()
    if token is None:
        token = _bearer(values)
    return api_url if api_url is not None else values["api_url"], token


def _bearer(values: Values) -> Bearer:
    if values["token_file"] is None:
        return staying(values["token"] or stored_token(home_from_env()))
    if values["token"] is not None:
        raise InvalidInput(
            f"token ({values.origin('token')}) and token_file ({values.origin('token_file')}) are both set",
            "Unset one of them.",
        )
    return TokenFile(Path(values["token_file"]).expanduser())


def listening_port(values: Mapping[str, Any]) -> int:
    """The port to listen on: as set, else that of ``api_url`` if it is this machine's, else the default."""
    from urllib.parse import urlsplit

    if values["server.port"] is not None:
        return int(values["server.port"])
    url = urlsplit(values["api_url"])
    scheme, port = ("https", 443) if values["server.tls_cert"] else ("http", 80)
    if url.scheme == scheme and url.hostname in ("127.0.0.1", "localhost", "::1"):
        return url.port or port
    return DEFAULT_PORT


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for variable, given in environ.items():
        if not variable.startswith(PREFIX) or _is_no_setting(variable, given):
            continue
        setting = BY_VARIABLE.get(variable)
        if setting is None:
            meant = near(variable, [*BY_VARIABLE, HOME_VARIABLE, PROFILE_VARIABLE])
            raise InvalidInput(
                f"there is no setting for the variable {variable}",
                f"{meant} Unset it; `shunter config show` lists the settings.".strip(),
            )
        if given:  # an empty variable is as good as none
            found[setting.name] = value_of(setting, given, setting.variable)
    return found


def _is_no_setting(variable: str, given: str) -> bool:
    return (
        variable in (HOME_VARIABLE, PROFILE_VARIABLE, JOIN_VARIABLE)
        or variable in RUN_VARIABLES
        or variable.startswith(TEST_PREFIX)
        or (variable.endswith("_PORT") and given.startswith(_SERVICE_ADDRESSES))
        or (variable not in BY_VARIABLE and re.fullmatch(_SERVICE_LINK, variable) is not None)
    )


def _in_use(profiles: Profiles) -> str | None:
    asked = os.environ.get(PROFILE_VARIABLE)
    chosen = asked or profiles.chosen
    if chosen is None:
        return DEFAULT_PROFILE if DEFAULT_PROFILE in profiles.tables else None
    if chosen not in profiles.tables:
        by = "--profile or SHUNTER_PROFILE" if asked else str(profiles.path)
        there = ", ".join(profiles.tables) or "none"
        raise InvalidInput(
            f"there is no profile {chosen!r}, which {by} asks for, in {profiles.path}",
            f"{near(chosen, profiles.tables)} There are: {there}. "
            f"`shunter config set NAME VALUE --profile {chosen}` makes it.".strip(),
        )
    return chosen
