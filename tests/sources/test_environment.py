"""Environments: built once by the real uv from packages that the tests made, shared, told when they cannot be."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import sys
import tarfile
import textwrap
import time
from pathlib import Path

import pytest

from shunter_agents.sources import environment as module
from shunter_agents.sources.environment import Environments, plan
from shunter_agents.sources.shelf import Shelf
from shunter_infrastructure.launcher import LaunchFailed, NotReady
from shunter_work_pools.contracts.code_sources import Environment
from shunter_work_pools.contracts.states import Cause
from tests.sources.packages import wheel


class Place:
    """An agent's cache, and an index of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.index = root / "index"
        self.shelf = Shelf(root / "cache" / "environments")
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith("UV_")} | {
            "UV_FIND_LINKS": str(self.index),
            "UV_OFFLINE": "1",
            "UV_PYTHON_DOWNLOADS": "never",
        }

    def environments(self, **environ: str) -> Environments:
        return Environments(self.shelf, self.root / "cache" / "downloads", self.environ | environ)

    def user(self, name: str = "run.1") -> Path:
        folder = self.root / "attempts" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    async def build(
        self,
        source: Path | None = None,
        *,
        said: list[str] | None = None,
        trusted: bool = True,
        **wanted: object,
    ) -> str:
        told = (lambda words: None) if said is None else said.append
        environment = Environment.model_validate(wanted)
        return await self.environments().build(environment, source, self.user(), told, trusted=trusted)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    wheel(place.index, "tiny", "1.0")
    wheel(place.index, "tiny", "2.0")
    wheel(place.index, "needs_tiny", "1.0", requires="tiny>=1")
    return place


def has(python: str, code: str) -> str:
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


async def test_it_is_built_once_and_found_again(place: Place) -> None:
    said: list[str] = []
    python = await place.build(requirements=["needs-tiny", "tiny<2"], said=said)
    assert has(python, "import needs_tiny, tiny; print(tiny.VERSION)") == "1.0"
    assert any("resolved 2 packages" in words for words in said), said
    assert "Installed 2 packages" in place.shelf.log_of(Path(python).parents[1].name).read_text()
    again: list[str] = []
    assert await place.build(requirements=["needs-tiny", "tiny<2"], said=again) == python
    assert again == []
    other = await place.build(requirements=["tiny"])
    assert other != python
    assert has(other, "import tiny; print(tiny.VERSION)") == "2.0"
    with pytest.raises(subprocess.CalledProcessError):
        has(other, "import needs_tiny")
    assert not os.access(Path(python).parents[1] / "pyvenv.cfg", os.W_OK) or os.geteuid() == 0


async def test_ten_at_once_build_it_once_and_all_hear_of_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds: list[object] = []
    run = module._Build.run

    async def counted(build: module._Build) -> None:
        builds.append(build)
        await run(build)

    monkeypatch.setattr(module._Build, "run", counted)
    one, other = place.environments(), place.environments()  # two agents
    wanted = Environment(requirements=["tiny"])
    said: list[list[str]] = [[] for _ in range(10)]
    found = await asyncio.gather(
        *(
            (one if n % 2 else other).build(wanted, None, place.user(f"run.{n}"), said[n].append)
            for n in range(10)
        )
    )
    assert len(set(found)) == 1
    assert len(builds) == 1
    assert sum(bool(words) for words in said) >= 5, "all those of one agent"


@pytest.mark.parametrize("kind", ["requirements", "nested", "lock"])
async def test_files_of_the_source_count_by_their_content(place: Place, tmp_path: Path, kind: str) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    name = "sub/requirements.txt"
    if kind == "requirements":
        (source / name).write_text("tiny==1.0\n")
    elif kind == "nested":
        (source / name).write_text("-r ../base.txt\n")
        (source / "base.txt").write_text("tiny==1.0\n")
    else:
        sha256 = wheel(place.index, "tiny", "1.0")
        (source / name).write_text(f"tiny==1.0 --hash=sha256:{sha256}\n")
    wanted = {"lock": name} if kind == "lock" else {"requirements_file": name}
    first = await place.build(source, **wanted)
    assert has(first, "import tiny; print(tiny.VERSION)") == "1.0"
    changed = source / ("base.txt" if kind == "nested" else name)
    changed.write_text("tiny==2.0\n")
    if kind == "lock":
        with pytest.raises(LaunchFailed, match="hash"):
            await place.build(source, **wanted)
        return
    second = await place.build(source, **wanted)
    assert has(second, "import tiny; print(tiny.VERSION)") == "2.0"


async def test_a_project_with_uv_lock(place: Place, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "pyproject.toml").write_text(
        '[project]\nname = "x"\nversion = "1"\nrequires-python = ">=3.11"\ndependencies = ["tiny<2"]\n'
    )
    uv = module._program(place.environ)
    await asyncio.to_thread(
        subprocess.run, [uv, "lock", "--quiet"], cwd=source, env=place.environ, check=True
    )
    python = await place.build(source, lock="uv.lock")
    assert has(python, "import tiny; print(tiny.VERSION)") == "1.0"


async def test_what_cannot_be_resolved_is_told_in_uvs_words_and_nothing_is_left(place: Place) -> None:
    with pytest.raises(LaunchFailed, match=r"no version of tiny==9|tiny==9") as caught:
        await place.build(requirements=["tiny==9"])
    assert caught.value.cause is Cause.SOURCE
    assert "on the agent's machine" in caught.value.told
    assert [path for path in place.shelf.folder.iterdir() if path.is_dir()] == [place.shelf.folder / "users"]
    with pytest.raises(LaunchFailed, match=r"(?i)python"):
        await place.build(python="3.99")


async def test_an_index_that_is_away_is_waited_for_and_its_password_is_not_told(place: Place) -> None:
    environments = place.environments(
        UV_DEFAULT_INDEX="http://me:s3cr3t@127.0.0.1:1/simple", UV_OFFLINE="0", UV_HTTP_RETRIES="0"
    )
    with pytest.raises(NotReady) as caught:
        await environments.build(
            Environment(requirements=["no-such-thing"]), None, place.user(), lambda words: None
        )
    assert caught.value.cause is Cause.SOURCE
    assert "s3cr3t" not in caught.value.told


async def test_code_of_packages_is_not_run_for_another_user(place: Place, tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    with tarfile.open(place.index / "trap-1.0.tar.gz", "w:gz") as archive:
        for name, text in (
            ("setup.py", f"open({str(trap)!r}, 'w')\n"),
            ("PKG-INFO", "Metadata-Version: 2.1\nName: trap\nVersion: 1.0\n"),
        ):
            member = tarfile.TarInfo(f"trap-1.0/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    with pytest.raises(LaunchFailed, match=r"no usable wheels|building from source is disabled"):
        await place.build(requirements=["trap"], trusted=False)
    wheel(place.index, "startup", "1.0", {"startup.pth": f"import os; open({str(trap)!r}, 'w')\n"})
    await place.build(requirements=["startup"], trusted=False)
    assert not trap.exists()


async def test_files_out_of_the_source_or_missing_are_refused(place: Place, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "link.txt").symlink_to("/etc/passwd")
    for name, words in (("link.txt", "leads out"), ("none.txt", "is not in the source")):
        with pytest.raises(LaunchFailed, match=words):
            await place.build(source, requirements_file=name)
    with pytest.raises(LaunchFailed, match="there is no source"):
        await place.build(None, requirements_file="none.txt")


async def test_without_uv_it_says_what_to_install(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uv", None)
    with pytest.raises(LaunchFailed) as caught:
        await place.environments(PATH="/nowhere").build(Environment(), None, place.user(), lambda words: None)
    assert "Install shunter[code] where the agent is" in caught.value.told


async def test_one_whose_interpreter_is_gone_is_built_anew(place: Place) -> None:
    python = await place.build(requirements=["tiny"])
    bin_folder = Path(python).parent
    bin_folder.chmod(0o755)
    (bin_folder / "python").unlink()
    assert await place.build(requirements=["tiny"]) == python
    assert has(python, "import tiny; print(tiny.VERSION)") == "2.0"


def test_what_an_environment_depends_on(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "PATH": "/bin"}

    def key(environ: dict[str, str] = environ, trusted: bool = True, **wanted: object) -> str:
        return plan(Environment.model_validate(wanted), None, environ, trusted=trusted).key

    base = key(requirements=["a"])
    assert key(requirements=["a"]) == base
    others = [
        key(requirements=["a", "b"]),
        key(requirements=["a"], python="3.12"),
        key({**environ, "UV_DEFAULT_INDEX": "https://index.example"}, requirements=["a"]),
        key(requirements=["a"], trusted=False),
    ]
    (tmp_path / ".config/uv").mkdir(parents=True)
    (tmp_path / ".config/uv/uv.toml").write_text("index-url = 'https://other.example'\n")
    others.append(key(requirements=["a"]))
    assert len({base, *others}) == 6
    assert key({**environ, "UV_CACHE_DIR": "/x", "HTTPS_PROXY": "x"}, requirements=["a"]) == others[-1]


def _wait_for_programs(word: bytes) -> None:
    """Until no program has the word among its arguments."""
    while any(word in _arguments(path) for path in Path("/proc").glob("[0-9]*/cmdline")):
        time.sleep(0.05)


def _arguments(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


_KILLED = textwrap.dedent(
    """
    import asyncio, sys
    from pathlib import Path
    from shunter_agents.sources.environment import Environments
    from shunter_agents.sources.shelf import Shelf
    from shunter_work_pools.contracts.code_sources import Environment
    import os

    root = Path(sys.argv[1])
    told = lambda words: print(words, flush=True)
    environments = Environments(Shelf(root / "cache" / "environments"), root / "cache" / "downloads", os.environ)
    asyncio.run(environments.build(Environment(requirements=["tiny"]), None, root / "attempts" / "run.1", told))
    """
)


async def test_an_agent_killed_while_it_builds_leaves_nothing_that_is_used(place: Place) -> None:
    place.user()
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _KILLED, str(place.root)), env=place.environ, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert b"resolved" in await child.stdout.readline()
    child.kill()
    await child.wait()
    (draft,) = place.shelf.folder.glob("*.draft-*")
    python = await place.build(requirements=["tiny"])
    assert has(python, "import tiny; print(tiny.VERSION)") == "2.0"
    # The uv that it had started may still write; once it has ended, that is collected.
    await asyncio.to_thread(_wait_for_programs, draft.name.encode())
    place.shelf.collect(3600.0, None)
    assert list(place.shelf.folder.glob("*.draft-*")) == []


async def test_a_real_package_of_the_index_of_this_machine(tmp_path: Path) -> None:
    place = Place(tmp_path)
    environments = Environments(place.shelf, tmp_path / "downloads", os.environ | {"UV_HTTP_RETRIES": "0"})
    try:
        python = await environments.build(
            Environment(requirements=["iniconfig==2.1.0"]), None, place.user(), lambda words: None
        )
    except NotReady as exc:
        pytest.skip(f"no package index can be reached: {exc}")
    assert has(python, "import iniconfig; print(iniconfig.__name__)") == "iniconfig"


EVIL = "import os; os.system('touch {told}')\n"


@pytest.mark.parametrize("setting", ["compile-bytecode = true", 'target = "{elsewhere}"'])
async def test_settings_of_the_code_do_not_steer_what_is_built_for_another_user(
    place: Place, tmp_path: Path, setting: str
) -> None:
    """They would run code of packages as the agent's user, or write where only that may."""
    told, elsewhere, source = tmp_path / "told", tmp_path / "elsewhere", tmp_path / "source"
    wheel(place.index, "evil", "1.0", files={"evil.pth": EVIL.format(told=told)})
    source.mkdir()
    (source / "requirements.txt").write_text("evil\n")
    (source / "uv.toml").write_text("[pip]\n" + setting.format(elsewhere=elsewhere) + "\n")
    python = await place.build(source, requirements_file="requirements.txt", trusted=False)
    assert not told.exists()
    assert not elsewhere.exists()
    assert list(Path(python).parent.parent.glob("lib/*/site-packages/evil.pth"))


@pytest.mark.parametrize("name", ["{program}", "./program", "program", "../source/program"])
async def test_no_interpreter_of_anybodys_choice_is_started_for_another_user(
    place: Place, tmp_path: Path, name: str
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    program = source / "program"
    program.write_text(f'#!/bin/sh\ntouch {tmp_path}/told\nexec {sys.executable} "$@"\n')
    program.chmod(0o755)
    (source / "requirements.txt").write_text("tiny\n")
    with pytest.raises(LaunchFailed, match="would be started as the agent's user"):
        await place.build(
            source,
            python=name.format(program=program),
            requirements_file="requirements.txt",
            trusted=False,
        )
    assert not (tmp_path / "told").exists()


@pytest.mark.parametrize(
    "line",
    [
        "-r {secret}",
        "-c {secret}",
        "--requirement={secret}",
        "  -r{secret}",
        "-r ../secret",
        "-r ${{HOME}}/secret",
        "-e {secret}",
        "tiny @ file://{secret}",
        "--find-links {secret}",
        "-f {secret}",
        "{secret}",
        "-r link",
    ],
)
@pytest.mark.parametrize("inline", [True, False])
async def test_no_file_that_only_the_agent_may_read_is_read_for_another_user(
    place: Place, tmp_path: Path, line: str, inline: bool
) -> None:
    secret, source = tmp_path / "secret", tmp_path / "source"
    secret.write_text("the-agents-own\n")
    source.mkdir()
    (source / "link").symlink_to(secret)
    line = line.format(secret=secret)
    (source / "requirements.txt").write_text(f"tiny\n{line}\n")
    wanted: dict[str, object] = (
        {"requirements": [line]} if inline else {"requirements_file": "requirements.txt"}
    )
    with pytest.raises(LaunchFailed, match="with the rights of the agent's user") as raised:
        await place.build(source, trusted=False, **wanted)
    assert "the-agents-own" not in raised.value.told


async def test_requirements_of_the_source_may_include_others_of_it(place: Place, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "more").mkdir(parents=True)
    (source / "requirements.txt").write_text("--pre\n-r more/base.txt\n-c limits.txt\n")
    (source / "more" / "base.txt").write_text("tiny\n")
    (source / "limits.txt").write_text("tiny<2\n")
    python = await place.build(source, requirements_file="requirements.txt", trusted=False)
    assert has(python, "import tiny; print(tiny.VERSION)") == "1.0"


@pytest.mark.parametrize("special", ["pipe", "/dev/zero"])
def test_what_is_no_file_is_not_read_for_its_key(tmp_path: Path, special: str) -> None:
    """It would stop the agent for ever, or fill its memory."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "pyproject.toml").symlink_to(special)
    (tmp_path / "requirements.txt").write_text(f"-r {special}\n")
    plan(Environment(requirements_file="requirements.txt"), tmp_path, {}, trusted=True)
