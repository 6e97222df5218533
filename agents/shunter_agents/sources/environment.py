"""Environments of runs: built by uv once for all that want the same, and then only looked up.

What an environment is made of is hashed: the interpreter, the platform, what is required, the files that say so, and
the settings of the index. Who wants the same gets the same folder.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import stat
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from shunter_agents.sources.programs import Done, TooLong, run
from shunter_agents.sources.shared import Shared, Told
from shunter_agents.sources.shelf import Shelf
from shunter_agents.sources.surroundings import masked, surroundings
from shunter_infrastructure.launcher import LaunchFailed, NotReady
from shunter_work_pools.contracts.code_sources import Environment
from shunter_work_pools.contracts.states import Cause

#: Seconds that building one may take.
BUILD_LIMIT = 3600.0
#: Characters of uv's own words that are told.
_WORDS = 2000
#: A file of an environment may be as large.
_FILE_LIMIT = 10 * 2**20

_AWAY = re.compile(
    r"error sending request|failed to fetch|dns error|connection (refused|reset|closed)|operation timed out"
    r"|tcp connect error|temporary failure|status code \(?5\d\d|\b(502|503|504)\b",
    re.IGNORECASE,
)
#: A line of a requirements file that names another one, or code that lies beside it.
_OTHER = re.compile(r"\s*(?:-r|-c|--requirements?|--constraints?)[ =]?\s*(\S+)")
_BESIDE = re.compile(r"\s*(?:-e|--editable|\.|/|file:|[\w.-]+(\[[\w, -]*\])?\s*@\s*(?:file:|\.|/))")
#: Options of lines that name no file.
_PLAIN = re.compile(r"--(?:hash|index-url|extra-index-url|no-index|pre|prefer-binary|only-binary)\b|-i\b")
#: An interpreter that is no program of somebody's choice: uv takes anything else for a path, too.
_VERSION = re.compile(r"(?:(?:c?python|pypy|graalpy)[@-]?)?\d+(?:\.\d+)*t?")
_PROGRESS = re.compile(
    r"^(Resolved|Prepared|Installed|Downloading|Downloaded|Building|Built|Updating|Compiled)\b.*"
)
_BOX = re.compile(r"[\s\u2500-\u257f\u00d7]+")


@dataclass(frozen=True)
class Order:
    """What is to be built.

    Attributes:
        python: version or path, for uv.
        words: what uv is told to install.
        export: of the files, the one that is a uv.lock.
        folder: where uv is started: relative paths of requirements are meant from there; None: anywhere.
        trusted: building may run code of packages. (It runs as the agent's user, whoever the run is run as.) If not,
            it also runs no interpreter of their choice, does not read settings of uv that are in the source (these say
            where it writes, and what it runs), and no file outside of the source.
    """

    key: str
    python: str
    requirements: tuple[str, ...]
    words: tuple[str, ...]
    export: bool
    folder: Path | None
    trusted: bool


class Environments:
    """Environments on a shelf.

    Args:
        shelf: for them.
        downloads: uv's own cache, where the agent's environment names none.
        environ: of the agent.
    """

    def __init__(self, shelf: Shelf, downloads: Path, environ: Mapping[str, str]) -> None:
        self._shelf = shelf
        self._downloads = downloads
        self._environ = environ
        self._building: Shared[Path] = Shared()

    async def build(
        self, wanted: Environment, source: Path | None, user: Path, told: Told, *, trusted: bool = True
    ) -> str:
        """The interpreter of an environment, which is built if it is not there.

        Args:
            source: folder of the code, from which files are meant.
            user: folder of the attempt that uses it.
            told: is called with progress.
            trusted: building may run code of packages.

        Raises:
            LaunchFailed: it cannot be built.
            NotReady: the index is away.
        """
        order = plan(wanted, source, self._environ, trusted=trusted)
        if self._shelf.has(order.key) and not os.path.exists(self._python(order.key)):
            await self._shelf.discard(order.key)  # the interpreter that it was made from is gone

        async def take(say: Told) -> Path:
            async def make(draft: Path) -> None:
                await _Build(order, draft, self._shelf.log_of(order.key), self._tools(), say).run()

            return await self._shelf.take(order.key, user, make)

        if not self._shelf.has(order.key):
            await self._building.get(order.key, take, told)
        await take(told)
        return self._python(order.key)

    def _python(self, key: str) -> str:
        return str(self._shelf.folder / key / "bin" / "python")

    def _tools(self) -> dict[str, str]:
        env = surroundings(self._environ)
        env |= {name: value for name, value in self._environ.items() if name.startswith("UV_")}
        env.setdefault("UV_CACHE_DIR", str(self._downloads))
        # What is shared by runs must not share its files with uv's cache, which would be changed with them.
        return env | {"UV_LINK_MODE": "copy", "NO_COLOR": "1", "UV_NO_PROGRESS": "1"}


class _Build:
    def __init__(self, order: Order, draft: Path, log: Path, env: Mapping[str, str], say: Told) -> None:
        self._order = order
        self._draft = draft
        self._log = log
        self._env = dict(env)
        self._say = say

    async def run(self) -> None:
        order, draft = self._order, self._draft
        self._log.unlink(missing_ok=True)
        await self._uv(
            "venv", "--quiet", "--relocatable", "--no-project", "--python", order.python, "--", str(draft)
        )
        words = list(order.words)
        if order.export:
            exported = draft / "requirements.txt"
            await self._uv(
                *("export", "--frozen", "--no-dev", "--no-emit-project", "--quiet", "--no-header"),
                *("--python", str(draft / "bin" / "python"), "--output-file", str(exported)),
                # The lock says all; what uv.toml beside it says is for who works there.
                *("--project", str(order.folder), *([] if order.trusted else ["--no-config"])),
            )
            words = ["-r", str(exported)]  # hashes that it has are checked
        elif order.requirements:
            listed = draft / "requirements.txt"
            listed.write_text("\n".join(order.requirements) + "\n", "utf-8")
            words += ["-r", str(listed)]
        if words:
            # To compile starts the environment's python, and with it what packages want done at its start.
            safety = ["--compile-bytecode"] if order.trusted else ["--no-build", "--no-compile-bytecode"]
            await self._uv("pip", "install", "--python", str(draft / "bin" / "python"), *safety, *words)

    async def _uv(self, *argv: str) -> None:
        def on_line(line: str) -> None:
            line = masked(line)
            with self._log.open("a", encoding="utf-8") as log:
                log.write(line + "\n")
            if _PROGRESS.match(line.strip()):
                said = line.strip()
                self._say(f"its environment is being built: {said[:1].lower()}{said[1:]}")

        try:
            done = await run(
                [_program(self._env), *argv],
                env=self._env,
                limit=BUILD_LIMIT,
                cwd=(self._order.trusted and self._order.folder) or self._draft.parent,
                on_line=on_line,
            )
        except TooLong as exc:
            raise self._failed(str(exc)) from exc
        if done.code != 0:
            said = _words(done)
            if _AWAY.search(said):
                raise NotReady(f"its environment cannot be built: {said}", cause=Cause.SOURCE)
            raise self._failed(said)

    def _failed(self, said: str) -> LaunchFailed:
        return LaunchFailed(
            Cause.SOURCE,
            f"its environment cannot be built: {said}",
            f"All that uv said is in {self._log} on the agent's machine.",
        )


def plan(wanted: Environment, source: Path | None, environ: Mapping[str, str], *, trusted: bool) -> Order:
    """What is to be built for an environment, and the key of all that it depends on. Quick: it is done at each start.

    Raises:
        LaunchFailed: a file that it names is not there.
    """
    python = wanted.python or sys.executable
    if not trusted:
        _demand_version(wanted.python)
        _demand_inside(wanted.requirements, None, None)
    parts: list[str] = [_machine(), python, str(trusted), *_index_settings(environ), "", *wanted.requirements]
    words: list[str] = []
    export = beside = False
    folder = None
    for what, name in (("requirements_file", wanted.requirements_file), ("lock", wanted.lock)):
        if name is None:
            continue
        path = _file(source, name, what)
        folder = path.parent
        export = path.name == "uv.lock"
        for one, text in _contents(path):
            parts += ["", text]
            if not trusted and not export:
                assert source is not None
                _demand_inside(text.splitlines(), one, source)
            beside |= not export and any(_BESIDE.match(line) for line in text.splitlines())
        if not export:
            hashed = what == "lock" and not path.name.startswith("pylock")
            words += [*(["--require-hashes"] if hashed else []), "-r", str(path)]
    if folder is not None:
        # uv reads its own settings there, and code that is beside the file is installed as it is now.
        parts += [_text(folder / name) for name in ("pyproject.toml", "uv.toml")]
        parts += [str(folder)] if beside else []
    key = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:40]
    return Order(key, python, tuple(wanted.requirements), tuple(words), export, folder, trusted)


def _file(source: Path | None, name: str, what: str) -> Path:
    if source is None:
        raise LaunchFailed(
            Cause.SOURCE,
            f"its environment names the {what} {name}, and there is no source that it could be in",
            "Name a source, or write the requirements down themselves.",
        )
    path = source / name
    if not path.resolve().is_relative_to(source.resolve()):
        raise LaunchFailed(Cause.SOURCE, f"the {what} {name} of its environment leads out of the source")
    if not path.is_file():
        raise LaunchFailed(
            Cause.SOURCE,
            f"the {what} {name} of its environment is not in the source ({path})",
            "Correct the path; it is meant from the source's folder.",
        )
    return path


def is_version(python: str) -> bool:
    """Whether uv takes it for a version, wherever it is; anything else may be a program."""
    return _VERSION.fullmatch(python) is not None


def _demand_version(python: str | None) -> None:
    if python is not None and not is_version(python):
        raise LaunchFailed(
            Cause.SOURCE,
            f"its environment wants the interpreter {python!r}, which would be started as the agent's user",
            "Give a version, as in 3.12. (Another can be had by runs of the agent's own user, which its policy does not "
            "restrict.)",
        )


def _demand_inside(lines: Iterable[str], file: Path | None, source: Path | None) -> None:
    """Nothing is read that the agent can read, and the run perhaps not."""
    for line in lines:
        included = _OTHER.match(line)
        if "${" in line:  # whatever that is, uv puts it in
            inside = False
        elif included and file is not None and source is not None:
            inside = (file.parent / included.group(1)).resolve().is_relative_to(source.resolve())
        elif line.lstrip().startswith("-"):
            inside = _PLAIN.match(line.lstrip()) is not None
        else:
            inside = True
        if not inside or (not included and (_BESIDE.match(line) or re.search(r"\bfile:", line))):
            raise LaunchFailed(
                Cause.SOURCE,
                f"its environment requires {line.strip()!r}, which would be read with the rights of the agent's user",
                "Name packages of an index, or files in the source that have such lines.",
            )


def _contents(path: Path) -> Iterator[tuple[Path, str]]:
    """The text of a file and of those that it includes, with where that is."""
    waiting: list[Path] = [path]
    seen: set[Path] = set()
    while waiting:
        one = waiting.pop()
        if one in seen or len(seen) > 100:
            continue
        seen.add(one)
        text = _text(one)
        yield one, text
        waiting += [
            one.parent / found.group(1) for line in text.splitlines() if (found := _OTHER.match(line))
        ]


def _text(path: Path) -> str:
    """The content of a file; empty where there is none, or something else: a device, or a pipe, which is not waited
    for."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return ""
            content = file.read(_FILE_LIMIT + 1)
    except OSError:
        return ""
    if len(content) > _FILE_LIMIT:
        raise LaunchFailed(Cause.SOURCE, f"{path} is larger than {_FILE_LIMIT // 2**20} MiB")
    return content.decode("utf-8", "surrogateescape")


@cache
def _machine() -> str:
    return " ".join((sys.version, sys.base_prefix, sysconfig.get_platform(), *platform.libc_ver()))


def _index_settings(environ: Mapping[str, str]) -> list[str]:
    """Whatever tells uv where packages are and which of them it takes."""
    ours = [
        f"{name}={environ[name]}"
        for name in sorted(environ)
        if name.startswith("UV_") and name not in _NO_MATTER
    ]
    home = Path(environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME", "/")) / ".config")
    return [*ours, _text(home / "uv" / "uv.toml"), _text(Path("/etc/uv/uv.toml"))]


_NO_MATTER = {
    "UV_CACHE_DIR",
    "UV_LINK_MODE",
    "UV_CONCURRENT_DOWNLOADS",
    "UV_CONCURRENT_BUILDS",
    "UV_HTTP_TIMEOUT",
}


def _program(env: Mapping[str, str]) -> str:
    try:
        from uv import find_uv_bin

        return str(find_uv_bin())
    except (ImportError, FileNotFoundError):
        pass
    found = shutil.which("uv", path=env["PATH"])
    if found is None:
        raise LaunchFailed(
            Cause.SOURCE,
            "the agent has no uv to build the environment with",
            "Install shunter[code] where the agent is, or put uv into its PATH.",
        )
    return found


def _words(done: Done) -> str:
    lines: Sequence[str] = [line for line in done.err.splitlines() if not _PROGRESS.match(line.strip())]
    said = _BOX.sub(" ", masked("\n".join(lines))).strip() or f"uv ended with code {done.code}"
    return said if len(said) <= _WORDS else said[:_WORDS] + " [...]"
