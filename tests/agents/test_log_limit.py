"""An agent whose run writes more than the server keeps of it."""

from __future__ import annotations

from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from shunter_work_pools.contracts.deployments import DeploymentSpec, Work
from shunter_work_pools.contracts.runs import RunRequest
from tests.agents.real_server import Site, site

pytestmark = pytest.mark.timeout(120)


def test_what_is_over_the_limit_is_not_even_sent(tmp_path: Path) -> None:
    with site(tmp_path, {"server.log_limit": "64KiB"}) as here:
        for name, script in (
            ("noisy", "yes 0123456789abcde | head -c 20000000; echo the end"),
            ("quiet", "yes 0123456789abcde | head -c 65536"),
        ):
            work = Work(command=["sh", "-c", script])
            here.client.deploy(name, DeploymentSpec(work=work, pool="default"))
        with here.agent("a") as process:
            runs = {
                name: here.client.create_run(RunRequest(deployment=name)).id for name in ("noisy", "quiet")
            }
            for run in runs.values():
                assert here.ended(run).state == "Completed"
            whole = b"0123456789abcde\n" * 4096
            assert here.output(runs["quiet"]) == whole
            noisy = here.output(runs["noisy"])
            assert noisy.startswith(whole)
            assert noisy.removeprefix(whole).startswith(b"[shunter: the log is cut here: 64KiB of output")
            assert len(noisy) < len(whole) + 200
            assert process.poll() is None
            assert _arrived(here) < 4_000_000, "what was under way when it was told, and no more"
        assert here.attempts("a") == []
        assert here.log("a").count("has reached its limit") == 1


def _arrived(here: Site) -> float:
    """Bytes of output that the server was sent."""
    request = Request(
        f"http://127.0.0.1:{here.port}/metrics",
        headers={"Authorization": f"Bearer {here.env['SHUNTER_TOKEN']}"},
    )
    page = urlopen(request, timeout=10).read().decode()
    (line,) = [line for line in page.splitlines() if line.startswith("shunter_log_bytes_total ")]
    return float(line.split()[1])
