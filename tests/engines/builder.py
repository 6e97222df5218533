"""What builds images here: a Docker engine that is there, else one of the tests' own, else podman or buildah."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.engines import docker

#: How each takes an archive in (as ``docker save`` writes it), and gives one out.
_WORDS = {
    "docker": ("load --quiet --input {archive}", "save --output {archive} {image}"),
    "podman": ("load --quiet --input {archive}", "save --output {archive} {image}"),
    "buildah": (
        "pull --quiet docker-archive:{archive}",
        "push --quiet {image} docker-archive:{archive}:{image}",
    ),
}


class CannotBuild(RuntimeError):
    """This machine cannot build images as it is; the message says what to do."""


class Builder:
    """An engine, by its command line.

    Args:
        program: docker, podman or buildah.
        url: of the Docker engine; None: the usual one.
    """

    def __init__(self, program: str, url: str | None = None) -> None:
        self.program = program
        self._env = os.environ | ({"DOCKER_HOST": url} if url else {})

    def works(self) -> bool:
        """Whether it is there and answers."""
        return shutil.which(self.program) is not None and self._says("info")

    def build(self, folder: Path, target: str, image: str, arguments: Mapping[str, str]) -> None:
        """Build a target of ``images/Containerfile`` in ``folder``.

        Raises:
            subprocess.CalledProcessError: it cannot; what was said is on stderr.
        """
        words = ["build", "--network=host", f"--file={folder}/images/Containerfile", f"--target={target}"]
        words += [f"--build-arg={key}={value}" for key, value in arguments.items()]
        if self.program != "docker":
            words.append("--format=docker")  # OCI's format has no health checks
        elif not self._says("buildx", "version"):
            self._env["DOCKER_BUILDKIT"] = "0"  # newer ones build by buildx alone, unless told otherwise
        self._do(*words, f"--tag={image}", str(folder))

    def load(self, archive: Path) -> None:
        """Have the images of an archive."""
        self._do(*_WORDS[self.program][0].format(archive=archive).split())

    def save(self, image: str, archive: Path) -> None:
        """Write the archive of an image."""
        self._do(*_WORDS[self.program][1].format(archive=archive, image=image).split())

    def forget(self) -> None:
        """Remove what no build of the last days has used."""
        self._do("image", "prune", "--force", "--filter=until=72h")

    def _says(self, *words: str) -> bool:
        done = subprocess.run(
            [self.program, *words], check=False, env=self._env, stdin=subprocess.DEVNULL, capture_output=True
        )
        return done.returncode == 0

    def _do(self, *words: str) -> None:
        # To stderr: what a command of ours prints on stdout may be read by a program.
        subprocess.run([self.program, *words], check=True, env=self._env, stdin=subprocess.DEVNULL, stdout=2)


def found() -> Builder | None:
    """An engine that is there already. Docker comes first; it has to run."""
    return next((one for one in map(Builder, _WORDS) if one.works()), None)


@contextmanager
def one(kept: Path, *, install: bool) -> Iterator[Builder]:
    """A Docker engine that is there, else one that ends with this, else what else there is.

    Args:
        kept: where one of the tests' own has what it built before; for one of them at a time.
        install: Docker may be installed for that.

    Raises:
        CannotBuild: there is none, and none can be started.
    """
    there = found()
    if (there and there.program == "docker") or not (docker.can_start() or install):
        if there is None:
            raise CannotBuild(
                "no engine to build images with: start Docker, or install podman or buildah; root can also have "
                "dockerd started for this alone (Debian's docker.io; SHUNTER_TEST_INSTALL=1 installs it)"
            )
        yield there
        return
    if not docker.can_start():
        docker.install()
    daemon = docker.Daemon(kept)
    try:
        daemon.start()
        engine = Builder("docker", daemon.url)
        yield engine
        engine.forget()
    finally:
        daemon.remove()
