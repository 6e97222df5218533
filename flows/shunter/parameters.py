"""The parameters of a flow: put together from a call, and made to fit the signature.

pydantic is loaded only where a value is not of its parameter's type already.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from shunter import runner
from shunter.errors import ParameterError

_CHECKED = {"int": int, "str": str, "bool": bool, "float": float, "list": list, "dict": dict}


def bound(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments by name, defaults included.

    Raises:
        TypeError: they are not those of the signature.
    """
    found = inspect.signature(function).bind(*args, **kwargs)
    found.apply_defaults()
    return dict(found.arguments)


def validated(flow: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """The parameters by name, and the arguments as they are to be given (``inspect.BoundArguments``).

    Raises:
        ParameterError: they are not those of the signature, or a value does not fit its type.
    """
    signature = inspect.signature(flow.fn)
    try:
        call = signature.bind(*args, **kwargs)
    except TypeError as exc:
        raise ParameterError(f"flow {flow.name}: {exc}; it takes {signature}") from None
    if flow.validate_parameters:
        given = dict(call.arguments)
        for name, value in given.items():
            call.arguments[name] = _fit(flow, signature.parameters[name], value)
    call.apply_defaults()
    named: dict[str, Any] = {}
    for name, value in call.arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            named.update(value)
        else:
            named[name] = value
    return named, call


def schema(flow: Any) -> dict[str, Any]:
    """JSON schema (draft 2020-12) of the parameters.

    Raises:
        shunter.runner.SourceError: it cannot be called with parameters made from JSON.
    """
    from shunter.inspect_entrypoint import parameter_schema

    return parameter_schema(flow.fn)


def _fit(flow: Any, parameter: inspect.Parameter, value: Any) -> Any:
    annotation = parameter.annotation
    if annotation is parameter.empty or _fits(annotation, value):
        return value
    hint = _hints(flow).get(parameter.name, Any)
    if hint is Any or _fits(hint, value):
        return value
    if parameter.kind is parameter.VAR_POSITIONAL:
        return tuple(_converted(flow, parameter.name, hint, one) for one in value)
    if parameter.kind is parameter.VAR_KEYWORD:
        return {name: _converted(flow, name, hint, one) for name, one in value.items()}
    return _converted(flow, parameter.name, hint, value)


def _fits(annotation: Any, value: Any) -> bool:
    """Whether that can be told without pydantic."""
    if isinstance(annotation, str):
        if annotation in ("Any", "object", "typing.Any"):
            return True
        return type(value) is _CHECKED.get(annotation)
    if annotation is None:
        return value is None
    if annotation in (Any, object):
        return True
    return annotation in _CHECKED.values() and type(value) is annotation


def _hints(flow: Any) -> dict[str, Any]:
    if flow.hints is None:
        try:
            flow.hints = runner.resolved(runner.plain_function(flow.fn))
        except TypeError as exc:
            from shunter.loggers import get_logger

            flow.hints = {}
            get_logger("shunter").warning("flow %s: its parameters are taken as they are: %s", flow.name, exc)
    hints: dict[str, Any] = flow.hints
    return hints


def _converted(flow: Any, name: str, hint: Any, value: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter, ValidationError
    from pydantic.errors import PydanticUserError

    try:
        try:
            adapter = TypeAdapter[Any](hint, config=ConfigDict(arbitrary_types_allowed=True))
        except PydanticUserError:
            adapter = TypeAdapter[Any](hint)  # a model has its own configuration
        return adapter.validate_python(value)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        where = ".".join([name, *(str(part) for part in first["loc"])])
        raise ParameterError(f"flow {flow.name}: parameter {where}: {first['msg']}") from None
