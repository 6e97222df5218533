"""The launcher of a pool type. Each is imported only when it is asked for: engines' libraries are large."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from shunter_infrastructure.launcher import Launcher
from shunter_work_pools.contracts.errors import InvalidInput

#: Pool type -> module and name of a callable that makes its launcher.
_LAUNCHERS: dict[str, tuple[str, str]] = {
    "process": ("shunter_infrastructure.process.launcher", "ProcessLauncher"),
    "docker": ("shunter_infrastructure.docker.launcher", "DockerLauncher"),
    "kubernetes": ("shunter_infrastructure.kubernetes.launcher", "KubernetesLauncher"),
    "fake": ("shunter_infrastructure.fake", "FakeLauncher"),
}


def launcher_for(pool_type: str, options: Mapping[str, Any] | None = None) -> Launcher:
    """Make the launcher of a pool type.

    Args:
        pool_type: ``process``, ``docker``, ``kubernetes``; ``fake`` in tests.
        options: keyword arguments for it.

    Raises:
        InvalidInput: this installation has no launcher of that type, or lacks its libraries.
    """
    entry = _LAUNCHERS.get(pool_type)
    if entry is None:
        known = ", ".join(sorted(_LAUNCHERS))
        raise InvalidInput(f"there is no launcher for pools of type {pool_type!r}", f"Known types: {known}.")
    module, name = entry
    try:
        make: Callable[..., Launcher] = getattr(import_module(module), name)
    except ImportError as exc:
        missing = exc.name or ""
        if module.startswith(missing):
            raise InvalidInput(
                f"this version of Shunter has no launcher for pools of type {pool_type!r} yet",
                "Serve another pool with this agent, or install a newer version.",
            ) from exc
        raise InvalidInput(
            f"the launcher for pools of type {pool_type!r} needs the package {missing!r}",
            f"Install it with: pip install 'shunter[{pool_type}]'",
        ) from exc
    return make(**(options or {}))
