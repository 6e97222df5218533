"""Errors as people see them: what was wrong, where, and what to do; never a traceback for what is expected."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import contextmanager
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from shunter_work_pools.contracts.plain_text import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pydantic import ValidationError

    from shunter_work_pools.contracts.errors import ShunterError

#: What was asked for is wrong; it could not be done.
WRONG, FAILED = 2, 1

NAME_RULE = (
    "may have letters, digits, '.', '_' and '-', begins and ends with a letter or digit, "
    "and is at most 100 characters long"
)
TAG_RULE = "is a word such as gpu or region=eu: letters, digits and . _ / : - , no spaces"

#: Fields of messages whose option has another name.
_OPTIONS = {
    "tags": "--tag",
    "require": "--require",
    "match": "--match",
    "pass_env": "--pass-env",  # nosec B105 # the name of an option
    "count": "--retries",
    "delay": "--retry-delay",
    "backoff": "--retry-backoff",
    "max_delay": "--retry-max-delay",
    "jitter": "--retry-jitter",
    "scheduled_at": "--at",
    "seconds": "--interval",
}


def tell(text: str) -> None:
    """One line for people, on stderr."""
    print(plain(text, lines=True), file=sys.stderr, flush=True)  # noqa: T201


def show(detail: str, remedy: str = "") -> None:
    """Print an error on stderr: the sentence, and indented below it what to do."""
    tell(f"Error: {detail}")
    for line in remedy.splitlines():
        tell(f"  {line}")


def exit_code(error: ShunterError) -> int:
    """2 if what was asked for is wrong, 1 if it could not be done."""
    from shunter_work_pools.contracts import errors

    wrong = (errors.InvalidInput, errors.BadRequest, errors.NotFound, errors.Conflict, errors.TooLarge)
    return WRONG if isinstance(error, wrong) else FAILED


def nearest(word: str, known: Iterable[str]) -> str:
    """A question such as ``Did you mean 'hello'?`` if one of ``known`` is like ``word``, else nothing."""
    by_lower = {name.lower(): name for name in known}
    matches = get_close_matches(word.lower(), by_lower, n=3, cutoff=0.6)
    names = [f"'{by_lower[match]}'" for match in matches]
    return f"Did you mean {' or '.join(names)}?" if names else ""


def either(names: Iterable[str], most: int = 5) -> str:
    """``hello, help or helium``; what is more than ``most`` only counted."""
    all_of = list(names)
    shown = all_of if len(all_of) <= most else [*all_of[: most - 1], f"{len(all_of) - most + 1} others"]
    return " or ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)


@contextmanager
def suggesting(word: str, known: Callable[[], Iterable[str]], otherwise: str) -> Iterator[None]:
    """Give a ``NotFound`` from inside a remedy: the nearest of the names there are, else ``otherwise``.

    Args:
        known: asks for the names; only called when needed.
    """
    from shunter_work_pools.contracts.errors import NotFound, ShunterError

    try:
        yield
    except NotFound as exc:
        if "Did you mean" in exc.detail + exc.remedy or f"'{word}'" not in exc.detail.replace('"', "'"):
            raise
        try:
            question = nearest(word, known())
        except ShunterError:
            question = ""
        raise NotFound(exc.detail, question or exc.remedy or otherwise) from exc


def sentence(error: ValidationError) -> str:
    """A validation error as sentences that name the field, or the option it came from."""
    return "; ".join(_one(dict(fault)) for fault in error.errors(include_url=False, include_context=True))


def _one(fault: dict[str, Any]) -> str:
    loc = [str(part) for part in fault["loc"]]
    dotted = ".".join(part for part in loc if not part.isdigit())
    where = _OPTIONS.get(dotted) or _OPTIONS.get(loc[-1] if loc else "") or _option(loc)
    given = fault["input"]
    shown = f" {given!r}" if isinstance(given, str | int | float) and len(str(given)) <= 80 else ""
    if fault["type"] == "string_pattern_mismatch":
        rule = TAG_RULE if "=" in str(fault["ctx"]["pattern"]) else NAME_RULE
        return f"{where or 'the value'}{shown}: it {rule}"
    message = str(fault["msg"]).removeprefix("Value error, ")
    message = message.replace("Input should be", "it must be").replace("String should", "it must")
    return f"{where}{shown}: {message}" if where else message


def _option(loc: list[str]) -> str:
    names = [part for part in loc if not part.isdigit()]
    return "--" + names[-1].replace("_", "-") if names else ""
