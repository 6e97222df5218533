"""What no linter checks: the lock file fits pyproject.toml, and no package registry is named in the tree.

Contributors and CI reach packages by different mirrors; a host name in a committed file breaks some.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
#: Extras and groups that requirements.lock is made of, see ``make lock``.
LOCKED_EXTRAS = ("server", "postgres")
LOCKED_GROUPS = ("dev", "demo")
#: In two halves, so that this file does not name them either.
REGISTRIES = [
    ("pypi", "org"),
    ("pythonhosted", "org"),
    ("npmjs", "org"),
    ("npmjs", "com"),
    ("crates", "io"),
    ("proxy.golang", "org"),
    ("maven.apache", "org"),
    ("deb.debian", "org"),
]


def lock_faults() -> list[str]:
    """Requirements of pyproject.toml that requirements.lock does not meet."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    wanted = list(project["project"]["dependencies"])
    wanted += [line for extra in LOCKED_EXTRAS for line in extras[extra]]
    wanted += [line for group in LOCKED_GROUPS for line in project["dependency-groups"][group]]
    locked: dict[str, list[str]] = {}
    for name, version in re.findall(
        r"^([\w.-]+)==([^\s;\\]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE
    ):
        locked.setdefault(canonicalize_name(name), []).append(version)
    faults = []
    for line in wanted:
        requirement = Requirement(line)
        versions = locked.get(canonicalize_name(requirement.name), [])
        if not versions or not all(requirement.specifier.contains(v, prereleases=True) for v in versions):
            faults.append(
                f"requirements.lock: {line} is not met ({', '.join(versions) or 'missing'}): make lock"
            )
    return faults


def registry_faults() -> list[str]:
    """Places in tracked files that name a package registry's host."""
    pattern = re.compile("|".join(re.escape(f"{name}.{end}") for name, end in REGISTRIES), re.IGNORECASE)
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    faults = []
    for name in filter(None, tracked.decode().split("\0")):
        path = ROOT / name
        if path.is_symlink() or not path.is_file():
            continue
        for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines(), 1):
            if found := pattern.search(line):
                faults.append(f"{name}:{number}: names a package registry ({found.group()})")
    return faults


if __name__ == "__main__":
    found = lock_faults() + registry_faults()
    print("\n".join(found) or "lock file and tree: as they should be")  # noqa: T201
    sys.exit(bool(found))
