"""Certificates, keys and kubeconfigs of a cluster: one authority, one certificate for each that asks."""

from __future__ import annotations

import json
from pathlib import Path

import trustme

#: Who asks the API server, by the group that its rights come from.
_CLIENTS = {
    "admin": ("shunter-tests", "system:masters"),
    "apiserver": ("kube-apiserver-kubelet-client", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", "system:authenticated"),
    "scheduler": ("system:kube-scheduler", "system:authenticated"),
    "dns": ("shunter-tests-dns", "system:masters"),
    "policies": ("shunter-tests-policies", "system:masters"),
    "storage": ("shunter-tests-storage", "system:masters"),
    "proxy": ("system:kube-proxy", "system:authenticated"),
}


def write(folder: Path, address: str, service: str, node: str) -> None:
    """Everything anew: ``NAME.crt`` and ``NAME.key`` of each client, of the ``server`` and of ``accounts``.

    Args:
        folder: where; ``NAME.kubeconfig`` lies there too.
        address: of the API server.
        service: the address of the service ``kubernetes``.
        node: the node's name.
    """
    folder.mkdir(mode=0o700)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.crt")
    _put(
        folder / "server",
        authority.issue_cert(
            *(address, service, "127.0.0.1", "localhost"),
            *("kubernetes", "kubernetes.default", "kubernetes.default.svc"),
            "kubernetes.default.svc.cluster.local",
        ),
    )
    _put(folder / "accounts", authority.issue_cert("accounts.invalid"))
    for name, (user, group) in {**_CLIENTS, "kubelet": (f"system:node:{node}", "system:nodes")}.items():
        # With a name that nobody has: without any, Go does not take the certificate.
        issued = authority.issue_cert(f"{name}.invalid", common_name=user, organization_name=group)
        _put(folder / name, issued)
        certificate = {
            "client-certificate": str(folder / f"{name}.crt"),
            "client-key": str(folder / f"{name}.key"),
        }
        kubeconfig(folder / f"{name}.kubeconfig", address, folder / "ca.crt", certificate)


def kubeconfig(path: Path, address: str, authority: Path, user: dict[str, str], namespace: str = "") -> Path:
    """Write a kubeconfig (JSON, which is YAML), 0600; its path."""
    context = {"cluster": "tests", "user": "tests", **({"namespace": namespace} if namespace else {})}
    cluster = {"server": f"https://{address}:6443", "certificate-authority": str(authority)}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "tests", "cluster": cluster}],
        "users": [{"name": "tests", "user": user}],
        "contexts": [{"name": "tests", "context": context}],
        "current-context": "tests",
    }
    path.touch(0o600)
    path.write_text(json.dumps(document, indent=1))
    return path


def _put(path: Path, issued: trustme.LeafCert) -> None:
    key = path.with_suffix(".key")
    key.touch(0o600)
    issued.private_key_pem.write_to_path(key)
    issued.cert_chain_pems[0].write_to_path(path.with_suffix(".crt"))
