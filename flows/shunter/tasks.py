"""``@task``: a function whose calls inside a flow are looked after."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from types import MethodType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from shunter.decorated import Decorated
from shunter.hooks import Hook
from shunter.identity import is_coroutine_function, origin_of, refuse_bad
from shunter.retries import Condition, Delay, above_zero
from shunter.scopes import current

if TYPE_CHECKING:
    from shunter.futures import TaskFuture, TaskFutures

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
T = TypeVar("T")
S = TypeVar("S")

_KEEP: Any = object()  # with_options: as it was


class BaseTask(Decorated, Generic[P, R]):
    """What asynchronous tasks and others have in common; made by ``@task``, which says what the options mean.

    Attributes:
        tags: labels, a set of text.
    """

    _shunter_kind = "task"

    def __init__(self, fn: Callable[..., Any], options: dict[str, Any]) -> None:
        super().__init__(fn, options)
        tags = options.get("tags") or ()
        if isinstance(tags, str) or not all(isinstance(tag, str) for tag in tags):
            raise TypeError(f"tags is {tags!r}; it is a list of texts")
        self.tags = frozenset(tags)
        self.persist: bool = options.get("persist", True)
        cache = options.get("cache") or None
        self.cache: Callable[[Any, dict[str, Any]], str | None] | bool | None = cache
        if cache is not None and cache is not True and not callable(cache):
            raise TypeError(f"cache is {cache!r}; it is True, False, or a function of (task, arguments)")
        self.cache_expires: float | None = above_zero("cache_expires", options.get("cache_expires"))
        self._checked()
        self.origin = origin_of(fn)

    def _checked(self) -> None:
        if self.cache_expires is not None and self.cache is None:
            raise ValueError("cache_expires says how long a cached value holds: it needs cache=True")
        code = getattr(self.fn, "__code__", None)
        if code is not None and "wait_for" in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]:
            raise ValueError(
                f"task {self.name} has a parameter 'wait_for', which submit() has for itself: rename it"
            )

    def submit(self, *args: Any, wait_for: Any = None, **kwargs: Any) -> TaskFuture[R]:
        """Have it executed at the flow's executor, and go on meanwhile.

        Args:
            args, kwargs: its arguments. Where there is a future, also inside lists, tuples, sets, dicts (their values)
                and dataclasses, the task waits for it and gets its value.
            wait_for: futures that are to be completed before it starts.

        Raises:
            NotInFlow: there is no flow around.
            TaskCancelled: the flow is being cancelled.
            ForeignFuture: a future of another flow run is among the arguments.
        """
        from shunter import engine

        return engine.submit(self, args, kwargs, wait_for)

    def map(self, *args: Any, wait_for: Any = None, **kwargs: Any) -> TaskFutures[R]:
        """Submit it once for each of the elements of the arguments that can be iterated over.

        Text, bytes and what is marked ``unmapped`` are given whole to all. A future's value is waited for.

        Raises:
            ValueError: the arguments have different lengths, or none can be iterated over.
        """
        from shunter.mapping import mapped

        return mapped(self, args, kwargs, wait_for)

    def _changed(self, options: dict[str, Any]) -> dict[str, Any]:
        return self._options | {k: v for k, v in options.items() if v is not _KEEP}

    def made_of(self) -> Any:
        """As ``__reduce__``, for where its module is not."""
        return _rebuilt, (self.fn, self._options)


class Task(BaseTask[P, R]):
    """A task that is a plain function."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Outside of a flow the function itself; inside, the same as a task run, here and now."""
        scope = current.get()
        if scope is None:
            value: R = self.fn(*args, **kwargs)
            return value
        from shunter import engine

        made: R = engine.called(self, scope, args, kwargs)
        return made

    def with_options(self, **options: Any) -> Task[P, R]:
        """The same task with other options, those of ``@task``."""
        return Task(self.fn, _known_options(self._changed(options)))

    @overload
    def __get__(self, instance: None, owner: type) -> Task[P, R]: ...
    @overload
    def __get__(self: Task[Concatenate[S, Q], R], instance: S, owner: type) -> Task[Q, R]: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        """As a method: the instance is the first argument."""
        return self if instance is None else Task(MethodType(self.fn, instance), self._options)


class AsyncTask(BaseTask[P, R]):
    """A task that is ``async def``."""

    is_async = True

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Outside of a flow the function itself; inside, the same as a task run in the loop that awaits it."""
        scope = current.get()
        if scope is None:
            coroutine: Coroutine[Any, Any, R] = self.fn(*args, **kwargs)
            return coroutine
        from shunter import awaiting

        return awaiting.called(self, scope, args, kwargs)

    def with_options(self, **options: Any) -> AsyncTask[P, R]:
        """The same task with other options, those of ``@task``."""
        return AsyncTask(self.fn, _known_options(self._changed(options)))

    @overload
    def __get__(self, instance: None, owner: type) -> AsyncTask[P, R]: ...
    @overload
    def __get__(self: AsyncTask[Concatenate[S, Q], R], instance: S, owner: type) -> AsyncTask[Q, R]: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        """As a method: the instance is the first argument."""
        return self if instance is None else AsyncTask(MethodType(self.fn, instance), self._options)


def _rebuilt(function: Any, options: dict[str, Any]) -> BaseTask[Any, Any]:
    return (AsyncTask if is_coroutine_function(function) else Task)(function, options)


_OPTIONS = frozenset(
    {
        "cache", "cache_expires", "name", "on_cancelled", "on_completion", "on_failure", "persist", "retries",
        "retry_backoff", "retry_delay", "retry_if", "retry_jitter", "tags", "timeout",
    }
)  # fmt: skip


def _known_options(options: dict[str, Any]) -> dict[str, Any]:
    if unknown := sorted(set(options) - _OPTIONS):
        raise TypeError(f"a task has no option {unknown[0]!r}; it has {', '.join(sorted(_OPTIONS))}")
    return options


class _Decorator:
    """``@task(...)``, to be put on a function."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, T]]) -> AsyncTask[P, T]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, fn: Callable[P, R]) -> Task[P, R]: ...
    def __call__(self, fn: Callable[..., Any]) -> Any:
        refuse_bad(fn, "task")
        return (AsyncTask if is_coroutine_function(fn) else Task)(fn, self._options)


@overload
def task(fn: Callable[P, Coroutine[Any, Any, T]], /) -> AsyncTask[P, T]: ...  # type: ignore[overload-overlap]
@overload
def task(fn: Callable[P, R], /) -> Task[P, R]: ...
@overload
def task(
    *,
    name: str | None = None,
    tags: Iterable[str] = (),
    retries: int = 0,
    retry_delay: Delay = 0.0,
    retry_backoff: float = 1.0,
    retry_jitter: float = 0.0,
    retry_if: Condition = None,
    timeout: float | None = None,
    persist: bool = True,
    cache: bool | Callable[[Any, dict[str, Any]], str | None] = False,
    cache_expires: float | None = None,
    on_completion: Iterable[Hook] | None = None,
    on_failure: Iterable[Hook] | None = None,
    on_cancelled: Iterable[Hook] | None = None,
) -> _Decorator: ...
def task(fn: Any = None, /, **options: Any) -> Any:
    """Make a function a task.

    Args:
        name: what it is called; by default the function's name.
        tags: labels.
        retries: tries after the first one, if it raises an ``Exception``.
        retry_delay: seconds before them: a number, one for each, or a function of the retry's number (1 first).
        retry_backoff: each delay is this many times the one before.
        retry_jitter: a delay is made longer by up to this part of it, at random.
        retry_if: of what exceptions: types, or a function of the exception.
        timeout: seconds that one try may take. A thread cannot be ended, see docs/flows.md.
        persist: whether its result is kept, so that a retry of the run need not execute it again.
        cache: whether results are kept between runs, by inputs and code; or a function of (task, arguments) that gives
            the text by which they are.
        cache_expires: seconds that a cached result holds.
        on_completion, on_failure, on_cancelled: functions of (task, run, state), called at its end.

    Raises:
        TypeError: it is no function, or a generator; there is no such option.
        ValueError: an option's value is out of its range.
    """
    decorator = _Decorator(_known_options(options))
    return decorator if fn is None else decorator(fn)
