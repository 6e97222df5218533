"""The body of an upload of results of tasks: one line of JSON that lists the pieces, then their raw bytes, one after another.

Media type: ``tasks.BYTES_MEDIA_TYPE``. Many small results come in one body: each alone would take longer than its task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from shunter_work_pools.contracts.base import Contract
from shunter_work_pools.contracts.errors import BadRequest
from shunter_work_pools.contracts.tasks import PIECE_LIMIT, RESULT_NAME

#: Pieces of one upload.
PIECES_LIMIT = 256


class ResultPiece(Contract):
    """``length`` bytes of a result from ``offset`` on.

    Attributes:
        size: bytes that all of it has.
    """

    name: str = Field(pattern=RESULT_NAME)
    offset: int = Field(ge=0, le=2**62)
    size: int = Field(ge=0, le=2**62)
    length: int = Field(ge=0, le=PIECE_LIMIT)


_LIST: TypeAdapter[list[ResultPiece]] = TypeAdapter(
    Annotated[list[ResultPiece], Field(max_length=PIECES_LIMIT)]
)


def encode_pieces(pieces: Sequence[tuple[ResultPiece, bytes]]) -> bytes:
    """The body of one upload; each piece has as many bytes as its ``length`` says."""
    return b"".join((_LIST.dump_json([piece for piece, _ in pieces]), b"\n", *(data for _, data in pieces)))


def decode_pieces(body: bytes) -> list[tuple[ResultPiece, memoryview]]:
    """The pieces of one upload, in order; the views share the memory of ``body``.

    Raises:
        BadRequest: the body is malformed.
    """
    head, _, _ = body.partition(b"\n")
    try:
        pieces = _LIST.validate_json(head)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadRequest(f"upload of results, its first line: {where}: {first['msg']}") from exc
    at, view = len(head) + 1, memoryview(body)
    told = sum(piece.length for piece in pieces)
    if told != max(0, len(body) - at):
        raise BadRequest(f"upload of results: {told} bytes announced, {max(0, len(body) - at)} came")
    found = []
    for piece in pieces:
        found.append((piece, view[at : at + piece.length]))
        at += piece.length
    return found
