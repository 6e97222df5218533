"""Python objects as bytes for another process: by pickle, or by cloudpickle where that is installed and needed."""

from __future__ import annotations

import io
import pickle  # nosec B403 # of what the flow itself made, in places that only its user can write
import sys
from collections.abc import Collection
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


def pack_without(value: Any, modules: Collection[str]) -> bytes:
    """The object as bytes for a process that cannot import these modules: what they define goes by what it is made of.

    Raises:
        TypeError: as of ``pack``.
    """
    data = pack(value)
    if not any(name.encode() in data for name in modules):
        return data
    try:
        import cloudpickle
    except ImportError:
        names = ", ".join(sorted(modules))
        raise TypeError(f"what is defined in {names} can go there by the package cloudpickle alone") from None

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            if hasattr(type(obj), "_shunter_kind") and obj.__module__ in modules:
                return obj.made_of()
            return super().reducer_override(obj)

    for name in modules:
        if name != "__main__":  # of which it is a matter of course
            cloudpickle.register_pickle_by_value(sys.modules[name])
    file = io.BytesIO()
    try:
        Pickler(file, protocol=5).dump(value)
    except Exception as exc:
        raise TypeError(str(exc)) from None
    return file.getvalue()


def unpack(data: bytes | bytearray | memoryview) -> Any:
    """The object again."""
    return pickle.loads(data)  # nosec B301 # see above
