"""Time zones by their IANA names."""

from __future__ import annotations

import difflib
import zoneinfo
from functools import lru_cache
from zoneinfo import ZoneInfo

from shunter_work_pools.contracts.errors import BadRequest


class UnknownZone(BadRequest):
    """The data of this machine lack a zone: those where it was deployed did not."""


def zone_of(name: str) -> ZoneInfo:
    """The zone of a schedule that was checked when it was deployed, perhaps elsewhere or long ago.

    Raises:
        UnknownZone: the data of this machine do not have it (any more).
    """
    try:
        return ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError) as exc:
        raise UnknownZone(
            f'timezone: the time zone data of this machine do not have "{name}"',
            "Bring them up to date (the Python package tzdata, or the system's) and start anew, "
            "or deploy the schedule with another zone.",
        ) from exc


def check_zone(name: str) -> None:
    """Refuse a name that is none of the IANA data.

    Raises:
        BadRequest: the remedy names the nearest one.
    """
    zones = _zones()
    if zones.get(name.lower()) == name:
        return
    wanted = name.lower().replace(" ", "_")[:100]
    # An abbreviation is near to many others that mean something else (CEST, EST).
    near = difflib.get_close_matches(wanted, zones, n=1, cutoff=0.6 if len(wanted) > 5 else 1.0)
    if not near:  # "Berlin" rather than "Europe/Berlin"
        cities = {zone.rpartition("/")[2]: zone for zone in zones if "/" in zone}
        near = [cities[city] for city in difflib.get_close_matches(wanted, cities, n=1, cutoff=0.8)]
    hint = f"Did you mean {zones[near[0]]}?" if near else "Give an IANA name, for example Europe/Berlin."
    raise BadRequest(f'timezone: "{name}" is not a known time zone', hint)


@lru_cache(maxsize=1)
def _zones() -> dict[str, str]:
    return {name.lower(): name for name in sorted(zoneinfo.available_timezones())}
