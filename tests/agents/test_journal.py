"""What an agent remembers: through torn lines, full disks, and a wall clock that runs backwards."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from shunter_agents.attempt import Attempt
from shunter_agents.journal import Damaged, Journal, Record
from shunter_agents.state_folder import StateFolder, check_name, default_name, uuid7
from shunter_agents.verdict import Stop
from shunter_infrastructure.fake import FakeLauncher
from shunter_infrastructure.stamp import Stamp, boot_id
from shunter_work_pools.contracts.agents import Assignment
from shunter_work_pools.contracts.deployments import Work
from shunter_work_pools.contracts.errors import InvalidInput
from shunter_work_pools.contracts.states import AttemptState, Cause


def record(epoch: int = 1) -> Record:
    assignment = Assignment(
        run=UUID(int=7),
        attempt=2,
        epoch=epoch,
        session=uuid4(),
        deployment="d",
        revision=1,
        pool="default",
        queue="default",
        parameters={"text": "ä\n"},
        scheduled_at=datetime.now(UTC),
        work=Work(command=["true"]),
    )
    return Record(assignment, "process", Stamp.now())


def recalled(folder: Path) -> Attempt:
    journal = Journal(folder)
    found, lines = journal.read()
    assert found is not None
    return Attempt(found, journal, FakeLauncher(), lines)


def test_an_attempt_is_recalled_as_it_was(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    written = record()
    journal.write_record(written)
    attempt = Attempt(written, journal, FakeLauncher())
    attempt.step(AttemptState.STARTING, Stamp.now(), {})
    started = Stamp.now()
    attempt.step(AttemptState.RUNNING, started, {"pid": 42})
    journal.append({"stop": "timeout", "at": Stamp.now().to_json()})
    end = {"cause": Cause.TIMEOUT, "log_size": 5}
    attempt.ended = True
    attempt.step(AttemptState.TIMED_OUT, Stamp.now(), end)

    again = recalled(tmp_path)
    assert again.assignment == written.assignment
    assert [(step.seq, step.state) for step in again.steps] == [
        (1, AttemptState.STARTING),
        (2, AttemptState.RUNNING),
        (3, AttemptState.TIMED_OUT),
    ]
    assert again.started == started
    assert again.stopped is Stop.TIMEOUT
    assert again.ended
    assert again.log_final == 5
    assert again.steps[2].fields["cause"] is Cause.TIMEOUT
    assert [report.model_dump(exclude={"age"}) for report in again.reports()] == [
        report.model_dump(exclude={"age"}) for report in attempt.reports()
    ]


def test_no_whole_first_line_was_never_owned(tmp_path: Path) -> None:
    assert Journal(tmp_path).read() == (None, [])
    (tmp_path / "journal.jsonl").write_bytes(b'{"assignment": {"run"')
    assert Journal(tmp_path).read() == (None, [])


@pytest.mark.parametrize("cut", [2, 5, 30])
def test_a_torn_line_is_passed_over_and_the_next_is_whole(tmp_path: Path, cut: int) -> None:
    journal = Journal(tmp_path)
    journal.write_record(record())
    journal.append({"report": {"seq": 1, "state": "Starting"}, "at": Stamp.now().to_json()})
    file = tmp_path / "journal.jsonl"
    os.truncate(file, file.stat().st_size - cut)

    again = recalled(tmp_path)
    assert again.steps == []
    again.step(AttemptState.STARTING, Stamp.now(), {})
    assert [step.seq for step in recalled(tmp_path).steps] == [1]


def test_a_step_that_was_told_is_not_told_again_under_the_same_epoch(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    written = record()
    journal.write_record(written)
    attempt = Attempt(written, journal, FakeLauncher())
    attempt.ended = True
    attempt.step(AttemptState.COMPLETED, Stamp.now(), {"log_size": 0})
    journal.append({"acked": 3, "epoch": 1})
    assert recalled(tmp_path).steps == []
    assert recalled(tmp_path).end_acked

    again = recalled(tmp_path)
    again.grant_again(Record(written.assignment.model_copy(update={"epoch": 2}), "process", Stamp.now()))
    assert [step.seq for step in again.steps] == [3]
    assert recalled(tmp_path).assignment.epoch == 2
    assert [step.seq for step in recalled(tmp_path).steps] == [3]


def test_a_journal_that_does_not_say_what_it_is_about_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text('{"acked": 3, "epoch": 1}\n')
    with pytest.raises(Damaged):
        Journal(tmp_path).read()
    (tmp_path / "journal.jsonl").write_text('{"assignment": {}, "launcher": "process"}\n')
    with pytest.raises(Damaged):
        Journal(tmp_path).read()


def test_who_an_agent_is_survives_and_its_lives_are_counted(tmp_path: Path) -> None:
    first = StateFolder(tmp_path, "a1")
    identity, session = first.identity, first.session
    assert first.path.stat().st_mode & 0o777 == 0o700
    first.close()
    with (tmp_path / "a1" / "sessions").open("a") as file:
        file.write('{"session": "torn')
    second = StateFolder(tmp_path, "a1")
    assert second.identity == identity
    assert second.session.int > session.int
    assert second.sessions == {session: boot_id(), second.session: boot_id()}
    second.close()
    third = StateFolder(tmp_path, "a1")
    assert set(third.sessions) == {session, second.session, third.session}
    third.close()


def test_a_second_agent_on_one_folder_is_refused(tmp_path: Path) -> None:
    first = StateFolder(tmp_path, "a1")
    with pytest.raises(InvalidInput, match=r"a1 is running already \(pid \d+\)"):
        StateFolder(tmp_path, "a1")
    first.close()
    StateFolder(tmp_path, "a1").close()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "agents").write_text("a file")
    with pytest.raises(InvalidInput, match="cannot be written"):
        StateFolder(tmp_path / "agents", "a1")


def test_a_full_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(InvalidInput, match="No space left"):
            StateFolder(tmp_path, "a1")
    StateFolder(tmp_path, "a1").close()


def test_a_session_is_later_than_the_last_whatever_the_clock_says() -> None:
    future = UUID(int=uuid7().int + (3_600_000 << 80))
    after = uuid7(after=future)
    assert after.int > future.int
    assert after.version == 7
    assert after.variant == "specified in RFC 4122"


def test_names() -> None:
    assert check_name(default_name("gpu"))
    with pytest.raises(InvalidInput, match="cannot be the name"):
        check_name("../up")


def test_a_cleared_journal_is_one_that_was_never_begun(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write_record(record())
    journal.append({"seq": 1})
    journal.clear()
    assert Journal(tmp_path).read() == (None, [])
    journal.write_record(record())
    found, lines = Journal(tmp_path).read()
    assert found is not None
    assert lines == []


def test_a_folder_closed_twice_closes_nothing_else(tmp_path: Path) -> None:
    first = StateFolder(tmp_path, "a1")
    first.close()
    second = StateFolder(tmp_path, "a2")  # gets the descriptor that the first one had
    first.close()
    second.try_writing()
    with pytest.raises(InvalidInput, match="running already"):
        StateFolder(tmp_path, "a2")
    second.close()


def test_a_record_torn_by_a_full_disk_does_not_spoil_the_next_one(tmp_path: Path) -> None:
    """The folder may have stayed behind: on a full disk it cannot always be moved away either."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match=r"No space left|too large"):
            Journal(tmp_path).write_record(record())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "journal.jsonl").stat().st_size == 100
    written = record(epoch=2)
    Journal(tmp_path).write_record(written)
    assert Journal(tmp_path).read() == (written, [])


def test_spare_folders_outlive_a_folder_that_cannot_be_made_of_one(tmp_path: Path) -> None:
    home = StateFolder(tmp_path, "a1")
    for name in ("one", "two"):
        (home.trash / name).mkdir()
        assert home.keep_for_reuse(home.trash / name)
    stayed = home.attempts / "stayed-behind"
    stayed.mkdir()
    (stayed / "journal.jsonl").write_text("torn")
    home.make(stayed)
    assert (stayed / "journal.jsonl").exists()
    (home.trash / "two").rmdir()
    home.make(home.attempts / "next")
    assert list(home.trash.iterdir()) == []
    home.make(home.attempts / "last")
    home.close()


def test_what_a_run_closed_to_itself_is_removed_all_the_same(tmp_path: Path) -> None:
    """Module caches are written read-only by some tools; only root could remove them as they are."""
    home = StateFolder(tmp_path, "a1")
    deep = home.trash / "run.1.abcd" / "work" / "cache" / "module"
    deep.mkdir(parents=True)
    (deep / "file").write_text("x")
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o500)
    (deep / "link").symlink_to(outside)
    for folder in (deep, deep.parent, deep.parent.parent):
        folder.chmod(0o400)
    script = "import sys; from pathlib import Path; from shunter_infrastructure.removing import remove; "
    words = [sys.executable, "-c", script + "remove(Path(sys.argv[1]))", str(home.trash / "run.1.abcd")]
    if os.geteuid() == 0:
        words = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *words]
    subprocess.run(words, check=True)
    assert list(home.trash.iterdir()) == []
    assert outside.stat().st_mode & 0o777 == 0o500
    home.close()
