"""All attempts of a run work with the commit that the first one fetched."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from shunter_work_pools.contracts.code_sources import ArchiveSource, Environment, GitSource
from shunter_work_pools.contracts.deployments import DeploymentSpec, Named
from shunter_work_pools.queue import apply
from tests.queue.test_report import granted_one
from tests.queue.world import LEASE_FOR, LOST_AFTER, S, World

ONE, OTHER = "1" * 40, "2" * 40
WORK = {"command": ["true"], "source": {"git": "https://git.example/code.git", "branch": "main"}}


async def test_what_the_first_attempt_reports_the_next_is_given(world: World) -> None:
    agent, first = await granted_one(world, work=WORK, retries={"count": 2})
    assert first.commit is None
    await agent.report(first, S.STARTING, S.RUNNING, commit=ONE)
    shown = await world.run(first.run)
    assert shown.attempts[0].commit == ONE, "while it runs"
    await agent.report(first, S.FAILED, cause="exit_code", log_size=0)
    (second,) = await agent.claim()
    assert second.commit == ONE
    await agent.report(second, S.STARTING, S.RUNNING)
    await agent.report(second, S.FAILED, cause="exit_code", log_size=0)
    (third,) = await agent.claim()
    assert third.commit == ONE, "handed on from attempt to attempt"
    shown = await world.run(first.run)
    assert [attempt.commit for attempt in shown.attempts] == [ONE] * 3


async def test_told_with_the_end_it_counts_as_well_and_other_runs_do_not_share_it(world: World) -> None:
    agent, first = await granted_one(world, work=WORK, retries={"count": 1})
    await agent.report(first, S.STARTING)
    await agent.report(first, S.CRASHED, cause="start_failed", log_size=0, commit=OTHER)
    (second,) = await agent.claim()
    assert second.commit == OTHER
    await world.submit()
    (new,) = await agent.claim()
    assert new.commit is None


async def test_a_deploy_to_a_pool_of_images_warns_that_no_environment_is_built_there(world: World) -> None:
    await world.pool()
    await world.pool("boxes", type="docker", template={"image": "x"})
    work = WORK | {"environment": {"requirements": ["a"]}}

    async def warnings(pool: str) -> str:
        spec = DeploymentSpec.model_validate({"work": work, "pool": pool})
        times = apply.Times(1, world.clock.now, lost_after=LOST_AFTER, lease_for=LEASE_FOR)
        named = [Named(name=f"of-{pool}", spec=spec)]
        (change,) = await world.store.write(lambda tx: apply.apply(tx, named, times))
        return " ".join(change.warnings)

    assert "builds no environment" in await warnings("boxes")
    assert "environment" not in await warnings("main")


@pytest.mark.parametrize(
    "url",
    [
        *(
            "ext::sh -c touch% /tmp/x",
            "git://git.example/x",
            "-u./x",
            "--upload-pack=x",
            "../x",
            "fd::7",
            "https://",
        ),
        *("https://me:password@git.example/x", "https://token@git.example/x", "ssh://me:pw@git.example/x"),
        *(
            "ssh://-oProxyCommand=x/y",
            "-me@host:x",
            "me@-host:x",
            "https://git.example/x\nhttps://y",
            "file::x",
        ),
    ],
)
def test_urls_that_run_something_or_tell_something_are_refused(url: str) -> None:
    with pytest.raises(ValidationError):
        GitSource(git=url)


@pytest.mark.parametrize(
    "url", ["https://git.example/a.git", "ssh://git@git.example:22/a", "git@git.example:a/b.git"]
)
def test_others_are_not(url: str) -> None:
    assert GitSource(git=url).git == url


@pytest.mark.parametrize("path", ["..", "a/../../b", "/etc", "a/..", "x\0"])
def test_paths_that_leave_the_source_are_refused(path: str) -> None:
    for make in (
        lambda: GitSource(git="https://git.example/a", folder=path),
        lambda: ArchiveSource(archive="https://files.example/a.zip", folder=path),
        lambda: Environment(requirements_file=path),
        lambda: Environment(lock=path),
    ):
        with pytest.raises(ValidationError):
            make()


@pytest.mark.parametrize("ref", ["-x", "--upload-pack=x", "a b", "a^b", "a:b", ""])
def test_names_of_branches_that_are_options_or_no_names_are_refused(ref: str) -> None:
    with pytest.raises(ValidationError):
        GitSource(git="https://git.example/a", branch=ref)
