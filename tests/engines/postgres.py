"""A real Postgres for tests: a throw-away cluster on a loopback port, gone at the end.

The binaries are those on PATH, else the newest of Debian's ``/usr/lib/postgresql``. Durability is off
(the cluster does not outlive the tests), everything else is as it comes.
"""

from __future__ import annotations

import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.engines.packages import install_debian
from tests.patience import SOON

SUPERUSER = "shunter"
_FAST = ["fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=200"]


def find_binaries() -> Path | None:
    """The folder with ``initdb`` and ``postgres``, or None."""
    on_path = shutil.which("initdb")
    folders = [Path(on_path).resolve().parent] if on_path else []
    folders += sorted(
        Path("/usr/lib/postgresql").glob("*/bin"),
        key=lambda folder: [int(part) for part in re.findall(r"\d+", folder.parent.name)],
        reverse=True,
    )
    needed = ("initdb", "postgres", "createdb", "dropdb")
    return next((folder for folder in folders if all((folder / name).exists() for name in needed)), None)


def install() -> None:
    """Install Debian's Postgres, without the cluster that the package would set up and start.

    Raises:
        RuntimeError: not root, or not Debian or Ubuntu.
        subprocess.CalledProcessError: apt-get failed.
    """
    if os.geteuid() != 0:
        raise RuntimeError("installing Postgres needs root on Debian or Ubuntu")
    config = Path("/etc/postgresql-common/createcluster.conf")
    if not config.exists():
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text("create_main_cluster = false\n")
    install_debian("postgresql")


class PostgresCluster:
    """One running cluster. Databases are cheap: make one for each test.

    Attributes:
        host, port, password: how to reach it over TCP as ``SUPERUSER``.
    """

    host = "127.0.0.1"

    def __init__(self, binaries: Path) -> None:
        self.binaries = binaries
        self.password = secrets.token_urlsafe(12)
        self.port = 0
        # Not below pytest's own folder: that is closed to the user the server must run as.
        self.folder = Path(tempfile.mkdtemp(prefix="shunter-postgres-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = self._unprivileged()

    def url(self, database: str = "postgres") -> str:
        """The SQLAlchemy URL (asyncpg) of one of its databases."""
        return f"postgresql+asyncpg://{SUPERUSER}:{self.password}@{self.host}:{self.port}/{database}"

    @contextmanager
    def database(self) -> Iterator[str]:
        """A fresh, empty database; gives its URL and drops it at the end, connections or not."""
        name = f"test_{secrets.token_hex(6)}"
        self._client("createdb", name)
        try:
            yield self.url(name)
        finally:
            self._client("dropdb", "--force", name)

    def start(self) -> None:
        """Make the cluster and wait until it answers.

        Raises:
            RuntimeError: it does not start; the message has its log.
        """
        password_file = self.folder / "password"
        password_file.write_text(self.password)
        if self._owner:
            os.chown(self.folder, self._owner.pw_uid, self._owner.pw_gid)
            os.chown(password_file, self._owner.pw_uid, self._owner.pw_gid)
        self._run_as_owner(
            "initdb",
            *("-D", str(self.data), "-U", SUPERUSER, "--no-sync", "-E", "UTF8", "--locale=C"),
            *("--auth-local=trust", "--auth-host=password", f"--pwfile={password_file}"),
        )
        for _ in range(5):  # the free port may be taken by another before Postgres binds it
            if self._try_start():
                return
        raise RuntimeError(f"Postgres does not start: {self._log()}")

    def stop(self) -> None:
        """End the server (by its pid) and delete the cluster."""
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)  # "fast": does not wait for connections
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.send_signal(signal.SIGQUIT)
                self._process.wait(SOON)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def data(self) -> Path:
        """The cluster's data folder."""
        return self.folder / "data"

    def _try_start(self) -> bool:
        with socket.socket() as probe:
            probe.bind((self.host, 0))
            self.port = probe.getsockname()[1]
        settings = [part for setting in _FAST for part in ("-c", setting)]
        self._process = self._spawn(
            "postgres",
            *("-D", str(self.data), "-h", self.host, "-p", str(self.port), "-k", str(self.folder)),
            *settings,
        )
        deadline = time.monotonic() + SOON
        while self._process.poll() is None and time.monotonic() < deadline:
            ready = subprocess.run(
                [self.binaries / "pg_isready", "-q", "-h", self.host, "-p", str(self.port), "-d", "postgres"],
                check=False,
            )
            if ready.returncode == 0:
                return True
            time.sleep(0.05)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        return False

    def _client(self, program: str, *arguments: str) -> None:
        env = os.environ | {"PGPASSWORD": self.password}
        subprocess.run(
            [self.binaries / program, "-h", self.host, "-p", str(self.port), "-U", SUPERUSER, *arguments],
            check=True,
            env=env,
            stdin=subprocess.DEVNULL,
        )

    def _run_as_owner(self, program: str, *arguments: str) -> None:
        process = self._spawn(program, *arguments)
        if process.wait(SOON) != 0:
            raise RuntimeError(f"{program} failed: {self._log()}")

    def _spawn(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        identity = (
            {"user": self._owner.pw_uid, "group": self._owner.pw_gid, "extra_groups": []}
            if self._owner
            else {}
        )
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [str(self.binaries / program), *arguments],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"LC_ALL": "C"},
                start_new_session=True,  # Ctrl-C is for the tests; they stop it in order
                **identity,
            )

    def _log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-4000:]

    @staticmethod
    def _unprivileged() -> pwd.struct_passwd | None:
        """Postgres refuses to run as root."""
        if os.geteuid() != 0:
            return None
        names = {entry.pw_name: entry for entry in pwd.getpwall()}
        return names.get("postgres") or names["nobody"]
