"""Each chart's README.md, written from its values.yaml and README.md.gotmpl."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.charts.building import Tools

#: The folder of all charts.
CHARTS = Path(__file__).parents[2] / "helm"


class Undocumented(ValueError):
    """A value has no comment, or a template of a README cannot be used; the message says which."""


def write(tools: Tools, charts: Path) -> None:
    """Write them all anew.

    Args:
        charts: a folder like :data:`CHARTS`.

    Raises:
        Undocumented: and that chart's README stays as it was.
    """
    words = ["--sort-values-order=file", "--skip-version-footer", "--log-level=warning"]
    done = subprocess.run(
        [tools.docs, f"--chart-search-root={charts}", *words],
        cwd=charts,
        capture_output=True,
        text=True,
        check=False,
    )
    # It complains and ends well.
    if done.returncode != 0 or done.stderr:
        raise Undocumented(f"{charts}: {done.stdout}{done.stderr}")
