"""What flows and tasks raise beside the user's own exceptions."""

from __future__ import annotations

from typing import TypeGuard


class UpstreamFailed(Exception):
    """The task was skipped, since one that it depends on did not complete; that one's error is the cause.

    Attributes:
        origin: the error with which it began, in words.
    """

    origin: str = ""


class TaskTimeout(TimeoutError):
    """A task took longer than its time-out."""


class FlowTimeout(TimeoutError):
    """A flow took longer than its time-out."""


class TaskCancelled(Exception):
    """The task was cancelled, or belongs to a flow that is."""


class TaskExit(Exception):
    """A task called ``sys.exit``: it fails, and the flow goes on."""


class WorkerDied(Exception):
    """The process that executed a task died: the text says by which signal or exit code."""


class ExecutorError(Exception):
    """What was to execute tasks is not there, went away, or cannot take them."""


class ForeignFuture(ValueError):
    """A future of another flow run was given to a task."""


class NotInFlow(RuntimeError):
    """Something that only makes sense inside a flow was called outside of one."""


class ParameterError(TypeError):
    """Parameters that do not fit the flow's signature; the text names them."""


class RunCrashed(Exception):
    """The process of the flow died; the text says of what."""


class ServerAway(Exception):
    """The run's server does not answer."""


class ServerRefused(Exception):
    """The run's server says no.

    Args:
        status: of HTTP.
    """

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class AttemptOver(ServerRefused):
    """For the server this attempt has ended: the run goes on elsewhere, or not at all."""


class RunCancelled(BaseException):
    """The run is being cancelled. No ``Exception``, so that a handler of those does not hold it up."""


class Interrupted(BaseException):
    """Raised inside a task's thread that is to stop: it was cancelled or took too long."""


def is_for_this_thread(error: BaseException) -> bool:
    """Whether it came from outside while a function of the user's was called that nobody waits for: Ctrl-C or SIGTERM."""
    import threading

    return is_cancellation(error) and threading.current_thread() is threading.main_thread()


def is_cancellation(error: BaseException | None) -> TypeGuard[BaseException]:
    """Whether somebody wants this to stop. (asyncio's is told by its name, as that is not to be loaded for it.)"""
    if isinstance(error, (RunCancelled, Interrupted, KeyboardInterrupt)):
        return True
    return type(error).__name__ == "CancelledError" and not isinstance(error, Exception)
