"""Runs a Python entrypoint as a run: ``python runner.py [ENTRYPOINT]``, started by path.

Standard library only, and little of it, so that the user's first line comes soon. An entrypoint is

* ``path.py``: run as ``__main__``; the parameters are in the file ``$SHUNTER_PARAMETERS``;
* ``path.py:function`` or ``module:function``: imported, then called with the parameters as keyword
  arguments, converted to the types that its signature names. A coroutine function is run to its end.

Environment: ``SHUNTER_ENTRYPOINT`` (unless given as argument), ``SHUNTER_SOURCE`` (folder from which paths
and modules are meant, first on ``sys.path``; default: the working folder), ``SHUNTER_PARAMETERS`` (JSON
object), ``SHUNTER_RESULT`` (takes the value that the function returns), ``SHUNTER_FAILURE`` (takes
``{"kind": "exception" | "source", "text": ...}``; the launcher reads it), ``SHUNTER_RESULT_LIMIT`` (bytes that
either may have, where that is less than elsewhere).

An exception of the function prints its traceback and exits 1. ``SystemExit`` is an exit like another.
A module or function that cannot be had is told apart: kind ``source``.
"""

from __future__ import annotations

import sys

# This file's folder comes first on the path of a script; nothing in it is for the user's imports.
if __name__ == "__main__" and sys.path and __file__.startswith(sys.path[0] + "/"):
    del sys.path[0]  # (PYTHONSAFEPATH leaves it out already)

import errno
import json
import os

TYPE_CHECKING = False  # as type checkers read it; importing typing would delay the user's first line
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, TracebackType
    from typing import Any, NoReturn

#: Bytes of a result, encoded as JSON.
RESULT_LIMIT = 64 * 1024
#: Names of types that JSON values have already; nothing is converted for them.
PLAIN_NAMES = frozenset(
    {"str", "int", "float", "bool", "dict", "list", "None", "Any", "object", "Optional", "Union"}
)


class SourceError(Exception):
    """The entrypoint cannot be had.

    Args:
        kind: ``missing-file``, ``missing-module``, ``missing-function``, ``import-failed``, ``not-callable``
            or ``bad-entrypoint``.
        text: what is wrong and where, for people.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def main() -> None:
    """Run the entrypoint of this process."""
    entrypoint = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("SHUNTER_ENTRYPOINT", "")
    source = os.environ.get("SHUNTER_SOURCE") or os.getcwd()
    sys.path.insert(0, source)
    try:
        path, function = split(entrypoint)
        if function is None:
            run_file(os.path.join(source, path))
            return
        target = load(path, function, source)
    except SourceError as exc:
        if exc.__cause__ is not None:
            print_traceback(exc.__cause__)
        print(f"shunter: {exc}", file=sys.stderr)
        leave_failure("source", str(exc))
        leave(1)
    call(target, read_parameters())


def split(entrypoint: str) -> tuple[str, str | None]:
    """``(module or file, function)``; the function is None for a file to be run as a whole.

    Raises:
        SourceError: it is none of the three forms.
    """
    path, colon, function = entrypoint.rpartition(":")
    if not colon and entrypoint.endswith(".py"):
        return entrypoint, None
    if path and function and all(part.isidentifier() for part in function.split(".")):
        return path, function
    raise SourceError(
        "bad-entrypoint",
        f"the entrypoint {entrypoint!r} is not of the form path.py, path.py:function or module:function",
    )


def run_file(path: str) -> None:
    """Run a file as ``__main__``, as ``python path`` would.

    Raises:
        SourceError: it cannot be read or compiled.
    """
    code = compile_file(path)
    import builtins
    import types

    module = types.ModuleType("__main__")
    module.__dict__.update(__file__=path, __builtins__=builtins, __cached__=None)
    sys.modules["__main__"] = module
    sys.argv = [path]
    guarded(lambda: exec(code, module.__dict__))  # nosec B102 # the code of the run, which is what a run is for


def compile_file(path: str) -> CodeType:
    """The code of a Python file.

    Raises:
        SourceError: there is no such file, or it is not Python.
    """
    try:
        with open(path, "rb") as file:
            text = file.read()
    except OSError as exc:
        raise SourceError("missing-file", f"the file {path} cannot be read: {exc.strerror}") from None
    try:
        return compile(text, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as exc:
        raise SourceError("import-failed", f"{path} is not valid Python: {describe(exc)}") from exc


def load(path: str, function: str, source: str) -> Callable[..., Any]:
    """Import the module or file and return the function named in it (dotted: an attribute of one).

    Raises:
        SourceError: something of that is not there, or the import fails.
    """
    found = import_file(os.path.join(source, path)) if path.endswith(".py") else import_module(path)
    for name in function.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            where = path if path.endswith(".py") else f"module {path}"
            raise SourceError("missing-function", f"{where} has no function {function!r}") from None
    if not callable(found):
        raise SourceError("not-callable", f"{function!r} in {path} is not a function")
    called: Callable[..., Any] = found
    return called


def import_file(path: str) -> Any:
    """Import a file as a module named after it, findable for pickle and dataclasses."""
    if not os.path.isfile(path):
        raise SourceError("missing-file", f"the file {path} does not exist")
    import importlib.util

    folder = os.path.dirname(os.path.abspath(path))
    if folder not in sys.path:
        sys.path.insert(1, folder)  # its neighbours, as python path.py would have them
    name = os.path.basename(path)[:-3]
    if name in sys.modules or not name.isidentifier():
        name = f"_entrypoint_{name}"  # its name means something else already
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    vars(module)["__entrypoint__"] = True  # other machines do not have it
    execute = spec.loader.exec_module
    importing(lambda: execute(module), path)
    return module


def import_module(name: str) -> Any:
    """Import a module by its dotted name."""
    import importlib

    try:
        return importing(lambda: importlib.import_module(name), f"module {name}")
    except SourceError as exc:
        cause = exc.__cause__
        missing = cause.name if isinstance(cause, ModuleNotFoundError) else None
        if missing is not None and (name == missing or name.startswith(missing + ".")):
            raise SourceError(
                "missing-module",
                f"there is no module {name!r} in {sys.path[0]} or among the installed packages",
            ) from None
        raise


def importing(do: Callable[[], Any], what: str) -> Any:
    """Do an import of the user's code; whatever it raises means that the code cannot be had."""
    try:
        return do()
    except KeyboardInterrupt:
        raise
    except BaseException as exc:
        raise SourceError("import-failed", f"{what} cannot be imported: {describe(exc)}") from exc


def read_parameters() -> dict[str, Any]:
    """The run's parameters; none where no file is named."""
    path = os.environ.get("SHUNTER_PARAMETERS")
    if not path:
        return {}
    with open(path, encoding="utf-8") as file:
        parameters: dict[str, Any] = json.load(file)
    return parameters


def call(function: Callable[..., Any], parameters: dict[str, Any]) -> None:
    """Call the user's function and leave what it returns."""

    def run() -> None:
        flow = getattr(function, "_shunter_kind", None) == "flow"  # it makes its parameters fit by itself
        value = function(**(parameters if flow else convert(function, parameters)))
        if hasattr(value, "__await__"):
            import asyncio

            value = asyncio.run(_await(value))
        leave_result(value)

    guarded(run)


async def _await(value: Any) -> Any:
    return await value


def convert(function: Callable[..., Any], parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters as the types that the signature names; pydantic is loaded only if JSON's are not enough.

    Raises:
        TypeError: a value does not fit its type; the text names the parameter.
    """
    plain = plain_function(function)
    annotations: dict[str, Any] = getattr(plain, "__annotations__", None) or {}
    keys = {name: _annotation_key(plain, name, annotations) for name in parameters}
    special = [name for name, key in keys.items() if key in annotations and not is_plain(annotations[key])]
    if not special:
        return parameters
    from pydantic import TypeAdapter, ValidationError

    types = resolved(plain)
    converted = dict(parameters)
    for name in special:
        try:
            # From JSON text, so that a string becomes a date or a path, and a list a tuple.
            converted[name] = TypeAdapter(types[keys[name]]).validate_json(json.dumps(parameters[name]))
        except ValidationError as exc:
            first = exc.errors(include_url=False, include_input=False)[0]
            where = ".".join([name, *(str(part) for part in first["loc"])])
            raise TypeError(f"parameter {where}: {first['msg']}") from None
    return converted


def plain_function(function: Any) -> Any:
    """The function behind decorators and methods."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return getattr(function, "__func__", function)


def _annotation_key(function: Any, name: str, annotations: dict[str, Any]) -> str:
    """The key of a parameter's annotation: its own name, or that of ``**kwargs``."""
    code = getattr(function, "__code__", None)
    if name in annotations or code is None or not code.co_flags & 0x08:  # CO_VARKEYWORDS
        return name
    count = code.co_argcount + code.co_kwonlyargcount
    if name in code.co_varnames[:count]:
        return name
    keyword: str = code.co_varnames[count + bool(code.co_flags & 0x04)]  # after *args, if any
    return keyword


def is_plain(annotation: Any) -> bool:
    """Whether JSON values are of this type already. Text is an annotation not evaluated yet."""
    if annotation is None:
        return True
    if isinstance(annotation, str):
        parts = annotation.replace("[", "|").replace("]", "|").replace(",", "|").split("|")
        return all(part.strip() in PLAIN_NAMES or not part.strip() for part in parts)
    if getattr(annotation, "__module__", None) == "typing" and getattr(annotation, "__name__", "") == "Any":
        return True
    inner = getattr(annotation, "__args__", None)
    if inner is None:
        return annotation in (str, int, float, bool, dict, list, object, type(None))
    origin = getattr(annotation, "__origin__", None)  # None: X | Y
    union = origin is None or getattr(origin, "_name", None) == "Union"
    return (union or origin in (dict, list)) and all(is_plain(part) for part in inner)


def resolved(function: Any) -> dict[str, Any]:
    """The annotations of a function, evaluated.

    Raises:
        TypeError: one of them names something that is not there at run time.
    """
    import typing

    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception as exc:
        raise TypeError(f"the types in the signature cannot be resolved: {describe(exc)}") from None


def leave_result(value: Any) -> None:
    """Write the value for the run's result. One that cannot be kept is told; the run goes on."""
    path = os.environ.get("SHUNTER_RESULT")
    if value is None or not path:
        return
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as exc:
        pydantic = sys.modules.get("pydantic_core")  # its types are in play only if it is loaded
        try:
            if pydantic is None:
                raise exc
            text = json.dumps(pydantic.to_jsonable_python(value), allow_nan=False).encode()
        except Exception as second:
            tell(f"the value returned was not kept as the result: it is not JSON ({second})")
            return
    limit = message_limit()
    if len(text) > limit:
        tell(
            f"the value returned was not kept as the result: it takes {len(text)} bytes as JSON, "
            f"more than the {limit} allowed; store it somewhere and return where"
        )
        return
    write(path, text)


def message_limit() -> int:
    """Bytes that the result or the failure may have here."""
    return int(os.environ.get("SHUNTER_RESULT_LIMIT", RESULT_LIMIT))


def guarded(run: Callable[[], None]) -> None:
    """Run the user's code; an exception of it ends the process as Python would, and leaves word of it."""
    try:
        run()
    except SystemExit:
        raise
    except BaseException as exc:
        print_traceback(exc)
        leave_failure("exception", describe(exc))
        leave(1)


def describe(exc: BaseException) -> str:
    """``Type: text``, as the last line of a traceback has it."""
    kind = type(exc)
    name = (
        kind.__qualname__
        if kind.__module__ in ("builtins", "__main__")
        else f"{kind.__module__}.{kind.__qualname__}"
    )
    try:
        text = str(exc)
    except Exception:
        text = "<exception str() failed>"
    return f"{name}: {text}" if text else name


def print_traceback(exc: BaseException) -> None:
    """The traceback without frames of this file, of the import system and of flows' engine."""
    import traceback

    traceback.print_exception(type(exc), exc, own_frames_removed(exc.__traceback__))


def own_frames_removed(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame of the user's code on, without those by which a flow calls its tasks."""
    first = trace
    while first is not None and _is_loader(first.tb_frame.f_code.co_filename):
        first = first.tb_next
    package = sys.modules.get("shunter")
    if package is None:
        return first
    own = os.path.dirname(package.__file__ or "") + os.sep
    users = []
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if not (_is_loader(name) or name.startswith(own)):
            users.append(trace)
        trace = trace.tb_next
    kept = None
    for one in reversed(users):
        kept = type(one)(kept, one.tb_frame, one.tb_lasti, one.tb_lineno)
    return kept or first


def _is_loader(file: str) -> bool:
    """Whether a frame of this file comes before the user's code: this one, importlib, asyncio around it."""
    between = (f"{os.sep}importlib{os.sep}", f"{os.sep}asyncio{os.sep}")
    return file == __file__ or file.startswith("<frozen importlib") or any(part in file for part in between)


def leave_failure(kind: str, text: str) -> None:
    """Leave word for the launcher; a disk that is full must not hide the traceback."""
    path = os.environ.get("SHUNTER_FAILURE")
    if path:
        length, limit = 4000, message_limit()
        while len(word := json.dumps({"kind": kind, "text": text[:length]}).encode()) > limit:
            length = length * 3 // 4
        try:
            write(path, word)
        except OSError as exc:
            tell(f"{path} cannot be written: {exc}")


def write(path: str, data: bytes) -> None:
    """Write a file that only its owner may read: whole or not at all, where its folder allows that.

    In a pod the file is a mount: nothing can take its place, and its folder is another's.
    """
    draft = f"{path}.{os.getpid()}"
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
        os.replace(draft, path)
    except OSError as exc:
        if exc.errno not in (errno.EACCES, errno.EROFS, errno.EBUSY) or not os.path.exists(path):
            raise
        with open(path, "wb") as file:
            file.write(data)


def tell(text: str) -> None:
    """One line to the run's output."""
    print(f"shunter: {text}", file=sys.stderr, flush=True)


def leave(code: int) -> NoReturn:
    """Exit as Python does: threads are awaited, atexit runs, streams are flushed."""
    sys.exit(code)


if __name__ == "__main__":
    main()
