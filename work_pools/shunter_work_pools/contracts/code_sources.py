"""Where the code of a run comes from, and the environment it runs in."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from shunter_work_pools.contracts.base import Contract, Name

#: A commit in full: SHA-1, or SHA-256.
COMMIT = r"^([0-9a-f]{40}|[0-9a-f]{64})$"
#: How git may reach a repository. (``ext`` and ``fd`` run commands, ``git`` is neither private nor sure.)
GIT_SCHEMES = ("https", "http", "ssh", "file")
#: ``user@host:path``, as ssh has it.
_SCP = re.compile(r"[A-Za-z0-9_][\w.-]*@[A-Za-z0-9_][\w.-]*:(?!/?/)\S+", re.ASCII)


def _inner(path: str) -> str:
    parts = PurePosixPath(path).parts
    if path.startswith("/") or ".." in parts:
        raise ValueError(f"{path!r} leaves the source: write it relative to the source's root, without '..'")
    return path


def _without_password(url: str) -> str:
    # Of what comes before the host, a name is harmless; a token would be shown wherever the source is.
    before, at, _ = urlsplit(url).netloc.rpartition("@")
    if at and (":" in before or url.startswith(("http:", "https:"))):
        raise ValueError("a URL with a password or token in it is shown to everybody: name a secret instead")
    return url


def _git_url(url: str) -> str:
    if _SCP.fullmatch(url):
        return url
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in GIT_SCHEMES or not rest or rest.startswith("-"):
        kinds = ", ".join(f"{kind}://" for kind in GIT_SCHEMES)
        raise ValueError(
            f"{url!r} is no URL of a repository: it begins with one of {kinds}, or is user@host:path"
        )
    return _without_password(url)


#: A path below the root of a source: it never leaves it.
InnerPath = Annotated[
    str, StringConstraints(max_length=1000, pattern=r"^[^\x00\r\n]*$"), AfterValidator(_inner)
]
_Ref = Annotated[
    str, StringConstraints(pattern=r"^[^\x00-\x20\x7f~^:?*\[\\-][^\x00-\x20\x7f~^:?*\[\\]{0,250}$")
]
_Text = Annotated[str, StringConstraints(min_length=1, max_length=2000, pattern=r"^[^\x00\r\n]+$")]


class GitSource(Contract):
    """Code of a git repository, fetched by the agent.

    Attributes:
        git: URL of the repository: https, http, ssh (also as user@host:path), or file for one on the agent's machine.
        branch, tag, commit: which of its commits, one of them at the most; default: its default branch.
        folder: of the repository, that paths of the work are meant from.
        secret: name of the server's secret that opens it: a token for http(s), a private key for ssh.
        user: for http(s), beside the token.
    """

    git: Annotated[_Text, AfterValidator(_git_url)]
    branch: _Ref | None = None
    tag: _Ref | None = None
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

    archive: Annotated[_Text, AfterValidator(_without_password)]
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
