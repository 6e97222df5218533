"""Code of git repositories: what is had, what is shared, what is never done. A real git server over http."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from glob import glob
from pathlib import Path

import pytest

from shunter_agents.sources.git import Repositories
from shunter_agents.sources.shelf import Shelf
from shunter_infrastructure.launcher import LaunchFailed, NotReady
from shunter_work_pools.contracts.code_sources import GitSource
from shunter_work_pools.contracts.states import Cause
from tests.sources.git_server import GitServer, Repository, git, git_server

TOKEN = "s3cr3t-of-the-repository"


@dataclass
class Place:
    """An agent's cache, and a repository on a server."""

    root: Path
    server: GitServer
    repository: Repository
    url: str

    def repositories(self, environ: dict[str, str] | None = None) -> Repositories:
        cache = self.root / "cache"
        return Repositories(cache / "repositories", Shelf(cache / "code"), environ or dict(os.environ))

    def user(self, name: str = "run.1") -> Path:
        folder = self.root / "attempts" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    async def fetch(
        self,
        secret: str | None = None,
        pinned: str | None = None,
        said: list[str] | None = None,
        **source: str,
    ) -> tuple[Path, str]:
        wanted = GitSource(**{"git": self.url, **source})
        told = (lambda words: None) if said is None else said.append
        return await self.repositories().fetch(wanted, secret, pinned, self.user(), told)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    root = tmp_path / "served"
    repository = Repository(root / "code")
    with git_server(root) as server:
        yield Place(tmp_path, server, repository, f"{server.url}/code/.git")


async def test_branch_tag_commit_and_default(place: Place) -> None:
    first = place.repository.commit({"a.txt": "1", "bin/run": "#!/bin/sh\n"})
    git(place.repository.folder, "tag", "-a", "v1", "-m", "one")
    git(place.repository.folder, "switch", "--quiet", "-c", "other")
    second = place.repository.commit({"a.txt": "2"})
    folder, commit = await place.fetch(tag="v1")
    assert ((folder / "a.txt").read_text(), commit) == ("1", first)
    assert not (folder / ".git").exists()
    folder, commit = await place.fetch()  # HEAD of the server
    assert ((folder / "a.txt").read_text(), commit) == ("2", second)
    assert (await place.fetch(branch="main"))[1] == first
    assert (await place.fetch(commit=first))[1] == first
    assert (await place.fetch(commit=first[:10]))[1] == first
    mode = stat.S_IMODE((folder / "a.txt").stat().st_mode)
    assert mode == 0o444, "nobody changes what others share"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o555


async def test_a_branch_that_moves_is_followed_and_a_pinned_commit_is_not_even_asked_for(
    place: Place,
) -> None:
    first = place.repository.commit({"a.txt": "1"})
    assert (await place.fetch(branch="main"))[1] == first
    second = place.repository.commit({"a.txt": "2"}, "--amend")  # and so the server forgets the first
    git(place.repository.folder, "reflog", "expire", "--expire=now", "--all")
    git(place.repository.folder, "gc", "--quiet", "--prune=now")
    assert (await place.fetch(branch="main"))[1] == second
    asked = len(place.server.requests)
    folder, commit = await place.fetch(branch="main", pinned=first)
    assert ((folder / "a.txt").read_text(), commit) == ("1", first)
    assert len(place.server.requests) == asked


async def test_what_is_cached_and_pinned_runs_while_the_server_is_away_and_the_rest_waits(
    place: Place,
) -> None:
    first = place.repository.commit({"a.txt": "1"})
    await place.fetch(branch="main")
    place.server.answer = 503
    assert (await place.fetch(branch="main", pinned=first))[1] == first
    assert (await place.fetch(commit=first))[1] == first
    with pytest.raises(NotReady, match="503") as caught:
        await place.fetch(branch="main")
    assert caught.value.cause is Cause.SOURCE


async def test_nobody_there_is_waited_for(place: Place) -> None:
    with pytest.raises(NotReady, match=r"(?i)failed to connect|refused"):
        await place.fetch(git="http://127.0.0.1:1/x.git")


async def test_twenty_at_once_on_a_cold_cache_fetch_once_or_twice(place: Place) -> None:
    first = place.repository.commit({f"f{n}.txt": "x" * 1000 for n in range(50)})
    repositories = place.repositories()
    source = GitSource(git=place.url, branch="main")
    found = await asyncio.gather(
        *(
            repositories.fetch(source, None, None, place.user(f"run.{n}"), lambda words: None)
            for n in range(20)
        )
    )
    assert {commit for _, commit in found} == {first}
    assert len({folder for folder, _ in found}) == 1
    # One that had begun, and one for all who came after it had looked.
    assert 1 <= place.server.fetches() <= 3
    users = place.root / "cache/code/users"
    assert len(list(users.iterdir())) == 20


async def test_who_asks_after_a_push_has_it_though_a_fetch_was_under_way(place: Place) -> None:
    first = place.repository.commit({"a.txt": "1"})
    place.server.hold = threading.Event()
    repositories, source = place.repositories(), GitSource(git=place.url, branch="main")

    def get(name: str) -> asyncio.Task[tuple[Path, str]]:
        return asyncio.ensure_future(
            repositories.fetch(source, None, None, place.user(name), lambda words: None)
        )

    one = get("run.1")
    assert await asyncio.to_thread(place.server.held.wait, 10)
    second = await asyncio.to_thread(place.repository.commit, {"a.txt": "2"})
    other = get("run.2")
    await asyncio.sleep(0)  # it has asked by now
    place.server.hold.set()
    assert [commit for _, commit in await asyncio.gather(one, other)] == [first, second]


async def test_two_agents_share_one_cache(place: Place) -> None:
    first = place.repository.commit({"a.txt": "1"})
    both = await asyncio.gather(place.fetch(branch="main"), place.fetch(branch="main"))
    assert [commit for _, commit in both] == [first, first]
    assert len(list((place.root / "cache/code").glob("*.lock"))) == 1


async def test_a_private_repository_opens_by_its_secret_which_is_nowhere(
    place: Place,
) -> None:
    place.repository.commit({"a.txt": "1"})
    place.server.password = ("me", TOKEN)
    with _all_programs() as seen:
        _, commit = await place.fetch(secret=TOKEN + "\n", user="me", branch="main")
    assert place.server.tokens
    assert set(place.server.tokens) == {f"me:{TOKEN}"}
    assert any(b"remote-http" in words for words in seen), "it was seen at work"
    assert not any(TOKEN.encode() in words for words in seen)
    for path in place.root.rglob("*"):
        if path.is_file() and "served" not in path.parts:
            assert TOKEN.encode() not in path.read_bytes(), path

    with pytest.raises(LaunchFailed, match=r"Authentication failed|could not read") as caught:
        await place.fetch(secret="wrong-" + TOKEN, user="me", branch="main")
    assert TOKEN not in caught.value.told
    with pytest.raises(LaunchFailed) as caught:
        await place.fetch(branch="main")
    assert "Name the secret that opens it" in caught.value.told
    asked = len(place.server.requests)
    with pytest.raises(LaunchFailed):  # the commit is here, but it is not for everybody
        await place.fetch(pinned=commit, branch="main")
    assert len(place.server.requests) > asked


@contextlib.contextmanager
def _all_programs() -> Iterator[list[bytes]]:
    """What can be read of all processes of the machine meanwhile: their arguments and environments."""
    seen: list[bytes] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            for path in [*glob("/proc/[0-9]*/cmdline"), *glob("/proc/[0-9]*/environ")]:
                with contextlib.suppress(OSError):
                    seen.append(Path(path).read_bytes())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


async def test_a_secret_is_for_the_host_of_the_url_alone(place: Place) -> None:
    """Whoever the host redirects to asks in vain."""
    place.repository.commit({"a.txt": "1"})
    with git_server(place.root / "served") as thief:
        thief.password = ("x-access-token", TOKEN)
        place.server.redirect = thief.url
        with pytest.raises(LaunchFailed):
            await place.fetch(secret=TOKEN, branch="main")
        assert thief.requests
        assert thief.tokens == []


async def test_nothing_of_a_repository_or_of_the_user_is_executed(place: Place, tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    config = tmp_path / "home" / ".gitconfig"
    config.parent.mkdir()
    script = tmp_path / "script.sh"
    script.write_text(f"#!/bin/sh\ntouch {trap}\ncat\n")
    script.chmod(0o755)
    config.write_text(
        f'[filter "trap"]\n smudge = {script}\n required = true\n[core]\n hooksPath = {tmp_path}\n'
        f' fsmonitor = {script}\n[url "ext::{script}"]\n insteadOf = http://\n'
    )
    (tmp_path / "post-checkout").write_text(f"#!/bin/sh\ntouch {trap}\n")
    (tmp_path / "post-checkout").chmod(0o755)
    place.repository.commit(
        {
            ".gitattributes": "*.txt filter=trap\n",
            "a.txt": "1",
            ".gitmodules": f'[submodule "x"]\n path = x\n url = ext::{script}\n',
        }
    )
    git(place.repository.folder, "update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},x")
    git(place.repository.folder, "commit", "--quiet", "-m", "a submodule")
    environ = dict(os.environ) | {"HOME": str(config.parent)}
    folder, _ = await place.repositories(environ).fetch(
        GitSource(git=place.url), None, None, place.user(), lambda words: None
    )
    assert (folder / "a.txt").read_text() == "1"
    assert list((folder / "x").iterdir()) == []
    assert not trap.exists()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"branch": "none"}, "couldn't find remote ref"),
        ({"tag": "none"}, "couldn't find remote ref"),
        ({"commit": "1" * 40}, "has no commit 111111111111"),
        ({"commit": "1234567"}, "no commit that '1234567' means"),
    ],
)
async def test_what_is_not_there_is_told_in_gits_words(
    place: Place, source: dict[str, str], words: str
) -> None:
    place.repository.commit({"a.txt": "1"})
    with pytest.raises(LaunchFailed, match=words) as caught:
        await place.fetch(**source)
    assert caught.value.cause is Cause.SOURCE


async def test_a_mirror_that_a_killed_git_left_locked_or_broken_is_made_anew(place: Place) -> None:
    place.repository.commit({"a.txt": "1"})
    await place.fetch(branch="main")
    (mirror,) = (place.root / "cache/repositories").glob("*.git")
    (mirror / "shallow.lock").touch()
    second = place.repository.commit({"a.txt": "2"})
    assert (await place.fetch(branch="main"))[1] == second
    (mirror / "HEAD").unlink()
    third = place.repository.commit({"a.txt": "3"})
    assert (await place.fetch(branch="main"))[1] == third


async def test_a_server_that_gives_no_single_commits_is_asked_for_all(place: Place) -> None:
    first = place.repository.commit({"a.txt": "1"})
    place.repository.commit({"a.txt": "2"})
    git(place.repository.folder, "config", "uploadpack.allowAnySHA1InWant", "false")
    # Protocol 2 gives them all the same; an old server does not speak it.
    git(place.repository.folder, "config", "protocol.version", "0")
    assert (await place.fetch(branch="main"))[1] != first
    folder, commit = await place.fetch(commit=first)
    assert ((folder / "a.txt").read_text(), commit) == ("1", first)


async def test_a_commit_of_endlessly_many_files_is_refused_before_any_is_written(place: Place) -> None:
    """Ten names for one folder of ten names, seven times: a few hundred bytes, and ten million files."""
    place.repository.commit({"a.txt": "1"})
    folder = place.repository.folder
    thing = f"100644 blob {git(folder, 'hash-object', '-w', 'a.txt')}"
    for _ in range(7):
        lines = "".join(f"{thing}\tname-{number}\n" for number in range(10))
        tree = git(folder, "mktree", stdin=lines)
        thing = f"040000 tree {tree}"
    commit = git(folder, "commit-tree", tree, "-m", "many")
    git(folder, "update-ref", "refs/heads/many", commit)
    with pytest.raises(LaunchFailed, match="has more than 400,000 files") as refused:
        await place.fetch(branch="many")
    assert refused.value.cause is Cause.SOURCE
    assert not [one for one in (place.root / "cache/code").glob(f"{commit[:12]}*") if one.is_dir()]
    assert (await place.fetch(branch="main"))[0].is_dir()


async def test_a_repository_of_the_machine(place: Place) -> None:
    first = place.repository.commit({"a.txt": "1"})
    assert (await place.fetch(git=f"file://{place.repository.folder}", branch="main"))[1] == first
    with pytest.raises(LaunchFailed, match="needs none"):
        await place.fetch(git=f"file://{place.repository.folder}", secret="x", branch="main")


async def test_without_git_it_says_what_to_install(place: Place) -> None:
    repositories = place.repositories({"PATH": "/nowhere"})
    with pytest.raises(LaunchFailed) as caught:
        await repositories.fetch(GitSource(git=place.url), None, None, place.user(), lambda words: None)
    assert "Install git on the agent's machine" in caught.value.told
