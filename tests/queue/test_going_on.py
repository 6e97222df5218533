"""An attempt is told that it goes on, and is given a token for that, if one before has left a journal."""

from __future__ import annotations

from shunter_work_pools.contracts.states import AttemptState
from shunter_work_pools.masking import NO_MASK
from shunter_work_pools.queue import journals
from tests.queue.journal_lines import done, head, text
from tests.queue.world import World


async def test_only_runs_with_a_journal_go_on(world: World) -> None:
    await world.pool()
    await world.deploy(pool="main")
    agent = await world.agent()
    for _ in range(2):
        await world.submit()
    with_one, without = await agent.claim(2)
    assert not with_one.goes_on
    (piece,) = journals.pieces(text(head(), done(1, 1)), 0, NO_MASK)
    await world.store.write(lambda tx: journals.take(tx, with_one.run, 1, piece, lambda _: True))
    for one in (with_one, without):
        await agent.run_through(one, AttemptState.FAILED)
        await world.retry(one.run)
    again = {one.run: one for one in await agent.claim(2)}
    assert again[with_one.run].goes_on
    assert again[with_one.run].wants_secrets
    assert not again[without.run].goes_on
    assert not again[without.run].wants_secrets
