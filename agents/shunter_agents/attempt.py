"""One attempt as the agent knows it: what it is, how far it is, what is owed to the server for it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from shunter_agents.journal import END_SEQ, SEQ, Damaged, Journal, Record
from shunter_agents.verdict import Stop
from shunter_infrastructure.launcher import Handle, Launcher
from shunter_infrastructure.stamp import Stamp
from shunter_work_pools.contracts.agents import Assignment, Held, Report
from shunter_work_pools.contracts.states import ATTEMPT_ENDS, AttemptState, Cause
from shunter_work_pools.masking import NO_MASK, Mask

Key = tuple[UUID, int]


@dataclass(frozen=True)
class Step:
    """A report that the server does not have for sure; ``fields`` are those of ``Report`` beside state."""

    seq: int
    at: Stamp
    state: AttemptState
    fields: dict[str, Any]


class Attempt:
    """One attempt, from its assignment until its folder is gone.

    Attributes:
        devices: numbers of those that are its own, by name.
        adopted: found in the state folder at start, not granted to this life of the daemon.
        state: the last one reported.
        steps: reports that are owed, in order.
        started: when the user's process began, as far as known.
        stopped, stopped_at: why and when the agent stopped it, the first time.
        dropped: no longer ours: nothing is reported.
        let_go: another agent's now, and so is its work.
        left: let go by this agent itself, which ends: the server may give it to another one.
        note, note_cause: what its launch waits for, and the cause it ends by if that lasts too long.
        successor: granted anew while what is dropped still runs.
        commit: that its source is fetched at, once known.
        launching: the supervisor may be interrupted: nothing of it is known to run.
        in_start: a launch is under way at this moment.
        ended: its end is written down, nothing of it runs.
        end_acked: the server has the end.
        end_held: its end is not told yet, since the server does not have all that its flow did.
        log_sent: offset in the output up to which the server has it; None: to be asked.
        log_gone: offset up to which the file may have holes instead of output. What of it the server has not
            is lost.
        log_final: all bytes of output, once known.
        log_done: no output is owed.
        tasks_owed: of the journal of its flow, some is.
        mask: what is not to be seen of it; None: that is not known (yet), so nothing of its output is shipped.
        recalled: set once the server has said what is to be masked of an attempt that was found, or that it cannot.
    """

    __slots__ = (
        "adopted",
        "assignment",
        "commit",
        "devices",
        "dropped",
        "end_acked",
        "end_held",
        "ended",
        "handle",
        "in_start",
        "journal",
        "key",
        "kind",
        "launcher",
        "launching",
        "left",
        "let_go",
        "log_done",
        "log_final",
        "log_gone",
        "log_sent",
        "mask",
        "note",
        "note_cause",
        "recalled",
        "received",
        "started",
        "state",
        "steps",
        "stopped",
        "stopped_at",
        "successor",
        "task",
        "tasks_owed",
        "timer",
    )

    def __init__(
        self,
        record: Record,
        journal: Journal,
        launcher: Launcher,
        lines: list[dict[str, Any]] | None = None,
    ) -> None:
        """An attempt that was granted just now; with the ``lines`` of its journal, one that was found."""
        adopted = lines is not None
        self.assignment = record.assignment
        self.received = record.received
        self.devices = record.devices
        self.key: Key = (record.assignment.run, record.assignment.attempt)
        self.journal = journal
        self.launcher = launcher
        self.kind = record.launcher
        self.adopted = adopted
        self.state = AttemptState.CLAIMED
        self.steps: list[Step] = []
        self.handle: Handle | None = None
        self.started: Stamp | None = None
        self.stopped: Stop | None = None
        self.stopped_at: Stamp | None = None
        self.dropped = False
        self.let_go = False
        self.left = False
        self.note = ""
        self.note_cause: Cause | None = None
        self.successor: Assignment | None = None
        self.commit = record.assignment.commit
        self.launching = False
        self.in_start = False
        self.ended = False
        self.end_acked = False
        self.end_held = False
        self.tasks_owed = False
        # The server may have more of it than this agent ever did.
        self.log_sent: int | None = None if adopted or record.assignment.handed_over else 0
        self.log_gone = 0
        self.log_final: int | None = None
        self.log_done = False
        self.mask: Mask | None = None if self.assignment.wants_secrets else NO_MASK
        self.recalled: asyncio.Event | None = None
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        if lines is not None:
            self._recall(lines)

    @property
    def names(self) -> dict[str, Any]:
        """What a log line about it carries."""
        return {"run": str(self.key[0]), "attempt": self.key[1]}

    def held(self) -> Held:
        """How a sync names it."""
        epoch = self.successor.epoch if self.successor else self.assignment.epoch
        stopping = self.successor is None and (self.stopped is not None or self.ended)
        return Held.model_construct(
            run=self.key[0], attempt=self.key[1], epoch=epoch, stopping=stopping, note=self.note
        )

    @property
    def given_up(self) -> bool:
        """It is not to start any more."""
        return self.stopped is not None or self.dropped

    def step(self, state: AttemptState, at: Stamp, fields: dict[str, Any]) -> None:
        """Go on to ``state``: owed from now on, and written down.

        Raises:
            OSError: it could not be written down; it is owed all the same.
        """
        step = Step(SEQ[state], at, state, fields)
        self.state = state
        self.steps.append(step)
        body = {"seq": step.seq, "state": state.value, **fields}
        self.journal.append({"report": body, "at": at.to_json()})

    def reports(self, *, bare: bool = False) -> list[Report]:
        """The reports that can be told at this moment.

        Args:
            bare: only what cannot be wrong: the server refused them in full.
        """
        run, attempt = self.key
        return [
            Report.model_construct(
                run=run,
                attempt=attempt,
                epoch=self.assignment.epoch,
                seq=step.seq,
                age=step.at.age(),
                state=step.state,
                **(_bare(step) if bare else step.fields),
            )
            for step in self.steps
            if not (self.end_held and step.seq == END_SEQ)
        ]

    def acknowledge(self, seq: int) -> None:
        """The server has the reports up to ``seq``."""
        self.steps = [step for step in self.steps if step.seq > seq]
        if seq >= END_SEQ and self.ended:
            self.end_acked = True

    def give_up_output(self, to: int) -> None:
        """The output up to offset ``to`` is given up, so that there may be a hole: written down before it.

        Raises:
            OSError: it could not be written down; nothing may be done to the output.
        """
        self.journal.append({"gap": [self.log_gone, to]})
        self.log_gone = to

    def crashed_at(self, size: int) -> int:
        """Bytes of output when it crashed: the first answer counts, for what its hooks say is put behind them.

        Raises:
            OSError: it could not be written down.
        """
        for line in self.journal.read()[1]:
            if "crashed" in line:
                return int(line["crashed"])
        self.journal.append({"crashed": size})
        return size

    def grant_again(self, record: Record) -> None:
        """Go on under a higher epoch: all steps are told again, since the server counts anew.

        Raises:
            OSError: it could not be written down; nothing has changed.
        """
        self.journal.write_record(record)
        self.assignment = record.assignment
        self.end_acked = False
        self.steps = []
        self._recall_steps(self.journal.read()[1])

    def _recall(self, lines: list[dict[str, Any]]) -> None:
        acked = 0
        for line in lines:
            try:
                if "stop" in line and self.stopped is None:
                    self.stopped, self.stopped_at = Stop(line["stop"]), Stamp.from_json(line["at"])
                elif "acked" in line and line["epoch"] == self.assignment.epoch:
                    acked = int(line["acked"])
                elif "commit" in line:
                    self.commit = str(line["commit"])
                elif "gap" in line:
                    self.log_gone = max(self.log_gone, int(line["gap"][1]))
            except (ValueError, LookupError, TypeError) as exc:
                raise Damaged(f"{line}: {exc}") from exc
        self._recall_steps(lines)
        self.acknowledge(acked)
        if self.ended and self.log_final == 0:
            self.log_done = True

    def _recall_steps(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            if "report" not in line:
                continue
            try:
                step = _read_step(line)
            except (ValueError, KeyError, TypeError) as exc:
                raise Damaged(f"{line}: {exc}") from exc
            if self.steps and step.seq <= self.steps[-1].seq:
                continue
            self.steps.append(step)
            self.state = step.state
            if step.state is AttemptState.RUNNING:
                self.started = step.at
            elif step.state in ATTEMPT_ENDS:
                self.ended = True
                self.log_final = step.fields.get("log_size") or 0


def _read_step(line: dict[str, Any]) -> Step:
    fields = dict(line["report"])
    seq, state = int(fields.pop("seq")), AttemptState(fields.pop("state"))
    if fields.get("cause") is not None:
        fields["cause"] = Cause(fields["cause"])
    return Step(seq, Stamp.from_json(line["at"]), state, fields)


def _bare(step: Step) -> dict[str, Any]:
    kept: dict[str, Any] = {
        name: step.fields[name] for name in ("cause", "pid", "log_size") if name in step.fields
    }
    if step.state in ATTEMPT_ENDS:
        kept["message"] = "the server refused the full report of this end; the agent's log has it"
    return kept
