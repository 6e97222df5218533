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
#: Of which each image's lock is made.
IMAGE_EXTRAS = {"agent": ("kubernetes", "docker", "code"), "server": ("server", "postgres")}


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


def image_faults() -> list[str]:
    """What the images' locks have otherwise than requirements.lock, or lack of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = set(_pins(ROOT / "requirements.lock"))
    faults = []
    for image, extras in IMAGE_EXTRAS.items():
        pins = _pins(ROOT / f"images/{image}.lock")
        names = {canonicalize_name(pin.partition("==")[0]) for pin in pins}
        wanted = [
            *project["dependencies"],
            *(line for extra in extras for line in project["optional-dependencies"][extra]),
        ]
        missing = [line for line in wanted if canonicalize_name(Requirement(line).name) not in names]
        other = [pin for pin in pins if pin not in known]
        faults += [f"images/{image}.lock: {one} is missing: make lock" for one in missing]
        faults += [f"images/{image}.lock: {one} is not that of requirements.lock: make lock" for one in other]
    return faults


def _pins(path: Path) -> list[str]:
    return re.findall(r"^([\w.-]+==[^\s;\\]+)", path.read_text(), re.MULTILINE)


def address_faults() -> list[str]:
    """Lines of lock files that say where a package comes from."""
    return [
        f"{path.relative_to(ROOT)}:{number}: names an address: make lock"
        for path in (ROOT / "requirements.lock", *sorted((ROOT / "images").glob("*.lock")))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if "://" in line or "index-url" in line
    ]


if __name__ == "__main__":
    found = lock_faults() + image_faults() + address_faults()
    print("\n".join(found) or "lock file: as it should be")  # noqa: T201
    sys.exit(bool(found))
