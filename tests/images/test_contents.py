"""What is in the images, and what is not: looked at from within, as their user, and in what they are made of."""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines.images import ROOT, TARGETS, VERSION, name
from tests.images.containers import Engine

#: Bytes, unpacked. Raise one only with a reason, and docs/images.md with it.
SIZES = {"agent": 320e6, "server": 260e6}

#: Names what is wrong with a file system, as one of its files each: prints JSON.
_LOOK = """
import json, os, stat
found = {"privileged": [], "writable": []}
for root, folders, files in os.walk("/", onerror=lambda error: None):
    if root == "/":
        folders[:] = [one for one in folders if one not in ("proc", "sys", "dev")]
    for one in [root, *(os.path.join(root, file) for file in files)]:
        about = os.lstat(one)
        if stat.S_ISREG(about.st_mode) and about.st_mode & (stat.S_ISUID | stat.S_ISGID):
            found["privileged"].append(one)
        if not stat.S_ISLNK(about.st_mode) and os.access(one, os.W_OK):
            found["writable"].append(one)
print(json.dumps(found))
"""

each = pytest.mark.parametrize("target", TARGETS)


def within(engine: Engine, target: str, *words: str) -> str:
    """What a command prints in a container that has nothing but the image."""
    return engine("run", "--rm", "--network=none", f"--entrypoint={words[0]}", name(target), *words[1:])


@each
def test_labels_and_what_is_started(engine: Engine, target: str) -> None:
    config = engine.inspect(name(target))["Config"]
    labels = {key.rpartition(".")[2]: value for key, value in config["Labels"].items()}
    assert labels["title"] == f"shunter-{target}"
    assert (labels["version"], labels["licenses"]) == (VERSION, "Apache-2.0")
    assert re.fullmatch(r"[0-9a-f]{40}", labels["revision"])
    assert labels["description"]
    assert config["User"] == "65532:65532"
    assert config["Entrypoint"] == ["tini", "--", "shunter"]
    assert config["Cmd"] == [target, "start"]
    assert list(config["ExposedPorts"]) == [{"agent": "9400/tcp", "server": "4400/tcp"}[target]]
    assert "/opt/shunter/healthy.py" in config["Healthcheck"]["Test"]
    assert within(engine, target, "shunter", "--version") == f"shunter {VERSION}"


@each
def test_nobody_gets_more_rights_and_writes_only_at_home(engine: Engine, target: str) -> None:
    found = json.loads(within(engine, target, "python3", "-c", _LOOK))
    assert found["privileged"] == []
    assert set(found["writable"]) == {"/tmp", "/var/lib/shunter"}
    assert within(engine, target, "python3", "-c", "import pwd, os; print(pwd.getpwuid(os.getuid()))").count(
        "shunter"
    )


@each
def test_the_packages_are_those_of_the_lock(engine: Engine, target: str) -> None:
    listed = within(
        engine,
        target,
        *("/opt/shunter/bin/python3", "-c"),
        "import importlib.metadata as m\nfor one in m.distributions(): print(f'{one.name}=={one.version}'.lower())",
    )
    locked = re.findall(
        r"^([\w.-]+==[^\s;\\]+)( ; [^\\]*)?", (ROOT / f"images/{target}.lock").read_text(), re.MULTILINE
    )
    always = {pin for pin, marker in locked if not marker}
    installed = {line.replace("_", "-").replace("ruamel.yaml", "ruamel-yaml") for line in listed.splitlines()}
    assert always <= installed
    assert installed - {pin for pin, _ in locked} == {f"shunter=={VERSION}"}, "pip is not among them"


@each
def test_what_starts_was_compiled(engine: Engine, target: str) -> None:
    """Nobody can write down bytecode in there."""
    words = (
        "-c",
        "import sys, shunter_cli.main, shunter_agents.daemon; print(*(m.__cached__ for m in "
        "sys.modules.values() if getattr(m, '__cached__', None) and '/opt/' in m.__cached__), sep='\\n')",
    )
    loaded = within(engine, target, "/opt/shunter/bin/python3", *words).splitlines()
    assert len(loaded) > 100
    missing = within(
        engine, target, "sh", "-c", 'for one in "$@"; do [ -e $one ] || echo $one; done', "sh", *loaded
    )
    assert missing == ""


@each
def test_size(image_archives: dict[str, Path], target: str) -> None:
    size = sum(member.size for layer in _layers(image_archives[target]) for member in layer)
    print(f"{target}: {size / 1e6:.0f} MB")
    assert size < SIZES[target]


@each
def test_nothing_of_the_builder_is_kept(image_archives: dict[str, Path], target: str) -> None:
    """No address of an index, no credential, no certificate of the machine, no source of the build."""
    settings = subprocess.run(
        [ROOT / ".venv/bin/python", "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    secrets = [value for value in re.findall(r"'(.*)'", settings) if "://" in value]
    with tarfile.open(image_archives[target]) as archive:
        manifest = json.load(archive.extractfile("manifest.json"))[0]  # type: ignore[arg-type]
        said = archive.extractfile(manifest["Config"]).read().decode()  # type: ignore[union-attr]
    for word in ("PIP_", "index/pip.conf", "find-links", "proxy", *secrets):
        assert word.lower() not in said.lower()
    names = {member.name for layer in _layers(image_archives[target]) for member in layer}
    assert not [
        one for one in names if one.startswith("build/") or one.endswith(("/pip.conf", "/hatchling", "/pip"))
    ]


def _layers(path: Path) -> Iterator[list[tarfile.TarInfo]]:
    with tarfile.open(path) as archive:
        manifest = json.load(archive.extractfile("manifest.json"))[0]  # type: ignore[arg-type]
        for layer in manifest["Layers"]:
            with tarfile.open(fileobj=archive.extractfile(layer)) as unpacked:
                yield unpacked.getmembers()
