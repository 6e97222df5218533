"""Programs that the agent runs for its own purposes (git, uv): their output, their time, their end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

#: Bytes of output that are kept of a program, from its end.
KEPT = 64 * 1024


class TooLong(Exception):
    """A program did not end in its time, and was ended."""


@dataclass(frozen=True)
class Done:
    """A program that has ended.

    Attributes:
        code: its exit code; negative: the signal that ended it.
        out: its output.
        err: the end of what it said on stderr.
    """

    code: int
    out: str
    err: str


async def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    limit: float,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
    on_line: Callable[[str], None] | None = None,
    on_output: Callable[[bytes], None] | None = None,
) -> Done:
    """Run a program to its end. It has no terminal and no input. Cancelled, it is ended with all its children.

    Args:
        env: its whole environment.
        limit: seconds.
        on_line: called with each line on stderr.
        on_output: called with each piece of its output; what it raises ends the program, and is raised here.

    Raises:
        TooLong: it took longer than that.
        FileNotFoundError: there is no such program.
    """
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(env),
        cwd=cwd,
        pass_fds=pass_fds,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(limit):
            out, err = await asyncio.gather(
                _read(process.stdout, None, on_output),
                _read(process.stderr, on_line),
                return_exceptions=False,
            )
            code = await process.wait()
    except TimeoutError as exc:
        raise TooLong(f"{os.path.basename(argv[0])} did not end within {limit:g} seconds") from exc
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await asyncio.shield(process.wait())
    return Done(code, out, err)


async def _read(
    stream: asyncio.StreamReader,
    on_line: Callable[[str], None] | None,
    on_piece: Callable[[bytes], None] | None = None,
) -> str:
    kept, rest = bytearray(), b""
    while data := await stream.read(16 * 1024):
        if on_piece is not None:
            on_piece(data)
        kept += data
        del kept[:-KEPT]
        if on_line is not None:
            # Progress is drawn over and over on one line.
            *lines, rest = (rest + data).replace(b"\r", b"\n").split(b"\n")
            for line in lines:
                on_line(line.decode("utf-8", "replace"))
            rest = rest[-KEPT:]
    if on_line is not None and rest:
        on_line(rest.decode("utf-8", "replace"))
    return kept.decode("utf-8", "replace")
