"""What no linter checks: the lock file fits pyproject.toml, and does not say where packages come from.

Contributors and CI reach packages by different mirrors; an address in the lock file breaks some.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
#: Extras and groups that requirements.lock is made of, see ``make lock``.
LOCKED_EXTRAS = ("server", "postgres", "docker")
LOCKED_GROUPS = ("dev", "demo")


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


def address_faults() -> list[str]:
    """Lines of requirements.lock that say where a package comes from."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return [
        f"requirements.lock:{number}: names an address: make lock"
        for number, line in enumerate(lines, 1)
        if "://" in line or "index-url" in line
    ]


if __name__ == "__main__":
    found = lock_faults() + address_faults()
    print("\n".join(found) or "lock file: as it should be")  # noqa: T201
    sys.exit(bool(found))
