"""The Kubernetes cluster that this process runs in, as its pod knows it.

https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

#: Where a pod has the token of its service account, the cluster's authority and the name of its namespace.
OWN = Path("/var/run/secrets/kubernetes.io/serviceaccount")


def own_api_server(environ: Mapping[str, str]) -> str | None:
    """The URL of the API server; None: this runs in no cluster."""
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT", "443")
    return f"https://{f'[{host}]' if ':' in host else host}:{port}" if host else None
