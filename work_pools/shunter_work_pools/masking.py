"""Known secret values are made unreadable in output and in texts, in whatever form they are usually written.

Each byte of a value becomes an asterisk, so that offsets stay true; ends of lines stay. A value is found as it is, line
by line, in base64 (wherever it begins in what was encoded; both alphabets), URL-encoded, and escaped as in JSON and
Python. All that any form covers is masked, so the outcome does not depend on where output is cut.

What was transformed otherwise (reversed, compressed, hashed, in hexadecimal digits) is not found: this protects against
mistakes, not against a run that means to give its secrets away.
"""

from __future__ import annotations

import base64
import json
import re
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator
from typing import Any
from urllib.parse import quote, quote_plus

#: Characters that a value has at the least to be masked: what is shorter is in every other word.
SHORTEST = 4
#: Characters that a line of a value has at the least to be masked by itself.
SHORTEST_LINE = 8
#: Bytes of what is looked for at the most; a longer value is looked for in pieces.
PIECE = 512
#: Widths at which base64 is wrapped: RFC 7468 and RFC 2045.
_WRAPPED = (64, 76)
#: Of forms that each end with the next shorter one, so many are looked for: a hostile value cannot make that dear.
_NESTED = 4
#: Bytes that are looked for altogether, up to which the fastest way takes little memory.
_SMALL = 16 * 1024
#: Bytes that are looked through at once where something was found.
_SLICE = 16 * 1024
_HEX = re.compile(r"%[0-9A-F]{2}|\\u[0-9a-f]{4}")
_STARS = bytes(byte if byte == ord("\n") else ord("*") for byte in range(256))


class Mask:
    """Masks some values.

    Args:
        values: those shorter than :data:`SHORTEST` characters are left as they are.
        before: what it masks is masked, too.

    Attributes:
        reach: so many bytes before and after a byte decide whether it is masked, at the most.
    """

    __slots__ = ("_forms", "_heads", "_search", "reach")

    def __init__(self, values: Iterable[str], before: Mask | None = None) -> None:
        known: set[bytes] = set() if before is None else set(before._forms)
        self._forms: list[bytes] = sorted(_shallow(known.union(*map(_forms, values))))
        self._heads = frozenset(form[0] for form in self._forms)
        self.reach = max(map(len, self._forms), default=1) - 1
        self._search: Any = None
        if self._forms:
            from ahocorasick_rs import (  # attempts without secrets need it not
                BytesAhoCorasick,
                Implementation,
            )

            small = sum(map(len, self._forms)) <= _SMALL
            self._search = BytesAhoCorasick(self._forms, implementation=Implementation.DFA if small else None)

    def __bool__(self) -> bool:
        """Whether anything is masked."""
        return bool(self._forms)

    def cover(self, data: bytes) -> bytes:
        """The same number of bytes, without the values."""
        if self._search is None or not self._search.find_matches_as_indexes(data):
            return data
        covered, view = bytearray(data), memoryview(data)
        for at in range(0, len(data), _SLICE):  # bounds what is found at once
            piece = view[at : at + _SLICE + self.reach]
            found = self._search.find_matches_as_indexes(piece, overlapping=True)
            for begin, end in _runs(found):
                covered[at + begin : at + end] = piece[begin:end].tobytes().translate(_STARS)
        return bytes(covered)

    def held(self, data: bytes) -> int:
        """Where in ``data`` something begins that may become a value with what comes after it; its length: nowhere."""
        for at in range(max(0, len(data) - self.reach), len(data)):
            if data[at] in self._heads:
                rest = data[at:]
                near = bisect_left(self._forms, rest)
                if near < len(self._forms) and self._forms[near] == rest:
                    near += 1  # it is whole; longer ones come next
                if near < len(self._forms) and self._forms[near].startswith(rest):
                    return at
        return len(data)

    def text(self, text: str) -> str:
        """A text without the values."""
        if self._search is None:
            return text
        return self.cover(text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")

    def document(self, value: Any) -> Any:
        """A JSON value without the values in its texts, keys and numbers."""
        if self._search is None:
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(key): self.document(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.document(one) for one in value]
        if isinstance(value, int | float) and not isinstance(value, bool):
            shown = str(value)
            masked = self.text(shown)
            return value if masked == shown else masked
        return value


def _runs(found: list[tuple[int, int, int]]) -> Iterator[tuple[int, int]]:
    """Where what was found begins and ends, joined; what comes in is in the order of the ends, what goes out from the
    last to the first."""
    begin = end = -1
    for _, first, last in reversed(found):
        if last < begin or end < 0:
            if end >= 0:
                yield begin, end
            begin, end = first, last
        elif first < begin:
            begin = first
    if end >= 0:
        yield begin, end


def _forms(value: str) -> Iterator[bytes]:
    """All that is looked for of one value."""
    core = value.strip()
    if len(core) < SHORTEST:
        return
    found = {core, *_escaped(core), *_url_encoded(core)}
    found |= {line.strip() for line in core.splitlines() if len(line.strip()) >= SHORTEST_LINE}
    for text in found:
        yield from _pieces(text.encode("utf-8", "surrogatepass"))
    for whole in {core, value}:
        for form in _base64(whole.encode("utf-8", "surrogatepass")):
            yield from _pieces(form)


def _escaped(text: str) -> Iterator[str]:
    for ascii_only in (True, False):
        escaped = json.dumps(text, ensure_ascii=ascii_only)[1:-1]
        yield escaped
        yield _HEX.sub(lambda found: f"\\u{found[0][2:].upper()}", escaped)
    yield repr(text)[1:-1]


def _url_encoded(text: str) -> Iterator[str]:
    whole = text.encode("utf-8", "surrogatepass")
    for encoded in (quote(whole, safe=""), quote(whole), quote(whole, safe="!'()*"), quote_plus(whole)):
        yield encoded
        yield _HEX.sub(lambda found: found[0].lower(), encoded)


def _base64(whole: bytes) -> Iterator[bytes]:
    """In the alphabets of RFC 4648, after 0, 1 or 2 bytes of something else; without digits that also tell of those or
    of what follows."""
    alone = base64.b64encode(whole).rstrip(b"=")
    found = [alone]
    for before, shared in enumerate((0, 2, 3)):
        digits = base64.b64encode(bytes(before) + whole)
        found.append(digits[shared : (before + len(whole)) * 8 // 6])
    for width in _WRAPPED:
        lines = [alone[at : at + width] for at in range(0, len(alone), width)]
        found += [line for line in lines if len(line) >= SHORTEST_LINE]
    for form in found:
        if len(form) >= SHORTEST:
            yield form
            yield form.translate(bytes.maketrans(b"+/", b"-_"))


def _pieces(form: bytes) -> Iterator[bytes]:
    """One after the other they cover all of it."""
    for at in range(0, max(1, len(form) - PIECE), PIECE):
        yield form[at : at + PIECE]
    if len(form) > PIECE:
        yield form[-PIECE:]


def _shallow(forms: Collection[bytes]) -> Iterator[bytes]:
    """Without those that end with too many others."""
    chain: list[bytes] = []
    for backwards in sorted(form[::-1] for form in forms):
        while chain and not backwards.startswith(chain[-1]):
            chain.pop()
        if len(chain) < _NESTED:
            chain.append(backwards)
            yield backwards[::-1]


#: Masks nothing.
NO_MASK = Mask(())
