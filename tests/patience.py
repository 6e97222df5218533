"""How long tests wait for what is about to happen."""

from __future__ import annotations

#: Seconds after which it hangs. A guard, and no measure: machines several times slower than the one at hand, with
#: both lines of tests on them, are not to reach it. What measures how long something takes has a number of its own.
SOON = 90.0
