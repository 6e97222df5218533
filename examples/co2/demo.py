"""The demonstration behind ``make demo``: a real server, a real agent, a real data set.

It does what a person would: it starts a server and an agent, deploys the pipeline of this folder, waits
for its runs, and looks at what became of them. Every command is shown as it is typed. Everything lives
in ``.demo`` (``SHUNTER_HOME``), all processes are stopped at the end, and the end comes within two
minutes.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
PIPELINE = "examples/co2/pipeline.py"
#: Seconds. Then the demonstration stops itself, whatever it waits for.
LONGEST = 110
#: Seconds between two reports.
INTERVAL = 20
MARK = "made-by-make-demo"


class Told(Exception):
    """The demonstration cannot go on; the message says why and what to do."""


class Demo:
    """One demonstration in one home folder."""

    def __init__(self, home: Path, port: int) -> None:
        self.home, self.port = home, port
        self.out, self.site = home / "co2", home / "site"
        self.daemons: list[subprocess.Popen[bytes]] = []
        self.env = {key: value for key, value in os.environ.items() if not key.startswith("SHUNTER_")}
        self.env |= {"SHUNTER_HOME": str(home), "SHUNTER_API_URL": f"http://127.0.0.1:{port}/api"}

    def play(self) -> None:
        """The whole story."""
        say("A server, a work pool, and an agent that serves it")
        print(f"$ export SHUNTER_HOME={self.home} SHUNTER_API_URL=http://127.0.0.1:{self.port}/api")
        self.daemon("server", "start", "--port", str(self.port))
        self.wait_for_server()
        self.shunter("pool", "create", "default", "--type", "process")
        self.daemon("agent", "start", "--pool", "default", "--name", "demo", "--limit", "4")
        self.wait_for_agent()
        self.shunter("agent", "list")

        say("Publishing begins before there is a report: it fails, and its retry policy tries again")
        folders = ("-p", f"out={self.out}", "-p", f"site={self.site}")
        common = ("--pool", "default", "--tag", "co2")
        retry = ("--retries", "40", "--retry-delay", "3s")
        self.shunter("deploy", f"{PIPELINE}:publish", "--name", "co2-publish", *common, *folders, *retry)
        publishing = self.start("co2-publish")

        say(f"The report: now, and from now on every {INTERVAL} seconds")
        every = ("--interval", f"{INTERVAL}s", "-p", f"out={self.out}", "-p", "horizon=24")
        self.shunter("deploy", f"{PIPELINE}:main", "--name", "co2-report", *common, *every)
        self.shunter("run", "wait", self.start("co2-report"), "--timeout", "60")
        self.shunter("run", "wait", publishing, "--timeout", "30")

        say("The first run that the schedule makes")
        scheduled = self.scheduled_run("co2-report")
        self.shunter("run", "wait", scheduled, "--timeout", "60")

        say("Its tasks: what followed what, and what it left to look at")
        self.shunter("run", "graph", scheduled)
        self.shunter("run", "artifacts", scheduled, "growth")

        say("What became of them")
        self.shunter("run", "list", "--tag", "co2")
        self.shunter("run", "inspect", publishing)
        self.shunter("run", "logs", scheduled)

    def start(self, deployment: str) -> str:
        """The id of a new run."""
        made = self.shunter("run", "start", deployment, "--output", "json", quiet=True)
        return str(json.loads(made)["id"])

    def scheduled_run(self, deployment: str) -> str:
        """The id of the first run that the scheduler made of a deployment, as soon as there is one."""
        command = ("run", "list", "--deployment", deployment, "--output", "json")
        self.show(*command)
        while True:
            runs = rows(json.loads(self.shunter(*command, quiet=True, shown=False)))
            made = [run for run in runs if run["slot"]]
            if made:
                print(f"run {made[-1]['id']} is of the slot {made[-1]['slot']}")
                return str(made[-1]["id"])
            time.sleep(0.5)

    def shunter(self, *arguments: str, quiet: bool = False, shown: bool = True) -> str:
        """Run the command line to its end, as a person would.

        Args:
            arguments: its words.
            quiet: return what it prints instead of showing it.
            shown: show the command itself.

        Raises:
            Told: it did not exit with 0.
        """
        if shown:
            self.show(*arguments)
        done = subprocess.run(
            [*program(), *arguments],
            cwd=ROOT,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if quiet else None,
            text=True,
            check=False,
        )
        if quiet and shown:
            print(done.stdout, end="", flush=True)
        if done.returncode:
            raise Told(
                f"`shunter {shlex.join(arguments)}` ended with exit code {done.returncode}; {self.logs()}"
            )
        return done.stdout or ""

    def show(self, *arguments: str, behind: str = "") -> None:
        """The command as it is typed."""
        print(f"$ shunter {shlex.join(arguments)}{behind}", flush=True)

    def daemon(self, *arguments: str) -> None:
        """Start the server or the agent in the background."""
        self.show(*arguments, behind=" &")
        with open(self.home / f"{arguments[0]}.log", "ab") as log:
            self.daemons.append(
                subprocess.Popen(
                    [*program(), *arguments],
                    cwd=ROOT,
                    env=self.env,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C comes to us alone; we stop them in order
                )
            )

    def wait_for_server(self) -> None:
        """Until it answers.

        Raises:
            Told: it ended instead.
        """
        while True:
            if self.daemons[0].poll() is not None:
                raise Told(f"the server did not start; {self.logs()}")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5):
                    return
            except OSError:
                time.sleep(0.1)

    def wait_for_agent(self) -> None:
        """Until the server has heard of it.

        Raises:
            Told: it ended instead.
        """
        while "demo" not in self.shunter("agent", "list", "--quiet", quiet=True, shown=False).split():
            if self.daemons[1].poll() is not None:
                raise Told(f"the agent did not start; {self.logs()}")
            time.sleep(0.1)

    def logs(self) -> str:
        """Where to look."""
        return f"see {self.home / 'server.log'} and {self.home / 'agent.log'}"

    def stop(self) -> None:
        """The agent, then the server; then nothing of this home is left."""
        for daemon in reversed(self.daemons):
            # Asked once the agent lets runs finish, asked again it cancels them.
            for ask in (daemon.terminate, daemon.terminate, daemon.kill):
                ask()
                try:
                    daemon.wait(15)
                    break
                except subprocess.TimeoutExpired:
                    continue
        until = time.monotonic() + 5
        while processes_of(self.home) and time.monotonic() < until:
            time.sleep(0.1)
        for pid in processes_of(self.home):
            print(f"process {pid} was left over and is killed", flush=True)
            os.kill(pid, signal.SIGKILL)


def program() -> list[str]:
    """The command ``shunter`` of this environment."""
    script = Path(sys.executable).with_name("shunter")
    return [str(script)] if script.exists() else [sys.executable, "-m", "shunter_cli.main"]


def rows(listing: Any) -> list[dict[str, Any]]:
    """The runs of ``run list --output json``."""
    return list(listing["runs"] if isinstance(listing, dict) else listing)


def processes_of(home: Path) -> list[int]:
    """Processes whose SHUNTER_HOME is ``home``, typed in full or not (Linux; elsewhere none is found)."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            variables = (process / "environ").read_bytes().split(b"\0")
            named = [os.fsdecode(one[13:]) for one in variables if one.startswith(b"SHUNTER_HOME=")]
            if named and (process / "cwd").readlink() / named[0] == home:
                found.append(int(process.name))
        except OSError:  # it ended, or is another user's
            continue
    return [pid for pid in found if pid != os.getpid()]


def choose_port() -> int:
    """4400 if it is free, so that the printed lines need no more words; else any."""
    for port in (4400, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise Told("no port of 127.0.0.1 can be listened on")


def fresh(home: Path) -> None:
    """An empty home; what an earlier demonstration left there is removed.

    Raises:
        Told: something runs in it, or it is not ours to remove.
    """
    if home.exists():
        if running := processes_of(home):
            raise Told(f"something still runs in {home} (process {running[0]}): stop it first, with Ctrl-C")
        if any(home.iterdir()) and not (home / MARK).exists():
            raise Told(f"{home} was not made by this demonstration: move it away first")
        shutil.rmtree(home)
    home.mkdir(parents=True, mode=0o700)
    (home / MARK).touch()


def near(path: Path) -> Path:
    """As one would type it here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def say(text: str) -> None:
    """A heading."""
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    print(f"\n{bold}== {text}{plain}", flush=True)


def farewell(demo: Demo) -> None:
    """Where the result lies, and how to go on."""
    home, (shunter, *words) = near(demo.home), program()
    command = shlex.join([str(near(Path(shunter))), *words])
    say("Done; server and agent are stopped")
    print(f"The report, with its plot:  {demo.out / 'report.html'}")
    print(f"as it was published:        {demo.site / 'index.html'}")
    print(f"To go on playing:           SHUNTER_HOME={home} {command} up")
    print(f"                            (the report is made anew every {INTERVAL} seconds; Ctrl-C ends it)")


def _interrupt(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGALRM:
        raise Told(f"not finished within {LONGEST} seconds: is this machine very busy?")
    raise KeyboardInterrupt


def main(arguments: Iterable[str] = ()) -> int:
    """Play the demonstration; an argument names another home than ``.demo``."""
    home = Path(next(iter(arguments), ROOT / ".demo")).absolute()
    demo: Demo | None = None
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGALRM, _interrupt)
    signal.alarm(LONGEST)
    try:
        fresh(home)
        demo = Demo(home, choose_port())
        demo.play()
        code = 0
    except Told as told:
        print(f"\nThe demonstration stopped: {told}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        code = 130
    finally:
        signal.alarm(0)
        if demo is not None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # cleaning up is not interrupted
            print("\nstopping agent and server", flush=True)
            demo.stop()
    if code == 0 and demo is not None:
        farewell(demo)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
