"""A real server, a real agent and a real Docker engine: runs become containers, whoever is killed meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from shunter_infrastructure.docker import ending
from shunter_infrastructure.docker.launcher import DockerLauncher
from shunter_infrastructure.docker.output import CUT
from shunter_infrastructure.launcher import Handle, LauncherUnavailable, LaunchFailed, Prepared
from shunter_infrastructure.stamp import Stamp
from shunter_work_pools.contracts.deployments import DeploymentSpec, Work
from shunter_work_pools.contracts.pools import PoolPatch, PoolSpec
from shunter_work_pools.contracts.runs import Run, RunRequest
from shunter_work_pools.contracts.states import Cause
from tests.agents.real_server import Site, site
from tests.engines.docker import BARE_IMAGE, IMAGE, Daemon, make_image
from tests.engines.registry import Registry, SlowWay
from tests.launchers import killed_agent
from tests.launchers.attempts import Attempt, assignment, output, until
from tests.launchers.fetched_code import shows_fetched_code
from tests.patience import SOON

pytestmark = pytest.mark.timeout(180)
TEMPLATE: dict[str, Any] = {"image": IMAGE, "networks": ["none"]}


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory, docker_url: str) -> Iterator[Site]:
    """A server with the docker pool ``boxes``; its agents find the engine by DOCKER_HOST."""
    with _boxes(tmp_path_factory.mktemp("docker"), docker_url) as one:
        yield one


@contextlib.contextmanager
def _boxes(home: Path, url: str) -> Iterator[Site]:
    with site(home) as one:
        one.env["DOCKER_HOST"] = url
        one.client.create_pool(PoolSpec(name="boxes", type="docker", template=TEMPLATE))
        yield one


def deploy(where: Site, name: str, script: str, variables: dict[str, Any] | None = None, **work: Any) -> None:
    command = Work(command=["sh", "-c", script], **work)
    where.client.deploy(name, DeploymentSpec(work=command, pool="boxes", variables=variables or {}))


def run(where: Site, name: str, **more: Any) -> Any:
    return where.client.create_run(RunRequest(deployment=name, **more)).id


def containers(where: Site, run_id: object = None) -> list[dict[str, Any]]:
    """Those of a run, or of all."""
    label = "shunter.run" if run_id is None else f"shunter.run={run_id}"
    client = docker.APIClient(where.env["DOCKER_HOST"], timeout=60)
    try:
        found: list[dict[str, Any]] = client.containers(all=True, filters={"label": label})
        return found
    finally:
        client.close()


def gone(where: Site, run_id: object) -> None:
    """Nothing of a run is left on the engine, after a while."""
    deadline = time.monotonic() + SOON
    while left := containers(where, run_id):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_the_same_deployment_goes_to_another_pool(boxes: Site) -> None:
    for pool in ("default", "boxes"):
        work = Work(command=["python3", "-c", 'print("hi")'])
        boxes.client.deploy("hi", DeploymentSpec(work=work, pool=pool))
        with boxes.agent(f"of-{pool}", pool=pool):
            made = run(boxes, "hi")
            assert boxes.ended(made).state == "Completed", boxes.log(f"of-{pool}")
            assert boxes.output(made) == b"hi\n"
        gone(boxes, made)
        assert boxes.attempts(f"of-{pool}") == []


def test_a_python_function_of_the_image(boxes: Site) -> None:
    """Its code is in the image here: in a module that is part of Python."""
    spec = DeploymentSpec(
        work=Work(entrypoint="operator:add"), pool="boxes", parameters={}, variables={"workdir": "/tmp"}
    )
    boxes.client.deploy("raises", spec)
    boxes.client.deploy(
        "returns", spec.model_copy(update={"work": Work(entrypoint="platform:python_version")})
    )
    boxes.client.deploy("nowhere", spec.model_copy(update={"work": Work(entrypoint="no_such:thing")}))
    with boxes.agent("python", pool="boxes"):
        good, bad, missing = (run(boxes, name) for name in ("returns", "raises", "nowhere"))
        found = boxes.ended(good)
        assert found.state == "Completed", found
        assert str(found.result).startswith("3.")
        failed = boxes.ended(bad)
        assert (failed.state, failed.cause) == ("Failed", "exception")
        assert "TypeError" in (failed.message or "")
        lost = boxes.ended(missing)
        assert (lost.state, lost.cause) == ("Crashed", "source")
        assert "no_such" in (lost.message or "")


def test_code_that_the_agent_fetches(boxes: Site, tmp_path: Path) -> None:
    shows_fetched_code(boxes, "boxes", tmp_path)


def test_code_for_an_engine_on_another_machine_is_refused(tmp_path: Path) -> None:
    attempt = Attempt(assignment(["true"], template=TEMPLATE), tmp_path)
    launcher = DockerLauncher(environ={"DOCKER_HOST": "tcp://127.0.0.1:1"})
    with pytest.raises(LaunchFailed, match=r"the engine at tcp://127\.0\.0\.1:1 is on another") as caught:
        asyncio.run(attempt.start(launcher, prepared=Prepared(source=tmp_path)))
    assert caught.value.cause is Cause.SOURCE


def test_parameters_result_and_environment(boxes: Site) -> None:
    script = 'cat $SHUNTER_PARAMETERS; echo; echo $OWN $POOLS $SHUNTER_POOL; echo "[$OWN]" > $SHUNTER_RESULT'
    deploy(boxes, "told", script, {"env": {"POOLS": "2", "OWN": "0"}}, env={"OWN": "1"})
    with boxes.agent("told", pool="boxes"):
        made = run(boxes, "told", parameters={"text": "ä€", "n": [1, 2.5]})
        found = boxes.ended(made)
        assert (found.state, found.result) == ("Completed", [1])
        first, second = boxes.output(made).decode().splitlines()
        assert json.loads(first) == {"text": "ä€", "n": [1, 2.5]}
        assert second == "1 2 boxes"


@pytest.fixture(scope="module")
def networks(docker_url: str) -> Iterator[list[str]]:
    """Two networks of the engine's; containers that are in both are connected to the second one after they are made."""
    client = docker.APIClient(docker_url, timeout=60)
    names = ["shunter-tests-1", "shunter-tests-2"]
    for name in names:
        client.create_network(name, driver="bridge", internal=True)
    yield names
    for name in names:
        client.remove_network(name)
    client.close()


@pytest.mark.parametrize("point", killed_agent.POINTS)
def test_the_agent_is_killed_at_each_call_to_the_engine(boxes: Site, networks: list[str], point: str) -> None:
    """One container, started once, one end, every byte of output; nothing is left on the engine."""
    name = point.replace(":", "-")
    # The script tells how often its container was started: its writable layer would outlive that.
    script = "echo x >> /starts; echo begun $(wc -l < /starts); sleep 0.4; echo done; exit 7"
    deploy(boxes, name, script, {"networks": networks})
    first = _start_killed(boxes, name, point)
    try:
        made = run(boxes, name)
        assert first.wait(SOON) == -signal.SIGKILL, boxes.log(name)
    finally:
        first.kill()
        first.wait()
    with boxes.agent(name, pool="boxes"):
        found = boxes.ended(made)
        assert (found.state, found.cause) == ("Failed", "exit_code"), boxes.log(name)
        assert [(one.number, one.exit_code, one.agent) for one in found.attempts] == [(1, 7, name)]
        assert boxes.output(made) == b"begun 1\ndone\n"
        gone(boxes, made)
    assert boxes.attempts(name) == []


def _start_killed(where: Site, name: str, point: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, killed_agent.__file__, point, "--pool", "boxes", "--name", name]
    with (where.home / f"{name}.log").open("ab") as log:
        return subprocess.Popen(words, env=where.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def test_an_agent_that_was_away_has_every_byte_and_the_true_end(boxes: Site) -> None:
    deploy(boxes, "away", "seq 20000; sleep 1; seq 20001 40000; exit 9")
    first = boxes.start_agent("away", pool="boxes")
    try:
        made = run(boxes, "away")
        _output_begins(boxes, made)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    while [one["State"] for one in containers(boxes, made)] != ["exited"]:
        time.sleep(0.05)
    with boxes.agent("away", pool="boxes"):
        found = boxes.ended(made)
        assert (found.state, found.attempts[0].exit_code) == ("Failed", 9)
        assert boxes.output(made) == "".join(f"{n}\n" for n in range(1, 40001)).encode()


def _output_begins(where: Site, made: object) -> None:
    deadline = time.monotonic() + SOON
    while not where.client.read_log(str(made)).data:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def causes(where: Site, script: str, name: str, **more: Any) -> Run:
    deploy(where, name, script, **more)
    with where.agent(name, pool="boxes"):
        made = run(where, name)
        found = where.ended(made, 60)
        gone(where, made)
    return found


def test_out_of_memory(boxes: Site) -> None:
    script = "exec python3 -c 'x = bytearray(200 << 20)'"
    found = causes(boxes, script, "greedy", memory_limit=32 << 20)
    assert (found.state, found.cause) == ("Crashed", "oom"), found
    assert "33554432 bytes of memory" in (found.message or "")


def test_cancelled_and_timed_out(boxes: Site) -> None:
    deploy(boxes, "long", "trap 'echo asked; exit 0' TERM; echo up; while :; do sleep 0.1; done")
    deploy(boxes, "slow", "echo up; sleep 600", timeout=1.0)
    with boxes.agent("stops", pool="boxes"):
        long, slow = run(boxes, "long"), run(boxes, "slow")
        _output_begins(boxes, long)
        boxes.client.cancel_run(str(long))
        # It ended well, though it was asked to end.
        assert boxes.ended(long).state == "Completed"
        assert boxes.output(long) == b"up\nasked\n"
        found = boxes.ended(slow)
        assert (found.state, found.cause) == ("TimedOut", "timeout")
        gone(boxes, slow)


def test_a_container_that_somebody_removes(boxes: Site) -> None:
    deploy(boxes, "removed", "echo up; sleep 600")
    with boxes.agent("removed", pool="boxes"):
        made = run(boxes, "removed")
        _output_begins(boxes, made)
        client = docker.APIClient(boxes.env["DOCKER_HOST"])
        client.remove_container(containers(boxes, made)[0]["Id"], force=True)
        client.close()
        found = boxes.ended(made)
        # Its death is told before its removal: either is true.
        assert (found.state, found.cause) in [("Crashed", "deleted"), ("Crashed", "signal")], found


@pytest.mark.parametrize(
    ("variables", "command", "cause", "words"),
    [
        ({"image": "REGISTRY/no-such:1"}, ["true"], "image_pull", "no-such:1.*manifest unknown"),
        ({"image": "localhost/no-such:1", "pull_policy": "never"}, ["true"], "image_pull", "never"),
        ({"image": BARE_IMAGE}, ["sh", "-c", "true"], "start_failed", "sh"),
        ({"image": BARE_IMAGE}, ["/wrong-machine"], "start_failed", "/wrong-machine"),
        ({"image": BARE_IMAGE}, ["/no-program"], "start_failed", "/no-program"),
        ({"image": BARE_IMAGE, "init": False}, ["sh", "-c", "true"], "start_failed", "no shell|Without a shell"),
        ({"image": BARE_IMAGE, "init": False}, ["/wrong-machine"], "start_failed", "architecture"),
        ({"image": BARE_IMAGE, "init": False}, ["/no-program"], "start_failed", "not be executed|executable"),
        ({"networks": ["no-such-network"]}, ["true"], "start_failed", "no-such-network"),
        ({"user": "nobody-here"}, ["true"], "start_failed", "nobody-here"),
        ({"mounts": [{"type": "bind", "source": "/no/such", "target": "/x"}]}, ["true"], "start_failed", "/no/such"),
        ({"memory": 1000}, ["true"], "start_failed", "memory"),
        ({"gpus": "all"}, ["true"], "start_failed", "GPU"),
    ],
)  # fmt: skip
def test_what_cannot_be_started(
    boxes: Site, registry: Registry, variables: dict[str, Any], command: list[str], cause: str, words: str
) -> None:
    if "image" in variables:
        image = variables["image"].replace("REGISTRY", f"127.0.0.1:{registry.port}")
        variables = variables | {"image": image}
    with one_agent(boxes):
        spec = DeploymentSpec(work=Work(command=command), pool="boxes", variables=variables)
        boxes.client.deploy("wrong", spec)
        made = run(boxes, "wrong")
        found = boxes.ended(made)
        assert (found.state, found.cause) == ("Crashed", cause), found
        assert re.search(words, found.message or "", re.IGNORECASE), found.message
        gone(boxes, made)


@contextlib.contextmanager
def one_agent(where: Site) -> Iterator[None]:
    with where.agent("wrong", pool="boxes"):
        yield


def test_a_template_that_was_spoilt_after_the_deploy(boxes: Site) -> None:
    """A pool found by tags: nothing is known of it at the deploy, the run tells."""
    boxes.client.create_pool(PoolSpec(name="tagged", type="docker", match=["t"], template=TEMPLATE))
    spec = DeploymentSpec(work=Work(command=["true"]), tags=["t"], variables={"imagee": "x"})
    boxes.client.deploy("tagged", spec)
    with boxes.agent("tagged", pool="tagged"):
        found = boxes.ended(run(boxes, "tagged"))
    assert (found.state, found.cause) == ("Crashed", "rejected"), found
    assert "imagee" in (found.message or "")


def test_a_read_only_root_with_another_user(boxes: Site) -> None:
    variables = {"read_only": True, "user": "65534", "cap_drop": ["ALL"], "pids": 100}
    script = "echo $(id -u); touch /x 2>/dev/null || echo refused; echo 5 > $SHUNTER_RESULT"
    deploy(boxes, "closed", script, variables)
    with boxes.agent("closed", pool="boxes"):
        made = run(boxes, "closed")
        found = boxes.ended(made)
        assert (found.state, found.result) == ("Completed", 5), found
        assert boxes.output(made) == b"65534\nrefused\n"


def test_a_changed_template_holds_for_the_next_run(boxes: Site) -> None:
    deploy(boxes, "changing", "echo $WHICH")
    with boxes.agent("changing", pool="boxes"):
        outputs = []
        for which in ("one", "two"):
            boxes.client.update_pool("boxes", PoolPatch(template=TEMPLATE | {"env": {"WHICH": which}}))
            made = run(boxes, "changing")
            boxes.ended(made)
            outputs.append(boxes.output(made))
        boxes.client.update_pool("boxes", PoolPatch(template=TEMPLATE))
    assert outputs == [b"one\n", b"two\n"]


# -- an engine that dies


@pytest.fixture(scope="module")
def shaky(tmp_path_factory: pytest.TempPathFactory, docker_daemon: Daemon) -> Iterator[Site]:
    """The same with an engine that a test may end."""
    with _boxes(tmp_path_factory.mktemp("shaky"), docker_daemon.url) as one:
        yield one


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
@pytest.mark.parametrize("live_restore", [True, False], ids=["live-restore", "no-live-restore"])
def test_the_engine_is_restarted(
    shaky: Site, docker_daemon: Daemon, how: signal.Signals, live_restore: bool
) -> None:
    """What runs goes on where the engine lets it, and what ended meanwhile has its true end."""
    docker_daemon.stop()
    docker_daemon.live_restore = live_restore
    docker_daemon.start()
    deploy(shaky, "long", "echo begun; sleep 8; echo done; exit 3")
    deploy(shaky, "short", "echo begun; sleep 2.5; echo done; exit 4")
    name = f"{how.name}-{live_restore}"
    with shaky.agent(name, pool="boxes"):
        long, short = run(shaky, "long"), run(shaky, "short")
        for one in (long, short):
            _output_begins(shaky, one)
        docker_daemon.end(how)
        time.sleep(3)  # the time in which one of them ends
        waiting = run(shaky, "short")
        docker_daemon.start()
        ends = {one: shaky.ended(one, 60) for one in (long, short, waiting)}
        codes = {one: ends[one].attempts[0].exit_code for one in ends}
        outputs = {one: shaky.output(one) for one in ends}
        for one in ends:
            gone(shaky, one)
    assert (codes[waiting], outputs[waiting]) == (4, b"begun\ndone\n")  # it waited for the engine
    if live_restore:
        assert (codes[long], codes[short]) == (3, 4), ends
        assert outputs[long] == b"begun\ndone\n"
        # Nobody read what it wrote while the engine was away: the engine has lost it, and that is told.
        assert outputs[short] == b"begun\n" + CUT
        return
    # The engine stops what runs when it goes, or when it comes back: by SIGTERM.
    assert (ends[long].state, ends[long].cause, codes[long]) == ("Crashed", "signal", 143), ends[long]
    assert outputs[long].startswith(b"begun\n")
    if how is signal.SIGTERM:
        assert (ends[short].cause, codes[short]) == ("signal", 143)
    else:  # nobody stopped it before its end
        assert (codes[short], outputs[short]) == (4, b"begun\n" + CUT)


def test_agent_and_engine_are_killed_together(shaky: Site, docker_daemon: Daemon) -> None:
    docker_daemon.stop()
    docker_daemon.live_restore = True
    docker_daemon.start()
    deploy(shaky, "both", "seq 1000; sleep 10; seq 1001 2000; exit 5")
    first = shaky.start_agent("both", pool="boxes")
    try:
        made = run(shaky, "both")
        _output_begins(shaky, made)
    finally:
        first.send_signal(signal.SIGKILL)
        docker_daemon.end(signal.SIGKILL)
        first.wait()
    second = shaky.start_agent("both", pool="boxes")  # before the engine is back
    try:
        time.sleep(1)
        assert second.poll() is None, shaky.log("both")
        docker_daemon.start()
        found = shaky.ended(made, 60)
        assert found.attempts[0].exit_code == 5, found
        assert shaky.output(made) == "".join(f"{n}\n" for n in range(1, 2001)).encode()
        gone(shaky, made)
    finally:
        second.terminate()
        second.wait(SOON)


@pytest.mark.parametrize("dies", [True, False], ids=["engine-dies", "engine-lives"])
async def test_an_order_to_start_whose_answer_was_lost(
    docker_daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies: bool
) -> None:
    """An engine that died meanwhile may have begun it and not know: it is not begun again. One that lives knows."""

    def lost(client: docker.APIClient, container: str) -> None:
        raise ConnectionResetError("the answer was lost")

    docker_daemon.stop()
    docker_daemon.live_restore = True
    docker_daemon.start()
    launcher = DockerLauncher(environ={"DOCKER_HOST": docker_daemon.url})
    one = Attempt(assignment(["true"], template=TEMPLATE), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(docker.APIClient, "start", lost)
        with pytest.raises(LauncherUnavailable):
            await one.start(launcher)
    if dies:
        await asyncio.to_thread(docker_daemon.end, signal.SIGKILL)
        await asyncio.to_thread(docker_daemon.start)
    handle = await one.start(launcher)
    found = await launcher.wait(handle)
    assert (found.error, found.exit_code) == ((Cause.KEEPER_LOST, None) if dies else (None, 0))
    assert await one.recover(launcher) == handle
    await launcher.stop(handle, 0)
    assert await output(launcher, handle) == b""
    await launcher.cleanup(handle)
    await launcher.close()


@pytest.mark.parametrize("seen", [True, False])
async def test_what_an_engine_says_that_does_not_know(tmp_path: Path, seen: bool) -> None:
    """255 is an exit code; of what ended while the engine was away, it may be its word for none."""
    handle = Handle("docker", 1, tmp_path, started=Stamp.now(), data={"container": "x", "name": "x"})
    moment = "2026-11-26T10:00:00.5Z"
    state = {"Status": "exited", "ExitCode": 255, "StartedAt": moment, "FinishedAt": moment}
    found = ending.exit_of(handle, {"Seen": seen, "State": state, "Config": {}, "HostConfig": {}})
    assert (found.error, found.exit_code) == ((None, 255) if seen else (Cause.KEEPER_LOST, None))


async def test_output_that_is_read_while_the_rest_of_it_is_fetched(docker_url: str, tmp_path: Path) -> None:
    """What the agent ships follows the output; when the container has ended, nobody may write beside the last copy."""
    one = Attempt(assignment(["seq", "200000"], template=TEMPLATE), tmp_path)
    first = DockerLauncher(environ={"DOCKER_HOST": docker_url})
    await one.start(first)
    await first.close()
    client = docker.APIClient(docker_url)
    client.wait(f"shunter-{one.assignment.run}-1")
    client.close()
    second = DockerLauncher(environ={"DOCKER_HOST": docker_url})
    handle = await one.recover(second)
    assert handle is not None
    waiting = asyncio.create_task(second.wait(handle))
    while not waiting.done():
        await second.read_output(handle, 0, 10)
        await asyncio.sleep(0)
    written = "".join(f"{n}\n" for n in range(1, 200001)).encode()
    assert (await waiting).log_size == len(written)
    assert await output(second, handle) == written
    await second.cleanup(handle)
    await second.close()


async def test_leftovers_are_told_and_removed(docker_url: str, tmp_path: Path) -> None:
    """An agent that has nothing to do looks as well."""
    root = tmp_path / "attempts"
    root.mkdir()
    lost, kept = (Attempt(assignment(["sleep", "600"], template=TEMPLATE), root) for _ in range(2))
    first = DockerLauncher(environ={"DOCKER_HOST": docker_url})
    for one in (lost, kept):
        await one.start(first)
    await first.close()
    shutil.rmtree(lost.folder)
    client = docker.APIClient(docker_url)

    def left() -> list[str]:
        found = client.containers(all=True, filters={"label": f"shunter.root={root}"})
        return [one["Labels"]["shunter.run"] for one in found]

    assert sorted(left()) == sorted(str(one.assignment.run) for one in (lost, kept))
    second = DockerLauncher(environ={"DOCKER_HOST": docker_url}, leftover_grace=0.5)
    second.attempts = root
    await second.check()
    await until(lambda: left() == [str(kept.assignment.run)], "one of two is removed")
    handle = await kept.recover(second)
    assert handle is not None
    await second.stop(handle, 0)
    await second.wait(handle)
    await second.cleanup(handle)
    assert left() == []
    await second.close()
    client.close()


async def test_leftovers_are_told_of_when_an_agent_starts(boxes: Site) -> None:
    """Whatever it finds to do; they are removed a minute later."""
    root = boxes.home / "agents" / "left" / "attempts"
    root.mkdir(parents=True)
    one = Attempt(assignment(["sleep", "600"], template=TEMPLATE), root)
    launcher = DockerLauncher(environ=boxes.env)
    handle = await one.start(launcher)
    one.folder.rename(boxes.home / "lost")
    with boxes.agent("left", pool="boxes"):
        await until(lambda: "is owned by nobody; it will be removed" in boxes.log("left"), "it is told of")
    await launcher.cleanup(handle)
    await launcher.close()


def test_a_run_is_cancelled_while_its_large_image_is_pulled(boxes: Site, registry: Registry) -> None:
    """It ends at once, and the engine pulls no more."""
    slow = SlowWay(registry.port, 300_000)
    client = docker.APIClient(boxes.env["DOCKER_HOST"])
    own = make_image(client, "localhost/large:1", "x", 30_000_000)
    image = registry.push(client, own, "large").replace(str(registry.port), str(slow.port))
    client.remove_image(own)
    client.close()
    deploy(boxes, "large", "true", {"image": image})
    with boxes.agent("large", pool="boxes"):
        made = run(boxes, "large")
        while not slow.connections:
            time.sleep(0.02)
        boxes.client.cancel_run(str(made))
        found = boxes.ended(made)
        assert (found.state, found.cause) == ("Cancelled", "cancelled"), found
        slow.rate = 5e6
        deadline = time.monotonic() + SOON
        while slow.connections:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    slow.close()


async def test_what_the_engine_was_asked_for_is_kept_without_secrets(docker_url: str, tmp_path: Path) -> None:
    """It is written before the engine is asked, so that it is there also where that failed."""
    launcher = DockerLauncher(environ={"DOCKER_HOST": docker_url, "OWN": "from the agent", "LANG": "C"})
    template = {
        "image": "localhost/no-such:1",
        "pull_policy": "never",
        "env": {"DB_PASSWORD": "hush", "PLAIN": "1", "LANG": "hers"},
    }
    work = assignment(
        ["true"], template=template, pass_env=["OWN", "LANG"], env={"LANG": "de", "API_KEY": "k"}
    )
    one = Attempt(work, tmp_path)
    assert launcher.manifest(one.folder) is None
    with pytest.raises(LaunchFailed):
        await one.start(launcher)
    await launcher.close()
    kept = launcher.manifest(one.folder)
    assert kept["name"] == f"shunter-{work.run}-1"
    assert kept["Entrypoint"] == ["true"]
    assert {"DB_PASSWORD=***", "API_KEY=***", "OWN=***", "PLAIN=1", "LANG=de"} <= set(kept["Env"])
    text = (one.folder / "manifest.json").read_text()
    assert not [secret for secret in ("hush", "from the agent", '"k"', "=k") if secret in text]
