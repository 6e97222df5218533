"""All pods of runs that a namespace ever had while somebody looked, also those that are gone since."""

from __future__ import annotations

import subprocess
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from tests.helm.releases import Place

_EACH = r'{.metadata.labels.shunter\.dev/run}{" "}{.metadata.uid}{" "}{.status.containerStatuses[0].restartCount}{"\n"}'


class PodsSeen:
    """What a watch of the API server said."""

    def __init__(self) -> None:
        self._uids: defaultdict[str, set[str]] = defaultdict(set)
        self.restarted: set[str] = set()

    def of(self, run: str) -> set[str]:
        """The uids of all pods that a run had."""
        return self._uids[run]

    def hear(self, line: str) -> None:
        run, uid, restarts = [*line.split(), "0"][:3]
        self._uids[run].add(uid)
        if restarts != "0":
            self.restarted.add(run)


@contextmanager
def pods_seen(place: Place) -> Iterator[PodsSeen]:
    """Look, from before the first pod until the end."""
    words = ["get", "pods", "--watch", "-l", "shunter.dev/run", f"--output=jsonpath={_EACH}"]
    watching = subprocess.Popen(
        [str(place.terminal.bin / "kubectl"), "-n", place.namespace, *words],
        env=place.terminal.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    seen = PodsSeen()

    def read() -> None:
        assert watching.stdout is not None
        for line in watching.stdout:
            seen.hear(line)

    reading = threading.Thread(target=read)
    reading.start()
    try:
        yield seen
        assert watching.poll() is None, "the watch of pods ended before the test"
    finally:
        watching.kill()
        reading.join()
        watching.wait()
