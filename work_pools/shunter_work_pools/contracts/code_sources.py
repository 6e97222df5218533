"""Where the code of a run comes from, and the environment it runs in."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from shunter_work_pools.contracts.base import Contract, Name

#: A path below the root of a source: it never leaves it.
InnerPath = Annotated[str, StringConstraints(max_length=1000, pattern=r"^[^\x00]*$")]
_Text = Annotated[str, StringConstraints(min_length=1, max_length=2000, pattern=r"^[^\x00\r\n]+$")]


class GitSource(Contract):
    """Code of a git repository, fetched by the agent.

    Attributes:
        git: URL of the repository: https, http, ssh, or a path (as ``file`` URL) where the agent's policy allows it.
        branch, tag, commit: which of its commits, one of them at the most; default: its default branch.
        folder: of the repository, that paths of the work are meant from.
        secret: name of the server's secret that opens it: a token for http(s), a private key for ssh.
        user: for http(s), beside the token.
    """

    git: _Text
    branch: _Text | None = None
    tag: _Text | None = None
    commit: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{7,64}$")] | None = None
    folder: InnerPath = ""
    secret: Name | None = None
    user: _Text | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(one is not None for one in (self.branch, self.tag, self.commit)) > 1:
            raise ValueError("at most one of branch, tag and commit can be given")
        return self


class ArchiveSource(Contract):
    """Code in an archive (.zip, .tar, .tar.gz, .tar.zst, .whl), fetched by the agent.

    Attributes:
        archive: URL that fsspec can open.
        sha256: of the archive, in hex; what differs is not run.
        folder: of the archive, that paths of the work are meant from.
        secret: name of the server's secret with options of the file system, a JSON object.
    """

    archive: _Text
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None
    folder: InnerPath = ""
    secret: Name | None = None


#: A folder on the agent's machine, or what the agent fetches.
Source = str | GitSource | ArchiveSource


class Environment(Contract):
    """The Python environment of a run, built once by the agent and shared by what wants the same.

    Attributes:
        python: version (``3.12``) or path of the interpreter; default: the agent's own version.
        requirements: as one writes them for pip.
        requirements_file: of the source, likewise.
        lock: of the source: ``uv.lock`` (beside its pyproject.toml), ``pylock.toml``, or a requirements file with
            hashes.
    """

    python: _Text | None = None
    requirements: list[_Text] = Field(default=[], max_length=1000)
    requirements_file: InnerPath | None = None
    lock: InnerPath | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.lock is not None and (self.requirements or self.requirements_file is not None):
            raise ValueError("lock says all that is installed: give it without requirements")
        return self
