"""The folder in which an agent remembers who it is and what it owns, and the lock that makes it one.

``SHUNTER_HOME/agents/NAME/`` (0700)::

    lock        held by flock as long as the daemon lives
    identity    random id, made once
    machine     which machine it belongs to: another one must not go on with what runs here
    sessions    one JSON line per life of the daemon: session id, boot id
    attempts/   RUN.N/ per attempt (see ``journal``)
    trash/      attempts on their way out: what lies here is nobody's any more
    damaged/    attempts whose journal cannot be read, kept for a person to look at

Everything else in it belongs to the launchers.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import socket
import time
from pathlib import Path
from uuid import UUID, uuid4

from shunter_infrastructure.removing import remove
from shunter_infrastructure.stamp import boot_id
from shunter_work_pools.contracts.errors import InvalidInput

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")


def default_name(pool: str) -> str:
    """HOST-POOL: the same at each start on this machine."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{socket.gethostname()}-{pool}")
    return name.strip("._-")[:100].strip("._-")


def check_name(name: str) -> str:
    """The name, if it can be one.

    Raises:
        InvalidInput: it cannot.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"{name!r} cannot be the name of an agent",
            "Use 1 to 100 letters, digits, dots, dashes or underscores, with a letter or digit at both ends.",
        )
    return name


def uuid7(after: UUID | None = None) -> UUID:
    """A UUIDv7 (RFC 9562, section 5.7) of now, but later than ``after``, whatever the wall clock says."""
    millis = time.time_ns() // 1_000_000
    if after is not None:
        millis = max(millis, (after.int >> 80) + 1)
    rand = secrets.randbits(74)
    value = (millis & (2**48 - 1)) << 80 | 7 << 76 | (rand >> 62) << 64 | 2 << 62 | rand & (2**62 - 1)
    return UUID(int=value)


#: Folders kept to be used again.
SPARE = 256

_MACHINE_ID = Path("/etc/machine-id")


def machine() -> str:
    """This machine, as far as it can be told: its machine-id(5), else its host name; hashed, since the id is
    meant to be kept to oneself."""
    try:
        known = _MACHINE_ID.read_text("ascii").strip()
    except (OSError, ValueError):
        known = ""
    return hashlib.sha256(f"shunter agent on {known or socket.gethostname()}".encode()).hexdigest()


class StateFolder:
    """The state folder of one agent, held by this process until :meth:`close`.

    Attributes:
        path, attempts, trash, damaged: folders.
        lock_file: always there, and empty but for a process id.
        identity: who this agent is, whatever it is called.
        session: this life of it.
        sessions: all its lives that it knows of, this one included -> boot id.
    """

    def __init__(self, agents: Path, name: str, *, take_over: bool = False) -> None:
        """Open the folder, made if need be, and write this life down in it.

        Args:
            take_over: it may be that of another machine, which is gone for good.

        Raises:
            InvalidInput: the folder cannot be written, another agent runs on it, or it belongs to another
                machine.
        """
        self.path = agents / name
        self.attempts = self.path / "attempts"
        self.trash = self.path / "trash"
        self.damaged = self.path / "damaged"
        self.lock_file = self.path / "lock"
        self._spare: list[Path] = []  # in the trash still: what a life does not use, the next one removes
        try:
            agents.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.path.mkdir(exist_ok=True, mode=0o700)
            self._lock = os.open(self.lock_file, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as exc:
            raise self._unwritable(exc) from exc
        try:
            self._take_lock(name)
            self._check_machine(name, take_over)
            for folder in (self.attempts, self.trash):
                folder.mkdir(exist_ok=True, mode=0o700)
            self.identity = self._read_identity()
            self.sessions = self._read_sessions()
            self.session = uuid7(after=max(self.sessions, default=None, key=lambda one: one.int))
            self._write_session()
        except OSError as exc:
            os.close(self._lock)
            raise self._unwritable(exc) from exc
        except InvalidInput:
            os.close(self._lock)
            raise

    def close(self) -> None:
        """Let another agent have the folder. Twice is harmless: the descriptor may be another's by then."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)

    def try_writing(self) -> None:
        """See whether there is room for some more (64 KiB).

        Raises:
            OSError: there is not, or the folder cannot be written for another reason.
        """
        probe = self.path / "probe"
        try:
            probe.write_bytes(bytes(65_536))
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()

    def discard(self, folder: Path) -> Path:
        """Move an attempt's folder to the trash in one step; where it is now."""
        goal = self.trash / f"{folder.name}.{secrets.token_hex(4)}"
        folder.rename(goal)
        return goal

    def keep_for_reuse(self, folder: Path) -> bool:
        """Keep a discarded folder that is as good as new for :meth:`make`; False if there are enough."""
        if len(self._spare) >= SPARE:
            return False
        self._spare.append(folder)
        return True

    def make(self, folder: Path) -> None:
        """Make the folder of an attempt, of a spare one where there is one: on a busy disk making files
        and folders is the dearest thing that an agent does.

        Raises:
            OSError: it cannot be made.
        """
        while self._spare:
            try:
                os.rename(self._spare[-1], folder)
            except FileNotFoundError:
                self._spare.pop()
                continue
            except OSError:
                break  # a full disk, or a folder that stayed behind: the spare ones are as good as before
            self._spare.pop()
            return
        folder.mkdir(mode=0o700, exist_ok=True)

    def empty_trash(self) -> None:
        """Remove all that was discarded; what cannot be removed stays for the next time."""
        for entry in self.trash.iterdir():
            remove(entry)

    def set_aside(self, folder: Path) -> None:
        """Keep a folder that cannot be understood, out of the way."""
        self.damaged.mkdir(exist_ok=True, mode=0o700)
        folder.rename(self.damaged / f"{folder.name}.{secrets.token_hex(4)}")

    def was_set_aside(self, name: str) -> bool:
        """Whether a folder of this name is kept that could not be understood."""
        return any(self.damaged.glob(f"{name}.*"))

    def _take_lock(self, name: str) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock, 100, 0).decode("ascii", "replace").strip()
            raise InvalidInput(
                f"an agent named {name} is running already{f' (pid {holder})' if holder else ''}: "
                f"it holds the state folder {self.path}",
                "Stop that one, or give this one another name with --name.",
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def _check_machine(self, name: str, take_over: bool) -> None:
        """Refuse the folder of another machine: a copy, or a disk that both can see. The runs in it belong to
        processes there, and two agents of one identity would take them from each other."""
        path = self.path / "machine"
        here = {"machine": machine(), "host": socket.gethostname()}
        try:
            known = json.loads(path.read_text("utf-8"))
            if known["machine"] == here["machine"]:
                return
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError):
            pass  # torn by a crash or a full disk in its first moment
        else:
            if not take_over:
                raise InvalidInput(
                    f"the state folder {self.path} belongs to agent {name} on the machine {known.get('host')}; "
                    f"this is {here['host']}",
                    "Start the agent there, or give this one another name with --name.\n"
                    "If that machine is gone for good, --take-over makes the folder this machine's: the runs "
                    "that it had then end as Crashed.",
                )
        self._write_whole(path, json.dumps(here))

    def _read_identity(self) -> UUID:
        path = self.path / "identity"
        try:
            return UUID(path.read_text("ascii").strip())
        except FileNotFoundError:
            pass
        except ValueError:
            raise InvalidInput(
                f"{path} does not hold an agent's identity",
                "If no run of this agent matters any more, remove its folder and start again.",
            ) from None
        identity = uuid4()
        self._write_whole(path, str(identity))
        return identity

    def _write_whole(self, path: Path, text: str) -> None:
        draft = path.with_name(f"{path.name}.new")
        with draft.open("w", encoding="utf-8") as file:
            file.write(f"{text}\n")
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)

    def _read_sessions(self) -> dict[UUID, str]:
        try:
            text = (self.path / "sessions").read_text("utf-8", "replace")
        except FileNotFoundError:
            return {}
        known: dict[UUID, str] = {}
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                known[UUID(entry["session"])] = str(entry["boot"])
            except (ValueError, KeyError, TypeError):
                continue  # torn by a crash or a full disk: that session never spoke to a server
        return known

    def _write_session(self) -> None:
        # On disk before the server hears of the session: every session it grants to is found here.
        line = json.dumps({"session": str(self.session), "boot": boot_id()})
        with (self.path / "sessions").open("a", encoding="utf-8") as file:
            file.write(f"{line}\n" if file.tell() == 0 else f"\n{line}\n")
            file.flush()
            os.fsync(file.fileno())
        self.sessions[self.session] = boot_id()

    def _unwritable(self, exc: OSError) -> InvalidInput:
        return InvalidInput(
            f"the agent's state folder {self.path} cannot be written: {exc.strerror or exc}",
            "Free space there, give yourself the right to write it, or set SHUNTER_HOME to another folder.",
        )
