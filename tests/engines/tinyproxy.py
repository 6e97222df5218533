"""A real forward proxy, in a folder of its own, as a process of the tests."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.patience import SOON

_CONF = """
Port {port}
Listen {address}
Timeout 600
LogFile "{folder}/log"
LogLevel Info
PidFile "{folder}/pid"
MaxClients 100
ViaProxyName "proxy.test"
{more}
"""


def program() -> str | None:
    """The program, if it is there."""
    return shutil.which("tinyproxy") or shutil.which("tinyproxy", path="/usr/sbin:/usr/local/sbin")


@dataclass
class Tinyproxy:
    """One that runs."""

    folder: Path
    process: subprocess.Popen[bytes]

    def said(self) -> str:
        """Its log."""
        log = self.folder / "log"
        return log.read_text("utf-8", "replace") if log.exists() else ""


@contextlib.contextmanager
def tinyproxy(
    folder: Path, address: str, port: int, more: str = "", prefix: Sequence[str] = ()
) -> Iterator[Tinyproxy]:
    """One that listens, ended with the block.

    Args:
        more: further lines of its configuration.
        prefix: words before its command.
    """
    folder.mkdir(parents=True, exist_ok=True)
    conf = folder / "tinyproxy.conf"
    conf.write_text(_CONF.format(port=port, address=address, folder=folder, more=more))
    found = program()
    assert found is not None
    words = [*prefix, found, "-d", "-c", str(conf)]
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    one = Tinyproxy(folder, process)
    try:
        deadline = time.monotonic() + SOON
        while "Accepting connections" not in one.said():
            assert process.poll() is None, (folder / "output").read_text() + one.said()
            assert time.monotonic() < deadline, one.said()
            time.sleep(0.02)
        yield one
    finally:
        process.terminate()
        process.wait(SOON)
