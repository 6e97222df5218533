"""Durations and moments as people write and read them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo

from shunter_work_pools.contracts.durations import LONGEST, LOOKS, parsed
from shunter_work_pools.contracts.durations import exactly as exactly  # commands take it from here
from shunter_work_pools.contracts.durations import in_words as in_words
from shunter_work_pools.contracts.errors import InvalidInput


def now() -> datetime:
    """This moment, in UTC."""
    return datetime.now(UTC)


def seconds(text: str, option: str, *, zero: bool = True) -> float:
    """Seconds of ``90``, ``60s``, ``5m``, ``1h30m``, ``500ms``, ``2d``.

    Args:
        option: where it was written, for the message.
        zero: whether nothing at all is allowed.

    Raises:
        InvalidInput: it is not a duration, negative, zero where that is not allowed, or beyond 10 years.
    """
    word = text.strip()
    value = parsed(word.removeprefix("-"))
    if value is None:
        raise InvalidInput(f"{option} {text!r} is not a duration", LOOKS)
    if word.startswith("-") and value:
        raise InvalidInput(f"{option} {text!r} is negative", LOOKS)
    if value == 0 and not zero:
        raise InvalidInput(f"{option} {text!r} is zero: it must be longer", LOOKS)
    if value > LONGEST:
        raise InvalidInput(f"{option} {text!r} is more than ten years", LOOKS)
    return value


def moment(text: str, option: str, present: datetime | None = None) -> datetime:
    """The moment of an RFC 3339 time, a local time without zone, or ``+10m`` from now; in UTC.

    Raises:
        InvalidInput: it is none of these.
    """
    word = text.strip()
    if word.startswith("+"):
        ahead = seconds(word[1:], option)
        return (present or now()) + timedelta(seconds=ahead)
    looks = "Write it like 2027-03-28T06:00:00+02:00, 2027-03-28T06:00 (local time) or +10m."
    return _parsed(text, option, None, looks)


def past(text: str, option: str) -> datetime:
    """The moment of an RFC 3339 time, a local time or date without zone, ``2h`` (ago) or ``+2h``; in UTC.

    Raises:
        InvalidInput: it is none of these.
    """
    if text.strip().startswith("+"):
        return moment(text, option)
    if parsed(text.strip()) is not None:
        return now() - timedelta(seconds=seconds(text, option))
    looks = "Write it like 2026-11-22, 2026-11-22T06:00 (local time), 2026-11-22T06:00:00Z or 2h (ago)."
    return _parsed(text, option, None, looks)


def on_the_wall(text: str, option: str, zone: tzinfo) -> datetime:
    """The moment of an RFC 3339 time, or of a date or time without zone as the clocks of ``zone`` show it.

    A date means its first moment, also where the clocks skip midnight.

    Raises:
        InvalidInput: it is none of these.
    """
    return _parsed(text, option, zone, "Write it like 2026-11-01, 2026-11-01T06:00 or 2026-11-01T06:00:00Z.")


def _parsed(text: str, option: str, zone: tzinfo | None, looks: str) -> datetime:
    """A moment; without a zone of its own in ``zone``, or in this machine's."""
    try:
        parsed = datetime.fromisoformat(text.strip())
        if parsed.tzinfo is None and zone is not None:
            parsed = parsed.replace(tzinfo=zone)
        return parsed.astimezone(UTC)
    except (ValueError, OverflowError) as exc:
        raise InvalidInput(f"{option} {text!r} is not a time", looks) from exc


def ago(when: datetime | None, present: datetime | None = None) -> str:
    """``12s ago``, ``in 3m``, ``now``; a dash for None."""
    if when is None:
        return "-"
    since = ((present or now()) - when).total_seconds()
    if abs(since) < 1:
        return "now"
    text = in_words(float(round(abs(since))) if abs(since) < 9.95 else abs(since)).replace(".0s", "s")
    return f"{text} ago" if since > 0 else f"in {text}"


def local(when: datetime | None, *, fine: bool = False) -> str:
    """A moment in this machine's zone, ``2026-11-22 17:55:05``; ``fine``: with milliseconds."""
    if when is None:
        return "-"
    return when.astimezone().isoformat(sep=" ", timespec="milliseconds" if fine else "seconds")
