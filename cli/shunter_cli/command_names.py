"""Commands may be shortened where that is unique; a mistyped one gets the nearest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import typer.core

from shunter_cli import faults


def meant(word: str, known: Iterable[str]) -> str | None:
    """The command of this name, or the only one that begins so; None if there is none.

    Raises:
        InvalidInput: several begin so.
    """
    names = list(known)
    if word in names:
        return word
    begun = [name for name in names if word and name.startswith(word)]
    if len(begun) > 1:
        from shunter_work_pools.contracts.errors import InvalidInput

        raise InvalidInput(f"{word!r} may be {faults.either(begun)}", "Type more of it.")
    return begun[0] if begun else None


class Group(typer.core.TyperGroup):
    """A group whose commands may be shortened."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is meant."""
        if not args[0].startswith("-") and not ctx.resilient_parsing:
            if (name := meant(args[0], self.commands)) is None:
                ctx.fail(f"No such command '{args[0]}'. {faults.nearest(args[0], self.commands)}".rstrip())
            else:
                args = [name, *args[1:]]
        return super().resolve_command(ctx, args)
