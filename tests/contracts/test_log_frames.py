"""Log frames: what is encoded is decoded, and what is malformed is refused with its position."""

from __future__ import annotations

import re
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter_work_pools.contracts.agents import LogFrame
from shunter_work_pools.contracts.errors import BadRequest
from shunter_work_pools.contracts.log_frames import HEADER_LIMIT, decode_frames, encode_frames

RUN = UUID("01939d3c-7a00-7000-8000-000000000001")


def _frame(data: bytes, offset: int = 0) -> tuple[LogFrame, bytes]:
    return LogFrame(run=RUN, attempt=1, epoch=3, offset=offset, length=len(data)), data


@given(st.lists(st.tuples(st.binary(max_size=300), st.integers(0, 2**62)), max_size=20))
def test_any_bytes_come_back_as_they_were(parts: list[tuple[bytes, int]]) -> None:
    frames = [_frame(data, offset) for data, offset in parts]
    decoded = decode_frames(encode_frames(frames))
    assert [(frame, bytes(view)) for frame, view in decoded] == frames


def test_views_share_the_memory_of_the_body() -> None:
    body = encode_frames([_frame(b"abc\n"), _frame(b"\x00\xff", 4)])
    assert all(view.obj is body for _, view in decode_frames(body))


def test_a_length_that_is_not_that_of_the_bytes_is_not_encoded() -> None:
    frame, _ = _frame(b"abc")
    with pytest.raises(ValueError, match="length 3 was given 2"):
        encode_frames([(frame, b"ab")])


def test_a_gap_has_no_bytes() -> None:
    gap = LogFrame(run=RUN, attempt=1, epoch=3, offset=5, length=0, gap=1000)
    assert decode_frames(encode_frames([(gap, b"")]))[0][0] == gap
    both = gap.model_copy(update={"length": 1})
    with pytest.raises(BadRequest, match=r"byte 0: not a frame header: .*a gap has no bytes"):
        decode_frames(encode_frames([(both, b"x")]))


@pytest.mark.parametrize(
    ("cut", "says"),
    [
        (lambda body: body[:-1], "byte {data}: 5 bytes announced, 4 came"),
        (lambda body: body[: body.index(b"\n")], "byte {frame}: no frame header ends"),
        (
            lambda body: body.replace(b'"attempt":1', b'"attempt":0'),
            "byte {frame}: not a frame header: attempt",
        ),
        (lambda body: body.replace(b'"attempt"', b'"Attempt"'), "byte {frame}: not a frame header"),
        (lambda body: body.replace(b"{", b"x", 1), "byte {frame}: not a frame header: Invalid JSON"),
        (lambda body: b"x" * HEADER_LIMIT + body, "byte {frame}: no frame header ends"),
    ],
)
def test_a_malformed_body_is_refused_with_its_position(cut, says: str) -> None:  # type: ignore[no-untyped-def]
    first = encode_frames([_frame(b"whole")])
    second = cut(encode_frames([_frame(b"whole", 5)]))
    data = len(first) + second.find(b"\n") + 1
    with pytest.raises(BadRequest, match=re.escape(says.format(frame=len(first), data=data))):
        decode_frames(first + second)
