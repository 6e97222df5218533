"""Code of git repositories: a bare mirror of each URL, and a folder of each commit that ran.

The program ``git`` is used without any configuration but what is given here: no hooks, no aliases, no filters, no
credential stores, no transports that run commands. Nothing of a repository is executed to have its files.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from shunter_agents.sources.locks import ALONE, left_alone, locked
from shunter_agents.sources.programs import Done, TooLong, run
from shunter_agents.sources.shared import Shared, Told
from shunter_agents.sources.shelf import Shelf
from shunter_agents.sources.surroundings import masked, surroundings
from shunter_infrastructure.launcher import LaunchFailed, NotReady
from shunter_infrastructure.removing import remove
from shunter_work_pools.contracts.code_sources import COMMIT, GIT_SCHEMES, GitSource
from shunter_work_pools.contracts.states import Cause

#: Seconds that one fetch may take, and that it may receive nothing.
FETCH_LIMIT, STALL_LIMIT = 1800.0, 30
#: What the files of one commit may be at the most: so many, and so many bytes. A tree may name one file millions of times.
FILE_LIMIT, BYTE_LIMIT = 400_000, 4 * 2**30
#: User of https when the deployment names none: what hosts want beside a token that is enough by itself.
TOKEN_USER = "x-access-token"  # nosec B105 # the name of a user
#: Characters of git's own words that are told.
_WORDS = 600

#: What git says of a server or network that is away, and may be back.
_AWAY = re.compile(
    r"could not resolve|couldn't connect|failed to connect|connection (refused|reset|timed out|closed)"
    r"|operation timed out|too slow|network is unreachable|no route to host|temporary failure|early eof"
    r"|the remote end hung up|recv failure|send failure|empty reply|gnutls_handshake\(\) failed: error in the pull"
    r"|requested url returned error: (5\d\d|429|408)|proxy connect aborted|ssl_error_syscall"
    r"|kex_exchange_identification|unexpected disconnect",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"terminal prompts disabled|authentication failed|returned error: 40[13]|permission denied|access denied",
    re.IGNORECASE,
)
#: What it says of servers that give no single commits, or no shallow ones.
_WHOLE = re.compile(r"unadvertised object|not our ref|shallow|does not allow request", re.IGNORECASE)
_UNKNOWN_HOST = re.compile(r"host key verification failed", re.IGNORECASE)
_PROGRESS = re.compile(
    r"^(remote: )?(Receiving objects|Resolving deltas|Counting objects|Compressing objects):\s+\d+%"
)


class Repositories:
    """Mirrors and the folders of commits.

    Args:
        folder: of the mirrors.
        shelf: for what is checked out.
        environ: of the agent.
    """

    def __init__(self, folder: Path, shelf: Shelf, environ: Mapping[str, str]) -> None:
        self._folder = folder
        self._shelf = shelf
        self._environ = environ
        self._resolving: Shared[str] = Shared()
        self._checking_out: Shared[Path] = Shared()

    async def fetch(
        self, source: GitSource, secret: str | None, pinned: str | None, user: Path, told: Told
    ) -> tuple[Path, str]:
        """The folder of a source's files, and its commit.

        Args:
            secret: opens the repository.
            pinned: the commit that must be had; None: the newest of what the source names.
            user: folder of the attempt that uses it.
            told: is called with progress.

        Raises:
            LaunchFailed: it cannot be had.
            NotReady: the repository is away.
        """
        git = _Git(self._folder, source, secret, self._environ)
        commit = pinned or (source.commit if source.commit and re.match(COMMIT, source.commit) else None)
        if commit is None:
            commit = await self._newest(git, told)
        key = f"{commit[:12]}-{_digest(source.git, secret or '', commit)}"

        async def make(draft: Path) -> None:
            async with locked(git.lock, ALONE):
                await git.have(commit, told)
                await git.check_out(commit, draft)

        async def check_out(say: Told) -> Path:
            return await self._shelf.take(key, user, make)

        if not self._shelf.has(key):
            await self._checking_out.get(key, check_out, told)
        return await self._shelf.take(key, user, make), commit

    async def _newest(self, git: _Git, told: Told) -> str:
        """The commit that a branch or tag names now.

        A fetch that many wait for is done once, but not one that began before somebody asked: a branch may
        have moved since.
        """
        key = _digest(git.source.git, git.secret or "", git.wanted)

        async def resolve(say: Told) -> str:
            async with locked(git.lock, ALONE):
                self._resolving.close(key)
                return await git.newest(say)

        return await self._resolving.get(key, resolve, told)

    def collect(self, keep: float) -> None:
        """Remove the mirrors of repositories of which nobody wanted anything for so many seconds."""
        for path in left_alone(self._folder, keep):
            remove(path.with_suffix(".git"))


class _Git:
    """The mirror of one URL, used with its lock held."""

    def __init__(
        self, folder: Path, source: GitSource, secret: str | None, environ: Mapping[str, str]
    ) -> None:
        folder.mkdir(
            mode=0o700, parents=True, exist_ok=True
        )  # of the agent alone, runs have what is checked out
        # By its secret, too: who has no right to it must not have it from here.
        name = _digest(source.git, secret or "")
        self.source = source
        self.secret = secret
        self.mirror = folder / f"{name}.git"
        self.lock = folder / f"{name}.lock"
        self._environ = environ

    @property
    def wanted(self) -> str:
        """The ref, or the beginning of a commit, that the source names."""
        if self.source.branch is not None:
            return f"refs/heads/{self.source.branch}"
        if self.source.tag is not None:
            return f"refs/tags/{self.source.tag}"
        return self.source.commit or "HEAD"

    async def newest(self, say: Told) -> str:
        """The commit that the source names at this moment."""
        os.utime(self.lock)
        if self.source.commit is not None:  # its beginning: only who has them all knows which one that is
            await self._fetch_all(say)
            return await self._commit_of(self.source.commit)
        kept = f"refs/shunter/{_digest(self.wanted)}"
        await self._fetch([f"+{self.wanted}:{kept}"], say)
        return await self._commit_of(kept)

    async def have(self, commit: str, say: Told) -> None:
        """Make sure that a commit is in the mirror."""
        os.utime(self.lock)
        if await self._has(commit):
            return
        await self._fetch([f"+{commit}:refs/shunter/{_digest(commit)}"], say)
        if not await self._has(commit):
            raise LaunchFailed(
                Cause.SOURCE,
                f"{self.source.git} has no commit {commit[:12]} (any more)",
                "Correct the deployment's commit; a run that was begun with a commit goes on with it, a new one has a "
                "newer one.",
            )

    async def _has(self, commit: str) -> bool:
        if not self.mirror.exists():
            return False
        return (await self._git(["cat-file", "-e", f"{commit}^{{commit}}"])).code == 0

    async def check_out(self, commit: str, target: Path) -> None:
        """Write the files of a commit into a folder, which is made."""
        await self._measure(commit)
        target.mkdir(mode=0o755)
        with tempfile.TemporaryDirectory(prefix="shunter-index-", dir=self.mirror) as index:
            for argv in (["read-tree", commit], ["checkout-index", "--all", "--force"]):
                done = await self._git(
                    ["-c", "core.bare=false", f"--work-tree={target}", *argv],
                    cwd=target,
                    env={"GIT_INDEX_FILE": f"{index}/index"},
                )
                if done.code != 0:
                    remove(self.mirror)  # whatever is wrong with it, the next try has a new one
                    raise self._failed(done, f"the files of commit {commit[:12]} cannot be written")

    async def _measure(self, commit: str) -> None:
        """Refuse a commit whose files are more than there can be, before any of them is written."""
        files, size, rest = 0, 0, b""

        def count(data: bytes) -> None:
            nonlocal files, size, rest
            *lines, rest = (rest + data).split(b"\n")
            files += len(lines)
            # A submodule has a dash there.
            size += sum(int(number) for line in lines if (number := line.split(None, 4)[3]).isdigit())
            if files > FILE_LIMIT or size > BYTE_LIMIT:
                raise LaunchFailed(
                    Cause.SOURCE,
                    f"commit {commit[:12]} of {self.source.git} has more than {FILE_LIMIT:,} files or "
                    f"{BYTE_LIMIT / 2**30:.3g} GiB",
                    "Make the repository smaller, or deploy from an archive of what is needed.",
                )

        done = await self._git(["ls-tree", "-r", "-l", "--full-tree", commit], on_output=count)
        if done.code != 0:
            remove(self.mirror)  # whatever is wrong with it, the next try has a new one
            raise self._failed(done, f"the files of commit {commit[:12]} cannot be listed")

    async def _commit_of(self, name: str) -> str:
        done = await self._git(["rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"])
        commit = done.out.strip()
        if done.code != 0 or not re.match(COMMIT, commit):
            raise LaunchFailed(
                Cause.SOURCE,
                f"{self.source.git} has no commit that {self.wanted!r} means, or several",
                "Correct the deployment's branch, tag or commit.",
            )
        return commit

    async def _fetch(self, refs: Sequence[str], say: Told) -> None:
        done = await self._remote(["--depth=1", "--no-tags"], refs, say)
        if done.code != 0 and _WHOLE.search(done.err):
            if refs[0].startswith("+refs/"):
                done = await self._remote(["--no-tags"], refs, say)
            else:
                await self._fetch_all(say)
                return
        if done.code != 0:
            raise self._failed(done, "it cannot be fetched")

    async def _fetch_all(self, say: Told) -> None:
        whole = ["--unshallow"] if (self.mirror / "shallow").exists() else []
        every = ["+refs/heads/*:refs/all/heads/*", "+refs/tags/*:refs/all/tags/*"]
        done = await self._remote([*whole, "--no-tags", "--prune"], every, say)
        if done.code != 0:
            raise self._failed(done, "it cannot be fetched")

    async def _remote(self, flags: Sequence[str], refs: Sequence[str], say: Told) -> Done:
        """One fetch; in a mirror that a killed one has left locked or broken, once more in a new one."""

        def on_line(line: str) -> None:
            if _PROGRESS.match(line):
                words = line.removeprefix("remote: ").split(",")[0].strip()
                say(f"its code is being fetched: {words[:1].lower()}{words[1:]}")

        for last in (False, True):
            if not self.mirror.exists():
                done = await self._git(["init", "--quiet", "--bare", "--", str(self.mirror)], mirror=False)
                if done.code != 0:
                    raise self._failed(done, "its mirror cannot be made")
            with self._credentials() as (config, env, fds):
                done = await self._git(
                    [
                        *config,
                        *(
                            "fetch",
                            "--progress",
                            "--force",
                            "--no-write-fetch-head",
                            "--no-recurse-submodules",
                        ),
                        *(*flags, "--", self.source.git, *refs),
                    ],
                    env=env,
                    pass_fds=fds,
                    on_line=on_line,
                )
            broken = "File exists" in done.err or "not a git repository" in done.err or "corrupt" in done.err
            if done.code == 0 or last or not broken or (done.err and _AWAY.search(done.err)):
                return done
            remove(self.mirror)
        raise AssertionError("unreachable")

    async def _git(
        self,
        argv: Sequence[str],
        *,
        mirror: bool = True,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        on_line: Told | None = None,
        on_output: Callable[[bytes], None] | None = None,
    ) -> Done:
        program = shutil.which("git", path=self._environ.get("PATH"))
        if program is None:
            raise LaunchFailed(
                Cause.SOURCE,
                "the agent has no git to fetch the code with",
                "Install git on the agent's machine, or deploy from an archive.",
            )
        config = {
            "core.hooksPath": "/dev/null",
            "core.fsmonitor": "false",
            "credential.helper": "",
            "protocol.version": "2",
            "http.lowSpeedLimit": "1",
            "http.lowSpeedTime": str(STALL_LIMIT),
            "gc.autoDetach": "false",
            "advice.detachedHead": "false",
        }
        settings = [word for name, value in config.items() for word in ("-c", f"{name}={value}")]
        where = [f"--git-dir={self.mirror}"] if mirror else []
        try:
            return await run(
                [program, *settings, *where, *argv],
                env={**_surroundings(self._environ), **(env or {})},
                limit=FETCH_LIMIT,
                cwd=cwd or self.mirror.parent,
                pass_fds=pass_fds,
                on_line=on_line,
                on_output=on_output,
            )
        except TooLong as exc:
            raise LaunchFailed(
                Cause.SOURCE,
                f"the code of {self.source.git} was not fetched: {exc}",
                "Make the repository smaller.",
            ) from exc

    @contextmanager
    def _credentials(self) -> Iterator[tuple[list[str], dict[str, str], list[int]]]:
        """Configuration, environment and descriptors by which git has the secret: it is in none of the first two,
        and in no file."""
        if self.secret is None:
            yield [], {}, []
            return
        url = urlsplit(self.source.git)
        if url.scheme in ("http", "https"):
            user = self.source.user or TOKEN_USER
            token = self.secret.strip()
            if not token.isprintable():
                raise self._unfit("a token has one line, without control characters")
            with _memory(f"username={user}\npassword={token}\n") as fd:
                # Only the host of the URL itself is answered, whoever else it redirects to.
                helper = f'!f() {{ test "$1" = get && cat /dev/fd/{fd}; }}; f'
                yield ["-c", f"credential.{url.scheme}://{url.netloc}.helper={helper}"], {}, [fd]
        elif url.scheme == "file":
            raise self._unfit("a repository on the agent's machine needs none")
        else:
            with _memory(self.secret.strip() + "\n") as fd:
                # ssh closes what it inherits; the shell that starts it does not.
                key = f"-o IdentitiesOnly=yes -o IdentityAgent=none -i /proc/$$/fd/{fd}"
                yield [], {"GIT_SSH_COMMAND": f'f() {{ {_SSH} {key} "$@"; }}; f'}, [fd]

    def _unfit(self, why: str) -> LaunchFailed:
        return LaunchFailed(
            Cause.SOURCE,
            f"the secret of {self.source.git} cannot be used: {why}",
            "Correct the secret, or leave it out.",
        )

    def _failed(self, done: Done, what: str) -> LaunchFailed | NotReady:
        said = self._words(done)
        detail = f"the code of {self.source.git}: {what}: {said}"
        if _DENIED.search(done.err):
            return LaunchFailed(Cause.SOURCE, detail, self._remedy())
        if _UNKNOWN_HOST.search(done.err):
            return LaunchFailed(
                Cause.SOURCE,
                detail,
                "Add the host's key to known_hosts of the agent's user (ssh-keyscan shows it).",
            )
        if _AWAY.search(done.err):
            return NotReady(detail, cause=Cause.SOURCE)
        if "couldn't find remote ref" in done.err:
            return LaunchFailed(Cause.SOURCE, detail, "Correct the deployment's branch or tag.")
        return LaunchFailed(Cause.SOURCE, detail, "Correct the deployment's source, or the repository.")

    def _remedy(self) -> str:
        if self.source.secret is None:
            return "Name the secret that opens it, with --source-secret or as `secret` of the source."
        return f"See whether the secret {self.source.secret} is right and may read the repository."

    def _words(self, done: Done) -> str:
        lines = [line.strip() for line in done.err.splitlines() if line.strip() and not _PROGRESS.match(line)]
        told = [
            line for line in lines if line.startswith(("fatal:", "error:", "remote:", "ERROR:"))
        ] or lines[-3:]
        words = masked("; ".join(dict.fromkeys(told)), self.secret) or f"git ended with code {done.code}"
        return words if len(words) <= _WORDS else words[:_WORDS] + " [...]"


_SSH = (
    "ssh -o BatchMode=yes -o StrictHostKeyChecking=yes -o ConnectTimeout=30 "
    "-o ServerAliveInterval=15 -o ServerAliveCountMax=4"
)


def _surroundings(own: Mapping[str, str]) -> dict[str, str]:
    env = surroundings(own) | {
        "GIT_ALLOW_PROTOCOL": ":".join(GIT_SCHEMES),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_LFS_SKIP_SMUDGE": "1",
        "GIT_SSH_COMMAND": _SSH,
        "GIT_SSH_VARIANT": "ssh",
    }
    if "SSL_CERT_FILE" in own:  # libcurl does not look at it
        env.setdefault("GIT_SSL_CAINFO", own["SSL_CERT_FILE"])
    return env


@contextmanager
def _memory(text: str) -> Iterator[int]:
    """A descriptor of a file that is in memory only, readable by this user alone."""
    if not hasattr(os, "memfd_create"):
        raise LaunchFailed(
            Cause.SOURCE,
            "secrets of repositories need an agent on Linux",
            "Let the agent's user have access by itself: keys of ssh, for example.",
        )
    fd = os.memfd_create("shunter")
    try:
        os.fchmod(fd, 0o600)
        os.write(fd, text.encode())
        yield fd
    finally:
        os.close(fd)


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:40]
