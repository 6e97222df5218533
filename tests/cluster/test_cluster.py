"""The cluster for tests is a real one, can be broken piece by piece, and leaves nothing behind."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import images, packages
from tests.cluster.cluster import Cluster, OwnCluster
from tests.engines.kubernetes import by_hand

LIMIT = "--timeout=60s"


@contextmanager
def new_namespace(cluster: Cluster) -> Iterator[str]:
    """One that is made now."""
    name = f"test-{os.getpid()}-{time.monotonic_ns()}"
    cluster.kubectl("create", "namespace", name)
    cluster.kubectl("wait", "--for=create", "serviceaccount/default", "-n", name, LIMIT)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A new one."""
    with new_namespace(cluster) as name:
        yield name


def pod_spec(*argv: str, image: str = images.PYTHON, **more: Any) -> dict[str, Any]:
    container = {"name": "main", "image": image, "command": list(argv), **more}
    return {"restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": [container]}


def job(name: str, namespace: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"backoffLimit": 0, "template": {"spec": spec}},
    }


def pod(name: str, namespace: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def run(cluster: Cluster, namespace: str, name: str, spec: dict[str, Any]) -> str:
    """A Job, to its good end; what it printed."""
    cluster.apply(job(name, namespace, spec))
    cluster.kubectl("wait", "--for=condition=Complete", f"job/{name}", "-n", namespace, LIMIT)
    return cluster.kubectl("logs", f"job/{name}", "-n", namespace)


def test_a_job_runs_to_its_end_and_its_logs_come_through(cluster: Cluster, namespace: str) -> None:
    code = "import sys; print('seen', 6 * 7); print(sys.version_info[:2])"
    assert run(cluster, namespace, "hi", pod_spec("python3", "-c", code)) == "seen 42\n(3, 11)\n"


def test_an_exit_code_is_seen(cluster: Cluster, namespace: str) -> None:
    cluster.apply(job("bad", namespace, pod_spec("sh", "-c", "exit 7")))
    cluster.kubectl("wait", "--for=condition=Failed", "job/bad", "-n", namespace, LIMIT)
    (found,) = cluster.get("pods", "-n", namespace)["items"]
    assert found["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 7


def test_memory_over_the_limit_is_an_oom_kill(cluster: Cluster, namespace: str) -> None:
    spec = pod_spec(
        "python3", "-c", "b'x' * 500_000_000", resources={"limits": {"memory": "50Mi", "cpu": "200m"}}
    )
    cluster.apply(pod("fat", namespace, spec))
    cluster.kubectl("wait", "--for=jsonpath={.status.phase}=Failed", "pod/fat", "-n", namespace, LIMIT)
    ended = cluster.get("pod/fat", "-n", namespace)["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (ended["reason"], ended["exitCode"]) == ("OOMKilled", 137)


def test_a_pod_that_needs_too_much_is_told_so_by_the_scheduler(cluster: Cluster, namespace: str) -> None:
    cluster.apply(pod("big", namespace, pod_spec("true", resources={"requests": {"cpu": "900"}})))
    cluster.kubectl("wait", "--for=condition=PodScheduled=False", "pod/big", "-n", namespace, LIMIT)
    (condition,) = cluster.get("pod/big", "-n", namespace)["status"]["conditions"]
    assert condition["reason"] == "Unschedulable"
    assert "Insufficient cpu" in condition["message"]


def test_a_pod_reaches_the_api_server_by_its_service(cluster: Cluster, namespace: str) -> None:
    code = """
import os, ssl, urllib.request
given = "/var/run/secrets/kubernetes.io/serviceaccount/"
asked = urllib.request.Request(
    f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}/version",
    headers={"Authorization": "Bearer " + open(given + "token").read()},
)
print(urllib.request.urlopen(asked, context=ssl.create_default_context(cafile=given + "ca.crt")).status)
"""
    assert run(cluster, namespace, "asks", pod_spec("python3", "-c", code)) == "200\n"


def test_a_pod_finds_services_by_their_short_and_full_names(cluster: Cluster, namespace: str) -> None:
    ports = [{"port": 4400}]
    metadata = {"name": "server-shunter-server", "namespace": namespace}
    cluster.apply({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": ports}})
    address = cluster.get("service/server-shunter-server", "-n", namespace)["spec"]["clusterIP"]
    code = """
import socket, sys, time
def ask(name):
    try:
        return socket.gethostbyname(name)
    except socket.gaierror as error:
        return socket.EAI_NONAME == error.errno
name, namespace = sys.argv[1:]
below = f"{name}.{namespace}"
started = time.monotonic()
print(*(ask(one) for one in (name, below, below + ".svc", below + ".svc.cluster.local", "kubernetes.default")))
print(ask("never-" + name), ask("somewhere.invalid"), time.monotonic() - started < 5)
"""
    said = run(cluster, namespace, "asks", pod_spec("python3", "-c", code, metadata["name"], namespace))
    assert said == f"{address} {address} {address} {address} 10.96.0.1\nTrue True True\n"


def claim(name: str, namespace: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }


def test_a_claim_gets_a_volume_that_its_group_can_write_and_that_goes_with_it(
    own_cluster: OwnCluster, namespace: str
) -> None:
    own_cluster.apply(claim("data", namespace))
    mounts = [{"name": "data", "mountPath": "/data"}]
    given = {"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]}

    def user(group: int) -> dict[str, Any]:
        security = {"runAsUser": 65532, "runAsGroup": 65532, "runAsNonRoot": True}
        return {**given, "securityContext": {**security, **({"fsGroup": group} if group else {})}}

    refused = pod_spec("sh", "-c", "touch /data/a 2>/dev/null || echo refused", volumeMounts=mounts)
    assert run(own_cluster, namespace, "refused", refused | user(0)) == "refused\n"
    write = pod_spec("sh", "-c", "echo kept >/data/a && cat /data/a", volumeMounts=mounts)
    assert run(own_cluster, namespace, "writes", write | user(65532)) == "kept\n"
    read = pod_spec("cat", "/data/a", volumeMounts=mounts)
    assert run(own_cluster, namespace, "reads", read | user(65532)) == "kept\n"
    volume = own_cluster.get("pvc/data", "-n", namespace)["spec"]["volumeName"]
    path = Path(own_cluster.get("pv", volume)["spec"]["local"]["path"])
    assert (path / "a").read_text() == "kept\n"
    own_cluster.kubectl("delete", "jobs", "--all", "-n", namespace)
    own_cluster.kubectl("delete", "pvc/data", "-n", namespace, LIMIT)
    own_cluster.kubectl("wait", "--for=delete", f"pv/{volume}", LIMIT)
    assert not path.exists()


#: Tries to reach an address until that ends as it was told, or for half a minute: a policy is in force a moment after
#: it is there, and no event says when.
_REACH = """
import socket, sys, time
host, port, wanted = sys.argv[1:]
deadline = time.monotonic() + 30
while True:
    try:
        socket.create_connection((host, int(port)), 1).close()
        seen = "reached"
    except TimeoutError:
        seen = "dropped"
    except OSError as error:
        seen = str(error)
    if seen == wanted or time.monotonic() > deadline:
        break
    time.sleep(0.05)
print(seen)
"""
_SERVE = """
import http.server, threading
for port in (8080, 8081):
    server = http.server.ThreadingHTTPServer(("", port), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever).start()
"""


def policy(name: str, namespace: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"podSelector": {}, **spec},
    }


def test_a_network_policy_is_enforced(own_cluster: OwnCluster, namespace: str) -> None:
    pods = {"server": ["python3", "-c", _SERVE], "friend": ["sleep", "1000"], "stranger": ["sleep", "1000"]}
    named = [{"name": "web", "containerPort": 8080}]
    labelled = [pod(name, namespace, pod_spec(*argv, ports=named)) for name, argv in pods.items()]
    for one in labelled:
        one["metadata"]["labels"] = {"app": one["metadata"]["name"]}
    ports = [{"name": str(port), "port": port, "targetPort": port + 8000} for port in (80, 81)]
    service = {"selector": {"app": "server"}, "ports": ports}
    metadata = {"name": "server", "namespace": namespace}
    own_cluster.apply(
        *labelled, {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": service}
    )
    own_cluster.kubectl("wait", "--for=condition=Ready", "pod", "--all", "-n", namespace, LIMIT)

    def seen(who: str, host: str, port: int, wanted: str) -> str:
        ask = ["exec", who, "-n", namespace, "--", "python3", "-c", _REACH, host, str(port), wanted]
        return own_cluster.kubectl(*ask).strip()

    address = own_cluster.get("pod/server", "-n", namespace)["status"]["podIP"]
    assert seen("stranger", "server", 81, "reached") == "reached"
    own_cluster.apply(policy("nothing", namespace, policyTypes=["Ingress", "Egress"]))
    assert seen("stranger", address, 8080, "dropped") == "dropped"
    assert seen("friend", address, 8080, "dropped") == "dropped"
    assert seen("friend", "10.96.0.1", 443, "dropped") == "dropped"  # the API server is on the node itself
    friends, server = {"matchLabels": {"app": "friend"}}, {"matchLabels": {"app": "server"}}
    system = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}
    dns = {"to": [system], "ports": [{"port": 53, "protocol": "UDP"}]}
    own_cluster.apply(
        policy(
            "out",
            namespace,
            podSelector=friends,
            policyTypes=["Egress"],
            egress=[dns, {"to": [{"podSelector": server}]}],
        ),
        policy(
            "in",
            namespace,
            podSelector=server,
            policyTypes=["Ingress"],
            ingress=[{"from": [{"podSelector": friends}], "ports": [{"port": "web"}]}],
        ),
    )
    assert seen("friend", "server", 80, "reached") == "reached"
    assert seen("friend", "server", 81, "dropped") == "dropped"
    assert seen("stranger", address, 8080, "dropped") == "dropped"
    assert seen("friend", "10.96.0.1", 443, "dropped") == "dropped"
    networks = [{"to": [{"ipBlock": {"cidr": "10.244.0.0/16", "except": [f"{address}/32"]}}]}]
    own_cluster.kubectl("delete", "networkpolicy/in", "networkpolicy/nothing", "-n", namespace)
    assert seen("stranger", "10.96.0.1", 443, "reached") == "reached"
    own_cluster.apply(policy("out", namespace, podSelector=friends, policyTypes=["Egress"], egress=networks))
    assert seen("friend", address, 8080, "dropped") == "dropped"
    beside = own_cluster.get("pod/stranger", "-n", namespace)["status"]["podIP"]
    assert seen("friend", beside, 8080, "[Errno 111] Connection refused") == "[Errno 111] Connection refused"
    own_cluster.kubectl("delete", "networkpolicy", "--all", "-n", namespace)
    assert seen("friend", "server", 81, "reached") == "reached"


def test_a_pod_reaches_a_server_on_this_machine(own_cluster: OwnCluster, namespace: str) -> None:
    with socket.create_server((own_cluster.machine.outside, 0)) as server:
        server.settimeout(60)
        heard: list[bytes] = []

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                heard.append(connection.recv(100))

        thread = threading.Thread(target=serve)
        thread.start()
        address, port = server.getsockname()
        code = f"import socket; socket.create_connection(('{address}', {port})).sendall(b'from a pod')"
        run(own_cluster, namespace, "calls", pod_spec("python3", "-c", code))
        thread.join(60)
    assert heard == [b"from a pod"]


def test_an_image_that_is_loaded_can_be_run(own_cluster: OwnCluster, namespace: str, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    shutil.copy(packages.find("catatonit") or "", tmp_path / "root" / "program")
    images.write(tmp_path / "image.tar", "localhost/other:1", tmp_path / "root", {})
    own_cluster.load_image(tmp_path / "image.tar")
    spec = pod_spec("/program", "--version", image="localhost/other:1", imagePullPolicy="Never")
    assert "catatonit" in run(own_cluster, namespace, "other", spec)


def test_an_account_may_what_it_was_given_and_no_more(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    rules = [{"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["list"]}]
    cluster.account(tmp_path / "kubeconfig", "narrow", rules, namespace=namespace)
    account = Cluster(tmp_path / "kubeconfig")
    assert account.get("jobs")["items"] == []  # in its namespace, without naming it
    with pytest.raises(RuntimeError, match=r"Forbidden\): pods"):
        account.get("pods")
    with pytest.raises(RuntimeError, match=r"Forbidden\): jobs"):
        account.get("jobs", "-n", "default")
    assert account.kubeconfig.stat().st_mode & 0o777 == 0o600


def test_up_on_a_cluster_that_is_up_changes_nothing(own_cluster: OwnCluster) -> None:
    before = own_cluster.status()
    both = [by_hand("up", name=own_cluster.name) for _ in range(2)]
    for one in both:
        said, _ = one.communicate(timeout=60)
        assert (one.returncode, said) == (0, f"up: export KUBECONFIG={own_cluster.kubeconfig}\n")
    assert own_cluster.status() == before


def test_a_killed_apiserver_comes_back(own_cluster: OwnCluster, namespace: str) -> None:
    before = own_cluster.status()["apiserver"]
    own_cluster.kill("apiserver")
    own_cluster.wait_until_well("apiserver")
    after = own_cluster.status()["apiserver"]
    assert after["starts"] == before["starts"] + 1
    assert after["pid"] != before["pid"]
    assert own_cluster.get("namespace", namespace)["status"]["phase"] == "Active"


def test_names_are_found_also_of_what_is_made_after_the_apiserver_was_killed(own_cluster: OwnCluster) -> None:
    """Each watch that ends soon is told in the log of what watches."""
    for _ in range(3):
        own_cluster.kill("apiserver")
        own_cluster.wait_until_well("apiserver")
    with new_namespace(own_cluster) as name:
        service = {"metadata": {"name": "server", "namespace": name}, "spec": {"ports": [{"port": 4400}]}}
        own_cluster.apply({"apiVersion": "v1", "kind": "Service", **service})
        address = own_cluster.get("service/server", "-n", name)["spec"]["clusterIP"]
        code = f"""
import socket, time
for _ in range(200):
    try:
        print(socket.gethostbyname("server.{name}"))
        break
    except socket.gaierror:
        time.sleep(0.1)
"""
        assert run(own_cluster, name, "asks", pod_spec("python3", "-c", code)) == f"{address}\n"


@pytest.mark.parametrize("program", ["apiserver", "etcd", "kubelet", "containerd"])
def test_what_is_stopped_stays_away_and_pods_outlive_it(
    own_cluster: OwnCluster, namespace: str, program: str
) -> None:
    own_cluster.apply(pod("stays", namespace, pod_spec("sleep", "1000")))
    own_cluster.kubectl("wait", "--for=condition=Ready", "pod/stays", "-n", namespace, LIMIT)
    before = own_cluster.get("pod/stays", "-n", namespace)["status"]["containerStatuses"][0]
    own_cluster.stop(program)
    own_cluster.stop(program)
    assert own_cluster.status()[program]["pid"] == 0
    if program in ("apiserver", "etcd"):
        with pytest.raises(RuntimeError):
            own_cluster.kubectl("get", "--raw=/readyz", "--request-timeout=5s")
    else:
        assert own_cluster.get("pod/stays", "-n", namespace)["status"]["phase"] == "Running"
    assert "sleep 1000" in own_cluster.machine.command("ps", "ax", "-o", "args")
    assert own_cluster.status()[program] == {**own_cluster.status()[program], "pid": 0, "wanted": False}
    own_cluster.start(program)
    own_cluster.up()
    after = own_cluster.get("pod/stays", "-n", namespace)["status"]["containerStatuses"][0]
    assert (after["containerID"], after["restartCount"]) == (before["containerID"], 0)
    assert run(own_cluster, namespace, "next", pod_spec("echo", "goes on")) == "goes on\n"


def _what_others_see() -> dict[str, object]:
    """What a cluster could leave on this machine."""

    def said(*words: str) -> str:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout

    kernel = ("net/ipv4/ip_forward", "vm/overcommit_memory", "kernel/panic", "kernel/keys/root_maxkeys")
    return {
        "mounts": sorted(path for path in _mounted() if not _of_another_test(path)),
        "links": sorted(path.name for path in Path("/sys/class/net").iterdir()),
        "routes": said("ip", "route"),
        "named network namespaces": said("ip", "netns"),
        "hosts": Path("/etc/hosts").read_text(),
        "kernel": [Path("/proc/sys", name).read_text() for name in kernel],
        "firewall": [
            line
            for line in said("iptables-save").splitlines()
            if line.startswith("-A") and ("KUBE" in line or "CNI" in line)
        ],
        "cgroups": sorted(map(str, Path("/sys/fs/cgroup").glob("**/*shunter-cluster*"))),
        "kube folders": [
            Path(path).exists() for path in ("/var/lib/kubelet", "/var/lib/cni", "/var/log/pods")
        ],
    }


def _mounted() -> list[str]:
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]


def _of_another_test(mounted: str) -> bool:
    """Small disks and engines of tests that run meanwhile; a cluster mounts in its own folder, or where a kubelet does."""
    return "docker" in mounted or (
        Path(mounted).is_relative_to(tempfile.gettempdir()) and "shunter-cluster" not in mounted
    )


def _in_network(inode: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            if os.readlink(path) == inode:
                found.append(path.parts[2])
        except OSError:
            continue  # ended meanwhile
    return found


@pytest.mark.timeout(300)
def test_down_leaves_nothing_and_another_cluster_alone_even_after_a_killed_up(
    own_cluster: OwnCluster,
) -> None:
    before = _what_others_see()
    others = own_cluster.status()
    second = OwnCluster(f"test-{os.getpid()}")
    try:
        halfway = by_hand("up", name=second.name)
        while not second.machine.running():
            assert halfway.poll() is None
            time.sleep(0.01)
        halfway.kill()
        halfway.communicate()
        second.up()  # anew: what was left of the first is gone
        second.apply(pod("lives", "default", pod_spec("sleep", "1000")))
        second.kubectl("wait", "--for=condition=Ready", "pod/lives", LIMIT)
        inode = os.readlink(f"/proc/{second.machine.pid}/ns/net")
        assert _in_network(inode)
        assert _what_others_see() != before
    finally:
        second.down()
        second.down()
    assert _in_network(inode) == []
    assert not second.folder.exists()
    assert _what_others_see() == before
    assert own_cluster.status() == others


def test_a_cluster_that_is_not_up_says_how_to_bring_it_up(cluster: Cluster) -> None:
    for words in (["kubeconfig"], ["stop", "apiserver"], ["status"]):
        asked = by_hand(*words, name="never-up")
        said, _ = asked.communicate(timeout=60)
        if words == ["kubeconfig"] and "KUBECONFIG" in os.environ:
            continue
        assert asked.returncode == 1
        assert "make cluster-up" in said
        assert said.count("\n") == 1


def test_a_machine_that_cannot_have_a_cluster_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def told() -> str:
        with pytest.raises(packages.CannotHaveCluster) as error:
            packages.provide(install=False)
        return str(error.value)

    monkeypatch.setattr(packages, "find", lambda program: None if program in ("etcd", "ctr") else program)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "apt-get install --no-install-recommends containerd etcd-server (SHUNTER_TEST_INSTALL=1" in told()
    monkeypatch.setattr(packages, "find", lambda program: None if program == "go" else program)
    assert "install Go 1.26" in told()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "needs root" in told()
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert "needs Linux" in told()


def test_its_sources_fit_each_other() -> None:
    """Every staging module is replaced by the version that belongs to this Kubernetes."""
    text = (Path(__file__).with_name("tools") / "go.mod").read_text()
    replaced = [line.split() for line in text.splitlines() if "=>" in line]
    assert "k8s.io/kubernetes v1.37.2" in text
    assert {words[-1] for words in replaced} == {"v0.37.2"}
    assert all(words[0] == words[2] for words in replaced)
