"""Submit: one run, many, all or none; keys; parameters; where runs go."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest

from shunter_work_pools.contracts.errors import BadRequest, Conflict, NotFound, TooLarge
from shunter_work_pools.queue.ids import new_run_id
from shunter_work_pools.queue.views import RunFilter, list_runs
from tests.queue.world import S, World

SCHEMA = {
    "type": "object",
    "properties": {"year": {"type": "integer"}, "place": {"type": "string"}},
    "required": ["year"],
    "additionalProperties": False,
}


async def test_a_run_is_as_it_was_asked_for(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main", tags=["demo", "etl"], priority=3, parameters={"a": 1, "b": 2})
    run = await world.run(
        await world.submit(parameters={"b": 3}, tags=["etl", "mine"], priority=7, scheduled_at=world.at(60))
    )
    assert (run.deployment, run.revision, run.pool, run.queue) == ("job", 1, "main", "default")
    assert run.tags == ["demo", "etl", "mine"]
    assert run.parameters == {"a": 1, "b": 3}
    assert (run.state, run.priority, run.attempt_count) == ("Scheduled", 7, 0)
    assert run.created_at == world.at()
    assert run.scheduled_at == run.due_at == world.at(60)
    assert run.started_at is run.ended_at is run.slot is run.cause is None
    assert await world.story(run.id) == ["Scheduled/user"]


async def test_what_is_due_wakes_the_pool_and_what_is_not_sets_the_alarm(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main")
    world.noticed()
    await world.submit()
    told = world.noticed()
    assert (len(told.pools), told.due_in) == (1, None)
    await world.submit(scheduled_at=world.at(60))
    told = world.noticed()
    assert (told.pools, told.due_in) == (set(), 60)


async def test_many_are_made_in_order_and_all_or_none(world: World) -> None:
    await world.pool()
    await world.deploy("one", pool="main")
    await world.deploy("two", pool="main", parameter_schema=SCHEMA, parameters={"year": 1})
    made = await world.submit_many(*["one", "two"] * 50)
    ids = [run_id for run_id, _ in made]
    assert ids == sorted(set(ids))
    assert [run.deployment for run in await world.runs()] == ["one", "two"] * 50
    for bad, error in (
        ({"deployment": "nowhere"}, NotFound),
        ({"deployment": "two", "parameters": {"year": "x"}}, BadRequest),
    ):
        with pytest.raises(error):
            await world.submit_many("one", "one", bad)
    assert len(await world.runs()) == 100


def test_ids_of_a_batch_are_in_order_and_of_version_7_whatever_its_size() -> None:
    ids = [new_run_id(1_800_000_000_000_000, index) for index in range(40_000)]
    assert ids == sorted(set(ids))
    assert {(run_id.version, run_id.variant) for run_id in ids} == {(7, "specified in RFC 4122")}


async def test_an_unknown_deployment_is_named_with_the_nearest(world: World) -> None:
    await world.deploy("hello")
    with pytest.raises(NotFound, match="helo") as caught:
        await world.submit("helo")
    assert "hello" in caught.value.remedy
    assert await world.runs() == []


# ---- idempotency keys


async def test_one_key_makes_one_run(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main")
    request = {"deployment": "job", "parameters": {"a": 1}, "idempotency_key": "k"}
    ((first, made),) = await world.submit_many(request)
    ((second, again),) = await world.submit_many(request)
    assert (made, again, second) == (True, False, first)
    assert len(await world.runs()) == 1
    assert await world.submit("job") != first


async def test_one_key_with_another_body_is_a_conflict(world: World) -> None:
    await world.deploy()
    await world.deploy("other")
    await world.submit(parameters={"a": 1}, idempotency_key="k")
    for other in (
        {"deployment": "job", "parameters": {"a": 2}},
        {"deployment": "other", "parameters": {"a": 1}},
    ):
        with pytest.raises(Conflict, match="'k'"):
            await world.submit_many({**other, "idempotency_key": "k"})
    assert len(await world.runs()) == 1


async def test_one_key_twice_in_a_batch(world: World) -> None:
    await world.deploy()
    keyed = {"deployment": "job", "idempotency_key": "k"}
    made = await world.submit_many("job", keyed, "job", keyed)
    assert [created for _, created in made] == [True, True, True, False]
    assert made[1][0] == made[3][0]
    assert len({run_id for run_id, _ in made}) == 3
    mixed = await world.submit_many(keyed, {"deployment": "job", "idempotency_key": "l"}, keyed)
    assert [created for _, created in mixed] == [False, True, False]
    assert mixed[0][0] == mixed[2][0] == made[1][0]
    with pytest.raises(Conflict):
        await world.submit_many(
            {"deployment": "job", "idempotency_key": "new"},
            {"deployment": "job", "parameters": {"a": 1}, "idempotency_key": "new"},
        )
    assert len(await world.runs()) == 4


async def test_a_key_finds_its_run_after_the_deployment_has_changed(world: World) -> None:
    """The answer was lost, somebody deployed, the request comes again: it is the same request."""
    request = {"deployment": "job", "parameters": {"place": "x"}, "idempotency_key": "k"}
    await world.deploy(parameters={"a": 1})
    ((first, _),) = await world.submit_many(request)
    await world.deploy(
        parameters={"a": 2, "year": 1}, parameter_schema={"required": ["z"]} | {"type": "object"}
    )
    ((second, again),) = await world.submit_many(request)
    assert (second, again) == (first, False)


async def test_one_key_at_once_makes_one_run(world: World) -> None:
    await world.deploy()
    made = await asyncio.gather(
        *(world.submit_many({"deployment": "job", "idempotency_key": "k"}) for _ in range(20))
    )
    assert len({run_id for ((run_id, _),) in made}) == 1
    assert sum(created for ((_, created),) in made) == 1
    assert len(await world.runs()) == 1


async def test_keys_of_batches_that_cross_do_not_block_each_other(world: World) -> None:
    await world.deploy()
    keys = [f"k{number}" for number in range(20)]
    batches = [keys, keys[::-1], keys[10:] + keys[:10]]
    await asyncio.gather(
        *(
            world.submit_many(*({"deployment": "job", "idempotency_key": key} for key in batch))
            for batch in batches
        )
    )
    assert len(await world.runs()) == 20


async def test_many_submits_of_new_lanes_at_once(world: World) -> None:
    """Batches that make the same lanes in another order must not wait for each other in a circle."""
    await world.pool()
    names = [f"job{number}" for number in range(8)]
    for name in names:
        await world.deploy(name, pool="main")
    batches = [names, names[::-1], names[4:] + names[:4], names[::2] + names[1::2]]
    await asyncio.gather(*(world.submit_many(*batch) for batch in batches for _ in range(2)))
    assert len(await world.runs()) == 64


# ---- parameters


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({}, ["'year' is a required property"]),
        ({"year": 1, "yaer": 2}, ["'yaer'"]),
        ({"year": "2013"}, ["year", "'2013' is not of type 'integer'"]),
        ({"year": 1.5, "place": 7}, ["year: 1.5", "place: 7"]),
        ({"year": None}, ["year"]),
    ],
)
async def test_parameters_that_do_not_fit_are_all_named(
    world: World, parameters: dict[str, Any], words: list[str]
) -> None:
    await world.deploy(parameter_schema=SCHEMA)
    with pytest.raises(BadRequest) as caught:
        await world.submit(parameters=parameters)
    for word in words:
        assert word in caught.value.detail
    assert "year, place" in caught.value.remedy
    assert await world.runs() == []


async def test_defaults_count(world: World) -> None:
    await world.deploy(parameter_schema=SCHEMA, parameters={"year": 2013})
    assert (await world.run(await world.submit())).parameters == {"year": 2013}


async def test_parameters_may_take_512_kib_of_json_and_not_a_byte_more(world: World) -> None:
    await world.deploy()
    empty = len(b'{"text": ""}')
    text = "ü" * ((512 * 1024 - empty) // 2)
    run = await world.run(await world.submit(parameters={"text": text}))
    assert run.parameters == {"text": text}
    with pytest.raises(TooLarge, match=str(512 * 1024)):
        await world.submit(parameters={"text": text + "x"})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1, -float("inf")], "\ud800", {"\udfff": 1}])
async def test_what_json_cannot_say_is_refused(world: World, value: Any) -> None:
    await world.deploy()
    with pytest.raises(BadRequest, match="not JSON"):
        await world.submit(parameters={"x": value})
    assert await world.runs() == []


async def test_any_json_comes_back_as_it_was(world: World) -> None:
    await world.deploy()
    wild = {"nul": "a\0b", "big": 2**70, "small": 5e-324, "deep": [[[{"": None}]]], "☃": "𝄞", "t": True}
    run = await world.run(await world.submit(parameters=wild))
    assert run.parameters == wild
    await world.pool()
    await world.deploy("again", pool="main")
    await world.submit("again", parameters=wild)
    (granted,) = await (await world.agent()).claim()
    assert granted.parameters == wild


@pytest.mark.parametrize("text", ["a\0b", "\0"])
async def test_a_nul_where_no_nul_can_be_is_refused_or_kept(world: World, text: str) -> None:
    """SQLite keeps it, Postgres cannot: then it is the request that is wrong, and not the server."""
    await world.deploy()
    try:
        run_id = await world.submit(idempotency_key=text)
    except BadRequest:
        assert await world.runs() == []
    else:
        assert await world.submit(idempotency_key=text) == run_id


# ---- where runs go


async def test_the_pool_and_queue_that_a_deployment_names(world: World) -> None:
    await world.pool()
    await world.queue("main", "fast")
    await world.deploy(pool="main", queue="fast")
    run = await world.run(await world.submit())
    assert (run.pool, run.queue) == ("main", "fast")


async def test_tags_lead_to_the_pool_that_matches_best(world: World) -> None:
    await world.pool("none")
    await world.pool("eu", match=["region=eu"])
    await world.pool("eu-gpu", match=["region=eu", "gpu"])
    await world.pool("eu-loud", match=["region=eu"], priority=5)
    for tags, pool in (
        (["region=eu"], "eu-loud"),
        (["gpu", "x", "region=eu"], "eu-gpu"),
        (["gpu"], None),
        ([], None),
    ):
        name = f"d{len(tags)}{'g' if 'gpu' in tags else ''}"
        await world.deploy(name, tags=tags)
        assert (await world.run(await world.submit(name))).pool == pool


async def test_tags_of_the_run_itself_count_for_its_place(world: World) -> None:
    await world.pool("gpu", match=["gpu"])
    await world.deploy(tags=["x"])
    assert (await world.run(await world.submit())).pool is None
    assert (await world.run(await world.submit(tags=["gpu"]))).pool == "gpu"


async def test_what_fits_no_pool_waits_and_goes_when_a_pool_is_made(world: World) -> None:
    await world.deploy(tags=["gpu"])
    run_id = await world.submit()
    assert (await world.run(run_id)).pool is None
    await world.pool("cpu", match=["cpu"])
    assert (await world.run(run_id)).pool is None
    world.noticed()
    await world.pool("gpu", match=["gpu"])
    told = world.noticed()
    assert len(told.pools) == 1
    assert run_id in told.runs
    assert await world.story(run_id) == ["Scheduled/user", "routed/queue"]
    agent = await world.agent("a1", "gpu")
    (granted,) = await agent.claim()
    assert (granted.run, granted.pool) == (run_id, "gpu")


async def test_what_fits_no_pool_goes_when_a_pools_match_is_changed_and_stays_once_placed(
    world: World,
) -> None:
    await world.pool("late", match=["other"])
    await world.deploy(tags=["gpu"])
    run_id = await world.submit()
    await world.patch_pool("late", match=["gpu"])
    assert (await world.run(run_id)).pool == "late"
    await world.pool("better", match=["gpu"], priority=10)
    assert (await world.run(run_id)).pool == "late"


async def test_a_run_that_was_cancelled_before_it_had_a_place_gets_one_when_it_is_retried(
    world: World,
) -> None:
    await world.deploy(tags=["gpu"])
    run_id = await world.submit()
    await world.cancel(run_id)
    await world.pool("gpu", match=["gpu"])
    await world.retry(run_id)
    assert (await world.run(run_id)).pool == "gpu"
    (granted,) = await (await world.agent("a1", "gpu")).claim()
    assert granted.run == run_id


# ---- deployments


async def test_revisions_never_change_and_runs_keep_theirs(world: World) -> None:
    await world.pool()
    assert await world.deploy(pool="main", parameters={"a": 1}) is True
    assert await world.deploy(pool="main", parameters={"a": 1}) is False
    old = await world.submit()
    assert await world.deploy(pool="main", parameters={"a": 2}, work={"command": ["/bin/false"]}) is True
    new = await world.submit()
    assert [(await world.run(run_id)).revision for run_id in (old, new)] == [1, 2]
    agent = await world.agent()
    granted = {one.run: one for one in await agent.claim(5)}
    assert granted[old].work.command == ["/bin/true"]
    assert granted[new].work.command == ["/bin/false"]
    from shunter_work_pools.queue import views

    found = await world.store.read(lambda tx: views.list_revisions(tx, "job"))
    assert [(one.number, one.spec.parameters) for one in found] == [(2, {"a": 2}), (1, {"a": 1})]


@pytest.mark.parametrize(
    "spec",
    [
        {"pool": "nowhere"},
        {"pool": "main", "queue": "nowhere"},
        {"parameter_schema": {"type": "strin"}},
        {"parameter_schema": SCHEMA, "parameters": {"year": "x"}},
        {"parameters": {"x": float("nan")}},
        {"schedules": [{"when": {"kind": "cron", "cron": "61 * * * *"}}]},
        {"schedules": [{"when": {"kind": "cron", "cron": "* * * * *", "timezone": "Mars/X"}}]},
        {"parameter_schema": SCHEMA, "schedules": [{"when": {"kind": "interval", "seconds": 60}}]},
    ],
)
async def test_a_deployment_that_cannot_work_is_refused_and_changes_nothing(
    world: World, spec: dict[str, Any]
) -> None:
    await world.pool()
    for name in ("new", "old"):
        if name == "old":
            await world.deploy("old", pool="main")
        with pytest.raises(BadRequest) as caught:
            await world.deploy(name, **spec)
        assert caught.value.extra["faults"]
    from shunter_work_pools.queue import views

    found, _ = await world.store.read(lambda tx: views.list_deployments(tx, None, 10))
    assert [(one.name, one.revision, one.schedules) for one in found] == [("old", 1, [])]


async def test_a_required_parameter_may_be_left_to_the_run(world: World) -> None:
    await world.deploy(parameter_schema=SCHEMA)
    await world.submit(parameters={"year": 1})


async def test_names_are_taken_once(world: World) -> None:
    await world.pool()
    with pytest.raises(Conflict, match="main"):
        await world.pool()
    await world.queue("main", "q")
    with pytest.raises(Conflict, match="q"):
        await world.queue("main", "q")
    with pytest.raises(Conflict, match="default"):
        await world.queue("main", "default")
    with pytest.raises(NotFound):
        await world.queue("other", "q")


async def test_names_taken_at_once_are_taken_once(world: World) -> None:
    results = await asyncio.gather(*(world.pool("p") for _ in range(5)), return_exceptions=True)
    assert results.count("p") == 1
    assert all(isinstance(result, Conflict) for result in results if result != "p")
    results = await asyncio.gather(*(world.deploy("d", pool="p") for _ in range(5)), return_exceptions=True)
    assert True in results
    assert all(result is False or isinstance(result, Conflict) for result in results if result is not True)
    assert results.count(True) == 1


async def test_null_is_only_for_what_may_be_empty(world: World) -> None:
    await world.pool(limit=3)
    for field in ("match", "priority", "paused", "template"):
        with pytest.raises(BadRequest, match=field):
            await world.patch_pool("main", **{field: None})
    await world.patch_pool("main", limit=None)
    with pytest.raises(BadRequest, match="paused"):
        await world.patch_queue("main", "default", paused=None)


async def test_suffixes_of_ids_find_runs(world: World) -> None:
    from shunter_work_pools.queue import views

    await world.deploy()
    ids = [run_id for run_id, _ in await world.submit_many(*["job"] * 40)]

    async def find(text: str) -> UUID:
        return await world.store.read(lambda tx: views.find_run(tx, text))

    for run_id in ids[:5]:
        assert await find(str(run_id)) == await find(run_id.hex) == run_id
        assert await find(run_id.hex[-12:]) == await find(str(run_id).upper()[-14:]) == run_id
    last = {}
    for run_id in ids:
        last.setdefault(run_id.hex[-1], []).append(run_id)
    shared = next(digit for digit, found in last.items() if len(found) > 1)
    with pytest.raises(Conflict, match="several"):
        await find(shared)
    for wrong, error in (("xyz", BadRequest), ("", BadRequest), ("0" * 33, BadRequest), ("0" * 31, NotFound)):
        with pytest.raises(error):
            await find(wrong)


async def test_claimed_runs_count_as_active_and_waiting_ones_as_waiting(world: World) -> None:
    from shunter_work_pools.queue import views

    await world.pool()
    await world.queue("main", "fast", priority=1)
    await world.deploy("slow", pool="main")
    await world.deploy("quick", pool="main", queue="fast")
    await world.submit_many("slow", "slow", "quick", "quick", "quick")
    agent = await world.agent()
    granted = await agent.claim(4)
    await agent.run_through(granted[0], S.COMPLETED)
    (pool,) = await world.store.read(lambda tx: views.list_pools(tx, 30))
    assert (pool.active, pool.waiting, pool.agents) == (3, 1, ["a1"])
    assert [(queue.name, queue.active, queue.waiting) for queue in pool.queues] == [
        ("fast", 2, 0),
        ("default", 1, 1),
    ]


async def test_pages_by_slot_come_in_the_order_of_slots_without_doubles_or_holes(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main")
    due = [*(world.at(seconds) for seconds in (50, -20, 30, 30, 30, 10, -40, 60)), world.at(-(10**11) // 60)]
    for moment in due:
        await world.submit(scheduled_at=moment)
    seen: list[Any] = []
    cursor: str | None = None
    while True:
        wanted = RunFilter(scheduled_before=world.at(60), limit=2, cursor=cursor)
        found, cursor = await world.store.read(lambda tx, wanted=wanted: list_runs(tx, wanted))
        seen += found
        if cursor is None:
            break
    assert [run.scheduled_at for run in seen] == sorted((at for at in due if at < world.at(60)), reverse=True)
    assert len({run.id for run in seen}) == len(due) - 1
    _, cursor = await world.store.read(lambda tx: list_runs(tx, RunFilter(limit=2)))
    assert cursor is not None
    with pytest.raises(BadRequest, match="cursor"):
        await world.store.read(
            lambda tx: list_runs(tx, RunFilter(cursor=cursor, scheduled_before=world.at(60)))
        )


@pytest.mark.parametrize("levels", [101, 300, 900])
async def test_what_is_nested_too_deeply_is_refused(world: World, levels: int) -> None:
    await world.pool()
    await world.deploy(pool="main")
    deep: Any = 1
    for _ in range(levels - 1):
        deep = [deep]
    with pytest.raises(BadRequest, match="nested deeper than 100"):
        await world.submit(parameters={"x": deep})
    assert await world.runs() == []
    for _ in range(levels - 99):
        deep = deep[0] if isinstance(deep, list) else deep
    await world.submit(parameters={"x": deep})


@pytest.mark.parametrize(
    "schema",
    [{"properties": {"x": {"$ref": "#/$defs/m"}}}, {"$ref": "#"}, {"$ref": "http://127.0.0.1:9/schema"}],
    ids=["missing", "endless", "elsewhere"],
)
async def test_a_schema_that_leads_nowhere_is_told(world: World, schema: dict[str, Any]) -> None:
    await world.pool()

    async def deploy_and_start() -> None:
        await world.deploy(pool="main", parameter_schema=schema)
        await world.submit(parameters={"x": 1})

    with pytest.raises(BadRequest, match="cannot be followed"):
        await deploy_and_start()
