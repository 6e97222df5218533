"""What the runs of the storm do: each writes down that it began, prints counted lines, and ends in its own way.

They write with O_APPEND into one file, one line by one write(2), so that the file is the truth about what
was executed, whatever agents and server say.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from shunter_work_pools.contracts.deployments import DeploymentSpec, RetryPolicy, Work

_SCRIPT = """
key="$SHUNTER_RUN_ID $SHUNTER_ATTEMPT"
echo "began $key" >> "$1"
%(before)s
i=0
while [ $i -lt %(lines)d ]; do i=$((i+1)); echo "$key line $i"; %(pause)s; done
%(after)s
"""

#: (state, cause, exit code, signal)
End = tuple[str, str | None, int | None, str | None]


def _exit(code: int) -> str:
    return f'echo "ended $key {code}" >> "$1"; exit {code}'


@dataclass(frozen=True)
class Deed:
    """One kind of run.

    Attributes:
        weight: how often it is made.
        lines: that it prints when it is left alone.
        ends: how its attempts end when they are left alone: the first, and all others like the last.
        cancelled: somebody cancels it in mid-flight.
        spec: the deployment, given the file of effects and its pool.
    """

    name: str
    weight: int
    lines: int
    pause: str
    after: str
    ends: tuple[End, ...]
    before: str = ""
    cancelled: bool = False
    retries: int = 0
    work: dict[str, float] = field(default_factory=dict)

    def spec(self, effects: Path, pool: str) -> DeploymentSpec:
        script = _SCRIPT % vars(self)
        work = Work(command=["sh", "-c", script, self.name, str(effects)], **self.work)  # type: ignore[arg-type]
        retries = RetryPolicy(count=self.retries, delay=0.2)
        return DeploymentSpec(work=work, pool=pool, retries=retries)

    def end(self, attempt: int) -> End:
        """How this attempt ends when it is left alone."""
        return self.ends[min(attempt, len(self.ends)) - 1]

    def output(self, run: str, attempt: int, lines: int) -> bytes:
        """The first lines of its output."""
        return b"".join(b"%s %d line %d\n" % (run.encode(), attempt, number + 1) for number in range(lines))


_COMPLETED: End = ("Completed", None, 0, None)

DEEDS = {
    deed.name: deed
    for deed in (
        Deed("plain", 6, 4, "sleep 0.6", _exit(0), (_COMPLETED,)),
        Deed("long", 4, 6, "sleep 1", _exit(0), (_COMPLETED,)),
        Deed("chatty", 2, 4000, ":", _exit(0), (_COMPLETED,)),
        Deed("failing", 3, 3, "sleep 0.5", _exit(3), (("Failed", "exit_code", 3, None),)),
        Deed(
            "forking",
            3,
            3,
            "sleep 0.5",
            _exit(0),
            (_COMPLETED,),
            before="sleep 300 & (setsid sleep 300 2>/dev/null &); (trap '' HUP; sleep 300 >/dev/null 2>&1 &)",
        ),
        Deed(
            "suicidal",
            2,
            3,
            "sleep 0.5",
            'echo "ended $key KILL" >> "$1"; kill -KILL $$',
            (("Crashed", "signal", None, "SIGKILL"),),
        ),
        Deed(
            "retried",
            3,
            2,
            "sleep 0.4",
            f"if [ $SHUNTER_ATTEMPT = 1 ]; then {_exit(1)}; fi; {_exit(0)}",
            (("Failed", "exit_code", 1, None), _COMPLETED),
            retries=3,
        ),
        Deed(
            "slow",
            2,
            600,
            "sleep 0.5",
            _exit(0),
            (("TimedOut", "timeout", None, "SIGTERM"),),
            work={"timeout": 1.5, "grace": 1.0},
        ),
        Deed("cancelled", 2, 600, "sleep 0.5", _exit(0), (_COMPLETED,), cancelled=True, work={"grace": 2.0}),
        Deed(
            "stubborn",
            2,
            600,
            "sleep 0.5",
            _exit(0),
            (_COMPLETED,),
            before="trap '' TERM",
            cancelled=True,
            work={"grace": 0.5},
        ),
    )
}


@dataclass
class Effects:
    """What was executed: (run, attempt) -> how often it began, and what it said at its end."""

    began: Counter[tuple[str, int]]
    ended: dict[tuple[str, int], list[str]]


def read_effects(path: Path) -> Effects:
    """Read the file of effects."""
    found = Effects(Counter(), {})
    for line in path.read_text().splitlines():
        what, run, attempt, *rest = line.split()
        key = (run, int(attempt))
        if what == "began":
            found.began[key] += 1
        else:
            found.ended.setdefault(key, []).append(rest[0])
    return found
