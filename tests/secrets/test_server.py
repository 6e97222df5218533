"""The server keeps secrets encrypted, gives them to the agent that holds the attempt, and shows them to nobody."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select, update

from shunter_work_pools.queue import secrets as queue_secrets
from shunter_work_pools.secret_keys import SecretKeys
from shunter_work_pools.storage.schema import pools, revisions, secret_values, secrets
from shunter_work_pools.storage.store import SqliteStore, Tx
from tests.api.serving import Served, held, served

VALUE = "of-the-warehouse-7Gh2"
OLD, NEW = SecretKeys(("old" * 12,)), SecretKeys(("new" * 12, "old" * 12))
FROM_SECRET = {"command": ["/bin/true"], "env": {"TOKEN": {"secret": "warehouse"}, "PLAIN": "x"}}


async def put(server: Served, name: str, value: str, status: int = 200) -> Any:
    return await server.ask("PUT", f"/secrets/{name}", status, json={"value": value})


async def fetch(server: Served, granted: Any, status: int = 200, name: str = "a1", **more: Any) -> Any:
    body = {"session": str(UUID(int=100))} | {part: granted[part] for part in ("run", "attempt", "epoch")}
    return await server.post(f"/agents/{name}/secrets", body | more, status)


async def granted(server: Served, **spec: Any) -> Any:
    """An attempt that agent a1 holds."""
    await server.deploy(pool="main", **spec)
    await server.submit()
    (one,) = await server.take()
    return one


async def test_a_value_goes_in_and_never_comes_out(server: Served) -> None:
    made = await put(server, "warehouse", VALUE)
    assert (made["version"], made["used_by"], made["readable"]) == (1, [], True)
    assert (await put(server, "warehouse", f"{VALUE}-2"))["version"] == 2
    await put(server, "other", "x")
    await server.pool()
    await server.deploy(work=FROM_SECRET)
    listed = await server.get("/secrets")
    assert [(one["name"], one["used_by"]) for one in listed["secrets"]] == [
        ("other", []),
        ("warehouse", ["job"]),
    ]
    assert (await server.get("/secrets/warehouse"))["version"] == 2
    for path in (
        "/secrets",
        "/secrets/warehouse",
        "/deployments",
        "/deployments/job",
        "/deployments/job/revisions",
    ):
        assert VALUE not in (await server.http.get(path)).text
    stored = await server.engine.store.read(lambda tx: list(tx.conn.scalars(select(secret_values.c.value))))
    assert len(stored) == 3
    assert not any(VALUE.encode() in one for one in stored)


async def test_it_is_in_no_file_of_the_server(plain: Served, tmp_path: Path) -> None:
    await put(plain, "warehouse", VALUE)
    env = {"secret_env": {"PASSWORD": "of-the-template-93"}}
    await plain.pool("cluster", type="kubernetes", template={"image": "x"} | env)
    await plain.deploy(
        work=FROM_SECRET, pool="cluster", variables={"secret_env": {"PASSWORD": "of-the-job-93"}}
    )
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert any(b"warehouse" in data for path, data in files.items() if path.name.startswith("shunter.db"))
    for value in (VALUE, "of-the-template-93", "of-the-job-93"):
        assert not [path for path, data in files.items() if value.encode() in data]


@pytest.mark.parametrize("value", ["", "a\0b", "x" * 65537])
async def test_a_value_that_no_variable_can_have_is_refused(plain: Served, value: str) -> None:
    await put(plain, "warehouse", value, 400)
    assert (await plain.get("/secrets"))["secrets"] == []


async def test_a_deploy_that_names_an_unknown_one_is_refused_with_the_remedy(server: Served) -> None:
    await server.pool()
    await put(server, "warehouses", VALUE)
    refused = await server.ask("PUT", "/deployments/job", 400, json={"work": FROM_SECRET})
    assert refused["faults"] == [
        {
            "deployment": 0,
            "loc": ["work", "env", "TOKEN", "secret"],
            "detail": "there is no secret 'warehouse'",
            "remedy": "Set it: `shunter secret set warehouse`. Did you mean 'warehouses'?",
        }
    ]
    work = {"command": ["/bin/true"], "source": {"git": "https://x/y", "secret": "nobody"}}
    refused = await server.ask("PUT", "/deployments/job", 400, json={"work": work})
    assert refused["faults"][0]["loc"] == ["work", "source", "secret"]
    await server.get("/deployments/job", 404)


async def test_one_that_is_named_is_deleted_only_by_force(server: Served) -> None:
    await put(server, "warehouse", VALUE)
    await server.pool()
    one = await granted(server, work=FROM_SECRET)
    refused = await server.ask("DELETE", "/secrets/warehouse", 409)
    assert refused["detail"] == "secret 'warehouse' is named by deployment 'job'"
    response = await server.http.delete("/secrets/warehouse", params={"force": True})
    assert response.status_code == 204
    await server.get("/secrets/warehouse", 404)
    got = await fetch(server, one)
    assert got["missing"] == ["warehouse"]
    assert got["env"] == {}
    assert got["masked"] == [VALUE], "it may have been given that before"
    again = await put(server, "warehouse", "new")
    assert again["version"] == 2
    assert (await fetch(server, one))["env"] == {"TOKEN": "new"}


async def test_only_who_holds_the_attempt_gets_them(server: Served) -> None:
    await put(server, "warehouse", VALUE)
    await server.pool()
    one = await granted(server, work=FROM_SECRET)
    got = await fetch(server, one)
    assert got["env"] == {"TOKEN": VALUE}
    await server.sync("a2", free=0)
    assert (await fetch(server, one, 409, "a2"))["type"] == "urn:shunter:problem:stale-epoch"
    await fetch(server, one, 409, epoch=one["epoch"] + 1)
    await fetch(server, one, 409, attempt=2)
    await fetch(server, one, 409, run=str(UUID(int=5)))
    await fetch(server, one, 404, session=str(UUID(int=1)))
    assert VALUE not in str(await fetch(server, one, 409, "a2"))


async def test_after_the_end_until_its_output_is_here(server: Served) -> None:
    await put(server, "warehouse", VALUE)
    await server.pool()
    one = await granted(server, work=FROM_SECRET)
    await server.report(one, "Starting", "Running", "Completed", log_size=10)
    assert (await fetch(server, one))["env"] == {"TOKEN": VALUE}
    await server.sync("a2", free=0)
    await fetch(server, one, 409, "a2")
    await server.upload(one, 0, b"0123456789")
    await fetch(server, one, 409)


async def test_what_it_was_before_is_masked_where_it_may_have_been_given(server: Served) -> None:
    await put(server, "warehouse", "long-before")
    await put(server, "warehouse", "first")
    await server.pool()
    one = await granted(server, work=FROM_SECRET)
    await put(server, "warehouse", "second")
    await put(server, "warehouse", "third")
    got = await fetch(server, one)
    assert got["env"] == {"TOKEN": "third"}
    assert got["masked"] == ["first", "second"]


async def test_what_a_run_tells_of_itself_is_masked(server: Served) -> None:
    await put(server, "warehouse", VALUE)
    await server.pool()
    one = await granted(server, work=FROM_SECRET | {"token": True})
    token = (await fetch(server, one))["token"]
    headers = {"authorization": f"Bearer {token}"}
    await server.report(one, "Starting", "Running")
    told = {"percent": 1, "note": f"with {VALUE}"}
    assert (await server.http.post("/attempt/progress", json=told, headers=headers)).status_code == 204
    result = {"value": {"password": VALUE}}
    assert (await server.http.put("/attempt/result", json=result, headers=headers)).status_code == 204
    shown = (await server.http.get(f"/runs/{one['run']}")).text
    assert f"with {'*' * len(VALUE)}" in shown
    await server.report(one, "Completed", log_size=0)
    shown = (await server.http.get(f"/runs/{one['run']}")).text
    assert f'{{"password":"{"*" * len(VALUE)}"}}' in shown
    assert VALUE not in shown


async def test_a_replaced_value_is_forgotten_once_nothing_can_have_it(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_secrets, "KEPT", 0)
    await put(server, "warehouse", "first")
    await server.pool()
    one = await granted(server, work=FROM_SECRET)
    await put(server, "warehouse", "second")
    store = server.engine.store
    assert await store.write(queue_secrets.forget_replaced) == 0, "an attempt lives that may have it"
    await server.report(one, "Starting", "Running", "Completed", log_size=0)
    assert await store.write(queue_secrets.forget_replaced) == 1
    assert (await server.get("/secrets/warehouse"))["version"] == 2
    await server.http.delete("/secrets/warehouse", params={"force": True})
    assert await store.write(queue_secrets.forget_replaced) == 1
    assert await store.read(lambda tx: tx.conn.execute(select(secrets)).all()) == []


async def test_values_cannot_be_moved_to_another_name(server: Served) -> None:
    await put(server, "warehouse", VALUE)
    await put(server, "other", "of-somebody-else")
    await server.pool()

    def swap(tx: Tx) -> None:
        rows = tx.conn.execute(select(secret_values)).all()
        for row, value in zip(rows, [one.value for one in reversed(rows)], strict=True):
            this = secret_values.c.secret_id == row.secret_id
            tx.conn.execute(update(secret_values).where(this).values(value=value))

    await server.engine.store.write(swap)
    got = await fetch(server, await granted(server, work=FROM_SECRET))
    assert got["env"] == {}
    assert got["unreadable"] == ["warehouse"]


# ---- values of templates


ENV = {"secret_env": {"PASSWORD": "of-the-template", "ALSO": "also-there"}}


async def test_secret_env_is_sealed_and_comes_with_the_others(server: Served) -> None:
    await server.pool("cluster", type="kubernetes", template={"image": "x"} | ENV)

    async def attempt(*before: Any, **variables: Any) -> Any:
        await server.deploy(pool="cluster", variables=variables)
        await server.submit()
        (one,) = await server.take(pools=["cluster"], holds=[held(other) for other in before])
        return one

    one = await attempt()
    assert one["template"]["secret_env"] == {"PASSWORD": None, "ALSO": None}
    assert (await fetch(server, one))["template_env"] == ENV["secret_env"]
    await server.ask(
        "PATCH", "/pools/cluster", json={"template": {"image": "y", "secret_env": {"PASSWORD": None}}}
    )
    assert (await fetch(server, one))["template_env"] == {"PASSWORD": "of-the-template"}
    two = await attempt(one, secret_env={"PASSWORD": "of-the-job"})
    assert (await fetch(server, two))["template_env"] == {"PASSWORD": "of-the-job"}
    again = await server.deploy(pool="cluster", variables={"secret_env": {"PASSWORD": "of-the-job"}})
    assert again["changed"] is False
    kept = await server.deploy(pool="cluster", variables={"secret_env": {"PASSWORD": None}})
    assert kept["changed"] is False
    rolled = await server.post("/deployments/job/rollback", {"to": 1})
    assert rolled["changed"] is True
    back = await server.post("/deployments/job/rollback", {"to": 2})
    assert back["changed"] is True
    assert (await fetch(server, two))["template_env"] == {"PASSWORD": "of-the-job"}


async def test_one_that_is_too_large_for_a_variable_is_refused(plain: Served) -> None:
    template = {"image": "x", "secret_env": {"A": "x" * 65537}}
    refused = await plain.post("/pools", {"name": "cluster", "type": "kubernetes", "template": template}, 400)
    assert "secret_env.A has more than 65536 bytes" in refused["detail"]


# ---- keys


async def test_keys_rotate(migrated_sqlite: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "shunter.db"
    shutil.copyfile(migrated_sqlite, path)

    async with served(SqliteStore(path), tmp_path / "logs", secret_keys=OLD) as server:
        await put(server, "warehouse", VALUE)
        await server.pool("cluster", type="kubernetes", template={"image": "x"} | ENV)

        def as_before(tx: Tx) -> None:  # an earlier version of the server kept them so
            tx.conn.execute(update(pools).values(template={"image": "x"} | ENV))

        await server.engine.store.write(as_before)
    both = {"TOKEN": VALUE}, ENV["secret_env"]
    async with served(SqliteStore(path), tmp_path / "logs", secret_keys=NEW) as server:
        one = await granted_of(server)
        assert (one["env"], one["template_env"]) == both
        stored = await server.engine.store.read(lambda tx: tx.conn.scalar(select(pools.c.template)))
        assert all(value.startswith("sealed:") for value in stored["secret_env"].values())
    only_new = SecretKeys(NEW.keys[:1])
    async with served(SqliteStore(path), tmp_path / "logs", secret_keys=only_new) as server:
        one = await granted_of(server)
        assert (one["env"], one["template_env"]) == both
    capfd.readouterr()
    async with served(SqliteStore(path), tmp_path / "logs", secret_keys=OLD) as server:
        told = capfd.readouterr().out
        assert "no secret key of this server opens these secret values" in told
        assert "secret warehouse" in told
        assert "pool cluster, secret_env.ALSO" in told
        assert (await server.get("/secrets/warehouse"))["readable"] is False
        one = await granted_of(server)
        assert sorted(one["unreadable"]) == ["secret_env.ALSO", "secret_env.PASSWORD", "warehouse"]
        await put(server, "warehouse", "set-anew")
        assert (await granted_of(server))["env"] == {"TOKEN": "set-anew"}, "and everything else goes on"


async def granted_of(server: Served) -> Any:
    """The secrets of a new attempt."""
    await server.deploy(work=FROM_SECRET, pool="cluster")
    await server.submit()
    *_, one = await server.take(pools=["cluster"], identity=str(UUID(int=9)))
    return await fetch(server, one)


async def test_revisions_of_before_are_sealed_at_the_start(migrated_sqlite: Path, tmp_path: Path) -> None:
    path = tmp_path / "shunter.db"
    shutil.copyfile(migrated_sqlite, path)
    async with served(SqliteStore(path), tmp_path / "logs", secret_keys=OLD) as server:
        await server.pool("cluster", type="kubernetes", template={"image": "x"})
        await server.deploy(pool="cluster", variables=ENV)

        def as_before(tx: Tx) -> None:
            spec = tx.conn.scalar(select(revisions.c.spec))
            assert spec is not None
            tx.conn.execute(update(revisions).values(spec=spec | {"variables": ENV}))

        await server.engine.store.write(as_before)
    async with served(SqliteStore(path), tmp_path / "logs", secret_keys=OLD) as server:
        spec = await server.engine.store.read(lambda tx: tx.conn.scalar(select(revisions.c.spec)))
        assert all(value.startswith("sealed:") for value in spec["variables"]["secret_env"].values())
        assert (await server.deploy(pool="cluster", variables=ENV))["changed"] is False


@pytest.mark.parametrize("body", [{"value": f"{VALUE}\0"}, {"value": "x", "more": VALUE}, VALUE])
async def test_a_value_that_is_refused_is_not_repeated(plain: Served, body: Any) -> None:
    answer = await plain.http.put("/secrets/warehouse", json=body)
    assert answer.status_code == 400
    assert VALUE not in answer.text


async def test_a_variable_that_is_no_text_is_refused(plain: Served) -> None:
    await plain.pool()
    for method, path, spec in (
        ("POST", "/pools", {"name": "k", "template": {"secret_env": {"A": "\ud800"}}}),
        ("PATCH", "/pools/main", {"template": {"secret_env": {"A": "\ud800"}}}),
        (
            "PUT",
            "/deployments/job",
            {"work": {"command": ["x"]}, "variables": {"secret_env": {"A": "\ud800"}}},
        ),
    ):
        answer = await plain.http.request(
            method, path, content=json.dumps(spec), headers={"content-type": "application/json"}
        )
        assert answer.status_code == 400, answer.text
