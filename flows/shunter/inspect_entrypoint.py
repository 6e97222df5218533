"""Says what parameters an entrypoint takes: ``python inspect_entrypoint.py ENTRYPOINT --source DIR``.

A process of its own, because it imports the user's code. It prints one JSON object on stdout, whatever
the user's code prints (that goes to stderr). Found:

``{"parameter_schema": JSON schema (draft 2020-12) or null, "description": first line of the docstring}``

Not found, with exit status 1:

``{"error": sentence, "kind": KIND, "detail": traceback or ""}``, where KIND is one of ``missing-file``,
``missing-module``, ``missing-function``, ``import-failed``, ``not-callable``, ``bad-entrypoint``,
``unsupported-signature``.

A ``path.py`` without a function takes any parameters (its schema is null) and is not executed.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    # As in the runner: this folder is not for the user's imports. Its package comes last.
    import os.path

    _here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [folder for folder in sys.path if folder != _here] + [os.path.dirname(_here)]

import argparse
import ast
import inspect
import json
import os
import traceback
import warnings
from collections.abc import Callable
from typing import Any

from shunter import runner
from shunter.runner import SourceError

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def main() -> int:
    """Inspect the entrypoint named by the arguments; the exit status."""
    parser = argparse.ArgumentParser(description="Print the parameters of an entrypoint as JSON.")
    parser.add_argument("entrypoint")
    parser.add_argument("--source", default=os.getcwd(), help="folder from which it is meant")
    arguments = parser.parse_args()
    sys.stdout.flush()
    answer = os.dup(1)
    os.dup2(2, 1)  # what the user's code prints, also from C or a child, must not be in the answer
    found = inspect_entrypoint(arguments.entrypoint, os.path.abspath(arguments.source))
    sys.stdout.flush()
    with os.fdopen(answer, "w", encoding="utf-8") as file:
        file.write(json.dumps(found) + "\n")
    return 1 if "error" in found else 0


def inspect_entrypoint(entrypoint: str, source: str) -> dict[str, Any]:
    """What the module says is printed. Imports the user's code into this process."""
    sys.path.insert(0, source)
    try:
        path, function = runner.split(entrypoint)
        if function is None:
            return {"parameter_schema": None, "description": _file_description(os.path.join(source, path))}
        target = runner.load(path, function, source)
        return {"parameter_schema": parameter_schema(target), "description": _first_line(target.__doc__)}
    except SourceError as exc:
        cause = exc.__cause__
        trace = runner.own_frames_removed(cause.__traceback__) if cause is not None else None
        detail = "".join(traceback.format_exception(type(cause), cause, trace)) if cause is not None else ""
        return {"error": str(exc), "kind": exc.kind, "detail": detail}


def parameter_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """JSON schema of the keyword arguments a function takes.

    Raises:
        SourceError: it cannot be called with keyword arguments made from JSON.
    """
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError

    stub = _keywords_only(function)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a default that is no JSON value is left out
            schema = TypeAdapter[Any](stub).json_schema()  # type: ignore[arg-type]  # a function is one, too
    except PydanticUserError as exc:
        raise SourceError("unsupported-signature", _explain(stub, exc)) from None
    # pydantic says nothing where any other keyword may be given.
    schema.setdefault("additionalProperties", any(p.kind is p.VAR_KEYWORD for p in _parameters(stub)))
    return {"$schema": DIALECT, "type": "object", "properties": {}} | schema


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def _keywords_only(function: Callable[..., Any]) -> Callable[..., Any]:
    """A stand-in with the signature as keywords reach it: ``*args`` and what has no name left out."""
    name = getattr(function, "__qualname__", repr(function))
    try:
        signature = inspect.signature(function)
        hints = runner.resolved(runner.plain_function(function)) if not isinstance(function, type) else {}
    except (TypeError, ValueError) as exc:
        raise SourceError("unsupported-signature", f"the signature of {name} cannot be read: {exc}") from None
    kept = []
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.POSITIONAL_ONLY:
            if parameter.default is parameter.empty:
                raise SourceError(
                    "unsupported-signature",
                    f"{name} takes {parameter.name!r} by position only; parameters are passed by name",
                )
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            continue
        hint = hints.get(parameter.name, parameter.annotation)
        kind = parameter.kind if parameter.kind is parameter.VAR_KEYWORD else parameter.KEYWORD_ONLY
        kept.append(parameter.replace(annotation=hint, kind=kind))

    def stub(**_: Any) -> Any:
        """Never called."""

    stub.__signature__ = signature.replace(parameters=kept, return_annotation=Any)  # type: ignore[attr-defined]
    stub.__annotations__ = {p.name: p.annotation for p in kept if p.annotation is not p.empty}
    return stub


def _explain(stub: Callable[..., Any], error: Exception) -> str:
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError

    for name, hint in stub.__annotations__.items():
        try:
            TypeAdapter(hint).json_schema()
        except PydanticUserError:
            return f"parameter {name!r}: a value of type {inspect.formatannotation(hint)} cannot be made from JSON"
    return str(error).splitlines()[0]


def _file_description(path: str) -> str:
    runner.compile_file(path)
    with open(path, "rb") as file:
        return _first_line(ast.get_docstring(ast.parse(file.read())))


def _first_line(doc: str | None) -> str:
    return (inspect.cleandoc(doc).splitlines() or [""])[0].strip() if doc else ""


if __name__ == "__main__":
    sys.exit(main())
