"""What the model complains about, as a sentence on what is wrong and one on what to do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from shunter_cli import faults

#: What the model calls a type -> in words.
_KINDS = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dict_attributes_type": "a mapping",
}
_LIMITS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than_equal": ("le", "at most"),
}


def words(complaint: dict[str, Any], known: Iterable[str] = ()) -> tuple[str, str]:
    """Detail and remedy of one of pydantic's errors.

    Args:
        complaint: as ``ValidationError.errors()`` has it.
        known: the keys there are, for one that is not known.
    """
    kind, given = complaint["type"], complaint["input"]
    context: dict[str, Any] = complaint.get("ctx") or {}
    if kind == "said":
        return context["detail"], context["remedy"]
    if kind == "extra_forbidden":
        names = list(known)
        listed = f"Known are {', '.join(names)}." if names else ""
        return "unknown key", faults.nearest(str(complaint["loc"][-1]), names) or listed
    if kind == "missing":
        return "is missing", "Add it."
    if kind in _KINDS:
        quotes = kind == "string_type" and isinstance(given, int | float)
        remedy = f'Put it in quotes: "{_written(given)}".' if quotes else ""
        return f"must be {_KINDS[kind]}, not {_kind(given)}", remedy
    if kind == "literal_error":
        return f"{_shown(given)} is not one of {context['expected']}", _near(given, context["expected"])
    if kind in _LIMITS:
        key, bound = _LIMITS[kind]
        return f"{_shown(given)} is out of bounds: it must be {bound} {context[key]:,}", ""
    return _of_texts_and_lists(kind, given, context, complaint)


def _of_texts_and_lists(
    kind: str, given: Any, context: dict[str, Any], complaint: dict[str, Any]
) -> tuple[str, str]:
    if kind == "string_pattern_mismatch":
        pattern = str(context["pattern"])
        if pattern.startswith("^[A-Za-z_]"):
            rule = "has letters, digits and '_', and begins with no digit"
            return f"{_shown(given)} is no name of a variable", f"It {rule}."
        if "=" in pattern:
            return f"{_shown(given)} is no tag", f"It {faults.TAG_RULE}."
        return f"{_shown(given)} is no name", f"It {faults.NAME_RULE}."
    if kind in ("string_too_short", "too_short"):
        return "is empty", "Fill it in, or leave it out."
    if kind == "too_long":
        has = context.get("actual_length") or len(given)
        return f"has {has:,} items, more than {context['max_length']:,}", "Split it up."
    if kind == "string_too_long":
        return f"has {len(given):,} characters, more than {context['max_length']:,}", "Shorten it."
    message = str(complaint["msg"]).removeprefix("Value error, ")
    return message[:1].lower() + message[1:], ""


def _near(given: Any, expected: str) -> str:
    return faults.nearest(str(given), [word.strip(" '") for word in expected.replace(" or ", ",").split(",")])


def _kind(value: Any) -> str:
    if value is None:
        return "empty"
    kinds = ((bool, "true or false"), (int | float, "a number"), (str, "text"), (list, "a list"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "a mapping")


def _shown(value: Any) -> str:
    text = repr(str(value) if isinstance(value, str) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
