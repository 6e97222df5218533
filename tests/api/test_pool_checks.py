"""Checks of pools: a run of the server's own, one at a time, that nobody but the server says the command of."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from shunter_work_pools.contracts.identities import Kind, Role
from shunter_work_pools.queue import pool_checks
from tests.api.serving import SOON, Served, held
from tests.api.test_identities import made
from tests.api.test_remove import delete, silence

SAYS = "This pool runs what it is given."


async def check(server: Served, pool: str = "main", status: int = 201) -> Any:
    return await server.post(f"/pools/{pool}/checks", status=status)


async def look(server: Served, found: Any, **more: Any) -> Any:
    return await server.get(f"/pools/{found['pool']}/checks/{found['run']}", **more)


async def ends(server: Served, granted: Any, output: str = f"{SAYS}\n", state: str = "Completed") -> None:
    await server.upload(granted, 0, output.encode())
    end = {"exit_code": 0} if state == "Completed" else {"exit_code": 3, "cause": "exit_code"}
    await server.report(granted, "Starting", "Running", state, log_size=len(output), **end)


async def test_it_runs_like_any_run_and_one_at_a_time(server: Served) -> None:
    await server.pool()
    first = await check(server)
    assert (first["created"], first["state"], first["queue"]) == (True, "Scheduled", "default")
    assert (await check(server, status=200)) | {"created": True} == first
    (granted,) = await server.take()
    assert granted["run"] == first["run"]
    assert granted["work"]["command"] == ["echo", SAYS]
    assert granted["work"]["timeout"] == 60
    looking = asyncio.create_task(look(server, first, wait=SOON, seen=(await look(server, first))["mark"]))
    await server.watched()
    await server.report(granted, "Starting")
    assert (await looking)["state"] == "Starting"
    assert (await check(server, status=200))["run"] == first["run"]
    await ends(server, granted)
    done = await look(server, first)
    assert (done["state"], done["ended"], done["agent"], done["log"]) == (
        "Completed",
        True,
        "a1",
        f"{SAYS}\n",
    )
    again = await check(server)
    assert again["run"] != first["run"]
    found = await server.get("/deployments/check-main")
    assert (found["revision"], found["spec"]["tags"], found["spec"]["pool"]) == (1, ["check"], "main")
    assert (await server.get("/runs", tag="check"))["runs"][0]["id"] == again["run"]


async def test_a_look_is_held_until_its_log_is_here(server: Served) -> None:
    await server.pool()
    found = await check(server)
    (granted,) = await server.take()
    await server.report(granted, "Starting", "Running", "Completed", log_size=3, exit_code=0)
    ended = await look(server, found)
    assert (ended["state"], ended["ended"], ended["log"]) == ("Completed", False, "")
    looking = asyncio.create_task(look(server, found, wait=SOON, seen=ended["mark"]))
    await server.watched()
    await server.upload(granted, 0, b"ok\n")
    whole = await looking
    assert (whole["ended"], whole["log"]) == (True, "ok\n")


async def test_a_run_that_fails_says_why(server: Served) -> None:
    await server.pool()
    found = await check(server)
    (granted,) = await server.take()
    await ends(server, granted, "no\n", "Failed")
    failed = await look(server, found)
    assert (failed["state"], failed["cause"], failed["ended"], failed["log"]) == (
        "Failed",
        "exit_code",
        True,
        "no\n",
    )
    assert "exit code 3" in failed["sentence"]


async def test_many_who_ask_at_once_get_the_same(server: Served) -> None:
    await server.pool()
    found = await asyncio.gather(*(server.http.post("/pools/main/checks") for _ in range(8)))
    assert sorted(one.status_code for one in found) == [200] * 7 + [201], [one.text for one in found]
    assert len({one.json()["run"] for one in found}) == 1


async def test_it_says_what_it_waits_for(server: Served) -> None:
    await server.pool()
    found = await check(server)
    assert "agent" in found["sentence"]
    assert "shunter agent start" in found["next_step"]
    for path, body, words in (
        ("/pools/main", {"paused": True, "reason": "new disks"}, "Pool main is paused"),
        ("/server", {"paused": True}, "maintenance"),
    ):
        await server.ask("PATCH", path, json=body)
        assert words in (await look(server, found))["sentence"]
    assert (await check(server, status=200))["run"] == found["run"]
    assert (await server.sync())["assignments"] == []


async def test_it_goes_before_what_waits(server: Served) -> None:
    await server.pool()
    await server.deploy(pool="main", priority=900)
    for _ in range(3):
        await server.submit()
    found = await check(server)
    (granted,) = await server.take(limit=1, free=1)
    assert granted["run"] == found["run"]


async def test_what_is_not_there(plain: Served) -> None:
    await plain.pool()
    await plain.pool("other")
    assert "there is no pool 'nowhere'" in (await check(plain, "nowhere", 404))["detail"]
    await plain.deploy(pool="main")
    run = await plain.submit()
    of_main = await check(plain)
    for pool, this in (("main", run), ("other", of_main["run"]), ("main", "0" * 32), ("nowhere", run)):
        assert (await plain.http.get(f"/pools/{pool}/checks/{this}")).status_code == 404, (pool, this)
    assert (await plain.http.get("/pools/main/checks/abc")).status_code == 400


async def test_what_somebody_else_named_so_is_left_alone(plain: Served) -> None:
    await plain.pool()
    await plain.deploy("check-main", pool="main", tags=["check"])
    refused = await check(plain, status=409)
    assert "'check-main' that the server has not made" in refused["detail"]
    assert (await plain.get("/deployments/check-main"))["revision"] == 1
    assert (await plain.get("/runs"))["runs"] == []
    assert "check-main" in (await delete(plain, "/pools/main", 409))["detail"]


async def test_what_somebody_made_of_the_servers_own_is_undone(plain: Served) -> None:
    """Who may ask for a check does not run what a deployer put there."""
    await plain.pool()
    await check(plain)
    (granted,) = await plain.take()
    await ends(plain, granted)
    await plain.deploy(
        "check-main", pool="main", work={"command": ["rm"]}, description=pool_checks.DESCRIPTION
    )
    await check(plain)
    (granted,) = await plain.take()
    assert granted["work"]["command"] == ["echo", SAYS]
    assert granted["revision"] == 3


async def test_it_keeps_no_pool_from_being_deleted(server: Served) -> None:
    await server.pool()
    waiting = await check(server)
    await delete(server, "/pools/main")
    gone = await server.run(waiting["run"])
    assert (gone["state"], gone["message"]) == ("Cancelled", "its deployment was deleted")
    await server.pool()
    anew = await check(server)
    (granted,) = await server.take()
    assert granted["run"] == anew["run"]
    assert "is served by agent" not in (await delete(server, "/pools/main", 409))["detail"], "it is active"
    assert (await look(server, anew))["state"] == "Claimed", "nothing was changed"
    await ends(server, granted)
    assert "is served by agent 'a1'" in (await delete(server, "/pools/main", 409))["detail"]
    assert (await server.get("/deployments/check-main"))["name"] == "check-main", "nothing was changed"
    await silence(server)
    await delete(server, "/pools/main")
    assert (await server.get("/deployments"))["deployments"] == []


async def test_it_is_made_in_a_queue_that_somebody_serves(server: Served) -> None:
    await server.pool()
    await server.post("/pools/main/queues", {"name": "quick"}, 201)
    await server.sync(queues=["quick", "of-another-pool"])
    found = await check(server)
    assert found["queue"] == "quick"
    (granted,) = await server.take(queues=["quick", "of-another-pool"])
    await ends(server, granted)
    await server.sync("a2", session="00000000-0000-0000-0000-000000000002")
    assert (await check(server))["queue"] == "default"


async def test_one_in_a_queue_that_nobody_serves_by_now_is_not_waited_for(server: Served) -> None:
    """It was made before there were any agents."""
    await server.pool()
    await server.post("/pools/main/queues", {"name": "quick"}, 201)
    first = await check(server)
    await server.sync(queues=["quick"])
    second = await check(server)
    assert (first["queue"], second["queue"]) == ("default", "quick")
    assert (await check(server, status=200))["run"] == second["run"]
    (granted,) = await server.take(queues=["quick"])
    assert granted["run"] == second["run"]
    assert (await check(server, status=200))["run"] == second["run"], "it is under way"


async def test_one_that_somebody_wants_later_is_not_waited_for(server: Served) -> None:
    await server.pool()
    await check(server)
    (granted,) = await server.take()
    await ends(server, granted)
    later = await server.submit("check-main", scheduled_at="2100-01-01T00:00:00Z")
    found = await check(server)
    assert found["run"] != later
    assert (await check(server, status=200))["run"] == found["run"]


async def test_it_keeps_no_queue_from_being_deleted(server: Served) -> None:
    await server.pool()
    await server.post("/pools/main/queues", {"name": "quick"}, 201)
    await server.sync(queues=["quick"])
    await check(server)
    await silence(server)
    await delete(server, "/pools/main/queues/quick")
    assert (await check(server))["queue"] == "default"


async def test_long_names_are_told_apart(plain: Served) -> None:
    names = [f"{'n' * 99}{last}" for last in "ab"]
    for name in names:
        await plain.pool(name)
    made_of = [(await check(plain, name))["deployment"] for name in names]
    assert len(set(made_of)) == 2
    assert [len(name) for name in made_of] == [100, 100]
    assert pool_checks.name_of("n" * 94) == f"check-{'n' * 94}"


@pytest.mark.parametrize(
    ("who", "may"), [(Role.VIEWER, False), (Role.OPERATOR, True), ("a1", True), ("b1", False)]
)
async def test_who_may_ask_and_that_it_is_written_down(plain: Served, who: Any, may: bool) -> None:
    await plain.pool()
    await plain.pool("other")
    if isinstance(who, Role):
        token = await made(plain, Kind.PERSON, "ann", role=who)
    else:
        token = await made(plain, Kind.AGENT, who, pools=["main" if who == "a1" else "other"])
    headers = {"authorization": f"Bearer {token}"}
    asked: httpx.Response = await plain.http.post(
        "/pools/main/checks", headers=headers, json={"command": ["reboot"]}
    )
    assert asked.status_code == (201 if may else 403), asked.text
    if may:
        (entry,) = [one for one in (await plain.get("/audit"))["entries"] if one["action"] == "check_pool"]
        assert (entry["who"], entry["target"]) == ("ann" if isinstance(who, Role) else who, "pools/main")
        (granted,) = await plain.take()
        assert granted["work"]["command"] == ["echo", SAYS]
        shown = await plain.http.get(f"/pools/main/checks/{asked.json()['run']}", headers=headers)
        assert shown.status_code == 200
        await plain.sync(holds=[held(granted)])
