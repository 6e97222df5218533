"""Flags go before the environment, that before the profile, that before the default: on real processes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from shunter_work_pools.client import Client
from shunter_work_pools.contracts import PROTOCOL
from shunter_work_pools.contracts.agents import SyncRequest
from shunter_work_pools.contracts.configuration import Values
from shunter_work_pools.contracts.pools import PoolSpec
from tests.cli.console import Console, free_port, stop, until
from tests.settings.serving import serving

CONFIG = """\
profile = "quiet"

[profiles.quiet]
server.lost_after = "40s"
log.level = "error"

[profiles.slow]
token = "of-the-profile"

[profiles.slow.server]
lost_after = 45
give_up_after = "1h30m"

[profiles.slow.keep]
runs = 7
logs_for = "2d"
"""


def silence(client: Client, pool: str = "p") -> tuple[float, float]:
    """``lost_after`` and ``give_up_after``, as the server tells agents."""
    if not client.list_pools().pools:
        client.create_pool(PoolSpec(name="p"))
    ask = SyncRequest(
        session=UUID(int=1),
        identity=UUID(int=2),
        pools=[pool],
        limit=1,
        free=1,
        hold_for=0,
        protocol=PROTOCOL,
    )
    answer = client.sync("a", ask)
    return answer.lost_after, answer.give_up_after


def test_a_server_goes_by_flag_variable_profile_default_in_this_order(shunter: Console, home: Path) -> None:
    with serving(shunter, home) as client:
        assert silence(client) == (30, 300)
    (home / "config.toml").write_text(CONFIG)
    with serving(shunter, home) as client:
        assert silence(client) == (40, 300)
    assert (home / "server.log").read_text() == ""  # log.level error: even "serving" is not said
    with serving(shunter.having(SHUNTER_SERVER_LOST_AFTER="50s"), home) as client:
        assert silence(client) == (50, 300)
    with serving(shunter.having(SHUNTER_SERVER_LOST_AFTER="50s"), home, "--lost-after", "1m") as client:
        assert silence(client) == (60, 300)


def test_a_profile_is_chosen_by_option_and_by_variable(shunter: Console, home: Path) -> None:
    (home / "config.toml").write_text(CONFIG)
    with serving(
        shunter.having(SHUNTER_TOKEN="of-the-profile"),
        home,
        token="of-the-profile",
        first=("--profile", "slow"),
    ) as client:
        assert silence(client) == (45, 5400)
    with serving(shunter.having(SHUNTER_PROFILE="slow"), home, token="of-the-profile") as client:
        assert silence(client) == (45, 5400)
    assert not (home / "token").exists()


def test_an_agent_goes_by_the_profile_of_its_command(shunter: Console, home: Path) -> None:
    with serving(shunter, home) as client:
        client.create_pool(PoolSpec(name="p"))
        token = home / "token"
        shunter.ok("config", "set", "api_url", client.api_url, "--profile", "far")
        shunter.ok("config", "set", "token", token.read_text().strip(), "--profile", "far")
        shunter.ok("config", "set", "agent.limit", "3", "--profile", "far")
        token.unlink()
        words = ("agent", "start", "--pool", "p", "--name", "far")
        agent = shunter.spawn("--profile", "far", *words, stderr=subprocess.DEVNULL)
        try:
            until(lambda: agent.poll() is not None or client.list_agents().agents)
            assert [one.limit for one in client.list_agents().agents] == [3]
        finally:
            stop(agent)
        assert "far" in shunter.ok("--profile=far", "agent", "list", "-q").text.split()


def test_up_passes_on_what_its_server_is_told(shunter: Console, home: Path) -> None:
    port = free_port()
    words = ("--port", str(port), "--lost-after", "20s", "--allowed-host", "a.example", "--limit", "3")
    with (home / "up.log").open("wb") as log:
        both = shunter.spawn("up", *words, stdout=log, stderr=log)
    try:
        until(lambda: both.poll() is not None or b"Shunter is up" in (home / "up.log").read_bytes())
        assert both.poll() is None, (home / "up.log").read_text()
        with Client(f"http://127.0.0.1:{port}/api", (home / "token").read_text().strip()) as client:
            assert [agent.limit for agent in client.list_agents().agents] == [3]
            assert silence(client, "default") == (20, 300)
    finally:
        stop(both)


def test_config_show_tells_where_each_comes_from(shunter: Console, home: Path) -> None:
    (home / "config.toml").write_text(CONFIG)
    file = home / "config.toml"
    terminal = shunter.having(SHUNTER_PROFILE="slow", SHUNTER_LOG_LEVEL="debug")
    shown = {one["name"]: one for one in terminal.ok("config", "show", "-o", "json").json}
    assert (shown["log.level"]["value"], shown["log.level"]["from"]) == ("debug", "SHUNTER_LOG_LEVEL")
    assert (shown["server.lost_after"]["value"], shown["server.lost_after"]["from"]) == (45, f"{file}:11")
    assert (shown["keep.runs"]["value"], shown["keep.runs"]["from"]) == (7, f"{file}:15")
    assert (shown["server.late_after"]["value"], shown["server.late_after"]["from"]) == (15, "default")
    assert shown["token"]["value"] == "***"
    assert "of-the-profile" not in terminal.ok("config", "show").text
    assert terminal.ok("config", "show", "token", "-q", "--show-secrets").text == "of-the-profile\n"
    assert terminal.ok("config", "show", "keep.logs_for", "-q").text == "2d\n"
    assert "server.lost_after" in terminal.ok("config", "show", "-q").text.split()


def test_output_goes_by_its_setting_unless_told(shunter: Console) -> None:
    terminal = shunter.having(SHUNTER_CLI_OUTPUT="json")
    assert terminal.ok("config", "show", "log.level").json[0]["value"] == "info"
    assert terminal.ok("config", "show", "log.level", "-o", "table").text.startswith("NAME")
    assert terminal.ok("config", "show", "log.level", "-q").text == "info\n"


def test_the_port_is_that_of_the_address_if_it_is_here(shunter: Console, home: Path) -> None:
    port = free_port()
    terminal = shunter.having(SHUNTER_API_URL=f"http://127.0.0.1:{port}/api")
    with (home / "server.log").open("wb") as log:
        server = terminal.spawn("server", "start", stdout=log, stderr=log)
    try:
        until(lambda: server.poll() is not None or terminal("server", "status").code == 0)
        assert server.poll() is None, (home / "server.log").read_text()
    finally:
        stop(server)


def test_an_empty_variable_is_as_good_as_none(loaded: Callable[..., Values]) -> None:
    values = loaded('[profiles.default]\nlog.level = "error"\n', SHUNTER_LOG_LEVEL="")
    assert values["log.level"] == "error"


def test_numbers_and_words_mean_the_same_time(loaded: Callable[..., Values]) -> None:
    for written in ("90", '"90"', '"1m30s"', "90.0"):
        assert loaded(f"[profiles.default]\nserver.late_after = {written}\n")["server.late_after"] == 90


def test_a_run_and_kubernetes_may_have_set_variables(loaded: Callable[..., Values]) -> None:
    values = loaded(
        SHUNTER_RUN_ID="x",
        SHUNTER_PORT="tcp://10.0.0.1:4400",
        SHUNTER_PORT_4400_TCP_ADDR="10.0.0.1",
        SHUNTER_SERVER_PORT="tcp://10.0.0.1:4400",
        SHUNTER_SERVER_SERVICE_HOST="10.0.0.1",
        SHUNTER_SERVER_SERVICE_PORT_HTTP="4400",
    )
    assert values["server.port"] is None
