"""The kubernetes launcher against a real cluster: what the conformance suite cannot ask of every engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

from shunter_infrastructure.kubernetes import causes
from shunter_infrastructure.kubernetes.launcher import KubernetesLauncher
from shunter_infrastructure.launcher import (
    Exit,
    Handle,
    LauncherUnavailable,
    LaunchFailed,
    LaunchRefused,
    Prepared,
)
from shunter_work_pools.contracts.agents import Output
from shunter_work_pools.contracts.secrets import FromSecret
from shunter_work_pools.contracts.states import Cause
from tests.cluster import images
from tests.cluster.cluster import Cluster, OwnCluster
from tests.engines.docker import BARE_IMAGE, IMAGE
from tests.launchers.attempts import Attempt, assignment, ended, output, shell, until, written

pytestmark = pytest.mark.timeout(180)
UP = shell("echo up; exec sleep 600")


class World:
    """A cluster, a namespace, and launchers of it.

    Attributes:
        notes: what was told of each run's launch, in order.
    """

    def __init__(self, cluster: Cluster, namespace: str, root: Path) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.root = root
        self.notes: dict[UUID, list[tuple[str, Cause | None]]] = {}
        self._launchers: list[KubernetesLauncher] = []

    def launcher(self, kubeconfig: Path | None = None, **options: Any) -> KubernetesLauncher:
        made = KubernetesLauncher(
            environ={"KUBECONFIG": str(kubeconfig or self.cluster.kubeconfig)}, **options
        )
        made.on_note = self._note
        self._launchers.append(made)
        return made

    def _note(self, run: UUID, attempt: int, note: str, cause: Cause | None) -> None:
        self.notes.setdefault(run, []).append((note, cause))

    def attempt(
        self, command: list[str] | None, template: dict[str, Any] | None = None, **more: Any
    ) -> Attempt:
        template = {"namespace": self.namespace, "image": IMAGE} | (template or {})
        return Attempt(assignment(command, template=template, **more), self.root)

    async def kubectl(self, *words: str) -> str:
        return await asyncio.to_thread(self.cluster.kubectl, "-n", self.namespace, *words)

    async def get(self, *words: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(await self.kubectl("get", "-o", "json", *words))
        return found

    async def close(self) -> None:
        for one in self._launchers:
            await one.close()
        await self.kubectl("delete", "jobs", "--all", "--wait=false")


@pytest_asyncio.fixture
async def world(jobs_of_tests: tuple[Cluster, str], tmp_path: Path) -> AsyncIterator[World]:
    """See :class:`World`; nothing runs in it afterwards."""
    one = World(*jobs_of_tests, tmp_path)
    yield one
    await one.close()


async def test_requests_of_a_run(world: World) -> None:
    """Job, log, a look whether the log is whole, deletion; the watches are everybody's."""
    launcher = world.launcher()
    first = world.attempt(shell("echo hi"))
    await first.run(launcher)
    before = launcher.client.requests
    for _ in range(3):
        attempt = world.attempt(shell("echo hi; sleep 1"))
        handle = await attempt.start(launcher)
        assert (await ended(launcher, handle)).exit_code == 0
        await launcher.cleanup(handle)
    assert launcher.client.requests - before <= 3 * 4


async def test_what_is_stopped_keeps_its_log_and_its_end_while_no_agent_is_there(world: World) -> None:
    attempt = world.attempt(shell("trap 'echo asked; exit 3' TERM; echo up; while :; do sleep 0.1; done"))
    first = world.launcher()
    handle = await attempt.start(first)
    await first.stop(handle, 10)
    await first.close()
    name = handle.data["name"]
    await until(lambda: _has_failed(world, name), "the Job has failed")
    second = world.launcher()
    found = await attempt.recover(second)
    assert found == handle
    end = await ended(second, found)
    assert (end.exit_code, end.error) == (3, None)
    assert await output(second, found) == b"up\nasked\n"


async def _has_failed(world: World, name: str) -> bool:
    job = await world.get("job", name)
    return any(one["type"] == "Failed" for one in job["status"].get("conditions", []))


async def test_a_job_of_that_name_that_is_another_s(world: World) -> None:
    attempt = world.attempt(["true"])
    name = f"shunter-{attempt.assignment.run}-1"
    security = {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    rights = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    pod = {
        "restartPolicy": "Never",
        "securityContext": security,
        "containers": [{"name": "x", "image": IMAGE, "command": ["true"], "securityContext": rights}],
    }
    world.cluster.apply(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name, "namespace": world.namespace},
            "spec": {"template": {"spec": pod}},
        }
    )
    with pytest.raises(LaunchFailed, match="not this run's"):
        await attempt.start(world.launcher())
    assert (await world.get("job", name))["metadata"]["name"] == name


async def test_a_job_that_was_made_and_deleted_is_not_made_again(world: World) -> None:
    """The user's code would run twice in one attempt."""
    attempt = world.attempt(UP)
    first = world.launcher()
    handle = await attempt.start(first)
    await first.close()
    (attempt.folder / "pod.json").unlink()  # killed before it was written down
    await world.kubectl("delete", "job", str(handle.data["name"]), "--cascade=foreground")
    second = world.launcher()
    end = await ended(second, await attempt.start(second))
    assert end.error is Cause.DELETED
    assert "deleted by somebody" in (end.message or "")


async def test_hand_over(world: World) -> None:
    """Another agent, with nothing of the first one's, goes on with the same pod; the first one can do it no harm."""
    attempt = world.attempt(shell("echo up; while [ ! -e /tmp/go ]; do sleep 0.1; done; echo down; exit 6"))
    one, other = world.launcher(), world.launcher(leftover_grace=0.5)
    old = await attempt.start(one)
    assert await written(one, old, b"up") == b"up\n"
    taken = Attempt.__new__(Attempt)
    taken.folder = world.root / "taken"
    taken.folder.mkdir()
    taken.assignment = attempt.assignment.model_copy(
        update={"epoch": 2, "handed_over": Output(size=3, tail="dXAK", started=True)}
    )
    new = await other.recover(taken.assignment, taken.folder, agent="a2")
    assert new is not None
    job = await world.get("job", str(new.data["name"]))
    assert job["metadata"]["labels"]["shunter.dev/agent"] == "a2"
    assert job["metadata"]["annotations"]["shunter.dev/epoch"] == "2"
    assert new.data["pod"] == old.data["pod"]
    # What the first one still does is of no effect.
    await until(lambda: _knows_epoch(one, world, old, "2"), "the first agent's launcher sees the epoch")
    await one.stop(old, 0)
    await one.cleanup(old)
    (attempt.folder / "pod.json").unlink()
    with pytest.raises(LauncherUnavailable, match="later lease"):
        await attempt.start(one)
    await one.let_go(attempt.assignment, attempt.folder)
    pod = await world.get("pod", str(new.data["pod"]))
    assert "deletionTimestamp" not in pod["metadata"]
    assert "activeDeadlineSeconds" not in pod["spec"]
    await world.kubectl("exec", str(new.data["pod"]), "-c", "run", "--", "touch", "/tmp/go")
    end = await ended(other, new)
    assert end.exit_code == 6
    assert await output(other, new) == b"up\ndown\n"
    await other.cleanup(new)


def _knows_epoch(launcher: KubernetesLauncher, world: World, handle: Handle, epoch: str) -> bool:
    job = launcher._watches[world.namespace].job(str(handle.data["name"]))
    assert job is not None
    return bool(job["metadata"]["annotations"]["shunter.dev/epoch"] == epoch)


@pytest.mark.parametrize("started", [True, False])
async def test_a_pool_whose_namespace_is_another_by_now(world: World, started: bool) -> None:
    """Its template changed while the run was live: another agent finds it where it is, and begins nothing anew."""
    attempt = world.attempt(shell("echo up; while [ ! -e /tmp/go ]; do sleep 0.1; done; echo down; exit 6"))
    one, other = world.launcher(), world.launcher()
    reach = await one.reach(attempt.assignment.template)
    assert await other.reach(attempt.assignment.template) == reach
    old = await attempt.start(one)
    await one.let_go(attempt.assignment, attempt.folder)
    now = {
        "epoch": 2,
        "handed_over": Output(size=0, started=started),
        "template": attempt.assignment.template | {"namespace": "default"},
    }
    taken = Attempt.__new__(Attempt)
    taken.folder = world.root / "taken"
    taken.folder.mkdir()
    taken.assignment = attempt.assignment.model_copy(update=now)
    new = await other.recover(taken.assignment, taken.folder, agent="a2")
    assert new is not None
    assert (new.data["pod"], new.data["namespace"]) == (old.data["pod"], world.namespace)
    assert await other.start(taken.assignment, taken.folder, "a2") == new
    await other.close()
    later = world.launcher()  # a later life of that agent, which reaches what the pool says by then
    assert await later.reach(taken.assignment.template) != reach
    assert await later.recover(taken.assignment, taken.folder, agent="a2") == new
    await world.kubectl("exec", str(new.data["pod"]), "-c", "run", "--", "touch", "/tmp/go")
    assert (await ended(later, new)).exit_code == 6
    assert await output(later, new) == b"up\ndown\n"
    await later.cleanup(new)


async def test_a_lower_epoch_never_overwrites_a_higher_one(world: World) -> None:
    attempt = world.attempt(UP)
    attempt.assignment = attempt.assignment.model_copy(update={"epoch": 5})
    one, other = world.launcher(), world.launcher()
    handle = await attempt.start(one)
    late = Attempt.__new__(Attempt)
    late.folder = world.root / "late"
    late.folder.mkdir()
    late.assignment = attempt.assignment.model_copy(update={"epoch": 4, "handed_over": Output(size=0)})
    with pytest.raises(LauncherUnavailable, match="later lease"):
        await other.start(late.assignment, late.folder, "a2")
    job = await world.get("job", str(handle.data["name"]))
    assert job["metadata"]["annotations"]["shunter.dev/epoch"] == "5"
    assert job["metadata"]["labels"]["shunter.dev/agent"] == "a1"
    await one.stop(handle, 0)
    await ended(one, handle)


async def test_what_was_handed_over_and_is_gone_is_not_begun_anew(world: World) -> None:
    attempt = world.attempt(["true"])
    attempt.assignment = attempt.assignment.model_copy(
        update={"epoch": 2, "handed_over": Output(size=3, tail="dXAK", started=True)}
    )
    launcher = world.launcher()
    end = await ended(launcher, await attempt.start(launcher))
    assert end.error is Cause.DELETED


async def test_a_launch_is_withdrawn(world: World) -> None:
    attempt = world.attempt(["true"], {"node_selector": {"no.such/node": "here"}})
    launcher = world.launcher()
    starting = asyncio.create_task(attempt.start(launcher))
    run = attempt.assignment.run
    await until(lambda: world.notes.get(run), "a note")
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    assert await launcher.recover(attempt.assignment, attempt.folder) is None
    assert await world.kubectl("get", "jobs", "-o", "name", "-l", f"shunter.dev/run={run}")
    assert await launcher.recover(attempt.assignment, attempt.folder, withdraw=True) is None
    assert not await world.kubectl("get", "jobs,pods", "-o", "name", "-l", f"shunter.dev/run={run}")


async def test_a_launch_that_is_interrupted_at_once_is_withdrawn_as_well(world: World) -> None:
    """Its request may be on its way still."""
    attempt = world.attempt(UP)
    launcher = world.launcher()
    await world.attempt(["true"]).run(launcher)
    call, sent = launcher.client.call, asyncio.Event()

    async def tell(*words: Any, **more: Any) -> Any:
        sent.set()
        return await call(*words, **more)

    launcher.client.call = tell  # type: ignore[method-assign]
    starting = asyncio.create_task(attempt.start(launcher))
    await sent.wait()
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    handle = await launcher.recover(attempt.assignment, attempt.folder, withdraw=True)
    assert handle is None
    await asyncio.sleep(1)
    assert not await world.kubectl(
        "get", "jobs", "-o", "name", "-l", f"shunter.dev/run={attempt.assignment.run}"
    )


async def test_leftovers_are_told_and_removed(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    """Those of this agent that it knows nothing of; never another agent's."""
    lost, kept, namesake = (world.attempt(UP) for _ in range(3))
    identity, first, third = uuid4(), world.launcher(), world.launcher(leftover_grace=0.5)
    first.identity = identity
    for one in (lost, kept):
        await one.start(first)
    first.identity = uuid4()  # an agent of this name that another server has
    await namesake.start(first)
    await first.close()
    third.identity = uuid4()  # and one more, which is there all the time
    await namesake.recover(third)
    await world.attempt(["true"]).run(third)
    second = world.launcher(leftover_grace=0.5)
    second.identity = identity
    handle = await kept.recover(second)
    assert handle is not None
    await world.attempt(["true"]).run(second)

    async def left() -> set[str]:
        found = await world.get("jobs", "-l", "shunter.dev/run")
        return {one["metadata"]["labels"]["shunter.dev/run"] for one in found["items"]}

    runs = {str(one.assignment.run) for one in (lost, kept, namesake)}
    assert await left() >= runs - {str(lost.assignment.run)}

    async def is_removed() -> bool:
        return str(lost.assignment.run) not in await left()

    await until(is_removed, "the Job that nobody owns is removed")
    assert await left() >= runs - {str(lost.assignment.run)}
    said = capfd.readouterr()
    assert "owned by nobody" in said.out + said.err


async def test_a_result_that_is_too_large_is_told(world: World) -> None:
    script = """python3 -c 'print("[" + "1," * 5000 + "1]")' > $SHUNTER_RESULT"""
    found = await world.attempt(shell(script)).run(world.launcher())
    assert (found.exit_code, found.result) == (0, None)
    assert "4095 bytes" in (found.message or "")


async def test_a_result_that_is_not_utf8_is_told(world: World) -> None:
    """It comes changed, and nothing in the API says so."""
    found = await world.attempt(shell(r"""printf '"\377"' > $SHUNTER_RESULT""")).run(world.launcher())
    assert (found.exit_code, found.result) == (0, "\ufffd")
    assert "not UTF-8" in (found.message or "")


async def test_what_an_init_container_says_at_its_end_is_told(world: World) -> None:
    """Its pod is gone, and its log with it."""
    prepare = {"name": "prepare", "image": IMAGE, "command": shell("echo no such bucket >&2; exit 4")}
    with pytest.raises(LaunchFailed, match="prepare ended with exit code 4: no such bucket"):
        await world.attempt(UP, {"init_containers": [prepare]}).start(world.launcher())


async def test_a_proxy_that_answers_in_the_place_of_the_cluster(tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n<html>Log in!</html>")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    path, port = tmp_path / "kubeconfig", server.sockets[0].getsockname()[1]
    config = {
        "clusters": [{"name": "x", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
        "users": [{"name": "x", "user": {"token": "x"}}],
        "current-context": "x",
    }
    path.write_text(json.dumps(config))
    launcher = KubernetesLauncher(environ={"KUBECONFIG": str(path)})
    with pytest.raises(LauncherUnavailable, match=r"does not answer as an API server does: .*Log in"):
        await launcher.check()
    await launcher.close()
    server.close()


async def test_parameters_of_half_a_megabyte(world: World) -> None:
    attempt = world.attempt(shell("wc -c < $SHUNTER_PARAMETERS"), parameters={"x": "y" * 500_000})
    launcher = world.launcher()
    handle = await attempt.start(launcher)
    await ended(launcher, handle)
    assert await output(launcher, handle) == b"500009\n"


async def test_a_secret_that_could_not_be_made_before_the_agent_died(world: World) -> None:
    """The Job is there, its Secret is not: the next life makes it."""
    env = {"TOKEN": FromSecret(secret="token")}
    attempt = world.attempt(shell("echo $PASSWORD $TOKEN"), {"secret_env": {"PASSWORD": None}}, env=env)
    prepared = Prepared(template_secrets={"PASSWORD": "hidden"}, secrets={"TOKEN": "covered"})
    first = world.launcher()

    async def die(launch: Any, job: Any) -> None:
        raise asyncio.CancelledError

    first._go_with = die  # type: ignore[method-assign]
    with pytest.raises(asyncio.CancelledError):
        await attempt.start(first, prepared=prepared)
    await first.close()
    second = world.launcher()
    handle = await attempt.start(second, prepared=prepared)
    assert (await ended(second, handle)).exit_code == 0
    assert await output(second, handle) == b"hidden covered\n"
    assert "hidden" not in json.dumps(second.manifest(attempt.folder))
    made = await world.get("jobs,pods", "-l", f"shunter.dev/run={attempt.assignment.run}")
    assert len(made["items"]) == 2
    assert not [word for word in ("hidden", "covered") if word in json.dumps(made)]
    await second.cleanup(handle)
    await until(lambda: _no_secret(world, str(handle.data["name"])), "the Secret goes with its Job")


async def _no_secret(world: World, name: str) -> bool:
    return not await world.kubectl(
        "get", "secrets", "-o", "name", "--field-selector", f"metadata.name={name}"
    )


# -- what the cluster does to a run


async def _begin(world: World, launcher: KubernetesLauncher, script: str, **more: Any) -> Handle:
    handle = await world.attempt(shell(script), **more).start(launcher)
    await written(launcher, handle, b"up")
    return handle


async def _delete_pod(world: World, handle: Handle) -> None:
    await world.kubectl("delete", "pod", str(handle.data["pod"]), "--grace-period=1", "--wait=false")


async def _force_pod(world: World, handle: Handle) -> None:
    await world.kubectl("delete", "pod", str(handle.data["pod"]), "--grace-period=0", "--force")


async def _delete_job(world: World, handle: Handle) -> None:
    await world.kubectl("delete", "job", str(handle.data["name"]), "--wait=false")


async def _evict(world: World, handle: Handle) -> None:
    body = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": handle.data["pod"], "namespace": world.namespace},
    }
    path = f"/api/v1/namespaces/{world.namespace}/pods/{handle.data['pod']}/eviction"
    await asyncio.to_thread(world.cluster.kubectl, "create", "--raw", path, "-f", "-", text=json.dumps(body))


DEEDS: dict[str, tuple[Callable[[World, Handle], Awaitable[None]], Cause, str]] = {
    "pod deleted": (_delete_pod, Cause.DELETED, "deleted by somebody"),
    "pod deleted by force": (_force_pod, Cause.DELETED, "deleted by somebody"),
    "job deleted": (_delete_job, Cause.DELETED, "deleted by somebody"),
    "evicted": (_evict, Cause.EVICTED, "EvictionByEvictionAPI"),
}


async def test_what_people_and_the_cluster_do_to_runs(world: World) -> None:
    launcher = world.launcher()

    async def suffer(deed: str) -> Exit:
        handle = await _begin(world, launcher, "echo up; exec sleep 600", grace=1)
        await DEEDS[deed][0](world, handle)
        end = await ended(launcher, handle)
        await launcher.cleanup(handle)
        return end

    ends = dict(zip(DEEDS, await asyncio.gather(*map(suffer, DEEDS)), strict=True))
    for deed, (_, cause, words) in DEEDS.items():
        assert ends[deed].error is cause, (deed, ends[deed])
        assert words in (ends[deed].message or ""), (deed, ends[deed])


async def test_what_happened_while_nobody_looked(world: World) -> None:
    """The pods are gone when the next life of the agent looks: the Job has their exit codes. Of 143 and 137 it cannot be known
    whether the deletion was before or after that, so that the one who deleted is named."""
    first = world.launcher()
    codes = {
        0: world.attempt(shell("echo up; sleep 3")),
        9: world.attempt(shell("echo up; sleep 3; exit 9")),
        143: world.attempt(shell("trap 'exit 143' TERM; echo up; sleep 300 & wait")),
    }
    handles = {code: await one.start(first) for code, one in codes.items()}
    await written(first, handles[143], b"up")  # its trap is set
    await first.close()
    for code, handle in handles.items():
        name = str(handle.data["name"])
        if code == 143:  # its deletion is its end
            await world.kubectl("delete", "pod", str(handle.data["pod"]), "--wait=true")
            await until(lambda name=name: _is_over(world, name), "the Job is over")  # type: ignore[misc]
            continue
        await world.kubectl("wait", "job", name, "--for=jsonpath={.status.ready}=0", "--timeout=30s")
        await until(lambda name=name: _is_over(world, name), "the Job is over")  # type: ignore[misc]
        await world.kubectl("delete", "pod", str(handle.data["pod"]), "--wait=true")
    second = world.launcher()
    for code, one in codes.items():
        handle = await one.recover(second)  # type: ignore[assignment]
        end = await ended(second, handle)
        assert (end.exit_code, end.error) == (code, Cause.DELETED if code == 143 else None)
        assert "Its pod was gone before" in (end.message or "")


async def _is_over(world: World, name: str) -> bool:
    job = await world.get("job", name)
    return any(one["type"] in ("Failed", "Complete") for one in job["status"].get("conditions", []))


async def test_out_of_memory(world: World) -> None:
    command = ["python3", "-c", "x = bytearray(200 << 20)"]
    end = await world.attempt(command, memory_limit=32 << 20).run(world.launcher())
    assert (end.oom, end.exit_code) == (True, 137)
    assert "33554432 of memory" in (end.message or "").replace(" bytes", "")


FAULTS: list[tuple[str, list[str], dict[str, Any], Cause, str]] = [
    ("image", ["true"], {"image": "localhost/no-such:1"}, Cause.IMAGE_PULL, "no-such"),
    ("never", ["true"], {"image": "localhost/no-such:1", "pull_policy": "never"}, Cause.IMAGE_PULL, "Never"),
    ("image's name", ["true"], {"image": "localhost/NO_UPPER:1"}, Cause.IMAGE_PULL, "InvalidImageName"),
    ("command", ["/no/such/program"], {}, Cause.START_FAILED, "/no/such/program was not found"),
    ("no program", ["/etc/passwd"], {}, Cause.START_FAILED, "/etc/passwd may not be executed"),
    ("root", ["true"], {"user": "image"}, Cause.START_FAILED, "non-root|runAsNonRoot"),
    (
        "secret",
        ["true"],
        {"env_from": [{"secret": "no-such"}]},
        Cause.START_FAILED,
        'secret "no-such" not found',
    ),
    ("admission", ["true"], {"user": 0}, Cause.REJECTED, "violates PodSecurity"),
    ("namespace", ["true"], {"namespace": "no-such-namespace"}, Cause.REJECTED, "no-such-namespace"),
]


async def test_what_cannot_be_started(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told, and nothing of it is left."""
    import re

    for grace in ("PULL_GRACE", "CONFIG_GRACE", "REJECTED_GRACE"):
        monkeypatch.setattr(causes, grace, 2.0)
    launcher = world.launcher()
    attempts = [world.attempt(command, template) for _, command, template, _, _ in FAULTS]
    found = await asyncio.gather(*(one.start(launcher) for one in attempts), return_exceptions=True)
    for (what, _, _, cause, words), said in zip(FAULTS, found, strict=True):
        assert isinstance(said, LaunchFailed), (what, said)
        assert said.cause is cause, (what, said)
        assert re.search(words, said.detail), (what, said.detail)
        assert said.remedy, what
    assert not await world.kubectl("get", "jobs", "-o", "name")


WAITS: list[tuple[str, dict[str, Any], Cause, str]] = [
    ("node", {"node_selector": {"no.such/node": "here"}}, Cause.UNSCHEDULABLE, "Unschedulable: 0/1 nodes"),
    ("cpu", {"cpu": 9000}, Cause.UNSCHEDULABLE, "Insufficient cpu"),
    ("volume", {"mounts": [{"type": "secret", "source": "no-such", "target": "/x"}]}, Cause.START_FAILED,
     'secret "no-such" not found'),
    ("claim", {"mounts": [{"type": "pvc", "source": "no-such", "target": "/x"}]}, Cause.UNSCHEDULABLE, "no-such"),
]  # fmt: skip


async def test_what_a_launch_waits_for(world: World) -> None:
    launcher = world.launcher()
    attempts = [world.attempt(["true"], template) for _, template, _, _ in WAITS]
    starting = [asyncio.create_task(one.start(launcher)) for one in attempts]
    for (what, _, cause, words), one in zip(WAITS, attempts, strict=True):

        def told(run: UUID = one.assignment.run, words: str = words, cause: Cause = cause) -> bool:
            return any(words in note and why is cause for note, why in world.notes.get(run, []))

        await until(told, f"{what}: {words}")
    for task in starting:
        task.cancel()
    await asyncio.gather(*starting, return_exceptions=True)


async def test_a_quota_is_waited_for(world: World) -> None:
    name = f"{world.namespace}-full"
    world.cluster.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}},
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "none", "namespace": name},
            "spec": {"hard": {"pods": "0"}},
        },
    )
    try:
        launcher = world.launcher()
        attempt = world.attempt(shell("echo at last"), {"namespace": name})
        starting = asyncio.create_task(attempt.start(launcher))
        run = attempt.assignment.run
        await until(
            lambda: any("exceeded quota" in note for note, _ in world.notes.get(run, [])), "the quota"
        )
        world.cluster.kubectl("delete", "resourcequota", "none", "-n", name)
        handle = await asyncio.wait_for(starting, 60)
        assert (await ended(launcher, handle)).exit_code == 0
        assert world.notes[run][-1] == ("", None)
    finally:
        world.cluster.kubectl("delete", "namespace", name, "--wait=false")


async def test_preemption(world: World) -> None:
    """A more important pod takes the room of a run."""
    node = (await asyncio.to_thread(world.cluster.get, "nodes"))["items"][0]
    cores = float(node["status"]["allocatable"]["cpu"])
    name = f"{world.namespace}-first"
    world.cluster.apply(
        {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": name},
            "value": 1000,
        }
    )
    try:
        launcher = world.launcher()
        share = {"cpu_request": cores * 0.6}
        low = await world.attempt(UP, share, grace=1).start(launcher)
        high = asyncio.create_task(world.attempt(["true"], share | {"priority_class": name}).run(launcher))
        end = await ended(launcher, low)
        assert end.error is Cause.PREEMPTED, end
        assert "PreemptionByScheduler" in (end.message or "")
        assert (await high).exit_code == 0
    finally:
        world.cluster.kubectl("delete", "priorityclass", name)


@pytest.fixture(scope="module")
def bare_image(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image without a shell, with one program for another machine, which the own cluster gets."""
    if not isinstance(cluster, OwnCluster):
        pytest.skip("the cluster of KUBECONFIG cannot be given images: unset it, and make cluster-up")
    root = tmp_path_factory.mktemp("bare")
    program = bytearray(Path("/bin/true").read_bytes())
    program[18:20] = (0xF3).to_bytes(2, "little")  # e_machine: RISC-V
    (root / "other-machine").write_bytes(program)
    (root / "other-machine").chmod(0o755)
    archive = tmp_path_factory.mktemp("archive") / "bare.tar"
    images.write(archive, BARE_IMAGE, root, {})
    cluster.load_image(archive)
    return BARE_IMAGE


async def test_an_image_without_a_shell_and_a_program_for_another_machine(
    world: World, bare_image: str
) -> None:
    launcher = world.launcher()
    template = {"image": bare_image, "pull_policy": "never"}
    with pytest.raises(LaunchFailed) as told:
        await world.attempt(shell("true"), template).start(launcher)
    assert told.value.cause is Cause.START_FAILED
    assert "/bin/sh was not found" in told.value.detail
    assert "Without a shell" in told.value.remedy
    try:
        end = await world.attempt(["/other-machine"], template).run(launcher)
        cause, said = end.error, end.message or ""
    except LaunchFailed as exc:
        cause, said = exc.cause, f"{exc.detail} {exc.remedy}"
    assert cause is Cause.START_FAILED
    assert "architecture" in said


# -- where the cluster is, and what the agent may do there


async def test_missing_rights_are_named(world: World, tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    rules = [{"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get", "list", "watch"]}]
    await asyncio.to_thread(world.cluster.account, path, "poor", rules, namespace=world.namespace)
    launcher = world.launcher(path)
    await launcher.check()
    with pytest.raises(LauncherUnavailable) as told:
        await world.attempt(["true"]).start(launcher)
    assert "create, patch, delete jobs" in told.value.detail
    assert "; list, watch, patch, delete pods" in told.value.detail
    assert world.namespace in told.value.detail


async def test_rights_that_come_later_take_effect(world: World, tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    every = {
        "apiGroups": ["batch", ""],
        "resources": ["jobs", "pods", "pods/log"],
        "verbs": ["get", "list", "watch", "patch", "delete"],
    }
    await asyncio.to_thread(world.cluster.account, path, "growing", [every], namespace=world.namespace)
    launcher = world.launcher(path)
    attempt = world.attempt(["true"])
    with pytest.raises(LaunchRefused, match="create jobs"):
        await attempt.start(launcher)
    every["verbs"].append("create")
    other = tmp_path / "other"
    await asyncio.to_thread(world.cluster.account, other, "growing", [every], namespace=world.namespace)
    assert (await attempt.run(launcher)).exit_code == 0


async def test_a_kubeconfig_that_expired_is_read_again(world: World, tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    good = json.loads(world.cluster.kubectl("config", "view", "--raw", "--flatten", "-o", "json"))
    bad = json.loads(json.dumps(good))
    bad["users"][0]["user"] = {"token": "expired"}
    path.write_text(json.dumps(bad))
    launcher = world.launcher(path)
    with pytest.raises(LauncherUnavailable, match="does not know us") as told:
        await launcher.check()
    assert "expired" in told.value.remedy
    path.write_text(json.dumps(good))
    await asyncio.sleep(1.1)  # it is not looked for more often
    await launcher.check()


async def test_an_exec_section_gives_the_token_again_when_it_is_over(world: World, tmp_path: Path) -> None:
    """The command counts how often it is run; what it gave is over at once."""
    account = tmp_path / "account"
    every = {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}
    await asyncio.to_thread(world.cluster.account, account, "exec", [every], namespace=world.namespace)
    config = json.loads(account.read_text())
    token = config["users"][0]["user"]["token"]
    status = {"token": token, "expirationTimestamp": "2020-01-01T00:00:00Z"}
    credential = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}
    (tmp_path / "credential").write_text(json.dumps(credential))
    script = f"echo x >> {tmp_path}/count; cat {tmp_path}/credential"
    config["users"][0]["user"] = {
        "exec": {
            "apiVersion": credential["apiVersion"],
            "command": "sh",
            "args": ["-c", script],
            "interactiveMode": "Never",
        }
    }
    account.write_text(json.dumps(config))
    launcher = world.launcher(account)
    assert (await world.attempt(["true"]).run(launcher)).exit_code == 0
    assert len((tmp_path / "count").read_text().split()) > 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        ("{", "cannot be used"),
        ("just words", "cannot be used"),
        ('{"clusters": [], "contexts": [], "users": []}', "current-context"),
        (
            '{"current-context": "x", "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],'
            ' "clusters": [{"name": "x", "cluster": {"server": "https://127.0.0.1:1"}}],'
            ' "users": [{"name": "x", "user": {}}]}',
            "127.0.0.1:1 cannot be reached",
        ),
    ],
)
async def test_a_kubeconfig_that_leads_nowhere(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "kubeconfig"
    if content is not None:
        path.write_text(content)
    launcher = KubernetesLauncher(environ={"KUBECONFIG": str(path)})
    with pytest.raises(LauncherUnavailable, match=words) as told:
        await launcher.check()
    assert told.value.remedy
    await launcher.close()


async def test_no_cluster_at_all(tmp_path: Path) -> None:
    launcher = KubernetesLauncher(environ={"HOME": str(tmp_path)})
    with pytest.raises(LauncherUnavailable, match="no cluster is known"):
        await launcher.check()
    await launcher.close()


async def test_reach(world: World) -> None:
    launcher = world.launcher()
    uid = (await asyncio.to_thread(world.cluster.get, "namespace", world.namespace))["metadata"]["uid"]
    assert await launcher.reach({"namespace": world.namespace}) == uid
    assert await launcher.reach({"namespace": "no-such-namespace"}) == ""


# -- the cluster's programs


async def test_the_api_server_is_restarted(world: World, own_cluster: OwnCluster) -> None:
    """What runs goes on; what ended meanwhile has its true end; what was to start waits."""
    launcher = world.launcher()
    short = await world.attempt(shell("echo up; sleep 3; exit 4")).start(launcher)
    long = await world.attempt(shell("echo up; sleep 12; exit 5")).start(launcher)
    await asyncio.to_thread(own_cluster.stop, "apiserver")
    with pytest.raises(LauncherUnavailable):
        await asyncio.wait_for(launcher.wait(short), 30)
    with pytest.raises(LauncherUnavailable):
        await world.attempt(["true"]).start(launcher)
    await asyncio.to_thread(own_cluster.start, "apiserver")

    async def is_back() -> bool:
        try:
            await launcher.check()
            launcher._watches[world.namespace].demand()
        except LauncherUnavailable:
            return False
        return True

    await until(is_back, "the API server is back")
    for handle, code in ((short, 4), (long, 5)):
        end = await asyncio.wait_for(launcher.wait(handle), 60)
        assert (end.exit_code, await output(launcher, handle)) == (code, b"up\n")
