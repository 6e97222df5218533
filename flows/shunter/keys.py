"""Hashes of values that are the same in every process, for the keys of task runs and of caches.

A value enters by what it is made of: numbers, text and bytes as they are; lists, dicts, sets, dataclasses and other
objects by their parts, as pickle would take them apart; a future by the key of the task run that it comes from; functions,
tasks and classes by their names (functions made inside others also by their code and what they were made with). What cannot be taken apart (a lock, a
connection) enters by its type alone: those are told apart by their order only.
"""

from __future__ import annotations

from hashlib import blake2b
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from shunter.futures import TaskFuture
from shunter.identity import plain

#: Types whose ``repr`` is the value.
PLAIN = frozenset({int, float, bool, type(None), str, bytes})
_SIZE = 16


class Unkeyed(Exception):
    """A value that cannot be taken apart was met where only a hash of the whole will do."""


def digest(value: Any, strict: bool = False) -> bytes:
    """16 bytes.

    Args:
        strict: do not take what cannot be taken apart by its type.

    Raises:
        Unkeyed: there is such a part, and ``strict``.
    """
    try:
        return _digest(value, {}, strict)
    except RecursionError:
        if strict:
            raise Unkeyed("a value is nested too deep") from None
        return _hash(b"deep", _name(type(value)).encode())


def call_digest(args: tuple[Any, ...], kwargs: dict[str, Any], strict: bool = False) -> bytes:
    """Of the arguments of a call; the order of keywords is of no matter."""
    if not kwargs and all(type(arg) in PLAIN for arg in args):
        try:
            return _hash(b"a", repr(args).encode("utf-8", "surrogatepass"))
        except ValueError:
            pass  # an int with more digits than Python writes
    return digest((args, sorted(kwargs.items())), strict)


def key(parent: str, identity: str, inputs: bytes, occurrence: int) -> str:
    """The key of a run: of its parent, what is run, with what, and which one among equals."""
    text = f"{parent}\0{identity}\0{occurrence}\0".encode()
    return blake2b(text + inputs, digest_size=10).hexdigest()


def code_version(function: Any) -> str:
    """A short hash of a function's code: not of its comments or place in the file, nor of what it calls."""
    code = getattr(plain(function), "__code__", None)
    return _of_code(code).hex()[:12] if code is not None else ""


def made_with(function: Any, strict: bool = False) -> bytes:
    """Of the variables around it that a function made inside another one uses.

    Args:
        strict: also those that may change (a list, a connection); otherwise the key of what uses them changed with them.

    Raises:
        Unkeyed: one cannot be taken apart, and ``strict``.
    """
    return _made_with(function, {}, strict)


def _made_with(function: Any, seen: dict[int, tuple[bytes, Any]], strict: bool) -> bytes:
    parts = []
    for cell in getattr(function, "__closure__", None) or ():
        try:
            inside = cell.cell_contents
        except ValueError:
            continue  # nothing in it yet
        if strict or _steady(inside):
            parts.append(_digest(inside, seen, strict))
    return b"".join(parts)


def _steady(value: Any) -> bool:
    """Whether it stays as it is: functions and the like, and what has a hash by what it is."""
    if hasattr(value, "_shunter_kind") or isinstance(value, (type, FunctionType, MethodType)):
        return True
    own: Any = type(value).__hash__
    return own is not None and own is not object.__hash__


def _hash(tag: bytes, data: bytes) -> bytes:
    return blake2b(tag + data, digest_size=_SIZE).digest()


def _of_code(code: CodeType) -> bytes:
    constants = b"".join(
        _of_code(c) if isinstance(c, CodeType) else _hash(b"k", _constant(c).encode("utf-8", "surrogatepass"))
        for c in code.co_consts
    )
    names = repr(
        (code.co_names, code.co_varnames, code.co_freevars, code.co_argcount, code.co_flags)
    ).encode()
    return _hash(b"c", code.co_code + constants + names)


def _constant(value: Any) -> str:
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)


def _digest(value: Any, seen: dict[int, tuple[bytes, Any]], strict: bool) -> bytes:
    kind = type(value)
    if kind in PLAIN:
        return _hash(b"v", _text(value).encode("utf-8", "surrogatepass"))
    if kind is TaskFuture:
        if strict:
            raise Unkeyed(f"the future of task {value.name} has no value that can be looked at")
        return _hash(b"f", value.key.encode())
    found = seen.get(id(value))
    if found is not None:
        return found[0]
    # A cycle meets this; the value is held, so that no other gets its id meanwhile.
    seen[id(value)] = (_hash(b"cycle", str(len(seen)).encode()), value)
    made = _composed(value, kind, seen, strict)
    seen[id(value)] = (made, value)
    return made


def _composed(value: Any, kind: type, seen: dict[int, tuple[bytes, Any]], strict: bool) -> bytes:
    if kind is list or kind is tuple:
        tag = b"l" if kind is list else b"t"
        if set(map(type, value)) <= PLAIN:
            return _hash(tag, _text(value).encode("utf-8", "surrogatepass"))
        return _hash(tag + b"-", b"".join(_digest(part, seen, strict) for part in value))
    if kind is dict:
        parts = sorted(_digest(k, seen, strict) + _digest(v, seen, strict) for k, v in value.items())
        return _hash(b"d", b"".join(parts))
    if kind is set or kind is frozenset:
        return _hash(
            b"s" if kind is set else b"z", b"".join(sorted(_digest(part, seen, strict) for part in value))
        )
    if kind.__module__.startswith("pathlib"):  # which versions of Python take apart in different ways
        return _hash(b"p", f"{kind.__name__}\0{value}".encode("utf-8", "surrogatepass"))
    if isinstance(value, (type, ModuleType, BuiltinFunctionType)):
        return _hash(b"n", _name(value).encode())
    if isinstance(value, FunctionType):
        return _hash(b"n", _name(value).encode() + _inner(value, seen, strict))
    if hasattr(kind, "_shunter_kind"):
        own = _name(value).encode() + b"\0" + value.name.encode()
        return _hash(b"k", own + _inner(plain(value.fn), seen, strict))
    if isinstance(value, MethodType):
        return _hash(b"m", _name(value.__func__).encode() + _digest(value.__self__, seen, strict))
    return _reduced(value, kind, seen, strict)


def _inner(function: Any, seen: dict[int, tuple[bytes, Any]], strict: bool) -> bytes:
    """Of a function that its name alone does not tell from others, since it is made whenever another one is called."""
    if not isinstance(function, FunctionType) or "<" not in function.__qualname__:
        return b""
    defaults = (function.__defaults__, function.__kwdefaults__)
    return _of_code(function.__code__) + _digest(defaults, seen, strict) + _made_with(function, seen, strict)


def _reduced(value: Any, kind: type, seen: dict[int, tuple[bytes, Any]], strict: bool) -> bytes:
    import copyreg

    name = _name(kind).encode()
    try:
        reducer = copyreg.dispatch_table.get(kind)
        taken = reducer(value) if reducer is not None else value.__reduce_ex__(4)
    except Exception as exc:
        if strict:
            raise Unkeyed(f"a value of type {_name(kind)} cannot be taken apart: {exc}") from None
        return _hash(b"o", name)
    if isinstance(taken, str):
        return _hash(b"g", name + taken.encode())
    make, args, *rest = taken
    state, items, pairs = (*rest[:3], None, None, None)[:3]
    parts = [
        name,
        _digest(make, seen, strict),
        _digest(tuple(args), seen, strict),
        _digest(state, seen, strict),
    ]
    parts += [_digest(list(part) if part is not None else None, seen, strict) for part in (items, pairs)]
    return _hash(b"r", b"".join(parts))


def _text(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # an int with more digits than Python writes
        return hex(value) if isinstance(value, int) else ",".join(map(_text, value))


def _name(value: Any) -> str:
    return (
        f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', getattr(value, '__name__', ''))}"
    )
