"""The tree of commands, and what becomes of their errors.

A group's module is imported when one of its commands is used, or its help is asked for; what talks to
a server imports the client inside the command.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import typer

from shunter_cli import faults
from shunter_cli.command_names import Group, meant

#: Exceptions of the command line library, whichever package it takes them from.
_USAGE: Any = typer.BadParameter.__mro__[1]
_CLICK: Any = typer.BadParameter.__mro__[2]

#: Variable by which a shell asks for completions.
COMPLETE = "_SHUNTER_COMPLETE"

#: Command or group -> module whose ``attach(app)`` adds it.
_MODULES = {
    "server": "commands.server",
    "up": "commands.server",
    "agent": "commands.agents",
    "pool": "commands.pools",
    "queue": "commands.queues",
    "limit": "commands.limits",
    "secret": "commands.secrets",  # nosec B105 # the name of a module
    "init": "commands.init",
    "deploy": "commands.deploy",
    "deployment": "commands.deployments",
    "schedule": "commands.schedules",
    "run": "commands.runs",
    "route": "commands.routes",
    "status": "commands.status",
    "login": "commands.login",
    "whoami": "commands.login",
    "key": "commands.keys",
    "audit": "commands.audit",
    "config": "commands.config",
    "completion": "commands.completion",
}


def build(only: str | None = None) -> typer.Typer:
    """The command line, with all commands or those of one module."""
    app = typer.Typer(
        name="shunter",
        cls=Group,
        help="Agents and work pools: scheduled runs, launched where they belong, once.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog="SHUNTER_HOME names the folder of token, database and agents' state; "
        "SHUNTER_API_URL the server, by default http://127.0.0.1:4400/api.",
    )

    @app.callback()
    def root(
        version: bool = typer.Option(False, "--version", "-V", help="Print the version and exit."),
        profile: str | None = typer.Option(
            None, help="The profile of the configuration file to go by.", metavar="NAME"
        ),
    ) -> None:
        if profile is not None:  # main has taken the one that stands first
            raise _USAGE("--profile NAME is given once, and before anything else")
        if version:
            raise _USAGE("--version stands alone: `shunter --version`")

    chosen = [_MODULES[only]] if only in _MODULES else list(dict.fromkeys(_MODULES.values()))
    for module in chosen:
        import_module(f"shunter_cli.{module}").attach(app)
    for group in app.registered_groups:
        group.cls = Group
    return app


def run(args: Sequence[str]) -> int:
    """Execute one command and return its exit code; expected errors become messages."""
    words = list(args)
    try:
        if words and (name := meant(words[0], _MODULES)):
            words[0] = name
        _check_settings(words)
        if COMPLETE in os.environ:
            _complete()
        command = typer.main.get_command(build(words[0] if words else None))
        answer = command.main(args=words, prog_name="shunter", standalone_mode=False)
    except typer.Abort:
        return 130
    except _USAGE as exc:
        return _usage(exc, words)
    except _CLICK as exc:
        faults.show(exc.format_message())
        return faults.FAILED
    except Exception as exc:
        return _known(exc)
    return answer if isinstance(answer, int) else 0


def _check_settings(words: Sequence[str]) -> None:
    """Refuse wrong settings before anything is done; help, and what mends them, must work all the same."""
    if not words or words[0] in ("config", "completion") or {"-h", "--help"}.intersection(words):
        return
    from shunter_work_pools.contracts.configuration import load

    load()


def _complete() -> None:
    """Let typer answer the shell's question for completions."""
    from typer.completion import completion_init  # type: ignore[attr-defined]

    completion_init()


def _usage(exc: Any, args: Sequence[str]) -> int:
    path = exc.ctx.command_path if getattr(exc, "ctx", None) else "shunter"
    if type(exc).__name__ == "NoArgsIsHelpError":
        sys.stderr.write(exc.format_message() + "\n")
        return faults.WRONG
    message, remedy = exc.format_message().rstrip(), f"`{path} --help` tells more."
    for marker in (" (Possible options: ", ". Did you mean "):
        text, found, names = message.partition(marker)
        if found:
            message, remedy = text, f"Did you mean {names.rstrip(')?')}? {remedy}"
            break
    faults.show(message.rstrip("."), remedy)
    return faults.WRONG


def _known(exc: Exception) -> int:
    """Print an expected error; raise one that is not."""
    from pydantic import ValidationError

    from shunter_work_pools.contracts.errors import ShunterError

    if isinstance(exc, ShunterError):
        faults.show(exc.detail, exc.remedy)
        return faults.exit_code(exc)
    if isinstance(exc, ValidationError):
        faults.show(faults.sentence(exc))
        return faults.WRONG
    if isinstance(exc, UnicodeEncodeError) and exc.reason == "surrogates not allowed":
        faults.show(
            f"{exc.object[:80]!r} is not UTF-8", "Type it in UTF-8, as everything that the server keeps."
        )
        return faults.WRONG
    raise exc
