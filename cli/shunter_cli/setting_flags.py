"""Options that are settings: made from the registry, so that nothing is said twice."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from shunter_work_pools.contracts.settings import SETTINGS, Setting

#: What ``agent start`` takes of the agent's settings, and ``agent install`` hands on.
OF_AGENT = tuple(name for name in SETTINGS if name.startswith("agent."))
#: What ``server start`` and ``up`` take of the server's settings; secrets have no flags, everybody may read those.
OF_SERVER = tuple(
    name for name, setting in SETTINGS.items() if name.startswith(("server.", "keep.")) and setting.flag
)


def taking(names: Sequence[str]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options of these settings, in place of its argument ``flags``.

    ``flags`` is then name of a setting -> what was typed, or None.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        own = inspect.signature(command, eval_str=True).parameters.values()
        options = {name: _option(SETTINGS[name]) for name in names}
        parameters = [each for one in own for each in (options.values() if one.name == "flags" else [one])]

        def with_flags(**given: Any) -> Any:
            flags = {name: _typed(given.pop(option.name)) for name, option in options.items()}
            return command(flags=flags, **given)

        by_name = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]
        with_flags.__name__, with_flags.__doc__ = command.__name__, command.__doc__
        with_flags.__signature__ = inspect.Signature(by_name)  # type: ignore[attr-defined]
        with_flags.__annotations__ = {one.name: one.annotation for one in parameters}
        return with_flags

    return decorate


def as_words(flags: dict[str, Any]) -> list[str]:
    """The flags that were given, as a command line."""
    return [
        word
        for name, given in flags.items()
        for one in (given if isinstance(given, list) else [given])
        if one is not None
        for word in _words(SETTINGS[name], one)
    ]


def _typed(given: Any) -> Any:
    """What was typed; None if nothing was."""
    return given if given or given is False else None


def _words(setting: Setting, given: Any) -> list[str]:
    return [setting.flag if given else off(setting)] if setting.switch else [setting.flag, str(given)]


def off(setting: Setting) -> str:
    """The option that says no to a switch."""
    return f"--no-{setting.flag.removeprefix('--')}"


def _option(setting: Setting) -> inspect.Parameter:
    usual = f" Default: {setting.usual}." if setting.usual else ""
    text = (setting.doc + (" Repeatable." if setting.many else usual)).replace("`", "")
    if setting.switch:
        option = typer.Option(f"{setting.flag}/{off(setting)}", help=text)
    else:
        option = typer.Option(setting.flag, help=text, metavar=setting.metavar)
    kind: Any = bool | None if setting.switch else list[str] | None if setting.many else str | None
    return inspect.Parameter(
        setting.flag.lstrip("-").replace("-", "_"),
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind, option],
    )
