"""Flags that say where the code of a run comes from and which environment it runs in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from shunter_work_pools.contracts.errors import InvalidInput

if TYPE_CHECKING:
    from pydantic import BaseModel

    from shunter_work_pools.contracts.code_sources import ArchiveSource, Environment, GitSource

C = TypeVar("C", bound="BaseModel")

#: Field of a source or environment -> its flag.
_FLAGS = {
    "git": "--git",
    "branch": "--branch",
    "tag": "--git-tag",
    "commit": "--commit",
    "archive": "--archive",
    "sha256": "--sha256",
    "folder": "--source-folder",
    "secret": "--source-secret",  # nosec B105 # the name of an option
    "user": "--source-user",
    "requirements": "--package",
    "requirements_file": "--requirements",
    "lock": "--lock",
    "python": "--python",
}
_OF_GIT, _OF_ARCHIVES = ("branch", "tag", "commit", "user"), ("sha256",)


@dataclass(frozen=True)
class Said:
    """What the flags said; None and empty: nothing."""

    git: str | None = None
    branch: str | None = None
    tag: str | None = None
    commit: str | None = None
    archive: str | None = None
    sha256: str | None = None
    folder: str | None = None
    secret: str | None = None
    user: str | None = None
    no_source: bool = False
    requirements: Sequence[str] = ()
    requirements_file: str | None = None
    lock: str | None = None


def source(said: Said) -> GitSource | ArchiveSource | None:
    """What the agent fetches; None: nothing.

    Raises:
        InvalidInput: the flags do not go together, or one is wrong.
    """
    from shunter_work_pools.contracts.code_sources import ArchiveSource, GitSource

    if sum((said.git is not None, said.archive is not None, said.no_source)) > 1:
        raise InvalidInput("--git, --archive and --no-source exclude each other", "Give one of them.")
    kind = "--git" if said.git is not None else "--archive" if said.archive is not None else ""
    for names, needed in (
        (_OF_GIT, ("--git",)),
        (_OF_ARCHIVES, ("--archive",)),
        (("folder", "secret"), ("--git", "--archive")),
    ):
        for name in names:
            if getattr(said, name) is not None and kind not in needed:
                raise InvalidInput(
                    f"{_FLAGS[name]} goes with {' or '.join(needed)}", "Give that, too, or leave it out."
                )
    common = {"folder": said.folder or "", "secret": said.secret}
    if said.git is not None:
        given = {
            "git": said.git,
            "branch": said.branch,
            "tag": said.tag,
            "commit": said.commit,
            "user": said.user,
        }
        return _made(GitSource, given | common)
    if said.archive is not None:
        return _made(ArchiveSource, {"archive": said.archive, "sha256": said.sha256} | common)
    return None


def environment(said: Said, python: str | None, here: Path | None) -> Environment | None:
    """What the agent builds; None: nothing.

    Args:
        python: what --python says: of an environment, the version.
        here: the folder that files are meant from, if it is at hand: then they must be there.

    Raises:
        InvalidInput: one is wrong.
    """
    from shunter_work_pools.contracts.code_sources import Environment

    if not said.requirements and said.requirements_file is None and said.lock is None:
        return None
    made = _made(
        Environment,
        {
            "python": python,
            "requirements": list(said.requirements),
            "requirements_file": said.requirements_file,
            "lock": said.lock,
        },
    )
    for flag, name in (("--requirements", made.requirements_file), ("--lock", made.lock)):
        if name is None:
            continue
        if said.no_source:
            raise InvalidInput(
                f"{flag} {name!r} is of the source, and --no-source says that there is none", "Use --package."
            )
        if here is not None and not (here / name).is_file():
            raise InvalidInput(f"{flag} {name!r} is not in {here}", "Check the path.")
    return made


def _made(contract: type[C], given: dict[str, Any]) -> C:
    from pydantic import ValidationError

    try:
        return contract.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as exc:
        one = exc.errors(include_url=False)[0]
        flag = _FLAGS.get(str(one["loc"][0]), "") if one["loc"] else ""
        message = str(one["msg"]).removeprefix("Value error, ")
        value = (
            f" {one['input']!r}"
            if flag and isinstance(one["input"], str) and "://" not in one["input"]
            else ""
        )
        raise InvalidInput(f"{flag}{value}: {message}".lstrip(": "), "See `shunter deploy --help`.") from exc
