"""``server status``, ``upgrade-db``, ``backup``, and flags that reach what they are for."""

from __future__ import annotations

from pathlib import Path

from shunter_work_pools.client import Client
from shunter_work_pools.contracts.deployments import DeploymentSpec, Work
from shunter_work_pools.contracts.errors import NotFound
from shunter_work_pools.contracts.pools import PoolSpec
from shunter_work_pools.contracts.runs import RunRequest
from tests.cli.console import Console, until
from tests.cli.test_bad_input import refused
from tests.settings.serving import serving


def test_status_of_a_server(shunter: Console, home: Path) -> None:
    with serving(shunter, home) as client:
        terminal = shunter.having(SHUNTER_API_URL=client.api_url)
        told = terminal.ok("server", "status", "-o", "json").json
        assert (told["api_url"], told["ready"], told["store"]) == (client.api_url, True, "sqlite")
        assert told["version"] == client.server().version
        assert told["schema_version"]
        assert told["database_bytes"] >= 4096
        assert 0 < told["uptime"] < 60
        shown = terminal.ok("server", "status").text
        assert "ready" in shown
        assert told["schema_version"] in shown


def test_a_backup_made_while_it_serves_is_what_a_server_can_start_from(shunter: Console, home: Path) -> None:
    copy = home.parent / "copy.db"
    with serving(shunter, home) as client:
        client.create_pool(PoolSpec(name="kept"))
        shunter.ok("server", "backup", str(copy))
        refused(shunter("server", "backup", str(copy)), str(copy), "exists already")
        refused(shunter("server", "upgrade-db"), "another server is using")
    assert copy.stat().st_mode & 0o777 == 0o600
    (home / "shunter.db").unlink()
    with serving(shunter, home, "--database-url", f"sqlite:///{copy}") as client:
        assert [pool.name for pool in client.list_pools().pools] == ["kept"]
    assert not (home / "shunter.db").exists()


def test_upgrade_db_is_for_the_database_that_is_set(shunter: Console, home: Path) -> None:
    database = home.parent / "other.db"
    shunter.ok("config", "set", "server.database_url", f"sqlite:///{database}")
    assert "->" in shunter.ok("server", "upgrade-db").text
    assert "up to date" in shunter.ok("server", "upgrade-db").text
    assert database.exists()
    assert not (home / "shunter.db").exists()


def test_what_need_not_be_kept_goes(shunter: Console, home: Path) -> None:
    with serving(shunter, home, "--keep-runs", "0", "--retain-every", "1s") as client:
        client.create_pool(PoolSpec(name="p"))
        client.deploy("d", DeploymentSpec(work=Work(command=["true"]), pool="p"))
        ended = client.create_run(RunRequest(deployment="d")).id
        waiting = client.create_run(RunRequest(deployment="d")).id
        client.cancel_run(str(ended))
        until(lambda: _is_gone(client, str(ended)))
        assert client.get_run(str(waiting)).state == "Scheduled"


def _is_gone(client: Client, run: str) -> bool:
    try:
        client.get_run(run)
    except NotFound:
        return True
    return False
