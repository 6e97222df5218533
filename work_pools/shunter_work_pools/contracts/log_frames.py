"""The body of a log upload: frames, each one JSON line (:class:`LogFrame`) and then its raw bytes.

Bytes of output travel as they are, never inside JSON: a run may write anything. Media type:
``agents.LOG_MEDIA_TYPE``.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import ValidationError

from shunter_work_pools.contracts.agents import LogFrame
from shunter_work_pools.contracts.errors import BadRequest

#: Longest header line, in bytes, its line end included. A real one takes about 130.
HEADER_LIMIT = 1024


def encode_frames(frames: Iterable[tuple[LogFrame, bytes | memoryview]]) -> bytes:
    """The body of one upload.

    Raises:
        ValueError: a frame's ``length`` is not the number of its bytes.
    """
    parts: list[bytes | memoryview] = []
    for frame, data in frames:
        if frame.length != len(data):
            raise ValueError(f"a frame of length {frame.length} was given {len(data)} bytes")
        parts += (frame.model_dump_json().encode(), b"\n", data)
    return b"".join(parts)


def decode_frames(body: bytes) -> list[tuple[LogFrame, memoryview]]:
    """The frames of one upload, in order; the views share the memory of ``body``.

    Raises:
        BadRequest: the body is malformed; the detail names the byte position.
    """
    view = memoryview(body)
    frames: list[tuple[LogFrame, memoryview]] = []
    at = 0
    while at < len(body):
        end = body.find(b"\n", at, at + HEADER_LIMIT)
        if end < 0:
            raise BadRequest(f"log upload, byte {at}: no frame header ends within {HEADER_LIMIT} bytes")
        try:
            frame = LogFrame.model_validate_json(body[at:end])
        except ValidationError as exc:
            first = exc.errors(include_url=False, include_input=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            what = f"{field}: {first['msg']}" if field else first["msg"]
            raise BadRequest(f"log upload, byte {at}: not a frame header: {what}") from exc
        start, at = end + 1, end + 1 + frame.length
        if at > len(body):
            raise BadRequest(
                f"log upload, byte {start}: {frame.length} bytes announced, {len(body) - start} came"
            )
        frames.append((frame, view[start:at]))
    return frames
