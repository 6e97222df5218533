"""Many deployments at once, all or none; a dry run leaves no trace; revisions are gone back to."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select

from shunter_work_pools.storage.schema import metadata
from shunter_work_pools.storage.store import Changes, Tx
from tests.api.serving import Served

WORK = {"command": ["/bin/true"]}


def named(name: str, **spec: Any) -> dict[str, Any]:
    return {"name": name, "spec": {"work": WORK} | spec}


def hourly(**more: Any) -> dict[str, Any]:
    return {"when": {"kind": "cron", "cron": "0 * * * *"}} | more


def rows(tx: Tx) -> dict[str, int]:
    return {
        table.name: tx.conn.scalar(select(func.count()).select_from(table)) or 0
        for table in metadata.sorted_tables
        if table.name != "agents"
    }


async def apply(server: Served, *wanted: Any, status: int = 200, dry_run: bool = False) -> Any:
    return await server.post("/deployments", {"deployments": list(wanted), "dry_run": dry_run}, status)


async def test_many_are_applied_in_the_order_of_the_request(server: Served) -> None:
    await server.pool()
    first = await apply(server, named("b", pool="main"), named("a", schedules=[hourly()]))
    assert [(one["name"], one["change"], one["revision"]) for one in first["deployments"]] == [
        ("b", "created", 1),
        ("a", "created", 1),
    ]
    assert first["deployments"][0]["warnings"] == [
        "no agent has ever served pool main; its runs will wait. Start one: `shunter agent start --pool main`."
    ]
    assert first["deployments"][1]["next_at"] is not None
    again = await apply(server, named("b", pool="main", tags=["x"]), named("a", schedules=[hourly()]))
    told = [(one["change"], one["revision"], one["before"]) for one in again["deployments"]]
    assert told[0][:2] == ("changed", 2)
    assert told[0][2]["tags"] == []
    assert told[1][:2] == ("unchanged", 1)


async def test_a_dry_run_says_the_same_and_leaves_no_trace(server: Served) -> None:
    await server.deploy("old", schedules=[hourly()])
    heard: list[Changes] = []
    before = await server.engine.store.read(rows)
    listener, server.engine.store.on_commit = server.engine.store.on_commit, heard.append
    wanted = (named("old", tags=["x"]), named("new", schedules=[hourly()]))
    shown = await apply(server, *wanted, dry_run=True)
    server.engine.store.on_commit = listener
    assert await server.engine.store.read(rows) == before
    assert not any(changes.schedules or changes.pools or changes.runs for changes in heard)
    assert (await server.get("/deployments/old"))["revision"] == 1
    done = await apply(server, *wanted)
    for one in done["deployments"]:
        one["next_at"] = None
    assert shown == done
    # What was rehearsed was not kept in memory: the second revision is the one that came after it.
    await apply(server, named("new", description="other"), dry_run=True)
    await apply(server, named("new", description="this"))
    assert (await server.get("/deployments/new"))["spec"]["description"] == "this"


async def test_all_faults_of_all_entries_are_told_and_nothing_is_deployed(server: Served) -> None:
    schema = {"properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
    answer = await apply(
        server,
        named("good"),
        named(
            "bad",
            pool="nowhere",
            parameter_schema=schema,
            parameters={"n": "no", "m": 1},
            schedules=[
                {"name": "a", "when": {"kind": "cron", "cron": "0 0 30 2 *"}},
                {"name": "b", "when": {"kind": "interval", "seconds": 60, "timezone": "Mars/Base"}},
                {"name": "c", "when": {"kind": "interval", "seconds": 60}, "jitter": 61},
                {"name": "d", "when": {"kind": "interval", "seconds": 60}, "parameters": {"n": "x"}},
            ],
        ),
        named("good"),
        named("worse", parameter_schema={"type": "nonsense"}),
        status=400,
    )
    found = {(fault["deployment"], *fault["loc"]) for fault in answer["faults"]}
    assert found == {
        (1, "pool"),
        (1, "parameters"),
        (1, "parameters", "n"),
        (1, "schedules", 0, "when", "cron"),
        (1, "schedules", 1, "when", "timezone"),
        (1, "schedules", 2, "jitter"),
        (1, "schedules", 3, "parameters", "n"),
        (2, "name"),
        (3, "parameter_schema"),
    }
    assert all(fault["detail"] for fault in answer["faults"])
    assert answer["type"].endswith("bad-request")
    assert (await server.get("/deployments"))["deployments"] == []


async def test_faults_of_form_are_told_at_their_place(plain: Served) -> None:
    answer = await apply(
        plain,
        named("a", schedules=[{"when": {"kind": "cron", "cron": 5}}], priority="high"),
        {"name": "a b", "spec": {"work": {}}},
        named("c", schedules=[hourly(start="2027-01-02T00:00:00Z", end="2027-01-01T00:00:00Z")]),
        status=400,
    )
    assert {(fault["deployment"], *fault["loc"]) for fault in answer["faults"]} == {
        (0, "schedules", 0, "when", "cron"),
        (0, "priority"),
        (1, "name"),
        (1, "work"),
        (2, "schedules", 0),
    }


async def test_rollback_makes_a_new_revision_of_an_old_spec(server: Served) -> None:
    for tag in ("one", "two", "three"):
        await server.deploy(tags=[tag])
    back = await server.post("/deployments/job/rollback", {})
    assert (back["changed"], back["deployment"]["revision"]) == (True, 4)
    assert back["deployment"]["spec"]["tags"] == ["two"]
    first = await server.post("/deployments/job/rollback", {"to": 1})
    assert (first["deployment"]["revision"], first["deployment"]["spec"]["tags"]) == (5, ["one"])
    same = await server.post("/deployments/job/rollback", {"to": 1})
    assert (same["changed"], same["deployment"]["revision"]) == (False, 5)
    unknown = await server.post("/deployments/job/rollback", {"to": 9}, 404)
    assert "has no revision 9" in unknown["detail"]
    assert "1, 2, 3, 4, 5" in unknown["remedy"]
    await server.deploy("young")
    assert "before its first" in (await server.post("/deployments/young/rollback", {}, 404))["detail"]


async def test_an_old_document_without_newer_fields_is_no_change(server: Served) -> None:
    from sqlalchemy import update

    from shunter_work_pools.storage.schema import revisions

    await server.deploy(schedules=[hourly()])

    def as_it_was(tx: Tx) -> None:
        spec = dict(tx.conn.scalar(select(revisions.c.spec)) or {})
        del spec["keep"]
        for schedule in spec["schedules"]:
            del schedule["catch_up"], schedule["when"]["day"]
        tx.conn.execute(update(revisions).values(spec=spec))

    await server.engine.store.write(as_it_was)
    server.engine.store.cache.clear()  # type: ignore[attr-defined]
    assert (await server.deploy(schedules=[hourly()]))["changed"] is False


async def test_what_was_due_runs_under_the_revision_it_was_due_under(server: Served) -> None:
    from sqlalchemy import update

    from shunter_work_pools.storage.schema import schedules

    every = {"when": {"kind": "interval", "seconds": 3600}}
    await server.deploy(schedules=[every], tags=["old"])
    # Due now, and the loop that would fire it looks away: a deploy comes first.
    await server.without("schedule")

    def due(tx: Tx) -> None:
        values = {"done_until": tx.now - 1000, "next_at": tx.now - 500, "anchor_at": tx.now - 500}
        tx.conn.execute(update(schedules).values(**values))

    await server.engine.store.write(due)
    server.engine.firing_since = 0
    await apply(server, named("job", schedules=[every], tags=["new"]), dry_run=True)
    assert (await server.get("/runs"))["runs"] == []
    await apply(server, named("job", schedules=[every], tags=["new"]))
    (made,) = (await server.get("/runs"))["runs"]
    assert (made["revision"], made["tags"]) == (1, ["old"])
