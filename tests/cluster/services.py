"""What every cluster offers its pods beside Kubernetes itself: names by DNS, and volumes for claims.

Their programs run on the node, see ``programs.py``; here is what the API server is told of them.
"""

from __future__ import annotations

from typing import Any

from tests.cluster.programs import DNS_SERVICE, NODE, PROVISIONER


def documents(address: str) -> list[dict[str, Any]]:
    """The service ``kube-dns``, and the default class of storage.

    Args:
        address: the node's.
    """
    name = {"name": "kube-dns", "namespace": "kube-system"}
    ports = [
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
    ]
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {**name, "labels": {"k8s-app": "kube-dns"}},
            "spec": {"clusterIP": DNS_SERVICE, "ports": ports},  # no selector: no pod answers
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**name, "labels": {"kubernetes.io/service-name": "kube-dns"}},
            "addressType": "IPv4",
            "ports": ports,
            "endpoints": [{"addresses": [address], "conditions": {"ready": True}, "nodeName": NODE}],
        },
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {
                "name": "folders",
                "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
            },
            "provisioner": PROVISIONER,
            "reclaimPolicy": "Delete",
            "volumeBindingMode": "WaitForFirstConsumer",  # the volume lies where its first pod does
        },
    ]
