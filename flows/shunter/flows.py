"""``@flow``: a function whose tasks are looked after."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Iterable
from types import MethodType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from shunter.decorated import Decorated
from shunter.hooks import Hook
from shunter.identity import is_coroutine_function, refuse_bad
from shunter.retries import Condition, Delay, above_zero

if TYPE_CHECKING:
    from typing import Unpack

    from shunter.deployments import FlowDeployment, Options, PoolOptions
    from shunter.states import State
    from shunter_work_pools.contracts.deployments import Change

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")


class BaseFlow(Decorated, Generic[P, R]):
    """What asynchronous flows and others have in common; made by ``@flow``, which says what the options mean."""

    _shunter_kind = "flow"
    _hook_kinds = (*Decorated._hook_kinds, "on_crashed")

    def __init__(self, fn: Callable[..., Any], options: dict[str, Any]) -> None:
        super().__init__(fn, options)
        self.executor: Any = options.get("executor")
        storage = options.get("result_storage")
        self.result_storage: str | None = os.fspath(storage) if storage is not None else None
        self.result_limit: int | None = above_zero("result_limit", options.get("result_limit"))
        self.validate_parameters: bool = options.get("validate_parameters", True)
        self.hints: dict[str, Any] | None = None

    def parameter_schema(self) -> dict[str, Any]:
        """JSON schema (draft 2020-12) of its parameters."""
        from shunter.parameters import schema

        return schema(self)

    def to_deployment(self, name: str | None = None, **options: Unpack[PoolOptions]) -> FlowDeployment:
        """A deployment of it, for ``serve`` and ``deploy``.

        Args:
            name: of the deployment; no two of a server have the same, whatever their flows. Default: the flow's.
            options: see ``shunter.deployments.Options`` and ``PoolOptions``.

        Raises:
            TypeError: there is no such option.
        """
        from shunter.deployments import to_deployment

        return to_deployment(self, name, options)

    def serve(
        self,
        name: str | None = None,
        *,
        limit: int | None = None,
        pause_on_exit: bool = True,
        **options: Unpack[Options],
    ) -> None:
        """Deploy it from its own script, and execute its runs until Ctrl-C or SIGTERM; blocks. See ``serve``."""
        from shunter.serving import serve

        serve(self.to_deployment(name, **options), limit=limit, pause_on_exit=pause_on_exit)

    def deploy(
        self, name: str | None = None, *, pool: str | None = None, **options: Unpack[PoolOptions]
    ) -> Change:
        """Deploy it to a pool, whose agents execute its runs. See ``deploy``."""
        from shunter.deployments import deploy

        (change,) = deploy(self.to_deployment(name, **options), pool=pool)
        return change

    def on_crashed(self, hook: Hook) -> Hook:
        """Call this when the process of a run of it has died, in another one: ``hook(flow, run, state)``."""
        return self._hooked("on_crashed", hook)

    def _changed(self, options: dict[str, Any]) -> dict[str, Any]:
        return self._options | _known_options(options)

    def made_of(self) -> Any:
        """As ``__reduce__``, for where its module is not."""
        return _rebuilt, (self.fn, self._options)


class Flow(BaseFlow[P, R]):
    """A flow that is a plain function."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run it; what it returns, with the values of futures.

        Raises:
            BaseException: what it raised, or the error of a future that it returned.
            ParameterError: the parameters do not fit its signature.
        """
        value: R = self.run(*args, **kwargs).result()
        return value

    def run(self, *args: P.args, **kwargs: P.kwargs) -> State[R]:
        """Run it; its final state, also if it failed."""
        from shunter import flow_engine

        return flow_engine.run(self, args, kwargs)

    def with_options(self, **options: Any) -> Flow[P, R]:
        """The same flow with other options, those of ``@flow``."""
        return Flow(self.fn, self._changed(options))

    @overload
    def __get__(self, instance: None, owner: type) -> Flow[P, R]: ...
    @overload
    def __get__(self: Flow[Concatenate[S, Q], R], instance: S, owner: type) -> Flow[Q, R]: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        """As a method: the instance is the first argument."""
        return self if instance is None else Flow(MethodType(self.fn, instance), self._options)


class AsyncFlow(BaseFlow[P, R]):
    """A flow that is ``async def``."""

    is_async = True

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """As ``Flow.__call__``, awaited."""
        value: R = (await self.run(*args, **kwargs)).result()
        return value

    async def run(self, *args: P.args, **kwargs: P.kwargs) -> State[R]:
        """As ``Flow.run``, awaited."""
        from shunter import async_flow_engine

        return await async_flow_engine.run(self, args, kwargs)

    def with_options(self, **options: Any) -> AsyncFlow[P, R]:
        """The same flow with other options, those of ``@flow``."""
        return AsyncFlow(self.fn, self._changed(options))

    @overload
    def __get__(self, instance: None, owner: type) -> AsyncFlow[P, R]: ...
    @overload
    def __get__(self: AsyncFlow[Concatenate[S, Q], R], instance: S, owner: type) -> AsyncFlow[Q, R]: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        """As a method: the instance is the first argument."""
        return self if instance is None else AsyncFlow(MethodType(self.fn, instance), self._options)


def _rebuilt(function: Any, options: dict[str, Any]) -> BaseFlow[Any, Any]:
    return (AsyncFlow if is_coroutine_function(function) else Flow)(function, options)


_OPTIONS = frozenset(
    {
        "executor", "name", "on_cancelled", "on_completion", "on_crashed", "on_failure", "result_limit", "result_storage",
        "retries", "retry_backoff", "retry_delay", "retry_if", "retry_jitter", "timeout", "validate_parameters",
    }
)  # fmt: skip


def _known_options(options: dict[str, Any]) -> dict[str, Any]:
    if unknown := sorted(set(options) - _OPTIONS):
        raise TypeError(f"a flow has no option {unknown[0]!r}; it has {', '.join(sorted(_OPTIONS))}")
    return options


class _Decorator:
    """``@flow(...)``, to be put on a function."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, T]]) -> AsyncFlow[P, T]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, fn: Callable[P, R]) -> Flow[P, R]: ...
    def __call__(self, fn: Callable[..., Any]) -> Any:
        refuse_bad(fn, "flow")
        return (AsyncFlow if is_coroutine_function(fn) else Flow)(fn, self._options)


@overload
def flow(fn: Callable[P, Coroutine[Any, Any, T]], /) -> AsyncFlow[P, T]: ...  # type: ignore[overload-overlap]
@overload
def flow(fn: Callable[P, R], /) -> Flow[P, R]: ...
@overload
def flow(
    *,
    name: str | None = None,
    executor: Any = None,
    retries: int = 0,
    retry_delay: Delay = 0.0,
    retry_backoff: float = 1.0,
    retry_jitter: float = 0.0,
    retry_if: Condition = None,
    timeout: float | None = None,
    result_storage: str | os.PathLike[str] | None = None,
    result_limit: int | None = None,
    validate_parameters: bool = True,
    on_completion: Iterable[Hook] | None = None,
    on_failure: Iterable[Hook] | None = None,
    on_cancelled: Iterable[Hook] | None = None,
    on_crashed: Iterable[Hook] | None = None,
) -> _Decorator: ...
def flow(fn: Any = None, /, **options: Any) -> Any:
    """Make a function a flow.

    Args:
        name: what it is called; by default the function's name.
        executor: where submitted tasks are executed: ``"threads"`` (the default of an outermost flow; one inside another
            has that one's), ``"processes"``, a ``concurrent.futures.Executor``, or of Dask a client, a cluster or a
            scheduler's address; see ``shunter.executors``.
        retries: tries after the first one, if it raises an ``Exception``. Tasks that completed are not executed again.
        retry_delay, retry_backoff, retry_jitter, retry_if: as of ``@task``.
        timeout: seconds that one try may take.
        result_storage: a URL of fsspec, or a folder, at which results are kept that are too large for the journal, and cached ones.
        result_limit: bytes that one result may have.
        validate_parameters: whether parameters are made to fit the types of the signature.
        on_completion, on_failure, on_cancelled, on_crashed: functions of (flow, run, state).

    Raises:
        TypeError: it is no function, or a generator; there is no such option.
        ValueError: an option's value is out of its range.
    """
    decorator = _Decorator(_known_options(options))
    return decorator if fn is None else decorator(fn)
