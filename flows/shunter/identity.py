"""What names a function of the user's in keys: where it is defined, not when or in which order."""

from __future__ import annotations

import os
import sys
from typing import Any


def plain(function: Any) -> Any:
    """The function that has the code: behind a partial, a method, an object that can be called."""
    while hasattr(function, "func") and hasattr(function, "keywords"):
        function = function.func
    function = getattr(function, "__func__", function)
    if hasattr(function, "__code__") or isinstance(function, type):
        return function
    own = type(function).__call__ if callable(function) else None
    return own if hasattr(own, "__code__") else function


def held_by(function: Any) -> tuple[Any, ...]:
    """What it has with it beside its code, and which therefore counts as its arguments do.

    Of a method that is its object, of a partial its arguments, of an object that can be called the object.
    """
    if hasattr(function, "func") and hasattr(function, "keywords"):
        return (*held_by(function.func), function.args, function.keywords)
    if hasattr(function, "__func__"):
        return (function.__self__,)
    return () if hasattr(function, "__code__") else (function,)


def identity_of(function: Any, name: str) -> str:
    """Module, qualified name and the name given; of one made by another function also what it was made with."""
    function = plain(function)
    module = getattr(function, "__module__", None) or type(function).__module__
    if module == "__main__" or module.startswith("_entrypoint_"):
        file = getattr(sys.modules.get(module), "__file__", None)
        module = os.path.basename(file)[:-3] if file else "__main__"
    parts = [module, getattr(function, "__qualname__", type(function).__qualname__), name]
    if "<lambda>" in parts[1]:
        from shunter.keys import code_version

        parts.append(code_version(function))
    if getattr(function, "__closure__", None):
        from shunter.keys import made_with

        parts.append(made_with(function).hex())
    return "|".join(parts)


def origin_of(function: Any) -> tuple[Any, ...]:
    """File and line of the definition; empty where there is none."""
    code = getattr(plain(function), "__code__", None)
    return (code.co_filename, code.co_firstlineno) if code is not None else ()


def refuse_bad(function: Any, what: str) -> None:
    """Whether it can be made a task or flow.

    Raises:
        TypeError: it is no function, or one whose values come one by one.
    """
    if isinstance(function, type):
        raise TypeError(f"@{what} is for functions, and {function.__qualname__} is a class")
    if isinstance(function, (classmethod, staticmethod)):
        kind = type(function).__name__
        raise TypeError(f"put @{kind} above @{what}, not below it")
    if not callable(function):
        raise TypeError(f"@{what} is for functions, not for {function!r}")
    if getattr(function, "_shunter_kind", None) is not None:
        raise TypeError(f"{function.name!r} is a {function._shunter_kind} already")
    code = getattr(plain(function), "__code__", None)
    if code is not None and code.co_flags & (0x20 | 0x200):  # CO_GENERATOR, CO_ASYNC_GENERATOR
        raise TypeError(
            f"{function.__qualname__} is a generator, and what a {what} returns must be there as a whole: "
            "return a list instead of using yield"
        )


def is_coroutine_function(function: Any) -> bool:
    """Whether it is ``async def``, also behind ``functools.partial``; inspect is not loaded for it."""
    code = getattr(plain(function), "__code__", None)
    return code is not None and bool(code.co_flags & 0x80)  # CO_COROUTINE


def name_of(function: Any, given: str | None) -> str:
    """What it is called.

    Raises:
        ValueError: the name given is empty or has a control character in it.
    """
    if given is not None:
        if not isinstance(given, str) or not given or any(ord(c) < 32 for c in given):
            raise ValueError(f"{given!r} is no name")
        return given
    while hasattr(function, "func") and hasattr(function, "keywords"):
        function = function.func
    name: str = getattr(function, "__name__", type(function).__name__)
    return "lambda" if name == "<lambda>" else name
