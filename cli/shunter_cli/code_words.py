"""Where the code of a run comes from and what it runs in, on one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shunter_work_pools.contracts.code_sources import Environment, Source


def source(of: Source | None) -> str:
    """``https://git.example/code.git, branch main, folder flows``."""
    from shunter_work_pools.contracts.code_sources import GitSource

    if of is None or isinstance(of, str):
        return of or ""
    if isinstance(of, GitSource):
        which = {"branch": of.branch, "tag": of.tag, "commit": of.commit}
        words = [of.git, *(f"{kind} {name}" for kind, name in which.items() if name)]
    else:
        words = [of.archive, *([f"sha256 {of.sha256[:12]}"] if of.sha256 else [])]
    words += [f"folder {of.folder}"] if of.folder else []
    words += [f"opened by the secret {of.secret}"] if of.secret else []
    return ", ".join(words)


def environment(of: Environment) -> str:
    """``an environment with python 3.12, pandas>=2, requirements.txt``."""
    words = [
        f"python {of.python}" if of.python else "",
        *of.requirements,
        of.requirements_file or "",
        of.lock or "",
    ]
    return f"an environment with {', '.join(word for word in words if word) or 'no package'}"
