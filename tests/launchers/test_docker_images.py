"""Real pulls from a real registry: policies, credentials, and every way in which an image cannot be had."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import docker
import pytest
import pytest_asyncio

from shunter_infrastructure.docker.launcher import DockerLauncher
from shunter_infrastructure.launcher import LaunchFailed
from shunter_work_pools.contracts.states import Cause
from tests.engines.docker import make_image
from tests.engines.registry import Registry, SlowWay
from tests.launchers.attempts import Attempt, assignment, ended, output, until
from tests.launchers.conftest import remove_containers
from tests.patience import SOON

COMMAND = ["/busybox", "cat", "/says"]


class Telling(DockerLauncher):
    """Keeps what it says that launches wait for."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.notes: list[str] = []
        self.on_note = lambda run, attempt, note, cause: self.notes.append(note)


NewLauncher = Callable[..., Telling]


@pytest.fixture
def client(docker_url: str) -> Iterator[docker.APIClient]:
    """Speaks to the engine; images that a test has pulled are removed afterwards."""
    with docker.APIClient(docker_url, timeout=60) as one:
        before = {image["Id"] for image in one.images()}
        yield one
        for image in one.images():
            if image["Id"] not in before:
                one.remove_image(image["Id"], force=True)


@pytest_asyncio.fixture
async def new_launcher(docker_url: str) -> AsyncIterator[NewLauncher]:
    """Makes docker launchers, and notes what they say that launches wait for."""
    made: list[Telling] = []

    def make(config: str = "/nowhere", pull_grace: float = 0.0) -> Telling:
        environ = {"DOCKER_HOST": docker_url, "DOCKER_CONFIG": config}
        one = Telling(environ=environ, pull_grace=pull_grace)
        made.append(one)
        return one

    yield make
    for launcher in made:
        await launcher.close()


@pytest.fixture
def attempt(tmp_path: Path, docker_url: str) -> Iterator[Callable[..., Attempt]]:
    """Makes attempts that print what their image says."""
    root = tmp_path / "attempts"
    root.mkdir()

    def make(image: str, **variables: Any) -> Attempt:
        return Attempt(assignment(COMMAND, template={"image": image, "networks": ["none"]} | variables), root)

    yield make
    remove_containers(docker_url, root)


async def says(launcher: Telling, one: Attempt) -> str:
    handle = await one.start(launcher)
    assert (await ended(launcher, handle)).exit_code == 0
    said = (await output(launcher, handle)).decode()
    await launcher.cleanup(handle)
    return said


def pushed(
    registry: Registry, client: docker.APIClient, text: str = "hello", size: int = 0, **more: str
) -> str:
    """The name of a new image in the registry, of which the engine has nothing."""
    made = make_image(client, f"localhost/{uuid4().hex[:8]}:1", text, size)
    name = registry.push(client, made, more.pop("name", uuid4().hex[:8]), **more)
    client.remove_image(made)
    return name


def name_in(image: str) -> str:
    return image.partition("/")[2].partition(":")[0]


async def refused(launcher: Telling, one: Attempt) -> LaunchFailed:
    with pytest.raises(LaunchFailed) as caught:
        await one.start(launcher)
    assert caught.value.cause is Cause.IMAGE_PULL
    assert launcher.notes[-1:] in ([], [""])
    return caught.value


async def test_an_image_that_is_not_there_is_fetched_once(
    new_launcher: NewLauncher, registry: Registry, client: docker.APIClient, attempt: Callable[..., Attempt]
) -> None:
    """For all runs that want it at once, and for those that come later; what is waited for is told, and that it came."""
    image = pushed(registry, client)
    launcher = new_launcher()
    assert await asyncio.gather(*(says(launcher, attempt(image)) for _ in range(4))) == ["hello"] * 4
    assert await says(launcher, attempt(image)) == "hello"
    assert registry.fetched(name_in(image)) == 1
    assert f"pulling image {image}" in launcher.notes
    assert launcher.notes[-1] == ""


@pytest.mark.parametrize(("policy", "then"), [("always", "new"), ("if_not_present", "old"), ("never", "old")])
async def test_a_tag_that_moves(
    new_launcher: NewLauncher,
    registry: Registry,
    client: docker.APIClient,
    attempt: Callable[..., Attempt],
    policy: str,
    then: str,
) -> None:
    launcher = new_launcher()
    image = pushed(registry, client, "old", tag="latest").removesuffix(":latest")
    pushed(registry, client, "new", name=name_in(image), tag="next")
    assert await says(launcher, attempt(image)) == "old"
    registry.move(name_in(image), "next", "latest")
    assert await says(launcher, attempt(image, pull_policy=policy)) == then


async def test_an_image_by_its_digest(
    new_launcher: NewLauncher, registry: Registry, client: docker.APIClient, attempt: Callable[..., Attempt]
) -> None:
    image = pushed(registry, client)
    client.pull(image)
    digest = client.inspect_image(image)["RepoDigests"][0]
    client.remove_image(image)
    assert await says(new_launcher(), attempt(digest, pull_policy="always")) == "hello"


async def test_never_fetches_nothing(
    new_launcher: NewLauncher, registry: Registry, client: docker.APIClient, attempt: Callable[..., Attempt]
) -> None:
    image = pushed(registry, client)
    assert (
        "pull_policy is never" in (await refused(new_launcher(), attempt(image, pull_policy="never"))).detail
    )
    assert registry.fetched(name_in(image)) == 0


async def test_no_such_image_and_no_such_tag(
    new_launcher: NewLauncher, registry: Registry, client: docker.APIClient, attempt: Callable[..., Attempt]
) -> None:
    """A registry that is there and has it not is asked once, however long one that is away would be waited for."""
    image = pushed(registry, client)
    for missing in (f"127.0.0.1:{registry.port}/no-such:1", image.removesuffix(":1") + ":2"):
        began = time.monotonic()
        assert "manifest unknown" in (await refused(new_launcher(pull_grace=60), attempt(missing))).detail
        assert time.monotonic() - began < 20


async def test_credentials(
    new_launcher: NewLauncher,
    own_registry: Registry,
    client: docker.APIClient,
    attempt: Callable[..., Attempt],
    tmp_path: Path,
) -> None:
    """None and wrong ones are refused in the engine's words; right ones hold as soon as they are in the configuration."""
    image = pushed(own_registry, client, "secret")
    folder = tmp_path / "config"
    launcher = new_launcher(str(folder), pull_grace=60)
    for password in (None, "wrong"):
        if password is not None:
            own_registry.config(folder, password)
        fault = await refused(launcher, attempt(image))
        assert "basic auth credentials" in fault.detail or "unauthorized" in fault.detail, fault.detail
        assert "docker login" in fault.told
    own_registry.config(folder)
    assert await asyncio.gather(*(says(launcher, attempt(image)) for _ in range(3))) == ["secret"] * 3
    assert own_registry.fetched(name_in(image)) == 1


async def test_a_registry_that_is_away_and_does_not_come(
    new_launcher: NewLauncher, registry: Registry, attempt: Callable[..., Attempt]
) -> None:
    nobody = SlowWay(registry.port, 1e9)
    nobody.close()
    launcher = new_launcher(pull_grace=3.0)
    fault = await refused(launcher, attempt(f"127.0.0.1:{nobody.port}/x:1"))
    assert "connection refused" in fault.detail
    assert any("is tried again" in note and "connection refused" in note for note in launcher.notes)


async def test_a_registry_that_comes_back_is_waited_for(
    new_launcher: NewLauncher,
    own_registry: Registry,
    client: docker.APIClient,
    attempt: Callable[..., Attempt],
    tmp_path: Path,
) -> None:
    image = pushed(own_registry, client)
    launcher = new_launcher(own_registry.config(tmp_path / "config"), pull_grace=60)
    own_registry.kill()
    going = asyncio.create_task(says(launcher, attempt(image)))
    await until(lambda: any("is tried again" in note for note in launcher.notes), "a note")
    own_registry.start()
    assert await asyncio.wait_for(going, SOON) == "hello"
    assert launcher.notes[-1] == ""


@pytest.mark.parametrize("comes_back", [True, False])
async def test_a_registry_that_dies_during_a_pull(
    new_launcher: NewLauncher,
    own_registry: Registry,
    client: docker.APIClient,
    attempt: Callable[..., Attempt],
    tmp_path: Path,
    comes_back: bool,
) -> None:
    slow = SlowWay(own_registry.port, 100_000)
    image = pushed(own_registry, client, size=8_000_000).replace(str(own_registry.port), str(slow.port))
    config = own_registry.config(tmp_path / "config", port=slow.port)
    launcher = new_launcher(config, pull_grace=60 if comes_back else 3)
    going = asyncio.create_task(says(launcher, attempt(image)))
    await until(lambda: any(" of 8 MB" in note or " of 9 MB" in note for note in launcher.notes), "progress")
    own_registry.kill()
    slow.break_off()
    slow.rate = 1e9
    try:
        if comes_back:
            await until(lambda: any("is tried again" in note for note in launcher.notes), "a note")
            own_registry.start()
            assert await asyncio.wait_for(going, SOON) == "hello"
        else:
            with pytest.raises(LaunchFailed, match=r"EOF|refused|reset"):
                await asyncio.wait_for(going, SOON)
    finally:
        slow.close()


async def test_a_large_image_is_told_of_now_and_then(
    new_launcher: NewLauncher, registry: Registry, client: docker.APIClient, attempt: Callable[..., Attempt]
) -> None:
    """Its megabytes rise, at most one word in two seconds."""
    slow = SlowWay(registry.port, 2_000_000)
    image = pushed(registry, client, size=8_000_000).replace(str(registry.port), str(slow.port))
    launcher = new_launcher()
    began = time.monotonic()
    assert await says(launcher, attempt(image)) == "hello"
    took = time.monotonic() - began
    slow.close()
    *words, last = launcher.notes
    assert last == ""
    there = [int(note.split(": ")[1].split()[0]) for note in words if " of " in note]
    assert there == sorted(set(there))
    assert len(words) == 1 + len(there)  # the first says what, those after it how far
    assert 2 <= len(there) <= 1 + took / 2, words


async def test_a_pull_that_nobody_wants_any_more_ends(
    new_launcher: NewLauncher, registry: Registry, client: docker.APIClient, attempt: Callable[..., Attempt]
) -> None:
    """The first of two who leaves changes nothing for the other one; when the last one leaves, the engine stops."""
    slow = SlowWay(registry.port, 500_000)
    image = pushed(registry, client, size=50_000_000).replace(str(registry.port), str(slow.port))
    launcher = new_launcher()
    one, other = (asyncio.create_task(attempt(image).start(launcher)) for _ in range(2))
    await until(lambda: any(" of " in note for note in launcher.notes), "progress")
    one.cancel()
    await asyncio.gather(one, return_exceptions=True)
    told = len(launcher.notes)
    await until(lambda: any(" of " in note for note in launcher.notes[told:]), "more progress")
    assert not other.done()
    other.cancel()
    await asyncio.gather(other, return_exceptions=True)
    slow.rate = 5e6  # what is on its way already may come
    await until(lambda: slow.connections == 0, "the engine hung up")
    slow.close()
    assert all(image not in (one["RepoTags"] or []) for one in client.images())
