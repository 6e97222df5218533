"""``python -m tests.cluster``: the cluster for tests, by hand."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from tests.cluster import building
from tests.cluster.cluster import OwnCluster, named_by_environment
from tests.cluster.packages import CannotHaveCluster, provide


def main() -> None:
    """Do one thing; the exit code is 1 with one message if it cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    parser.add_argument("--name", help="which cluster (SHUNTER_TEST_CLUSTER, else: default)")
    deeds = parser.add_subparsers(dest="deed", required=True, metavar="DEED")
    deeds.add_parser("up", help="bring it up, or see that it is well")
    deeds.add_parser("down", help="end it and remove what it left")
    deeds.add_parser("build", help="only build what it is made of, into the cache")
    deeds.add_parser("kubeconfig", help="print the path of its kubeconfig")
    deeds.add_parser("status", help="print what runs")
    for deed, does in (
        ("start", "start a program and wait until it is well"),
        ("stop", "kill a program; it stays away until started"),
        ("kill", "kill a program; it is started again at once"),
        ("log", "print what a program said"),
    ):
        deeds.add_parser(deed, help=does).add_argument("program")
    deeds.add_parser("load-image", help="give it an image").add_argument("archive", type=Path)
    fakes = deeds.add_parser("fake-nodes", help="have nodes that are not there, for thousands of pods")
    fakes.add_argument("count", type=int, help="how many; 0: none any more")
    deeds.add_parser("end-fake-pods", help="let all pods on them end")
    account = deeds.add_parser("account", help="make a service account, and its kubeconfig")
    account.add_argument("account")
    account.add_argument("kubeconfig", type=Path, help="the file to write")
    account.add_argument("--namespace", default="default")
    account.add_argument("--rules", type=json.loads, required=True, help="a Role's rules, as JSON")
    given = parser.parse_args()
    try:
        _do(given)
    except (CannotHaveCluster, RuntimeError, ValueError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"{parser.prog} {given.deed}: {error}")


def _do(given: argparse.Namespace) -> None:
    cluster = OwnCluster(given.name)
    install = os.environ.get("SHUNTER_TEST_INSTALL") == "1"
    if given.deed == "kubeconfig":
        _print_kubeconfig(cluster)
    elif given.deed == "build":
        provide(install=install)
        print(building.kubernetes())
    elif given.deed == "up":
        cluster.up(install=install)
        print(f"up: export KUBECONFIG={cluster.kubeconfig}")
    elif given.deed == "down":
        cluster.down()
    elif not cluster.is_up:
        raise CannotHaveCluster(f"the cluster {cluster.name} is not up: make cluster-up")
    elif given.deed == "status":
        for name, one in cluster.status().items():
            state = f"pid {one['pid']}" if one["pid"] else "stopped"
            print(f"{name:<20}{state:<12}{one['starts']} starts")
    elif given.deed == "log":
        print(cluster.log(given.program), end="")
    elif given.deed == "load-image":
        cluster.load_image(given.archive.resolve())
    elif given.deed == "fake-nodes":
        cluster.add_fake_nodes(given.count) if given.count else cluster.remove_fake_nodes()
    elif given.deed == "end-fake-pods":
        cluster.end_fake_pods()
    elif given.deed == "account":
        cluster.account(given.kubeconfig, given.account, given.rules, namespace=given.namespace)
    else:
        getattr(cluster, given.deed)(given.program)


def _print_kubeconfig(own: OwnCluster) -> None:
    named = named_by_environment()
    if own.is_up:
        print(own.kubeconfig)
    elif named is not None:
        print(named.kubeconfig)
    else:
        raise CannotHaveCluster(
            f"the cluster {own.name} is not up, and KUBECONFIG names none: make cluster-up"
        )


if __name__ == "__main__":
    main()
