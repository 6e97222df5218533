"""``shunter completion``."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from shunter_cli import output


class Shell(StrEnum):
    """Shells that can be helped."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def attach(app: typer.Typer) -> None:
    """Add the command."""
    app.command("completion")(completion)


def completion(shell: Annotated[Shell, typer.Argument(help="Your shell.")]) -> None:
    """Print what makes a shell complete commands and names.

    \b
      bash  eval "$(shunter completion bash)"               in ~/.bashrc
      zsh   eval "$(shunter completion zsh)"                in ~/.zshrc
      fish  shunter completion fish | source                in config.fish
    """
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    from shunter_cli.app import COMPLETE

    output.say(get_completion_script(prog_name="shunter", complete_var=COMPLETE, shell=shell.value))  # nosec B604 # the name of a shell, not one that is started
