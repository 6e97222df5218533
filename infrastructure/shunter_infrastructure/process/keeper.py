"""The keeper: starts one attempt's command, owns all that comes of it, and writes down how it ended.

It runs in a fork of the forker, in a process group of its own, and outlives both forker and agent. It is the
subreaper of its command: whatever daemonizes, changes session or clears its environment becomes its
child in the end, so that nothing can get away and nothing foreign is ever touched.

Order of things, each safe to die after:

1. ``record`` is made, with the keeper's identity, before anything is executed. It is linked into place:
   it exists whole or not at all, and only one of two keepers can make it.
2. ``launch.json`` is read. If it is gone, the agent withdrew the launch (see
   ``ProcessLauncher.recover``); the keeper takes its record back and ends.
   What of its environment is secret is in no file: it came as a descriptor (``hidden``).
3. The command is spawned, and its identity recorded.
4. Signals are waited for: SIGCHLD reaps, SIGTERM stops (how is in ``stop``), SIGALRM says that a moment has come:
   the end of a grace, or of the lease (``lease``, written by the agent, looked at again at that moment only).
5. When nothing is left, the end is recorded.
"""

from __future__ import annotations

import errno
import os
import resource  # os.wait4 wants it, too: loaded once by the forker, not by every keeper
import sys
import time

from shunter_infrastructure.process import cgroup, hidden, procfs
from shunter_infrastructure.process.lean import (
    LAUNCH_VERSION,
    USED,
    VERSION,
    alarm_at,
    clock,
    decode_json,
    die_with_parent,
    no_new_privileges,
    quote,
    signals,
    subreaper,
)

TYPE_CHECKING = False  # as type checkers read it; importing typing would cost a megabyte
if TYPE_CHECKING:
    from typing import Any, NoReturn

#: Seconds that processes left over by an ended command get between SIGTERM and SIGKILL, at most.
LEFTOVER_GRACE = 2.0
#: Seconds of vain SIGKILLs after which processes of another user are given up (and told of).
UNKILLABLE_AFTER = 10.0
#: Errors of the moment: the same launch may succeed later.
PASSING = frozenset(
    {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.ETXTBSY}
)
#: Steps whose errors are of the moment, whatever they are.
PASSING_STEPS = frozenset({"lease", "memory", "secrets", "version"})
#: Of these, those that concern no other attempt: steps, and errors.
OWN_STEPS, OWN = frozenset({"lease", "version"}), frozenset({errno.ETXTBSY})

#: What of ``launch.json`` needs more than ``posix_spawn`` can do.
_BINDING = ("lease", "memory", "user", "limits", "umask", "closed")
_STEPS = {
    "launch": "launch.json could not be read",
    "output": "the file for its output could not be made",
    "chdir": "its working folder could not be entered",
    "exec": "no process could be made for it",
    "lease": "its lease ended before it began",
    "memory": "the limit of its memory could not be set",
    "secrets": "its secrets did not arrive",
    "version": "launch.json was written by a newer version",
}
_AWAITED = {signals.SIGCHLD, signals.SIGTERM, signals.SIGALRM}
#: Every signal that can be: an agent started with nohup or in the background hands ignored ones down.
_RESET = signals.valid_signals() - {signals.SIGKILL, signals.SIGSTOP}
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # getrusage(2)
_RETRY_WRITE = 0.5


class Line:
    """The way back to the agent, and what every keeper would otherwise read again.

    Attributes:
        fd: the forker's end of the socket pair.
        boot: id of this boot.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        try:
            with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
                self.boot = file.read().strip()
        except OSError:
            self.boot = ""


class Withdrawn(Exception):
    """The agent took the launch back before it began."""


class Unstartable(Exception):
    """The command could not be started.

    Args:
        step: one of ``_STEPS``, or ``limit``: it does not fit into its address space.
        code: the errno.
    """

    def __init__(self, step: str, code: int) -> None:
        super().__init__(step)
        self.step = step
        self.code = code


def answer(line: Line, token: int, kind: str, detail: str = "") -> None:
    """Tell the agent, if it is there. Lines are short: the socket takes each whole."""
    try:  # noqa: SIM105  # contextlib is not worth its memory here, nor below
        os.write(line.fd, f"{token}\t{kind}\t{detail}\n".encode())
    except OSError:
        pass  # it will find the record


def keep(line: Line, token: int, folder: str, secrets: int = -1) -> NoReturn:
    """Be the keeper of the attempt in ``folder``, then end this process.

    Args:
        secrets: descriptor of its secrets; -1: none came.

    Answers ``record`` with the record's lines (JSON, separated by tabs) when the command was started,
    could not be, or had been started before; ``withdrawn``; or the reason when nothing was launched and
    another try may succeed: ``refused``, or ``own`` if that says nothing of other attempts.
    """
    code = 1
    try:
        # Out of reach of whoever signals the forker's group. A session of its own would be no better (the
        # forker's has no terminal), and at times takes a millisecond to make: the scheduler groups by it.
        os.setpgid(0, 0)
        signals.signal(signals.SIGCHLD, lambda *_: None)  # an ignored one would not be waited for
        _Keeper(line, token, folder, secrets).run()
        code = 0
    except BaseException as exc:  # the process ends here, whatever it was; the traceback must not be lost
        answer(line, token, "refused", quote(f"the keeper failed: {exc!r}"))
        _log_failure(folder)
    os._exit(code)


def _log_failure(folder: str) -> None:
    import traceback

    try:
        fd = os.open(f"{folder}/keeper.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(fd, traceback.format_exc().encode(errors="backslashreplace"))
    except OSError:
        pass


class _Keeper:
    def __init__(self, line: Line, token: int, folder: str, secrets: int) -> None:
        self.line = line
        self.token = token
        self.folder = folder
        self.secrets = secrets
        self.path = f"{folder}/record"
        self.record = -1
        self.lines: list[str] = []
        self.main = 0
        self.status: int | None = None
        self.ended = ""
        self.stopped = False
        self.grace = 10.0
        self.lease: tuple[float, float] | None = None
        self.lease_ended = False
        self.cgroup = ""
        self.oom_events = ""
        self.leftovers = 0
        self.left_alive = 0
        self.cpu = 0.0
        self.max_rss = 0
        self.deadline: float | None = None
        self.killing_since: float | None = None
        self.chasing = False
        self.asked: set[tuple[int, int]] = set()

    # -- starting -----------------------------------------------------------------------------------

    def run(self) -> None:
        try:
            begun = self._begin()
        except OSError as exc:
            self._reply("refused", quote(f"{self.folder}: {exc.strerror}"))
            return
        if not begun:
            return
        try:
            self._spawn()
        except Withdrawn:
            self._take_back()
            self._reply("withdrawn")
            return
        except Unstartable as exc:
            if exc.code in PASSING or exc.step in PASSING_STEPS:
                self._take_back()
                own = exc.code in OWN or exc.step in OWN_STEPS
                self._reply(
                    "own" if own else "refused", quote(f"{_STEPS[exc.step]}: {os.strerror(exc.code)}")
                )
                return
            self._append(
                f'{{"is":"failed","step":"{exc.step}","errno":{exc.code},'
                f'"text":{quote(os.strerror(exc.code))},{self._stamp()}}}'
            )
            self._reply_record()
            return
        self._reply_record()
        self._wait()
        self._finish()

    def _begin(self) -> bool:
        """Make the record; False if another keeper has made it (and the agent was answered)."""
        own = os.getpid()
        first = (
            f'{{"is":"keeper","version":{VERSION},"pid":{own},"start":{procfs.start_time(own)},'
            f'"boot":{quote(self.line.boot)},"subreaper":{"true" if subreaper() else "false"}}}'
        )
        draft = f"{self.path}.{own}"
        try:  # noqa: SIM105
            os.rename(self.path + USED, draft)  # of a recycled folder; only one keeper can have it
        except FileNotFoundError:
            pass
        # Cut to its length and not emptied first: ext4 writes out at once what was emptied and closed.
        self.record = os.open(draft, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            begin = first.encode() + b"\n"
            os.write(self.record, begin)
            os.ftruncate(self.record, len(begin))
            while True:
                try:
                    os.link(draft, self.path)
                    break
                except FileExistsError:
                    text = _settled(self.path)
                    if text is not None:
                        self._reply("record", text)
                        return False
        finally:
            os.unlink(draft)
        self.lines.append(first)
        return True

    def _spawn(self) -> None:
        try:
            launch = self._read_launch()
            self.grace = float(launch["grace"])
            output = os.open(f"{self.folder}/output", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except FileNotFoundError:
            raise Withdrawn from None
        except OSError as exc:
            raise Unstartable("output", exc.errno or errno.EIO) from exc
        user = launch.get("user")
        try:
            if user:
                os.fchown(output, user["uid"], user["gid"])  # /dev/stdout can be opened then
            else:
                os.chdir(launch["cwd"])
        except OSError as exc:
            raise Unstartable("output" if user else "chdir", exc.errno or errno.EIO) from exc
        if launch.get("lease"):
            self.lease = self._read_lease()
            if self.lease is None or self.lease[0] <= clock():
                raise Unstartable("lease", errno.ETIME)
        if launch.get("secrets"):
            launch["env"].update(self._read_secrets())
        stamp = self._stamp()
        if any(launch.get(one) is not None and launch[one] is not False for one in _BINDING):
            self._spawn_bound(launch, output)
        else:
            try:
                self.main = os.posix_spawn(
                    launch["program"],
                    launch["argv"],
                    launch["env"],
                    file_actions=[(os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, output, 2)],
                    setsid=True,
                    setsigmask=(),
                    setsigdef=_RESET,
                )
            except OSError as exc:
                raise Unstartable("exec", exc.errno or errno.EIO) from exc
        launch.clear()  # with the secrets in it; it is kept nowhere else
        os.close(output)
        os.chdir("/")  # no folder stays busy because of the keeper
        start = procfs.start_time(self.main)  # certain: until it is waited for, its id is its own
        self._append(f'{{"is":"started","pid":{self.main},"start":{start},{stamp}}}')

    def _spawn_bound(self, launch: dict[str, Any], output: int) -> None:
        """Start it as ``posix_spawn`` cannot: as another user, within limits, bound to the life of this keeper.

        The fork binds itself before it executes the command, so nothing of the command is ever unbound; the keeper
        stays outside, where no lack of the run's memory can hit it.
        """
        keeper = os.getpid()
        memory = launch.get("memory") or {}
        if "parent" in memory:
            path = cgroup.path_of(memory["parent"], keeper, procfs.start_time(keeper))
            try:
                cgroup.make(path, memory["settings"])
            except OSError as exc:
                raise Unstartable("memory", exc.errno or errno.EIO) from exc
            self.cgroup, self.oom_events = path, f"{path}/{memory['events']}"
        try:
            failed, told = os.pipe()  # closed by exec
            self.main = os.fork()
        except OSError as exc:
            self._leave_cgroup()
            raise Unstartable("exec", exc.errno or errno.EIO) from exc
        if self.main == 0:
            _become(launch, output, self.cgroup, told, keeper)  # never returns
        os.close(told)
        failure = os.read(failed, 64).decode()
        os.close(failed)
        if failure:
            os.waitpid(self.main, 0)
            self._leave_cgroup()
            step, code = failure.split()
            raise Unstartable(step, int(code))

    def _leave_cgroup(self) -> int:
        """Remove the cgroup, if there is one and nobody is in it; how often its memory ran out."""
        if not self.cgroup:
            return 0
        kills = cgroup.oom_kills(self.oom_events)
        cgroup.remove(self.cgroup)
        return kills

    def _take_back(self) -> None:
        try:  # noqa: SIM105
            os.unlink(self.path)
        except FileNotFoundError:
            pass  # the whole folder was removed

    def _read_launch(self) -> dict[str, Any]:
        parts = []
        fd = os.open(f"{self.folder}/launch.json", os.O_RDONLY | os.O_CLOEXEC)
        while part := os.read(fd, 65536):
            parts.append(part)
        os.close(fd)
        try:
            value: dict[str, Any] = decode_json(b"".join(parts).decode("ascii"))
        except ValueError as exc:
            raise Unstartable("launch", errno.EINVAL) from exc
        if value.get("version", 1) > LAUNCH_VERSION:
            raise Unstartable("version", errno.EPROTONOSUPPORT)
        return value

    def _read_secrets(self) -> dict[str, str]:
        """Variables of the environment that are in no file."""
        try:
            found = hidden.read(self.secrets)
            os.close(self.secrets)
            return found
        except OSError as exc:
            raise Unstartable("secrets", exc.errno or errno.EIO) from exc
        except ValueError as exc:
            raise Unstartable("secrets", errno.EINVAL) from exc

    def _read_lease(self) -> tuple[float, float] | None:
        """When to ask and when to kill; None if that cannot be read."""
        try:
            fd = _open_unnoted(f"{self.folder}/lease")
            text = os.read(fd, 256)
            os.close(fd)
            ask_at, kill_at = text.decode("ascii", "replace").split()
            return float(ask_at), float(kill_at)
        except (OSError, ValueError):
            return None

    # -- waiting ------------------------------------------------------------------------------------

    def _wait(self) -> None:
        """Return when the command and everything that came of it has ended (or cannot be ended)."""
        while not self._reap():
            now = clock()
            if self.lease is not None and now >= self.lease[0]:
                self._end_lease(now)
            if self.status is not None and self.deadline is None:
                self.deadline = now + min(self.grace, LEFTOVER_GRACE)
                self.leftovers = self._ask()
            if self.deadline is not None and now >= self.deadline:
                if self._kill(now):
                    return
                until: float | None = now + (0.001 if self.chasing or now - self.deadline < 0.1 else 0.05)
            else:
                until = self.deadline
            if self.lease is not None and (until is None or self.lease[0] < until):
                until = self.lease[0]
            if _next_signal(until) == signals.SIGTERM:
                self._stop()

    def _reap(self) -> bool:
        """Take in all that has ended; True when no child is left."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return False
            # A child's usage includes the children it waited for itself; orphans come here, once each.
            self.cpu += usage.ru_utime + usage.ru_stime
            self.max_rss = max(self.max_rss, usage.ru_maxrss * _RSS_UNIT)
            if pid == self.main:
                self.status = status
                self.ended = self._stamp()
                if self.deadline is not None:
                    self._ask()  # those that came after the first request have not been asked yet

    # -- stopping -----------------------------------------------------------------------------------

    def _end_lease(self, now: float) -> None:
        """Ask the command to end, and see to it that it has by the end of the lease; unless it was renewed."""
        assert self.lease is not None
        renewed = self._read_lease()
        if renewed is not None and renewed[0] > now:
            self.lease = renewed
            return
        kill_at = self.lease[1]
        self.lease = None  # what was asked to end ends
        if self.status is None and not self.stopped:
            self.lease_ended = True
        if self.deadline is None or kill_at < self.deadline:
            self.deadline = kill_at
        if kill_at > now:
            self._ask()

    def _stop(self) -> None:
        """Take in the requests of ``stop``: ask once, and let the shortest grace count."""
        if self.status is None:
            self.stopped = True
        deadline = self._requested_deadline()
        if self.deadline is None or deadline < self.deadline:
            self.deadline = deadline
        if deadline > clock():
            self._ask()

    def _requested_deadline(self) -> float:
        deadlines = []
        try:
            with open(f"{self.folder}/stop", encoding="ascii", errors="replace") as file:
                for line in file:
                    try:
                        moment, grace = line.split()
                        deadlines.append(float(moment) + float(grace))
                    except ValueError:
                        continue  # torn; its writer died before it sent the signal
        except OSError:
            pass
        # Without a request somebody else sent SIGTERM, the system going down for example.
        return min(deadlines) if deadlines else clock() + self.grace

    def _ask(self) -> int:
        """SIGTERM to every descendant that was not asked before; how many there were."""
        asked = 0
        for process in self._descendants():
            identity = (process.pid, process.start)
            if identity not in self.asked:
                self.asked.add(identity)
                asked += 1
                _send(process.pid, signals.SIGTERM)
                _send(process.pid, signals.SIGCONT)  # a stopped process acts on nothing else
        if not procfs.AVAILABLE:
            _send_group(self.main, signals.SIGTERM)
        return asked

    def _kill(self, now: float) -> bool:
        """SIGKILL to every descendant; True if what is left belongs to others and will not go.

        They are frozen first, round by round until no new one appears: what stands still cannot fork
        faster than it is found.
        """
        if self.killing_since is None:
            self.killing_since = now
            _hurry()
        if not procfs.AVAILABLE:
            _send_group(self.main, signals.SIGKILL)
            return False
        frozen: set[int] = set()
        self.chasing = self._freeze(frozen)
        until = now + 1.0
        while self.chasing and clock() < until:
            if self._reap():  # the dead are many, where there is something to chase; they slow the search
                return False
            self.chasing = self._freeze(frozen)
        forbidden = [process for process in self._descendants() if not _send(process.pid, signals.SIGKILL)]
        if forbidden and self.status is not None and now - self.killing_since > UNKILLABLE_AFTER:
            self.left_alive = len(forbidden)
            return True
        return False

    def _freeze(self, frozen: set[int]) -> bool:
        """SIGSTOP to every descendant not in ``frozen``, on sight; whether there was one.

        The newest come first: a lineage whose every member forks and exits within a moment can be caught
        only at its end. All it ever orphaned are children of this process.
        """
        own = os.getpid()
        table: dict[int, procfs.Process] = {}
        fresh = False
        for pid in procfs.newest_first():
            process = procfs.look_up(pid)
            if process is None:
                continue
            table[pid] = process
            if (
                process.state not in "ZX"
                and pid not in frozen
                and (process.parent == own or process.parent in frozen)
            ):
                _send(pid, signals.SIGSTOP)
                frozen.add(pid)
                fresh = True
        for process in procfs.below({own}, table):
            if process.pid not in frozen:
                _send(process.pid, signals.SIGSTOP)
                frozen.add(process.pid)
                fresh = True
        return fresh

    def _descendants(self) -> list[procfs.Process]:
        own = os.getpid()
        return procfs.below({own}, procfs.table())

    # -- telling ------------------------------------------------------------------------------------

    def _finish(self) -> None:
        self._append(
            f'{{"is":"ended","status":{self.status},"stopped":{"true" if self.stopped else "false"},'
            f'"lease":{"true" if self.lease_ended else "false"},"oom_kills":{self._leave_cgroup()},'
            f'"leftovers":{self.leftovers},"left_alive":{self.left_alive},'
            f'"cpu_seconds":{self.cpu:.6f},"max_rss_bytes":{self.max_rss},{self.ended}}}'
        )

    def _append(self, line: str) -> None:
        """Write a line to the record. A full disk delays it; it is not given up."""
        self.lines.append(line)
        data = line.encode() + b"\n"
        while data:
            try:
                data = data[os.write(self.record, data) :]
            except OSError as exc:
                if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                time.sleep(_RETRY_WRITE)

    def _reply_record(self) -> None:
        self._reply("record", "\t".join(self.lines))

    def _reply(self, kind: str, detail: str = "") -> None:
        answer(self.line, self.token, kind, detail)
        os.close(self.line.fd)

    def _stamp(self) -> str:
        """The members of a ``Stamp``, now."""
        return f'"boot":{quote(self.line.boot)},"ticks":{clock():.6f},"wall":{time.time():.6f}'


def _become(launch: dict[str, Any], output: int, path: str, told: int, keeper: int) -> NoReturn:
    """In the fork of a keeper: be the command, bound as ``launch`` wants it, or tell the keeper why not."""
    step = "memory"
    limit = 0 if path else (launch.get("memory") or {}).get("limit")
    user = launch.get("user")
    try:
        os.setsid()
        os.dup2(output, 1)
        os.dup2(output, 2)
        for number in _RESET:
            signals.signal(number, signals.SIG_DFL)
        if path:
            cgroup.enter(path)
        elif limit:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        step = "limits"
        _limit(launch)
        step = "user"
        if user:
            _be_user(user)
        if launch.get("closed") and not no_new_privileges():
            raise OSError(errno.EPERM, "")
        if launch.get("lease"):
            die_with_parent()  # another user's process, from its first moment as such, would forget it
            if os.getppid() != keeper:
                os._exit(127)  # it died before that
        if user:
            step = "source"
            if launch.get("source"):
                os.close(os.open(launch["source"], os.O_RDONLY))
            step = "chdir"  # what the user may not enter is not entered for it
            os.chdir(launch["cwd"])
        step = "exec"
        signals.pthread_sigmask(signals.SIG_SETMASK, ())
        os.execve(launch["program"], launch["argv"], launch["env"])  # nosec B606 # a list of words, no shell: that is the point
    except MemoryError:
        code = errno.ENOMEM
    except OSError as exc:
        code = exc.errno or errno.EIO
    except BaseException:
        code = errno.EINVAL
    if limit and code == errno.ENOMEM:
        step, code = "limit", errno.EFBIG  # not of the moment: the limit stays as it is
    os.write(told, f"{step} {code}".encode())
    os._exit(127)


def _limit(launch: dict[str, Any]) -> None:
    for name, value in (launch.get("limits") or {}).items():
        number = getattr(resource, f"RLIMIT_{name.upper()}")
        try:
            resource.setrlimit(number, (value, value))
        except ValueError:  # more than the agent has itself, and may not give
            hard = resource.getrlimit(number)[1]
            resource.setrlimit(number, (hard, hard))
    if launch.get("umask") is not None:
        os.umask(launch["umask"])


def _be_user(user: dict[str, Any]) -> None:
    """Become another user for good. Groups come first: whoever is not the agent any more cannot change them."""
    os.setgroups(user["groups"])
    os.setresgid(user["gid"], user["gid"], user["gid"])
    os.setresuid(user["uid"], user["uid"], user["uid"])


def _open_unnoted(path: str) -> int:
    """Open for reading, if possible without the disk having to note when (O_NOATIME is for a file's owner)."""
    flags = os.O_RDONLY | os.O_CLOEXEC
    try:
        return os.open(path, flags | getattr(os, "O_NOATIME", 0))
    except PermissionError:
        return os.open(path, flags)


def _next_signal(until: float | None) -> int:
    """Wait for a signal; SIGALRM at that moment of the clock. (macOS has no sigtimedwait.)"""
    if until is not None:
        alarm_at(until)
    return signals.sigwait(_AWAITED)


def _hurry() -> None:
    """Go before what is to be killed, where that is allowed; a fork bomb leaves little time to others."""
    try:  # noqa: SIM105
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    except OSError:
        pass


def _send(pid: int, number: int) -> bool:
    """Send a signal; False only if that is forbidden."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
    except PermissionError:
        return False
    return True


def _send_group(group: int, number: int) -> None:
    try:  # noqa: SIM105
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        pass


def _settled(path: str) -> str | None:
    """The record of another keeper once it tells what came of the launch, its lines separated by tabs.

    None if it was taken back. If that keeper is dead, what it left is the answer.
    """
    while True:
        lines = _read_lines(path)
        if lines is None:
            return None
        if len(lines) < 2 and _first_keeper_runs(lines):
            time.sleep(0.001)
            continue
        # It may have written its last line, or taken the record back, just before it ended.
        final = lines if len(lines) >= 2 else _read_lines(path)
        return None if final is None else "\t".join(final)


def _first_keeper_runs(lines: list[str]) -> bool:
    try:
        first = decode_json(lines[0])
        return procfs.is_running(first["pid"], first["start"])
    except (ValueError, IndexError, KeyError, TypeError):
        return False  # a record is linked into place with its first line; this is the wreck of one


def _read_lines(path: str) -> list[str] | None:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().split("\n")[:-1]
    except FileNotFoundError:
        return None
