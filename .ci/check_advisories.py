"""Whether advisories are known for what requirements.lock pins, by pip-audit.

Package indexes that are mirrors often have no advisories: they answer, and would have everything look well. So the
source is first asked for a release that is known to be bad; only one that knows of it is believed. Where there is
none, that is said loudly; SHUNTER_AUDIT_REQUIRE=1 makes it a failure, for who must know.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
#: PYSEC-2014-8: known to every source since long ago.
CANARY = "jinja2==2.4.1"
#: Where advisories come from, in turn.
SOURCES = ("pypi", "osv")
#: Seconds to wait for an answer to one question.
PATIENCE = 5


def audited(requirements: Path, source: str) -> dict[str, Any]:
    """What pip-audit says of pinned requirements; {}: it could not ask."""
    words = [
        sys.executable,
        "-m",
        "pip_audit",
        "--requirement",
        str(requirements),
        "--no-deps",
        "--disable-pip",
    ]
    words += ["--vulnerability-service", source, "--timeout", str(PATIENCE), "--format", "json"]
    words += ["--progress-spinner", "off"]
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return {}
    return found


def advisories(report: dict[str, Any]) -> list[str]:
    """A line for each advisory of a report."""
    return [
        f"{one['name']} {one['version']}: {vulnerability['id']}, mended in {', '.join(vulnerability['fix_versions']) or 'none'}"
        for one in report.get("dependencies", [])
        for vulnerability in one.get("vulns", [])
    ]


def unknown(report: dict[str, Any]) -> list[str]:
    """Names that the source said nothing of."""
    return [one["name"] for one in report.get("dependencies", []) if "skip_reason" in one]


def believable(source: str) -> bool:
    """Whether a source knows what everybody knows."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "requirements.txt"
        file.write_text(CANARY + "\n")
        return bool(advisories(audited(file, source)))


def main() -> int:
    """Say what is known; 1 if something is, or nothing can be known and that is not to be borne."""
    source = next((one for one in SOURCES if believable(one)), None)
    if source is None:
        print(  # noqa: T201
            "\n*** NOT AUDITED: no source of advisories can be reached from here (asked: "
            f"{', '.join(SOURCES)}; none knows of {CANARY}).\n*** What requirements.lock pins may have known holes.\n"
        )
        return int(os.environ.get("SHUNTER_AUDIT_REQUIRE") == "1")
    report = audited(ROOT / "requirements.lock", source)
    found, unasked = advisories(report), unknown(report)
    for line in [*found, *(f"{name}: {source} says nothing of it" for name in unasked)]:
        print(line)  # noqa: T201
    if not report.get("dependencies"):
        print(f"pip-audit could not read requirements.lock with {source}")  # noqa: T201
        return 1
    print(f"advisories ({source}): {len(found)} for {len(report['dependencies'])} packages")  # noqa: T201
    return int(bool(found or unasked))


if __name__ == "__main__":
    sys.exit(main())
