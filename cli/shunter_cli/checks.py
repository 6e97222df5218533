"""What a deployment would fail on at every run, found before it is deployed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from shunter_work_pools.contracts.errors import InvalidInput

_ELSEWHERE = "If it exists only where the agent runs, add --no-check."
#: Lines of a traceback that an error shows.
_FRAME_LINES = 6

#: What to do, by the kind of the inspector's finding.
_REMEDIES = {
    "missing-file": f"Check the path: it is meant from this folder.\n{_ELSEWHERE}",
    "missing-module": "Check its name, or choose the interpreter that has it with --python.",
    "missing-function": "Check the function's name.",
    "not-callable": "Name a function.",
    "import-failed": "Mend it, or choose the interpreter that has what it needs with --python.",
    "bad-entrypoint": "Write path.py:function, module:function or path.py.",
    "unsupported-signature": "Give its parameters types that JSON can carry.",
    "slow": "Work belongs into the function, not into the body of the module.",
    "no-interpreter": "Check --python.",
}


def names(option: str, values: Iterable[str]) -> None:
    """Refuse what cannot be the name of anything.

    Raises:
        InvalidInput: one of them is no name; it says which.
    """
    from shunter_cli.faults import NAME_RULE
    from shunter_work_pools.contracts.base import Name

    _each(Name, option, values, f"cannot be a name: it {NAME_RULE}")


def tags(option: str, values: Iterable[str]) -> None:
    """Refuse what cannot be a tag.

    Raises:
        InvalidInput: one of them is no tag; it says which.
    """
    from shunter_cli.faults import TAG_RULE
    from shunter_work_pools.contracts.base import Tag

    _each(Tag, option, values, f"cannot be a tag: it {TAG_RULE}")


def user(option: str, text: str) -> str:
    """The user, if it can be one.

    Raises:
        InvalidInput: it cannot.
    """
    from shunter_work_pools.contracts.deployments import UserName

    _each(UserName, option, [text], "cannot be a user: give a name or a number")
    return text


def _each(rule: Any, option: str, values: Iterable[str], otherwise: str) -> None:
    from pydantic import TypeAdapter, ValidationError

    adapter: TypeAdapter[str] = TypeAdapter(rule)
    for value in values:
        try:
            adapter.validate_python(value)
        except ValidationError as exc:
            raise InvalidInput(f"{option} {value!r} {otherwise}") from exc


def command(words: Sequence[str], source: Path) -> None:
    """Refuse a command that cannot be executed here.

    Args:
        source: folder that a relative program with a slash is meant from.

    Raises:
        InvalidInput: the program does not exist, is a folder, or is not executable.
    """
    program = words[0]
    if "/" not in program:
        if shutil.which(program) is None:
            raise InvalidInput(
                f"the command {program!r} is not found on PATH",
                f"Check its spelling, or give its path (./{program}).\n{_ELSEWHERE}",
            )
        return
    path = source / program
    if not path.exists():
        raise InvalidInput(f"the command {path} does not exist", f"Check the path.\n{_ELSEWHERE}")
    if path.is_dir():
        raise InvalidInput(f"the command {path} is a folder", "Name a program in it.")
    if not os.access(path, os.X_OK):
        raise InvalidInput(f"the command {path} is not executable", f"Run `chmod +x {path}`.")


def folder(option: str, text: str, *, check: bool) -> str:
    """A folder's absolute path.

    Raises:
        InvalidInput: it is not there.
    """
    path = Path(text).expanduser().absolute()
    if check and not path.is_dir():
        what = "is not a folder" if path.exists() else "does not exist"
        raise InvalidInput(f"{option} {path} {what}", f"Make it first. {_ELSEWHERE}")
    return str(path)


def interpreter(text: str, *, check: bool) -> str:
    """The interpreter to use: a path made absolute, or a bare name that the agent will look up.

    Raises:
        InvalidInput: it is not there, or not executable.
    """
    found = shutil.which(str(Path(text).expanduser()) if "/" in text else text)
    if found is None and check:
        raise InvalidInput(f"--python {text!r} is not an interpreter that can be executed", _ELSEWHERE)
    return str(Path(text).expanduser().absolute()) if "/" in text else text


def entrypoint(text: str, source: Path, python: str | None) -> dict[str, Any]:
    """Import an entrypoint with the interpreter that will run it, and read its signature.

    Returns:
        The inspector's JSON object: ``parameter_schema`` (or None) and ``description``.

    Raises:
        InvalidInput: there is no such file, module or function, or its import fails; it says where.
    """
    if ":" not in text and not text.endswith(".py"):
        raise InvalidInput(
            f"{text!r} is no entrypoint",
            "Write path.py:function, module:function or path.py; a command goes behind --, "
            f"as in: shunter deploy --name NAME -- {text}",
        )
    from shunter.entrypoints import Unfit, looked_at

    try:
        return looked_at(text, str(source), python)
    except Unfit as exc:
        told = exc.detail if exc.kind == "no-answer" else _frames(exc.detail)
        remedy = _REMEDIES.get(exc.kind, "")
        raise InvalidInput(str(exc), f"{told}\n{remedy}".strip("\n")) from exc


def _frames(trace: str) -> str:
    """Where it happened: the innermost lines of a traceback, without its heading and the error itself."""
    lines = [line for line in trace.rstrip().splitlines() if not line.startswith("Traceback")]
    return "\n".join(lines[:-1][-_FRAME_LINES:])
