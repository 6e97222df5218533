"""Bodies that are bytes, not JSON."""

from __future__ import annotations

from typing import Any

from fastapi import Request

from shunter_work_pools.contracts.errors import BadRequest, TooLarge
from shunter_work_pools.contracts.tasks import BYTES_MEDIA_TYPE, PIECE_LIMIT

#: How the document of the API tells of one.
BYTES: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {BYTES_MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
    }
}


async def bytes_of(request: Request) -> bytes:
    """The body of a request that brings a piece of a journal or a result.

    Raises:
        BadRequest: it is of another type.
        TooLarge: it has more than ``PIECE_LIMIT`` bytes.
    """
    data = await request.body()
    if data and request.headers.get("content-type") != BYTES_MEDIA_TYPE:
        raise BadRequest("the bytes do not come as such", f"Send {BYTES_MEDIA_TYPE}.")
    if len(data) > PIECE_LIMIT:
        raise TooLarge(f"the piece has {len(data)} bytes; it may have {PIECE_LIMIT}", "Send it in parts.")
    return data
