"""The forker: ``python -I -S forker.py FD``. It forks a keeper for each attempt, and does nothing else.

Starting an interpreter takes ten milliseconds, forking a small one that is ready takes half of one. The
forker lives as long as its agent: it ends when the other end of the socket closes, after all that was
sent. Keepers do not notice.

Messages, one per line in both directions: the agent sends ``[TOKEN, FOLDER]``, and with it a descriptor of the
launch's secrets if it has any (``hidden``), which only the keeper reads; each keeper answers
``TOKEN<tab>KIND<tab>DETAIL`` (see :func:`shunter_infrastructure.process.keeper.keep`). The forker itself
says ``0<tab>ready<tab>`` once.
"""

from __future__ import annotations

import gc
import os
import sys


def serve(fd: int) -> None:
    """Fork a keeper for each message, until the agent is gone."""
    from shunter_infrastructure.process.keeper import Line, answer, keep
    from shunter_infrastructure.process.lean import Channel, decode_json, keep_capabilities, quote, signals

    # Nothing but SIGKILL ends it before the agent goes; what is blocked here is blocked in keepers, which
    # wait for signals instead of being interrupted by them.
    signals.pthread_sigmask(signals.SIG_BLOCK, signals.valid_signals())
    signals.signal(signals.SIGCHLD, signals.SIG_IGN)  # the kernel reaps ended keepers
    keep_capabilities()
    line = Line(fd)
    gc.collect()
    gc.freeze()  # pages of the image stay shared with the keepers
    gc.disable()
    answer(line, 0, "ready")
    os.dup2(0, 2)  # /dev/null: whoever reads the agent's stderr must not wait for keepers
    channel = Channel(fd)
    pending = b""
    while True:
        received, hidden = channel.receive(65536)
        if not received:
            return
        *messages, pending = (pending + received).split(b"\n")
        for message in messages:
            token, folder = decode_json(message.decode())
            try:
                pid = os.fork()
            except OSError as exc:
                answer(line, token, "refused", quote(f"no process could be forked: {exc.strerror}"))
                continue
            if pid == 0:
                keep(line, token, folder, hidden)  # never returns
        if hidden >= 0:
            os.close(hidden)


if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    # Last, so that nothing beside the package can take the place of the standard library.
    sys.path.append(os.path.dirname(os.path.dirname(here)))
    socket = int(sys.argv[1])
    os.set_inheritable(socket, False)
    serve(socket)
