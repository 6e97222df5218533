"""Nodes that are not there, and thousands of pods on them, by kwok: it says what kubelets would say.

A pod on such a node runs as soon as it is scheduled, and goes on until all are told to end. Then each has succeeded,
as fast as kwok gets around. Each has the same log, of one line. Fake nodes have a taint and a label, so
that only those pods come to them that want to.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.cluster.programs import Program

#: Of the nodes: their label (value ``true``) and their taint.
FAKE = "shunter.test/fake"
#: What the log of each pod says.
SAID = b"hello\n"
#: Pods of one node.
PODS = 1000
_PORT = 10247
_NOW = "{{ $now := Now }}"


def node(number: int) -> dict[str, Any]:
    """One of them."""
    name = f"fake-{number}"
    room = {"cpu": "1000", "memory": "4Ti", "pods": str(PODS)}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {FAKE: "true", "kubernetes.io/hostname": name}},
        "spec": {"taints": [{"key": FAKE, "effect": "NoSchedule"}]},
        "status": {"allocatable": room, "capacity": room},
    }


def program(folder: Path, kwok: Path, address: str, *, ending: bool) -> Program:
    """What stands for their kubelets; writes its configuration.

    Args:
        folder: the cluster's.
        kwok: the binary, see ``building.py``.
        address: under which the API server finds it.
        ending: pods end, the ones that run and all that come.
    """
    secrets, settings = folder / "credentials", folder / "settings"
    log = folder / "logs" / "fake-pods"
    log.write_bytes(b"2026-01-01T00:00:00.000000000Z stdout F " + SAID)
    documents = [_logs(log), *_node_lives(), _pod_runs(), _pod_goes(), *([_pod_ends()] if ending else [])]
    (settings / "kwok.yaml").write_text("\n---\n".join(json.dumps(one, indent=1) for one in documents))
    return Program(
        [
            *(
                str(kwok),
                f"--config={settings / 'kwok.yaml'}",
                f"--kubeconfig={secrets / 'admin.kubeconfig'}",
            ),
            *(f"--manage-nodes-with-label-selector={FAKE}=true", "--node-lease-duration-seconds=0"),
            *(f"--node-ip={address}", f"--node-port={_PORT}", f"--server-address={address}:{_PORT}"),
            *(
                f"--tls-cert-file={secrets / 'server.crt'}",
                f"--tls-private-key-file={secrets / 'server.key'}",
            ),
        ],
        f"https://{address}:{_PORT}/healthz",
    )


def _logs(file: Path) -> dict[str, Any]:
    spec = {"logs": [{"logsFile": str(file), "follow": True}]}
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "ClusterLogs",
        "metadata": {"name": "all"},
        "spec": spec,
    }


def _stage(
    name: str, kind: str, when: list[tuple[str, str, list[str]]], then: dict[str, Any]
) -> dict[str, Any]:
    """What happens to an object of which some expressions are so.

    https://kwok.sigs.k8s.io/docs/user/stages-configuration/
    """
    conditions = [
        {"key": key, "operator": operator, **({"values": values} if values else {})}
        for key, operator, values in when
    ]
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": name},
        "spec": {
            "resourceRef": {"apiGroup": "v1", "kind": kind},
            "selector": {"matchExpressions": conditions},
            "next": then,
        },
    }


def _node_lives() -> list[dict[str, Any]]:
    """It is ready, and says so every five seconds; not by leases, which a kwok that is started anew must wait for."""
    template = f"""{_NOW}
addresses:
- {{type: InternalIP, address: {{{{ NodeIP }}}}}}
daemonEndpoints: {{kubeletEndpoint: {{Port: {{{{ NodePort }}}}}}}}
conditions:
- type: Ready
  status: "True"
  reason: KubeletReady
  message: there is none
  lastHeartbeatTime: {{{{ $now | Quote }}}}
  lastTransitionTime: {{{{ .metadata.creationTimestamp | Quote }}}}
nodeInfo: {{architecture: "", bootID: "", containerRuntimeVersion: kwok, kernelVersion: "", kubeProxyVersion: "",
  kubeletVersion: kwok, machineID: "", operatingSystem: linux, osImage: "", systemUUID: ""}}
phase: Running
"""
    ready = '.status.conditions.[] | select( .type == "Ready" ) | .status'
    begins = _stage("node-ready", "Node", [(ready, "NotIn", ["True"])], {"statusTemplate": template})
    goes_on = _stage("node-lives", "Node", [(ready, "In", ["True"])], {"statusTemplate": template})
    goes_on["spec"]["delay"] = {"durationMilliseconds": 5000}
    return [begins, goes_on]


def _pod_runs() -> dict[str, Any]:
    template = f"""{_NOW}
conditions:
{{{{ range $type := list "Initialized" "Ready" "ContainersReady" }}}}
- {{type: {{{{ $type }}}}, status: "True", lastTransitionTime: {{{{ $now | Quote }}}}}}
{{{{ end }}}}
containerStatuses:
{{{{ range .spec.containers }}}}
- name: {{{{ .name | Quote }}}}
  image: {{{{ .image | Quote }}}}
  imageID: ""
  ready: true
  restartCount: 0
  state: {{running: {{startedAt: {{{{ $now | Quote }}}}}}}}
{{{{ end }}}}
phase: Running
startTime: {{{{ $now | Quote }}}}
"""
    when = [(".metadata.deletionTimestamp", "DoesNotExist", []), (".status.phase", "In", ["Pending"])]
    return _stage("pod-runs", "Pod", when, {"statusTemplate": template})


def _pod_ends() -> dict[str, Any]:
    template = f"""{_NOW}
{{{{ $statuses := .status.containerStatuses }}}}
containerStatuses:
{{{{ range $index, $item := .spec.containers }}}}
{{{{ $before := index $statuses $index }}}}
- name: {{{{ $item.name | Quote }}}}
  image: {{{{ $item.image | Quote }}}}
  imageID: ""
  ready: false
  restartCount: 0
  state: {{terminated: {{exitCode: 0, reason: Completed, startedAt: {{{{ $before.state.running.startedAt | Quote }}}},
    finishedAt: {{{{ $now | Quote }}}}}}}}
{{{{ end }}}}
phase: Succeeded
"""
    when = [(".metadata.deletionTimestamp", "DoesNotExist", []), (".status.phase", "In", ["Running"])]
    return _stage("pod-ends", "Pod", when, {"statusTemplate": template})


def _pod_goes() -> dict[str, Any]:
    return _stage("pod-goes", "Pod", [(".metadata.deletionTimestamp", "Exists", [])], {"delete": True})
