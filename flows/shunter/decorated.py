"""What tasks and flows have in common: a function, its name, its retries, its hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from shunter.hooks import Hook, Hooks
from shunter.identity import held_by, identity_of, name_of
from shunter.retries import Retries, above_zero


class Decorated:
    """A function with options.

    Attributes:
        fn: the function.
        name: what it is called.
        timeout: seconds that one try may take, or None.
        is_async: whether it is ``async def``.
    """

    _shunter_kind: ClassVar[str]
    _hook_kinds: ClassVar[tuple[str, ...]] = ("on_completion", "on_failure", "on_cancelled")
    is_async = False

    def __init__(self, fn: Callable[..., Any], options: dict[str, Any]) -> None:
        self.fn = fn
        self._options = dict(options)
        self.name = name_of(fn, options.get("name"))
        self.timeout: float | None = above_zero("timeout", options.get("timeout"))
        self.retries = Retries(
            options.get("retries", 0),
            options.get("retry_delay", 0.0),
            options.get("retry_backoff", 1.0),
            options.get("retry_jitter", 0.0),
            options.get("retry_if"),
        )
        self.hooks = Hooks(**{kind: options.get(kind) for kind in self._hook_kinds})
        self.held = held_by(fn)
        self.__wrapped__ = fn
        self.__doc__ = fn.__doc__  # also if there is none: not the class's
        for attribute in ("__module__", "__qualname__", "__name__"):
            if (value := getattr(fn, attribute, None)) is not None:
                setattr(self, attribute, value)
        self._identity = ""
        self._version: str | None = None

    @property
    def identity(self) -> str:
        """What tells it from others, in every process."""
        if not self._identity:
            self._identity = identity_of(self.fn, self.name)
        return self._identity

    @property
    def version(self) -> str:
        """A short hash of its code."""
        if self._version is None:
            from shunter.keys import code_version

            self._version = code_version(self.fn)
        return self._version

    def on_completion(self, hook: Hook) -> Hook:
        """Call this when a run of it has completed: ``hook(task or flow, run, state)``."""
        return self._hooked("on_completion", hook)

    def on_failure(self, hook: Hook) -> Hook:
        """Call this when a run of it has failed, all tries over."""
        return self._hooked("on_failure", hook)

    def on_cancelled(self, hook: Hook) -> Hook:
        """Call this when a run of it was cancelled."""
        return self._hooked("on_cancelled", hook)

    def _hooked(self, kind: str, hook: Hook) -> Hook:
        self.hooks.add(kind, hook)
        self._options[kind] = self.hooks.of(kind)  # for its methods, and the same with other options
        return hook

    def __reduce__(self) -> Any:
        from shunter.by_reference import reduced

        return reduced(self)

    def __repr__(self) -> str:
        return f"<{self._shunter_kind} {self.name}>"
