"""Journals, results and artifacts over HTTP: by agents, by runs themselves, and as people see them."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from hashlib import blake2b
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from shunter_work_pools.api import tasks as routes
from shunter_work_pools.client import AsyncClient
from shunter_work_pools.contracts import tasks as contracts
from shunter_work_pools.contracts.agents import LOG_MEDIA_TYPE, LogFrame
from shunter_work_pools.contracts.errors import BadRequest, NotFound, StaleEpoch, TooLarge
from shunter_work_pools.contracts.log_frames import encode_frames
from shunter_work_pools.contracts.result_pieces import ResultPiece, encode_pieces
from shunter_work_pools.queue import task_views
from shunter_work_pools.queue.task_graph import graph_of
from tests.api.serving import TOKEN, Served, held
from tests.api.test_attempt_tokens import token_of
from tests.api.test_identities import bearing
from tests.queue.journal_lines import BEGAN, done, head, key, line, text

BYTES = {"content-type": "application/octet-stream"}


async def send(
    server: Served, granted: Any, offset: int, data: bytes, name: str = "a1", **header: Any
) -> Any:
    """Send a journal as its agent; what the server says of it."""
    frame = {key: granted[key] for key in ("run", "attempt", "epoch")} | {"offset": offset}
    told = LogFrame.model_validate(frame | {"length": len(data)} | header)
    body = encode_frames([(told, data)])
    headers = {"content-type": LOG_MEDIA_TYPE}
    answer = await server.ask("POST", f"/agents/{name}/journals", content=body, headers=headers)
    (size,) = answer["sizes"]
    return size


async def listed(server: Served, granted: Any, **more: Any) -> list[Any]:
    return list((await server.get(f"/runs/{granted['run']}/tasks", **more))["tasks"])


def named(data: bytes) -> str:
    return blake2b(data, digest_size=20).hexdigest()


@pytest.fixture
async def granted(server: Served) -> Any:
    """An attempt that has a token."""
    await server.pool()
    await server.deploy(pool="main", work={"command": ["true"], "token": True})
    await server.submit()
    (one,) = await server.take()
    await server.report(one, "Starting", "Running")
    return one


@pytest.fixture
async def run(server: Served, granted: Any) -> AsyncIterator[AsyncClient]:
    """The run itself."""
    url = f"http://127.0.0.1:{server.port}/api"
    async with AsyncClient(url, str(await token_of(server, granted))) as client:
        yield client


async def fails(server: Served, granted: Any) -> Any:
    """The attempt fails, and the run is tried again: its next attempt."""
    failed = {"log_size": 0, "exit_code": 1, "cause": "exit_code"}
    await server.report(granted, "Failed", **failed)
    await server.post(f"/runs/{granted['run']}/retry")
    (again,) = await server.take()
    return again


# ---- by agents


async def test_an_agent_brings_a_journal_and_people_see_it(server: Served, granted: Any) -> None:
    data = text(head(), line(0, "R", t="sums", y="flow"), done(1, 7, p=key(0)), line(2, "P", u=[key(1)], n=0))
    assert (await send(server, granted, 0, data[:200]))["size"] == data.rindex(b"\n", 0, 200) + 1
    told = await send(server, granted, 0, data)
    assert told == {
        "run": granted["run"],
        "attempt": 1,
        "size": len(data),
        "stale": False,
        "full": False,
        "crash_hooks": False,
    }
    assert (await send(server, granted, 0, data))["size"] == len(data)
    assert (await send(server, granted, len(data) + 9, b"x\n"))["size"] == len(data)
    flow, task, waiting = await listed(server, granted)
    assert (flow["state"], task["state"], waiting["state"]) == ("Running", "Completed", "Pending")
    assert task["id"] == key(1)
    assert task["result"] == {"kept": "inline", "format": "json", "bytes": None, "url": None}
    assert waiting["upstream"] == [key(1)]
    page = await server.get(f"/runs/{granted['run'][-8:]}/tasks", limit=2)
    assert (len(page["tasks"]), page["next"] is None) == (2, False)
    rest = await server.get(f"/runs/{granted['run']}/tasks", limit=2, cursor=page["next"])
    assert [one["id"] for one in rest["tasks"]] == [key(2)]
    assert [one["id"] for one in await listed(server, granted, state=["Pending"])] == [key(2)]


async def test_an_agent_asks_whether_the_flow_that_was_at_work_has_hooks_for_a_crash(
    server: Served, granted: Any
) -> None:
    data = text(
        head() | {"h": True}, line(0, "R", t="sums", y="flow"), line(1, "C", t="inner", y="flow", p=key(0))
    )
    await send(server, granted, 0, data)
    assert (await send(server, granted, 0, b""))["crash_hooks"] is True
    # The next flow of the script is at work, and the first one's would be called.
    await send(server, granted, len(data), text(line(0, "C", t="sums", y="flow")))
    assert (await send(server, granted, 0, b""))["crash_hooks"] is False


async def test_a_flow_that_was_told_to_stop_as_its_pod_goes_has_hooks_for_the_crash(
    server: Served, granted: Any
) -> None:
    await send(server, granted, 0, text(head() | {"h": True}, line(0, "X", t="sums", y="flow")))
    assert (await send(server, granted, 0, b""))["crash_hooks"] is True


async def test_who_does_not_hold_the_attempt_is_told(server: Served, granted: Any) -> None:
    data = text(done(1))
    assert (await send(server, granted, 0, data, epoch=9))["stale"] is True
    await server.sync("b1", identity="00000000-0000-0000-0000-000000000008")
    assert (await send(server, granted, 0, data, name="b1"))["stale"] is True
    assert (await send(server, granted | {"run": str(UUID(int=4))}, 0, data))["stale"] is True
    assert await listed(server, granted) == []
    # After its end, what was on its way still counts.
    again = await fails(server, granted)
    assert (await send(server, granted, 0, data))["size"] == len(data)
    assert [one["run_attempt"] for one in await listed(server, again)] == [1]


async def test_what_is_no_upload_is_refused(server: Served, granted: Any) -> None:
    for body, headers in (
        (b"{}", {"content-type": "application/json"}),
        (b"nonsense", {"content-type": LOG_MEDIA_TYPE}),
        (b"", {"content-type": "text/plain"}),
    ):
        answer = await server.http.post("/agents/a1/journals", content=body, headers=headers)
        assert answer.status_code == 400, answer.text


async def test_two_that_bring_the_same_at_once_bring_it_once(server: Served, granted: Any) -> None:
    data = text(head(), *(line(at, "R") for at in range(1500)), *(done(at) for at in range(1500)))
    sizes = await asyncio.gather(*(send(server, granted, 0, data) for _ in range(6)))
    reached = max(size["size"] for size in sizes)
    assert reached == len(data)
    states = [one["state"] for one in await listed(server, granted)]
    assert states == ["Completed"] * 1000
    assert (await send(server, granted, reached, text(line(7, "F"))))["size"] > reached
    assert [one["id"] for one in await listed(server, granted, state=["Failed"])] == [key(7)]


async def test_ten_thousand_tasks_end_within_their_time(server: Served, granted: Any) -> None:
    """From the first byte sent until the server holds every end, as a shipper would send them."""
    data = text(head(), *(done(at, at, p=key(0)) for at in range(10_000)))
    began, used, at = time.perf_counter(), time.process_time(), 0
    while at < len(data):
        at = (await send(server, granted, at, data[at : at + 1024 * 1024]))["size"]
    took, used = time.perf_counter() - began, time.process_time() - used
    print(f"{took * 100:.0f} us a task, {used * 100:.0f} us of processor")
    count, cursor = 0, None
    while True:
        page = await server.get(f"/runs/{granted['run']}/tasks", **({"cursor": cursor} if cursor else {}))
        count += sum(one["state"] == "Completed" for one in page["tasks"])
        if (cursor := page["next"]) is None:
            break
    assert count == 10_000
    assert used / count < 200e-6  # of both sides, whatever else the machine does


async def test_claims_go_on_while_a_long_journal_comes_in(server: Served, granted: Any) -> None:
    data = text(head(), *(done(at, "x" * 200) for at in range(15_000)))
    sending = asyncio.create_task(send(server, granted, 0, data))
    waits = []
    while not sending.done():
        began = time.perf_counter()
        await server.engine.store.write(lambda tx: None)
        waits.append(time.perf_counter() - began)
    assert (await sending)["size"] == len(data)
    assert len(waits) > 15, "it was taken in one piece"


# ---- by runs themselves


async def test_a_run_brings_its_own_and_goes_on_from_it(
    server: Served, granted: Any, run: AsyncClient
) -> None:
    large = bytes(range(256)) * 200
    refers = {"f": named(large), "n": len(large), "z": "p"}
    at = 0
    while True:
        told = await run.put_task_result(named(large), at, len(large), large[at : at + 20_000])
        at = told.size
        if told.complete:
            break
    assert (await run.put_task_result(named(large), 0, len(large), b"")).complete
    data = text(head(code="v1"), done(1, {"x": 1}), line(2, "C", r=refers), line(3, "F"))
    data += text(line(4, "H", r={"i": 4}))  # from a cache, which may have expired meanwhile
    assert (await run.put_journal(0, data + b'{"torn')).size == len(data)
    assert (await run.put_journal(0, data)).size == len(data)
    again = await fails(server, granted)
    url = f"http://127.0.0.1:{server.port}/api"
    async with AsyncClient(url, str(await token_of(server, again))) as second:
        told_of = await second.own_tasks()
        assert told_of.next is None
        assert told_of.lines == [
            {"flow": "sums", "c": "v1"},
            {"k": key(1), "s": "C", "r": {"i": {"x": 1}}, "c": "c0ffee"},
            {"k": key(2), "s": "C", "r": refers, "c": "c0ffee"},
            {"k": key(4), "s": "C", "r": {"i": 4}, "c": "c0ffee"},
        ]
        first = await second.own_tasks(limit=1)
        assert (len(first.lines), first.next) == (2, key(1))
        assert [one["k"] for one in (await second.own_tasks(after=first.next)).lines] == [key(2), key(4)]
        part = await second.get_task_result(named(large), 100)
        assert (part.data, part.size) == (large[100:], len(large))
        with pytest.raises(NotFound, match="has no result"):
            await second.get_task_result("0" * 40)


async def test_a_result_that_is_not_what_its_name_says_is_none(
    server: Served, granted: Any, run: AsyncClient
) -> None:
    right, wrong = b"right" * 100, b"wrong" * 100
    with pytest.raises(BadRequest, match="not what its name says"):
        await run.put_task_result(named(right), 0, 500, wrong)
    with pytest.raises(NotFound):
        await run.get_task_result(named(right))
    assert (await run.put_task_result(named(right), 77, 500, right[77:])).size == 0  # beyond the end
    assert (await run.put_task_result(named(right), 0, 500, right)).complete
    for name in ("..%2F..%2Fetc", "x" * 40, "0" * 39, "A" * 40):
        answer = await server.http.get(f"/attempt/results/{name}")
        assert answer.status_code in (400, 403, 404)
        async with bearing(server, str(await token_of(server, granted))) as http:
            put = await http.put(f"/attempt/results/{name}?offset=0&size=1", content=b"x", headers=BYTES)
            assert put.status_code in (400, 404)
    with pytest.raises(BadRequest):
        await run.put_task_result(named(right), 0, contracts.RESULT_FILE_LIMIT + 1, b"")
    with pytest.raises(TooLarge):
        await run.put_journal(0, b"x" * (contracts.PIECE_LIMIT + 1))


async def test_what_is_no_unicode_comes_back_as_it_was(
    server: Served, granted: Any, run: AsyncClient
) -> None:
    """Names of files may be such; a run that could not be told of them could never go on."""
    odd = "caf\udce9.csv"
    left = {"art": {"key": "a", "kind": "table", "data": [{odd: f"{odd} \U0001f600"}]}, "at": BEGAN}
    elsewhere = {"url": f"s3://b/{odd}", "n": 3, "z": "j"}
    deep = json.loads("[" * 90 + "]" * 90)
    await send(server, granted, 0, text(done(1, [odd]), line(2, "C", r=elsewhere), done(3, deep), left))
    async with bearing(server, str(await token_of(server, granted))) as http:
        answer = await http.get("/attempt/tasks")
    assert answer.status_code == 200
    assert [one["r"] for one in json.loads(answer.content)["lines"]] == [{"i": [odd]}, elsewhere, {"i": deep}]
    addresses = {one["result"]["url"] for one in await listed(server, granted)}
    assert addresses == {None, "s3://b/caf?.csv"}
    shown = (await server.get(f"/runs/{granted['run']}/artifacts/a"))["data"]
    assert shown == [{"caf\ufffd.csv": "caf\ufffd.csv \U0001f600"}]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://me:pass@host/a/b@c", "s3://host/a/b@c"),
        ("simplecache::https://me@host:1/a?sig=x#y", "simplecache::https://host:1/a"),
        ("memory://a", "memory://a"),
        ("s3://b/?x@y", "s3://b/"),
    ],
)
async def test_of_an_address_nobody_sees_what_opens_it(plain: Served, url: str, shown: str) -> None:
    await plain.pool()
    await plain.deploy(pool="main")
    await plain.submit()
    (one,) = await plain.take()
    await send(plain, one, 0, text(line(1, "C", r={"url": url, "n": 1, "z": "j"})))
    assert (await listed(plain, one))[0]["result"]["url"] == shown


def piece(data: bytes, name: str | None = None, **more: int) -> tuple[ResultPiece, bytes]:
    told = {"offset": 0, "size": len(data), "length": len(data)} | more
    return ResultPiece.model_validate({"name": name or named(data)} | told), data


async def test_an_agent_brings_results_under_its_epoch(
    server: Served, granted: Any, run: AsyncClient
) -> None:
    many = [b"%d" % number * 1000 for number in range(50)]
    large, wrong = b"\0" * 1000, b"wrong" * 1000
    of_run = UUID(granted["run"])
    async with AsyncClient(f"http://127.0.0.1:{server.port}/api", TOKEN) as agent:

        async def bring(*pieces: tuple[ResultPiece, bytes], epoch: int = granted["epoch"]) -> list[Any]:
            body = encode_pieces(pieces)
            return (await agent.upload_task_results("a1", of_run, 1, epoch, body)).results

        kept = await bring(
            *map(piece, many), piece(wrong, "0" * 40), piece(large[:600], named(large), size=1000)
        )
        assert all(size.complete and size.size == len(data) for size, data in zip(kept, many, strict=False))
        refused, part = kept[50:]
        assert "not what its name says" in (refused.refused or "")
        assert (part.size, part.complete, part.refused) == (600, False, None)
        (whole,) = await bring(piece(large[600:], named(large), offset=600, size=1000))
        assert (whole.size, whole.complete) == (1000, True)
        (huge,) = await bring(piece(b"x", "1" * 40, size=contracts.RESULT_FILE_LIMIT + 1))
        assert "it may have" in (huge.refused or "")
        with pytest.raises(StaleEpoch):
            await bring(piece(b"later"), epoch=9)
    for data in (*many, large):
        assert (await run.get_task_result(named(data))).data == data
    with pytest.raises(NotFound):
        await run.get_task_result(named(b"later"))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "its first line"),
        (b"{}\n", "its first line"),
        (b'[{"name": "../../x", "offset": 0, "size": 1, "length": 1}]\nx', "0.name"),
        (
            b"["
            + b",".join([b'{"name": "%s", "offset": 0, "size": 0, "length": 0}' % (b"0" * 40)] * 257)
            + b"]\n",
            "256",
        ),
        (
            b'[{"name": "%s", "offset": 0, "size": 9, "length": 9}]\nshort' % (b"0" * 40),
            "9 bytes announced, 5 came",
        ),
        (b'[{"name": "%s", "offset": 0, "size": 9, "length": 9}]' % (b"0" * 40), "9 bytes announced, 0 came"),
        (b"[]\nmore", "0 bytes announced, 4 came"),
    ],
)
async def test_an_upload_of_results_that_is_none(
    server: Served, granted: Any, body: bytes, says: str
) -> None:
    path = f"/agents/a1/results/{granted['run']}/1?epoch={granted['epoch']}"
    answer = await server.ask("POST", path, 400, content=body, headers=BYTES)
    assert says in answer["detail"]
    assert not server.engine.journals.results.size(UUID(granted["run"]), "0" * 40)


async def test_the_token_is_worthless_once_the_attempt_is_over(
    server: Served, granted: Any, run: AsyncClient
) -> None:
    token = str(await token_of(server, granted))
    await fails(server, granted)
    async with bearing(server, token) as http:
        for method, path in (
            ("PUT", "/attempt/journal?offset=0"),
            ("PUT", f"/attempt/results/{'0' * 40}?offset=0&size=1"),
            ("GET", f"/attempt/results/{'0' * 40}"),
            ("GET", "/attempt/tasks"),
        ):
            answer = await http.request(
                method, path, content=b"x" if method == "PUT" else None, headers=BYTES
            )
            assert answer.status_code == 401, path
    assert await listed(server, granted) == []


async def test_what_people_see_is_masked_and_results_are_not_among_it(server: Served) -> None:
    await server.ask("PUT", "/secrets/warehouse", json={"value": "hunter22!"})
    await server.pool()
    env = {"PASSWORD": {"secret": "warehouse"}}
    await server.deploy(pool="main", work={"command": ["true"], "token": True, "env": env})
    await server.submit()
    (granted,) = await server.take()
    await server.report(granted, "Starting", "Running")
    told = {"type": "E", "message": "hunter22! is refused", "traceback": ""}
    left = {"art": {"key": "a", "kind": "markdown", "data": "by hunter22!"}, "at": BEGAN}
    first = text(line(1, "F", e=told), left, done(2, "hunter22!"))
    await send(server, granted, 0, first)
    await fails(server, granted)
    # And of an attempt that is over.
    await send(server, granted, len(first), text(line(3, "F", e=told)))
    seen = [
        await server.get(f"/runs/{granted['run']}/{what}")
        for what in ("tasks", "graph", "artifacts", "artifacts/a")
    ]
    assert "hunter22!" not in json.dumps(seen)
    assert [one["error"]["message"] for one in seen[0]["tasks"] if one["error"]] == [
        "********* is refused"
    ] * 2


# ---- artifacts, graphs, deletion


async def test_artifacts_are_listed_and_shown(server: Served, granted: Any) -> None:
    rows = [{"n": 1}, {"n": 2}]
    left = {
        "art": {"key": "t", "kind": "table", "data": rows, "description": "two"},
        "k": key(1),
        "at": BEGAN,
    }
    await send(server, granted, 0, text(left))
    (one,) = (await server.get(f"/runs/{granted['run']}/artifacts"))["artifacts"]
    assert (one["key"], one["kind"], one["data"], one["bytes"]) == ("t", "table", None, 17)
    whole = await server.get(f"/runs/{granted['run']}/artifacts/t")
    assert whole == one | {"data": rows}
    await server.get(f"/runs/{granted['run']}/artifacts/other", 404)
    for what in ("artifacts", "tasks", "graph"):
        await server.get(f"/runs/{UUID(int=9)}/{what}", 404)


async def test_a_graph_has_equals_as_one_node(server: Served, granted: Any) -> None:
    lines = [line(0, "R", t="sums", y="flow")]
    lines += [done(at, p=key(0)) for at in range(1, 5)]
    lines += [line(5, "F", p=key(0))]
    lines += [line(at + 10, "P", t="double", p=key(0), u=[key(at)], n=0) for at in range(1, 5)]
    lines += [line(20, "P", t="total", p=key(0), u=[key(at + 10) for at in range(1, 5)], n=0)]
    await send(server, granted, 0, text(*lines))
    graph = await server.get(f"/runs/{granted['run']}/graph")
    shown = [(one["name"], one["count"], one["states"], one["parent"]) for one in graph["nodes"]]
    assert shown == [
        ("sums", 1, {"Running": 1}, None),
        ("fetch", 5, {"Completed": 4, "Failed": 1}, key(0)),
        ("double", 4, {"Pending": 4}, key(0)),
        ("total", 1, {"Pending": 1}, key(0)),
    ]
    assert graph["edges"] == [[key(1), key(11)], [key(11), key(20)]]
    assert graph["tasks"] == 11
    each = await server.get(f"/runs/{granted['run']}/graph", each=True)
    assert (len(each["nodes"]), len(each["edges"])) == (11, 8)


async def test_a_graph_is_read_in_parts_and_made_beside_what_else_there_is_to_do(
    server: Served, granted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a hundred thousand tasks it takes a second, in which agents would be silent."""
    lines = [line(0, "R", t="sums", y="flow")] + [done(at, p=key(0)) for at in range(9, 0, -1)]
    await send(server, granted, 0, text(*lines, line(20, "P", t="total", u=[key(at) for at in range(1, 10)])))
    whole = await server.get(f"/runs/{granted['run']}/graph")
    reads: list[int] = []
    makers: list[int] = []

    def told(tx: Any, run_id: UUID, after: str) -> Any:
        page = task_views.told(tx, run_id, after)
        reads.append(len(page))
        return page

    def made(*told: Any, **more: Any) -> Any:
        makers.append(threading.get_ident())
        return graph_of(*told, **more)

    monkeypatch.setattr(task_views, "TOLD_PAGE", 4)
    monkeypatch.setattr(routes, "graph_of", made)
    monkeypatch.setattr(routes, "told", told)
    assert await server.get(f"/runs/{granted['run']}/graph") == whole
    assert reads == [4, 4, 3]
    assert threading.get_ident() not in makers
    monkeypatch.setattr(routes, "GRAPH_LIMIT", 10)
    refused = await server.get(f"/runs/{granted['run']}/graph", 400)
    assert "more than 10 task runs" in refused["detail"]


async def test_too_many_are_not_shown_one_by_one(server: Served, granted: Any) -> None:
    await send(server, granted, 0, text(*(done(at) for at in range(2001))))
    refused = await server.get(f"/runs/{granted['run']}/graph", 400, each=True)
    assert "more than 2000 task runs" in refused["detail"]
    graph = await server.get(f"/runs/{granted['run']}/graph")
    assert [one["count"] for one in graph["nodes"]] == [2001]


async def test_results_and_rows_go_with_their_run(server: Served, granted: Any, run: AsyncClient) -> None:
    data = b"kept" * 10_000
    await run.put_task_result(named(data), 0, len(data), data)
    await run.put_journal(0, text(line(1, "C", r={"f": named(data), "n": len(data), "z": "p"})))
    folder: Path = server.engine.journals.results.folder  # type: ignore[attr-defined]
    assert [path.name for path in folder.rglob("*") if path.is_file()] == [named(data)]
    await server.report(granted, "Completed", log_size=0)
    answer = await server.http.delete(f"/runs/{granted['run']}")
    assert answer.status_code == 204
    assert not [path for path in folder.rglob("*") if path.is_file()]
    await server.get(f"/runs/{granted['run']}/tasks", 404)
    assert (await send(server, granted, 0, text(done(1))))["stale"] is True


async def test_results_of_a_run_that_completed_are_let_go(
    server: Served, granted: Any, run: AsyncClient
) -> None:
    """Nobody can ask for them any more. One that failed may be tried again."""
    await server.submit()
    (other,) = await server.take(holds=[held(granted)])
    await server.report(other, "Starting", "Running")
    data = b"kept" * 10_000
    results = server.engine.journals.results
    results.limit = 50_000  # type: ignore[attr-defined]
    for one in (granted, other):
        where = f"/agents/a1/results/{one['run']}/1?epoch={one['epoch']}"
        body = encode_pieces([piece(data), piece(b"more" * 10_000)])
        told = (await server.ask("POST", where, content=body, headers=BYTES))["results"]
        beyond, kept = sorted(told, key=lambda size: bool(size["complete"]))  # they are written side by side
        assert kept["complete"]
        assert "(server.results_limit)" in beyond["refused"]
    await server.engine.retention.sweep()
    assert {str(run) for run in results.runs()} == {granted["run"], other["run"]}, "they are at work"
    await server.report(granted, "Completed", log_size=0)
    await server.report(other, "Failed", log_size=0, exit_code=1, cause="exit_code")
    await server.engine.retention.sweep()
    assert [str(run) for run in results.runs()] == [other["run"]]


async def test_the_synchronous_client_goes_through_all_pages(server: Served, granted: Any) -> None:
    await send(server, granted, 0, text(*(done(at) for at in range(1201))))
    async with AsyncClient(f"http://127.0.0.1:{server.port}/api", TOKEN) as client:
        found = [task.id async for task in client.each_task(granted["run"])]
        assert found == [key(at) for at in range(1201)]
        assert (await client.get_graph(granted["run"])).tasks == 1201
