"""Takes journals and results of runs, from their agents or from themselves.

A journal is cut into small transactions, with what else there is to do between them: of ten thousand tasks that end at
once, no claim waits for all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from uuid import UUID

from shunter_work_pools.contracts.errors import BadRequest, TooLarge, Unavailable
from shunter_work_pools.contracts.result_pieces import ResultPiece
from shunter_work_pools.contracts.tasks import JOURNAL_LIMIT, JournalSize, ResultSize
from shunter_work_pools.queue import journals, secrets
from shunter_work_pools.queue.journals import Piece
from shunter_work_pools.retention import Retention
from shunter_work_pools.sealing import Sealer
from shunter_work_pools.storage.results import ResultStore
from shunter_work_pools.storage.store import Store, Tx

#: Results of one upload that are written at once: nearly all of their time the disk is waited for.
SIDE_BY_SIDE = 4
#: Some bytes of results.
Pieces = Sequence[tuple[ResultPiece, memoryview]]
#: Whether whoever brings something of an attempt holds, or held, it.
May = Callable[[Tx], bool]


class Journals:
    """What becomes of the journals and results that come in.

    Args:
        retention: is told of what comes in, so that nothing comes of a run that is being deleted.
    """

    def __init__(self, store: Store, results: ResultStore, sealer: Sealer, retention: Retention) -> None:
        self.store = store
        self.results = results
        self._sealer = sealer
        self._retention = retention

    async def append(self, run: UUID, attempt: int, offset: int, data: bytes, may: May) -> JournalSize | None:
        """Take the whole lines among some bytes of an attempt's journal; where to go on. None: he may not.

        Raises:
            Conflict: the server has no key for the secrets that are to be masked.
        """
        with self._retention.receiving({run}) as going:
            if run in going:
                return None
            (known, hooks), mask, allowed = await self.store.read(
                lambda tx: (
                    journals.known(tx, run, attempt),
                    secrets.mask_of(tx, self._sealer, run, attempt),
                    may(tx),
                )
            )
            if not allowed:
                return None
            if hooks and not data:  # somebody only asks
                hooks = not await self.store.read(
                    partial(journals.a_flow_has_ended, run_id=run, attempt=attempt)
                )
            if known >= JOURNAL_LIMIT:
                return JournalSize(size=max(known, offset + len(data)), full=True, crash_hooks=hooks)
            if offset > known:
                return JournalSize(size=known, crash_hooks=hooks)
            cut = journals.pieces(data[known - offset :], known, mask)
            while (piece := await asyncio.to_thread(_next, cut)) is not None:
                work = partial(journals.take, run_id=run, attempt=attempt, piece=piece, may=may)
                reached = await self.store.write(work)
                if reached is None:
                    return None
                known = reached
                if reached != piece.end:  # the same comes by another way, too
                    break
            return JournalSize(size=known, crash_hooks=hooks)

    async def put_results(self, run: UUID, pieces: Pieces, may: May) -> list[ResultSize] | None:
        """Take some bytes of each of some results of a run; None: he may not.

        Raises:
            Unavailable: they cannot be written now, or the run is being deleted.
        """
        with self._retention.receiving({run}) as going:
            if not await self.store.read(may):
                return None
            if run in going:
                raise Unavailable(f"run {run} is being deleted", "Ask again.")
            # All threads are waited for, also if one fails: none writes when the run may be deleted again.
            lanes = [pieces[lane::SIDE_BY_SIDE] for lane in range(min(SIDE_BY_SIDE, len(pieces)))]
            work = [asyncio.to_thread(self._put, run, lane) for lane in lanes]
            sizes: list[ResultSize] = [ResultSize(size=0)] * len(pieces)
            for lane, found in enumerate(await asyncio.gather(*work, return_exceptions=True)):
                if isinstance(found, BaseException):
                    raise found
                sizes[lane::SIDE_BY_SIDE] = found
            return sizes

    def _put(self, run: UUID, pieces: Pieces) -> list[ResultSize]:
        sizes = []
        for piece, data in pieces:
            try:
                there, complete = self.results.put(run, piece.name, piece.offset, piece.size, data)
                sizes.append(ResultSize(size=there, complete=complete))
            except (BadRequest, TooLarge) as exc:
                sizes.append(ResultSize(size=0, refused=exc.told))
        return sizes


def _next(cut: Iterator[Piece]) -> Piece | None:
    return next(cut, None)
