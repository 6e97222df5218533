"""Causes of an end as people name them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from shunter_cli import faults
from shunter_work_pools.contracts.errors import InvalidInput

if TYPE_CHECKING:
    from shunter_work_pools.contracts.states import Cause


def retried(words: Sequence[str], option: str) -> list[Cause]:
    """The causes after which a policy is to try again.

    Args:
        option: where they were written, for the message.

    Raises:
        InvalidInput: one of them is no cause, or one that somebody asked for.
    """
    from shunter_work_pools.contracts.deployments import RETRIED_CAUSES

    return _of(words, option, RETRIED_CAUSES, "is no cause to try again after: somebody asked for it")


def uncounted(words: Sequence[str], option: str) -> list[Any]:
    """The causes after which a policy is to try again without counting.

    Args:
        option: where they were written, for the message.

    Raises:
        InvalidInput: one of them is no cause, or may be the run's own doing.
    """
    from shunter_work_pools.contracts.deployments import UNCOUNTED_CAUSES

    return _of(words, option, UNCOUNTED_CAUSES, "always counts: it may be the run's own doing")


def _of(words: Sequence[str], option: str, those: Iterable[Cause], no_other: str) -> list[Cause]:
    from shunter_work_pools.contracts.states import Cause

    known = sorted(cause.value for cause in those)
    for word in words:
        if word not in known:
            why = no_other if word in {cause.value for cause in Cause} else "is no cause of an end"
            remedy = faults.nearest(word, known) or f"There are {', '.join(known)}."
            raise InvalidInput(f"{option} {word!r} {why}".strip(), remedy)
    return [Cause(word) for word in dict.fromkeys(words)]
