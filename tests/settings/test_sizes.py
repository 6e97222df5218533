"""Sizes in bytes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter_work_pools.contracts.sizes import parsed, size


@pytest.mark.parametrize(
    ("word", "bytes_"),
    [
        ("4096", 4096),
        ("0", 0),
        ("1KiB", 1024),
        ("512MiB", 512 * 1024**2),
        ("1.5GiB", 3 * 1024**3 // 2),
        ("2 TiB", 2 * 1024**4),
        ("200MB", 200_000_000),
        ("5kB", 5000),
    ],
)
def test_what_it_means(word: str, bytes_: int) -> None:
    assert parsed(word) == bytes_


@pytest.mark.parametrize(
    "word", ["", "MiB", "-1", "1e9", "1.5", "12 parsecs", "1mib", "1.MiB", "٣MiB", "1 2MiB"]
)
def test_what_is_no_size(word: str) -> None:
    assert parsed(word) is None


@given(st.integers(0, 2**60))
def test_what_is_shown_means_the_same(value: int) -> None:
    assert parsed(size(value)) == value
