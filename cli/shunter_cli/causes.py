"""Causes of an end as people name them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

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
    from shunter_work_pools.contracts.states import Cause

    known = sorted(cause.value for cause in RETRIED_CAUSES)
    for word in words:
        if word not in known:
            wanted = word in {cause.value for cause in Cause}
            why = (
                "is no cause to try again after: somebody asked for it" if wanted else "is no cause of an end"
            )
            remedy = faults.nearest(word, known) or f"There are {', '.join(known)}."
            raise InvalidInput(f"{option} {word!r} {why}".strip(), remedy)
    return [Cause(word) for word in dict.fromkeys(words)]
