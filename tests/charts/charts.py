"""The charts of this repository as tests look at them: their files, and what a Helm makes of them."""

from __future__ import annotations

import json
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.charts import documents

Document = dict[str, Any]
#: The folder of all charts.
CHARTS = documents.CHARTS
NAMES = sorted(path.parent.name for path in CHARTS.glob("*/Chart.yaml"))
#: Files of values that a chart has to work with, which are its examples too: (chart, file).
EXAMPLES = [
    (name, path.name) for name in NAMES for path in sorted((CHARTS / name / "ci").glob("*-values.yaml"))
]
#: Where nothing is said, releases are rendered for this namespace.
NAMESPACE = "trains"


@dataclass(frozen=True)
class Rendered:
    """How a Helm ended.

    Attributes:
        said: what it printed besides.
    """

    code: int
    printed: str
    said: str

    @property
    def documents(self) -> list[Document]:
        """What was rendered, in the order of kinds and names, which is not the same in both Helms."""
        assert self.code == 0, self.said
        found = [one for one in yaml.safe_load_all(self.printed) if one]
        return sorted(found, key=lambda one: (one["kind"], one["metadata"]["name"], json.dumps(one)))


def example(name: str, file: str) -> Path:
    """The path of one of :data:`EXAMPLES`."""
    return CHARTS / name / "ci" / file


def least(name: str) -> list[Path]:
    """The values without which a chart cannot be installed: a file, or none."""
    path = example(name, "minimal-values.yaml")
    return [path] if path.exists() else []


def render(
    helm: Path, chart: Path, *values: Path | Document, namespace: str = NAMESPACE, release: str = "it"
) -> Rendered:
    """``helm template``, hooks included.

    Args:
        chart: a folder or an archive.
        values: files, or values themselves; the later win.
    """
    with tempfile.TemporaryDirectory() as folder:
        words = []
        for number, one in enumerate(values):
            path = one if isinstance(one, Path) else Path(folder) / f"{number}.yaml"
            if not isinstance(one, Path):
                path.write_text(json.dumps(one))
            words.append(f"--values={path}")
        return run(helm, "template", release, str(chart), f"--namespace={namespace}", *words)


def run(*words: str | Path) -> Rendered:
    """Run a program to its end; it sees no cluster."""
    done = subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={"HOME": "/nonexistent", "KUBECONFIG": "/nonexistent"},
    )
    return Rendered(done.returncode, done.stdout, done.stderr)


def read(path: Path) -> Document:
    """A YAML file of one document."""
    found: Document = yaml.safe_load(path.read_text())
    return found


def version() -> str:
    """The package's."""
    project = tomllib.loads((CHARTS.parent / "pyproject.toml").read_text())["project"]
    return str(project["version"])


def containers(document: Document) -> Iterator[Document]:
    """Every container of an object, wherever its pods are described."""
    for value in document.values():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, dict):
                yield from containers(one)
    for kind in ("containers", "initContainers"):
        if isinstance(document.get(kind), list):
            yield from (one for one in document[kind] if "image" in one)
