"""A server whose token and secret key come by variables, as from a Secret of a cluster: nothing of them is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from shunter_work_pools.client import Client
from shunter_work_pools.contracts.deployments import DeploymentSpec, Work
from shunter_work_pools.contracts.errors import Unauthenticated
from shunter_work_pools.contracts.pools import PoolSpec
from shunter_work_pools.contracts.secrets import SecretValue
from tests.cli.console import Console
from tests.settings.serving import serving

KEY = "k" * 43


def test_nothing_of_them_is_written_and_both_can_be_changed(shunter: Console, home: Path) -> None:
    given = shunter.having(SHUNTER_TOKEN="first", SHUNTER_SERVER_SECRET_KEYS=KEY)
    with serving(given, home, token="first") as client:
        assert client.whoami().name == "local"
        client.create_pool(PoolSpec(name="p"))
        client.set_secret("word", SecretValue(value="hidden"))
        there = {path.name for path in home.iterdir()} - {"server.log"}
        assert not {"token", "secret_key"} & there
        assert all(name.startswith("shunter.db") or name == "logs" for name in there)
    assert KEY.encode() not in (home / "shunter.db").read_bytes()
    # The Secret was changed, the server is started anew.
    other = shunter.having(SHUNTER_TOKEN="second", SHUNTER_SERVER_SECRET_KEYS=f"{'n' * 43},{KEY}")
    with serving(other, home, token="second") as client:
        assert client.whoami().name == "local"
        with Client(client.api_url, "first") as old, pytest.raises(Unauthenticated):
            old.whoami()
        client.deploy("d", DeploymentSpec(work=Work(command=["true"]), pool="p"))
        assert [one.name for one in client.list_secrets().secrets] == ["word"]
    log = (home / "server.log").read_text()
    assert "sealed by the newest key" in log
    assert not any(word in log for word in ("hidden", KEY, "second"))
