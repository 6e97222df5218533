"""When a schedule is due: pure functions of a schedule and a moment.

No database, no clock: the moments come in as arguments and slots come out in UTC. Asking twice gives
the same answer, and going on from any slot gives the slots that follow it, so a scheduler may stop
and start anywhere.

**Cron and recurrence rules** follow the local wall clock of the schedule's zone, and do at the changes
of the clock what Debian's cron does (cron(8)):

* A *fixed time* (cron: neither the minute nor the hour begins with ``*``; rule: ``FREQ=DAILY`` and longer)
  happens exactly once each local day. A time that the clock jumps over happens at the end of the jump
  (``30 2`` becomes 03:00) or, if the jump ends on the next day, at the last second of its own day; a time
  that comes twice happens the first time only. Several times within one jump become one slot. On a day
  that the zone leaves out altogether there is none.
* A *rhythm* (the minute or the hour begins with ``*``; ``FREQ=HOURLY`` and shorter) happens at each instant
  at which the wall clock shows it: ``0 * * * *`` makes 23, 24 or 25 slots a day, ``*/15 2 * * *`` none or
  eight.

**Intervals** are physical time: integer microseconds counted from the anchor, in both directions. The
anchor fixes the phase; changes of the clock do not move the slots.
"""

from shunter_work_pools.schedules.checks import check
from shunter_work_pools.schedules.remarks import preview
from shunter_work_pools.schedules.slots import jitter_of, latest_between, next_slot, slots_between
from shunter_work_pools.schedules.words import in_words
from shunter_work_pools.schedules.zones import UnknownZone, zone_of

__all__ = [
    "UnknownZone",
    "check",
    "in_words",
    "jitter_of",
    "latest_between",
    "next_slot",
    "preview",
    "slots_between",
    "zone_of",
]
