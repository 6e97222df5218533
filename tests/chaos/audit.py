"""The audit after a storm: what is said of every run against what it did, and what is left."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections import Counter
from pathlib import Path

from sqlalchemy import func, select

from shunter_work_pools.contracts.deployments import DeploymentSpec, Work
from shunter_work_pools.contracts.runs import Attempt, Run, RunBatch, RunRequest
from shunter_work_pools.contracts.states import RUN_ENDS, Cause
from shunter_work_pools.storage.schema import leases, ready
from shunter_work_pools.storage.store import open_store
from tests.agents.real_server import Site
from tests.chaos.deeds import DEEDS, Effects, read_effects
from tests.chaos.storm import Storm, Story
from tests.patience import SOON
from tests.queue import books

_STOPPED = {Cause.KEEPER_LOST, Cause.CANCELLED, Cause.TIMEOUT}
_ENDS = {state.value for state in RUN_ENDS}


class Audit:
    """Looks at everything; what is wrong is gathered, not raised, so that a storm tells all at once.

    Attributes:
        faults: sentences, one for each thing that is not as it must be.
        ends: how many runs ended how.
    """

    def __init__(self, storm: Storm) -> None:
        self.here: Site = storm.here
        self.story: Story = storm.story
        self.ground = storm.ground
        self.shared = storm.shared
        self.agents = storm.agents()
        self.effects: Effects = read_effects(storm.effects)
        self.faults: list[str] = []
        self.ends: Counter[str] = Counter()
        self.bytes = 0
        self.cut = 0

    def run(self) -> None:
        """All of it; afterwards nothing runs any more."""
        self.faults += self.story.exits
        for run, deed in self.story.runs.items():
            self._look_at(self.here.client.get_run(run), deed)
        for key, count in self.effects.began.items():
            if count != 1:
                self.faults.append(f"attempt {key} ran {count} times")
        self._look_at_others()
        self._fill_every_slot()
        self._end_agents()
        self._end_server()
        self._read_the_books()
        self.faults += [f"left on the engine: {name}" for name in self.ground.left()]

    # -- runs

    def _look_at(self, run: Run, deed: str) -> None:
        self.ends[f"{run.state} {run.cause or ''}".strip()] += 1
        if run.state not in _ENDS or run.deployment != deed:
            self.faults.append(f"run {run.id} ({deed}) is {run.state}")
            return
        numbers = [attempt.number for attempt in run.attempts]
        epochs = [attempt.epoch for attempt in run.attempts]
        if numbers != list(range(1, len(numbers) + 1)) or epochs != sorted(set(epochs)):
            self.faults.append(f"run {run.id}: attempts {numbers} under epochs {epochs}")
        if len(numbers) > 1 + DEEDS[deed].retries:
            self.faults.append(f"run {run.id} ({deed}) was tried {len(numbers)} times")
        if run.attempts and (run.state, run.cause) != (run.attempts[-1].state, run.attempts[-1].cause):
            self.faults.append(f"run {run.id} ended as {run.state}, its last attempt did not")
        for attempt in run.attempts:
            why = self._fault_of(str(run.id), attempt, deed)
            if why:
                self.faults.append(f"run {run.id}.{attempt.number} ({deed}): {why}; {attempt}")

    def _fault_of(self, run: str, attempt: Attempt, name: str) -> str | None:
        """What is wrong with an attempt; None if its end agrees with what it did."""
        deed, key = DEEDS[name], (run, attempt.number)
        began = self.effects.began[key]
        lines, whole = self._lines(run, attempt, name)
        if not whole:
            return f"its output is not what it printed (after line {lines})"
        end = (attempt.state, attempt.cause, attempt.exit_code, attempt.signal)
        expected = self.ground.told(deed.end(attempt.number))
        if end == expected and attempt.state != "TimedOut":
            said = "KILL" if attempt.signal else str(attempt.exit_code)
            if self.effects.ended.get(key) != [said] or began != 1:
                return f"it did not do that: began {began} times, said {self.effects.ended.get(key)}"
            if lines is None:
                self.cut += 1
            return None if lines in (None, deed.lines) else f"{lines} of {deed.lines} lines are there"
        if key in self.story.hit and self.ground.is_excused(attempt.cause):
            return None
        if attempt.state == "Cancelled":
            return None if run in self.story.cancelled else "nobody cancelled it"
        if attempt.state == "TimedOut":
            return None if "timeout" in deed.work and began == 1 else "it has no timeout"
        return f"it should have ended as {expected}"

    def _lines(self, run: str, attempt: Attempt, name: str) -> tuple[int | None, bool]:
        """How many lines of its output there are, and whether they are it, byte for byte. None: some may be missing,
        and a mark in it says so."""
        deadline = time.monotonic() + SOON
        part = self.here.client.read_log(run, attempt=attempt.number)
        while not part.complete and time.monotonic() < deadline:
            time.sleep(0.05)
            part = self.here.client.read_log(run, attempt=attempt.number)
        self.bytes += len(part.data)
        whole = part.complete and part.size == len(part.data) == attempt.log_size
        data = self.ground.whole(part.data, hit=(run, attempt.number) in self.story.hit)
        if data is None:
            return None, whole
        if (
            attempt.cause in _STOPPED
        ):  # shells whose child was killed before them say so, and may go on a little
            data = re.sub(rb"^(Killed|Terminated)\n", b"", data, flags=re.MULTILINE)
        lines = data.count(b"\n")
        return lines, whole and data == DEEDS[name].output(run, attempt.number, lines)

    def _look_at_others(self) -> None:
        """There are no other runs: a request that was sent twice made one."""
        total = sum(1 for _ in self.here.client.each_run())
        if total != len(self.story.runs):
            self.faults.append(f"{total} runs where {len(self.story.runs)} were made")

    # -- what is left

    def _fill_every_slot(self) -> None:
        """No slot leaked: as many runs as all limits together allow are alive at once."""
        gate = self.shared / "gate"
        script = f"while [ ! -e {gate} ]; do sleep 0.2; done"
        work = Work(command=["sh", "-c", script])
        self.here.client.deploy("filling", DeploymentSpec(work=work, pool=self.ground.pool_name))
        slots = len(self.ground.agents) * self.ground.limit
        batch = RunBatch(runs=[RunRequest(deployment="filling")] * slots)
        made = [str(run.id) for run in self.here.client.create_runs(batch).runs]
        deadline = time.monotonic() + SOON
        while time.monotonic() < deadline:
            states = Counter(self.here.client.get_run(run).state for run in made)
            if states["Running"] == slots:
                break
            time.sleep(0.1)
        else:
            self.faults.append(f"of {slots} slots not all could be used: {dict(states)}")
        gate.touch()
        for run in made:
            ended = self.here.ended(run)
            if ended.state != "Completed":
                self.faults.append(f"run {run} on a freed slot ended as {ended.state} {ended.cause}")

    def _end_agents(self) -> None:
        for process in self.agents.values():
            process.terminate()
        for name, process in self.agents.items():
            if process.wait(SOON) != 0:
                self.faults.append(f"agent {name} drained with {process.returncode}")
            left = self.here.attempts(name) + _names(self.here.home / "agents" / name / "trash")
            if left:
                self.faults.append(f"agent {name} left {left}")
            for folder in _names(self.here.home / "agents" / name / "damaged"):
                self.faults.append(f"agent {name} set {folder} aside")
        self.faults += [f"still running: {words}" for words in self.here.left_over()]

    def _end_server(self) -> None:
        self.here.server.send_signal(signal.SIGTERM)
        if self.here.server.wait(SOON) != 0:
            self.faults.append(f"the server ended with {self.here.server.returncode}")

    def _read_the_books(self) -> None:
        async def read() -> tuple[int, int]:
            store = open_store(self.here.flags.get("server.database_url"), self.here.home / "shunter.db")
            await store.open()
            try:
                await store.read(books.audit)
                return await store.read(
                    lambda tx: (
                        tx.conn.scalar(select(func.count()).select_from(leases)) or 0,
                        tx.conn.scalar(select(func.count()).select_from(ready)) or 0,
                    )
                )
            finally:
                await store.close()

        try:
            left = asyncio.run(read())
        except AssertionError as exc:
            self.faults.append(f"the books do not agree: {exc}")
            return
        if left != (0, 0):
            self.faults.append(f"{left[0]} leases and {left[1]} waiting runs are left")

    # -- telling

    def report(self) -> str:
        """The figures, for people."""
        story = self.story
        lines = [
            f"storm over {story.ground} on {story.store}, seed {story.seed}: {len(story.runs)} runs in {story.seconds:.0f} s, "
            f"{sum(self.effects.began.values())} attempts executed, {self.bytes} bytes of output compared",
        ]
        for what in ("agent", self.ground.victim, "server"):
            how = Counter(kill.how for kill in story.kills if kill.what == what)
            told = ", ".join(f"{count} {words}" for words, count in sorted(how.items()))
            lines.append(
                f"  {what} killed {story.count(what)} times ({told}), "
                f"{story.count(what, self.ground.crowd)} of them with {self.ground.crowd} or more live runs"
            )
        faults = {name.removeprefix("mixed: "): count for name, count in story.faults.items() if ":" in name}
        lines.append(
            f"  all connections cut {story.cuts} times; "
            f"exchanges: {', '.join(f'{count} {name}' for name, count in sorted(faults.items()))}"
        )
        lines.append(f"  ends: {', '.join(f'{count} {end}' for end, count in self.ends.most_common())}")
        lines.append(f"  cancelled by request: {len(story.cancelled)}; outputs with a mark: {self.cut}")
        lines += [f"  WRONG: {fault}" for fault in self.faults] or ["  nothing is wrong"]
        return "\n".join(lines)


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []
