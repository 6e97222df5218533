"""What charts are checked with, built into the cache: Helm 3 and 4, helm-unittest, helm-docs; and kinds of others.

``make cluster-build`` has all of it ahead, for a later test run.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import building, cache
from tests.cluster.packages import CannotHaveCluster, find

SOURCES = Path(__file__).with_name("tools")
#: What go.mod names as tools, by where it lies in the folder.
_PROGRAMS = {
    "helm3": "helm.sh/helm/v3/cmd/helm",
    "helm4": "helm.sh/helm/v4/cmd/helm",
    "unittest": "github.com/helm-unittest/helm-unittest/cmd/helm-unittest",
    "docs": "github.com/norwoodj/helm-docs/cmd/helm-docs",
}
#: Modules that carry the definitions of kinds that charts make, and which of their files those are.
_KINDS = {
    "github.com/kedacore/keda/v2@v2.21.0": [
        "config/crd/bases/keda.sh_scaledjobs.yaml",
        "config/crd/bases/keda.sh_scaledobjects.yaml",
        "config/crd/bases/keda.sh_triggerauthentications.yaml",
    ],
    "sigs.k8s.io/gateway-api@v1.6.0": ["config/crd/standard/gateway.networking.k8s.io_httproutes.yaml"],
    "github.com/prometheus-operator/prometheus-operator@v0.94.0": [
        "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml",
        "example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml",
    ],
}
#: What Helm 3 is told of the cluster that it renders for without one: its own build writes it in, too.
_LINKED = " ".join(
    f"-X helm.sh/helm/v3/pkg/{package}.k8sVersion{part}={value}"
    for package in ("chartutil", "lint/rules")
    for part, value in zip(("Major", "Minor"), building.VERSION.removeprefix("v").split("."), strict=False)
)


@dataclass(frozen=True)
class Tools:
    """Where everything lies.

    Attributes:
        kinds: the folder of CustomResourceDefinitions: KEDA's, the Gateway API's, the Prometheus Operator's.
    """

    folder: Path

    @property
    def helm3(self) -> Path:
        return self.folder / "helm3" / "helm"

    @property
    def helm4(self) -> Path:
        return self.folder / "helm4" / "helm"

    @property
    def unittest(self) -> Path:
        return self.folder / "unittest" / "helm-unittest"

    @property
    def docs(self) -> Path:
        return self.folder / "docs" / "helm-docs"

    @property
    def kinds(self) -> Path:
        return self.folder / "kinds"


def tools() -> Tools:
    """All of them, built if the cache has none of these sources: four minutes of processor time with nothing cached.

    Raises:
        CannotHaveCluster: there is no Go, or the build failed; the message has the end of what it said.
    """
    key = building.key(SOURCES, json.dumps([_PROGRAMS, _KINDS]), _LINKED)
    kept = cache.folder() / f"chart-tools-{key}"
    with cache.locked("build"):
        if not kept.exists():
            if find("go") is None:
                raise CannotHaveCluster("no Go: install Go 1.26 or newer, by which Helm is built")
            with tempfile.TemporaryDirectory(dir=kept.parent) as draft:
                _build(Path(draft) / "all")
                (Path(draft) / "all").rename(kept)
    return Tools(kept)


def _build(folder: Path) -> None:
    print("building Helm and its tools: three minutes on two cores, once", flush=True)
    started = time.monotonic()
    for name, package in _PROGRAMS.items():
        building.go(SOURCES, "install", *building.flags(_LINKED), package, target=folder / name)
    (folder / "kinds").mkdir()
    for module, files in _KINDS.items():
        # Not in SOURCES: go.mod says what is built, and nothing of these is.
        found = json.loads(building.go(folder, "mod", "download", "-json", module))
        for name in files:
            shutil.copyfile(Path(found["Dir"]) / name, folder / "kinds" / Path(name).name)
    print(f"built in {time.monotonic() - started:.0f} s", flush=True)
