"""What each program of the cluster is told: arguments and configuration files, by pure functions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.packages import CNI, find

NODE = "node-1"
SERVICES = "10.96.0.0/16"
#: The address of the service ``kubernetes``: the first of them.
API_SERVICE = "10.96.0.1"
#: The address of the service ``kube-dns``, which pods ask for names.
DNS_SERVICE = "10.96.0.10"
DOMAIN = "cluster.local"
#: Makes volumes for claims.
PROVISIONER = "shunter.test/folders"
PODS = "10.244.0.0/22"
MOST_PODS = 250
PAUSE = "localhost/pause:1"
#: What its service accounts ask of the API server is in the log ``audit``.
COUNTED = "counted"


@dataclass(frozen=True)
class Program:
    """What runs, and where it says that it is well.

    Attributes:
        health: a URL, or the path of a socket that takes connections. Nothing: what needs it tells.
    """

    argv: list[str]
    health: str = ""


def programs(folder: Path, binary: Path, address: str, cgroup: str) -> dict[str, Program]:
    """All of them, in the order in which they need each other; writes their configuration.

    Args:
        folder: the cluster's.
        binary: Kubernetes, see ``building.py``.
        address: the node's.
        cgroup: what pods live below.
    """
    secrets, settings = folder / "credentials", folder / "settings"
    settings.mkdir(exist_ok=True)
    _write(settings / "cni" / "10-bridge.conflist", _network())
    (settings / "containerd.toml").write_text(_containerd(folder))
    _write(settings / "kubelet.json", _kubelet(folder, cgroup, address))
    _write(settings / "proxy.json", _proxy(folder, address))
    _write(settings / "scheduler.json", _scheduler(folder))
    _write(settings / "audit.json", _audit())
    (settings / "resolv.conf").write_text("")
    (settings / "names").write_text(_names(folder, address))
    kube = str(binary)

    def configured(name: str) -> str:
        return f"--kubeconfig={secrets / name}.kubeconfig"

    return {
        "etcd": Program(_etcd(folder)),
        "apiserver": Program(
            [kube, "apiserver", *_apiserver(folder, address)], f"https://{address}:6443/readyz"
        ),
        "containerd": Program(
            [find("containerd") or "", f"--config={settings / 'containerd.toml'}"],
            str(folder / "containerd.socket"),
        ),
        "controller-manager": Program(
            [
                *(kube, "controller-manager", configured("controller-manager")),
                f"--root-ca-file={secrets / 'ca.crt'}",
                f"--service-account-private-key-file={secrets / 'accounts.key'}",
                "--use-service-account-credentials",
                "--leader-elect=false",
                *("--kube-api-qps=500", "--kube-api-burst=1000"),  # thousands of Jobs do not wait for it
                "--node-monitor-grace-period=20s",  # so that a lost node is seen within a test
                *(f"--bind-address={address}", f"--cert-dir={folder / 'made'}"),
            ],
            f"https://{address}:10257/healthz",
        ),
        "scheduler": Program(
            [
                *(kube, "scheduler", f"--config={settings / 'scheduler.json'}"),
                *(f"--bind-address={address}", f"--cert-dir={folder / 'made'}"),
            ],
            f"https://{address}:10259/healthz",
        ),
        "kubelet": Program(
            [
                *(kube, "kubelet", configured("kubelet"), f"--config={settings / 'kubelet.json'}"),
                *(f"--hostname-override={NODE}", f"--node-ip={address}"),
                *(f"--root-dir={folder / 'kubelet'}", f"--cert-dir={folder / 'made'}"),
            ],
            f"http://{address}:10248/healthz",
        ),
        "proxy": Program(
            [kube, "proxy", f"--config={settings / 'proxy.json'}"], f"http://{address}:10256/healthz"
        ),
        "dns": Program([kube, "dns", str(settings / "names")], f"http://{address}:8181/ready"),
        "storage": Program(
            [kube, "storage", str(secrets / "storage.kubeconfig"), PROVISIONER, str(folder / "volumes")]
        ),
        "policies": Program([kube, "policies", str(secrets / "policies.kubeconfig"), NODE, address]),
    }


def _etcd(folder: Path) -> list[str]:
    return [
        find("etcd") or "",
        f"--data-dir={folder / 'etcd'}",
        "--unsafe-no-fsync",  # what the page cache holds outlives a killed process, and nothing else is promised
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
    ]


def _apiserver(folder: Path, address: str) -> list[str]:
    secrets = folder / "credentials"
    return [
        f"--advertise-address={address}",
        "--etcd-servers=http://127.0.0.1:2379",
        f"--service-cluster-ip-range={SERVICES}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged",
        f"--client-ca-file={secrets / 'ca.crt'}",
        f"--tls-cert-file={secrets / 'server.crt'}",
        f"--tls-private-key-file={secrets / 'server.key'}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={secrets / 'accounts.key'}",
        f"--service-account-signing-key-file={secrets / 'accounts.key'}",
        f"--kubelet-client-certificate={secrets / 'apiserver.crt'}",
        f"--kubelet-client-key={secrets / 'apiserver.key'}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--audit-policy-file={folder / 'settings' / 'audit.json'}",
        f"--audit-log-path={folder / 'logs' / 'audit'}",
    ]


def _audit() -> dict[str, Any]:
    """One line for each request of a service account of the namespace COUNTED, once it was answered; none else."""
    counted = {"level": "Metadata", "userGroups": [f"system:serviceaccounts:{COUNTED}"]}
    return {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived", "ResponseStarted"],
        "rules": [counted, {"level": "None"}],
    }


def _network() -> dict[str, Any]:
    ranges = [[{"subnet": PODS}]]
    bridge = {
        "type": "bridge",
        "bridge": "pods",
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]},
    }
    return {
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}],
    }


def _containerd(folder: Path) -> str:
    # restrict_oom_score_adj: this machine may not let even root lower it.
    return f"""\
version = 2
root = "{folder}/containerd"
state = "{folder}/containerd-state"
[grpc]
address = "{folder}/containerd.socket"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{CNI}"
conf_dir = "{folder}/settings/cni"
[plugins."io.containerd.internal.v1.opt"]
path = "{folder}/opt"
"""


def _kubelet(folder: Path, cgroup: str, address: str) -> dict[str, Any]:
    secrets = folder / "credentials"
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": address,
        "healthzBindAddress": address,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(secrets / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": f"unix://{folder}/containerd.socket",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{cgroup}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "enforceNodeAllocatable": [],
        "oomScoreAdj": 0,
        "maxPods": MOST_PODS,
        "clusterDomain": DOMAIN,
        "clusterDNS": [DNS_SERVICE],
        "resolvConf": str(folder / "settings" / "resolv.conf"),
        "podLogsDir": str(folder / "pod-logs"),
        "volumePluginDir": str(folder / "volume-plugins"),
        "nodeLeaseDurationSeconds": 8,
        "serializeImagePulls": False,
        # A disk that is nearly full is no business of tests: images that nobody can pull again stay.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "nodefs.inodesFree": "1%",
            "imagefs.available": "1%",
        },
    }


def _names(folder: Path, address: str) -> str:
    """A Corefile. A name of no service does not exist, which is said at once: nobody else is asked."""
    return f"""\
. {{
    bind {address}
    ready {address}:8181
    errors
    kubernetes {DOMAIN} in-addr.arpa ip6.arpa {{
        kubeconfig {folder / "credentials" / "dns.kubeconfig"}
        ttl 1
        fallthrough in-addr.arpa ip6.arpa
    }}
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
"""


def _scheduler(folder: Path) -> dict[str, Any]:
    kubeconfig = str(folder / "credentials" / "scheduler.kubeconfig")
    return {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "leaderElection": {"leaderElect": False},
        "clientConnection": {"kubeconfig": kubeconfig, "qps": 500, "burst": 1000},
    }


def _proxy(folder: Path, address: str) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "healthzBindAddress": f"{address}:10256",
        "hostnameOverride": NODE,
        "clusterCIDR": PODS,
        "oomScoreAdj": 0,
        "clientConnection": {"kubeconfig": str(folder / "credentials" / "proxy.kubeconfig")},
        # Limits of the whole machine: left as they are.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }


def _write(path: Path, document: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1))
