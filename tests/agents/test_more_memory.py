"""A run that really runs out of memory is tried again with more, until it has enough."""

from __future__ import annotations

import pytest

from shunter_infrastructure.process import memory
from shunter_work_pools.contracts.deployments import DeploymentSpec, MoreMemory, RetryPolicy, Work
from shunter_work_pools.contracts.runs import RunRequest
from tests.agents.real_server import Site

MIB = 2**20


def test_twice_as_much_until_it_is_enough(here: Site) -> None:
    found = memory.find()
    if found.kind != "cgroup":
        pytest.skip(f"no memory cgroup can be written here ({found.reason}): run as root, or delegate one")
    takes = "taken = b'x' * (100 * 2**20); print(len(taken))"
    here.client.deploy(
        "hungry",
        DeploymentSpec(
            work=Work(command=["python3", "-c", takes], memory_limit=40 * MIB),
            pool="default",
            retries=RetryPolicy(count=5, more_memory=MoreMemory(factor=2, up_to=1024 * MIB)),
        ),
    )
    run = here.client.create_run(RunRequest(deployment="hungry")).id
    with here.agent("hungry"):
        ended = here.ended(run)
        assert [(one.cause, one.memory) for one in ended.attempts] == [
            ("oom", None),
            ("oom", 80 * MIB),
            (None, 160 * MIB),
        ]
        assert ended.state == "Completed"
        assert here.output(run) == b"104857600\n"
