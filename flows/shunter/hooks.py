"""Functions of the user that are called at the end of a task or flow: ``hook(task or flow, run, state)``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shunter.states import State

Hook = Callable[[Any, Any, Any], Any]
#: ``on_crashed`` is called in another process, see ``crashed.py``.
KINDS = ("on_completion", "on_failure", "on_cancelled", "on_crashed")
_AT = {
    "Completed": "on_completion",
    "Cached": "on_completion",
    "Failed": "on_failure",
    "Cancelled": "on_cancelled",
    "Crashed": "on_crashed",
}


class Hooks:
    """Those of one task or flow."""

    __slots__ = ("_by_kind",)

    def __init__(self, **given: Iterable[Hook] | None) -> None:
        self._by_kind: dict[str, list[Hook]] = {}
        for kind, hooks in given.items():
            if callable(hooks):
                raise TypeError(f"{kind} is a list of functions: put this one into a list")
            for hook in hooks or ():
                self.add(kind, hook)

    def __bool__(self) -> bool:
        return bool(self._by_kind)

    def add(self, kind: str, hook: Hook) -> None:
        """Add one.

        Raises:
            TypeError: it cannot be called.
        """
        if not callable(hook):
            raise TypeError(f"{kind} takes functions of (task or flow, run, state), not {hook!r}")
        self._by_kind.setdefault(kind, []).append(hook)

    def of(self, kind: str) -> list[Hook]:
        """Those of one kind."""
        return list(self._by_kind.get(kind, ()))

    def call(self, what: Any, run: Any, state: State[Any]) -> None:
        """Call those of this end. What they raise is logged, and changes nothing."""
        for hook in self.of(_AT.get(state.name, "")):
            try:
                done = hook(what, run, state)
                if hasattr(done, "__await__"):
                    _run(done)
            except BaseException as exc:
                from shunter.errors import is_for_this_thread

                if is_for_this_thread(exc):
                    raise
                from shunter.loggers import get_logger

                name = getattr(hook, "__name__", repr(hook))
                get_logger("shunter").exception("the hook %s of %s failed", name, what.name)


def _run(coroutine: Any) -> None:
    import asyncio
    import threading

    async def whole() -> None:
        await coroutine

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(whole())
        return
    thread = threading.Thread(target=lambda: asyncio.run(whole()))  # this thread's loop is in use
    thread.start()
    thread.join()
