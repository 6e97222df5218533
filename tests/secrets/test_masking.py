"""Values are found in all forms in which they are usually written, wherever output is cut, and quickly."""

from __future__ import annotations

import base64
import json
import time
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shunter_work_pools.masking import NO_MASK, PIECE, SHORTEST, Mask

TOKEN = "s3cr3t/Tök+n&%x"
KEY = "-----BEGIN KEY-----\nMIGHAgEAMBMGByqG\nSM49AgEGCCqGSM49AwEHBG\nshort\n-----END KEY-----\n"


def masked(values: list[str], text: str) -> str:
    found = Mask(values).cover(text.encode())
    assert len(found) == len(text.encode())
    return found.decode()


def in_base64(value: str, before: int, *, urlsafe: bool) -> str:
    encode = base64.urlsafe_b64encode if urlsafe else base64.b64encode
    return encode(b"u" * before + value.encode() + b"~end").decode()


FORMS = {
    "plain": TOKEN,
    "url": quote(TOKEN, safe=""),
    "path": quote(TOKEN),
    "form": quote_plus(TOKEN),
    "lower url": quote(TOKEN, safe="")
    .replace("%C3%B6", "%c3%b6")
    .replace("%2F", "%2f")
    .replace("%2B", "%2b"),
    "json": json.dumps(TOKEN)[1:-1],
    "json, upper": json.dumps(TOKEN)[1:-1].replace("\\u00f6", "\\u00F6"),
    "base64": base64.b64encode(TOKEN.encode()).decode().rstrip("="),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_becomes_asterisks(form: str) -> None:
    shown = FORMS[form]
    assert masked([TOKEN], f"before {shown} after\n") == f"before {'*' * len(shown.encode())} after\n"


@pytest.mark.parametrize("urlsafe", [False, True])
@pytest.mark.parametrize("before", [0, 1, 2, 3, 7])
def test_base64_wherever_it_begins_in_what_was_encoded(before: int, urlsafe: bool) -> None:
    shown = masked([TOKEN], in_base64(TOKEN, before, urlsafe=urlsafe))
    # What is left are digits that also tell of the bytes around it.
    ends = shown.split("*" * 10)[0].rstrip("*"), shown.rsplit("*" * 10, 1)[1].lstrip("*")
    full = in_base64(TOKEN, before, urlsafe=urlsafe)
    assert full.startswith(ends[0])
    assert full.endswith(ends[1])
    assert len(ends[0]) * 6 < (before + 1) * 8
    assert shown.count("*") >= len(TOKEN.encode()) * 8 // 6 - 1


def test_wrapped_base64() -> None:
    value = "k" * 100 + "m" * 50
    for width in (64, 76):
        lines = base64.b64encode(value.encode()).decode()
        text = "\n".join(lines[at : at + width] for at in range(0, len(lines), width))
        assert set(masked([value], text)) <= {"*", "\n", "="}


def test_a_value_of_several_lines_and_each_line_by_itself() -> None:
    assert masked([KEY], f"x\n{KEY}y") == "x\n" + "\n".join("*" * len(line) for line in KEY.split("\n")) + "y"
    assert masked([KEY], "  SM49AgEGCCqGSM49AwEHBG;") == f"  {'*' * 22};"
    assert masked([KEY], "short") == "short", "a short line alone says too little"
    assert masked([KEY], KEY.replace("\n", "\r\n")).replace("short", "*").strip("*\r\n") == ""
    assert masked([KEY], json.dumps({"key": KEY})).strip('*{}"key: \\n') == ""


def test_what_is_too_short_is_left() -> None:
    assert masked(["abc", "", "  \n"], "abc and abcd") == "abc and abcd"
    assert not Mask(["abc"])
    assert masked(["a" * SHORTEST], "a" * SHORTEST) == "*" * SHORTEST


def test_values_that_overlap_leave_nothing_of_each_other() -> None:
    assert masked(["abcdef", "defghi", "bcdefgh"], "-abcdefghi-") == "-*********-"


def test_a_long_value_is_covered_by_its_pieces() -> None:
    value = "".join(f"{number:05}" for number in range(3 * PIECE))
    assert set(masked([value], value)) == {"*"}
    assert Mask([value]).reach < PIECE
    assert set(masked([value], base64.b64encode(value.encode()).decode().rstrip("="))) == {"*"}


def test_documents() -> None:
    mask = Mask(["hunter22", "12345678"])
    found = mask.document({"a": ["x hunter22", 12345678, 1, None, True], "hunter22": 1.5})
    assert found == {"a": ["x ********", "********", 1, None, True], "********": 1.5}
    same = {"a": object()}
    assert NO_MASK.document(same) is same
    assert mask.text("\udc80 hunter22") == "\udc80 ********"


def shipped(mask: Mask, data: bytes, cuts: list[int]) -> bytes:
    """As output is shipped: what came up to each cut, with what was there before it, less what is held back."""
    sent, out = 0, b""
    for cut in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
        start = max(0, sent - mask.reach)
        seen = data[start:cut]
        end = len(seen) if cut == len(data) else mask.held(seen)
        covered = mask.cover(seen)[:end]
        if start + end > sent:
            out += covered[sent - start :]
            sent = start + end
    return out


values = st.lists(st.text("abö/+\n", min_size=SHORTEST, max_size=12), min_size=1, max_size=4)


@given(values, st.lists(st.text("abö/+\n ", max_size=6)), st.lists(st.integers(0, 500)), st.data())
@example(["abab", "ababab"], ["x", "abababab"], [3, 5, 6, 7], None)
def test_where_output_is_cut_changes_nothing(
    secrets: list[str], between: list[str], cuts: list[int], data: st.DataObject | None
) -> None:
    parts = []
    for one in between:
        parts.append(one)
        if data is not None:
            form = data.draw(st.sampled_from(secrets))
            parts.append(
                data.draw(st.sampled_from([form, quote(form), base64.b64encode(form.encode()).decode()]))
            )
    text, mask = "".join(parts).encode(), Mask(secrets)
    whole = mask.cover(text)
    assert shipped(mask, text, cuts) == whole
    for value in secrets:
        core = value.strip()
        if len(core) >= SHORTEST and core.strip("*"):
            assert core.encode() not in whole


def test_only_what_may_be_a_value_is_held_back() -> None:
    mask = Mask(["hunter22"])
    assert mask.held(b"all is well") == 11
    assert mask.held(b"it is hunt") == 6
    assert mask.held(b"it is hunter22") == 14, "it is whole"
    assert Mask(["hunter22", "hunter22more"]).held(b"it is hunter22") == 6, "it may be the longer one"


def test_speed() -> None:
    """20 values, each in all its forms, cost less than 50 ms per MB even here; hostile ones are bounded."""
    line = b"2026-01-01T00:00:00 INFO step 17 of 3000 took 12.5 ms, all is well\n"
    data = line * (2**20 // len(line))
    mask = Mask([f"{number:03}-{'x' * 20}-{number * 7919}" for number in range(20)])
    assert _median(lambda: mask.cover(data)) < 0.05
    hostile = Mask(["\n".join("a" * length for length in range(8, 360))])
    assert _median(lambda: hostile.cover(b"a" * 2**17), 1) < 3


def _median(work: object, times: int = 5) -> float:
    took = []
    for _ in range(times):
        began = time.perf_counter()
        work()  # type: ignore[operator]
        took.append(time.perf_counter() - began)
    return sorted(took)[times // 2]
