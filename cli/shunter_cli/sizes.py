"""Sizes of memory as people write them."""

from __future__ import annotations

from shunter_work_pools.contracts.errors import InvalidInput
from shunter_work_pools.contracts.sizes import LOOKS, parsed, size

#: As in ``contracts.deployments``, which would load pydantic.
LEAST, MOST = 2**20, 2**50


def memory(text: str, option: str) -> int:
    """Bytes of a limit of memory, ``512MiB``, ``1.5GiB``.

    Args:
        option: where it was written, for the message.

    Raises:
        InvalidInput: it is no size, or one that no process could begin with.
    """
    found = parsed(text.strip())
    if found is None:
        raise InvalidInput(f"{option} {text!r} is not a size".strip(), LOOKS)
    return limit(found, repr(text), option)


def limit(count: int, written: str, option: str) -> int:
    """The same for a number of bytes, ``written`` as it was.

    Raises:
        InvalidInput: it is out of bounds.
    """
    if not LEAST <= count <= MOST:
        bounds = f"it must be from {size(LEAST)} to {size(MOST)}"
        raise InvalidInput(f"{option} {written} is no limit of memory: {bounds}".strip(), LOOKS)
    return count
