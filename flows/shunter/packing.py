"""Python objects as bytes for another process: by pickle, or by cloudpickle where that is installed and needed."""

from __future__ import annotations

import pickle  # nosec B403 # of what the flow itself made, in places that only its user can write
from typing import Any


def pack(value: Any) -> bytes:
    """The object as bytes.

    Raises:
        TypeError: it cannot be taken apart; the text says what to do.
    """
    try:
        return pickle.dumps(value, protocol=5)
    except Exception as exc:
        first = exc
    try:
        import cloudpickle
    except ImportError:
        raise TypeError(
            f"{first}; functions and classes made inside functions or by lambda need the package cloudpickle"
        ) from None
    try:
        packed: bytes = cloudpickle.dumps(value, protocol=5)
    except Exception as second:
        raise TypeError(str(second)) from None
    return packed


def unpack(data: bytes | bytearray | memoryview) -> Any:
    """The object again."""
    return pickle.loads(data)  # nosec B301 # see above
