"""The token that a client shows with each request: one that stays, or one that is read anew when it changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from shunter_work_pools.contracts.errors import InvalidInput

#: Gives the token to be shown now; None: there is none.
Bearer = Callable[[], str | None]


def staying(token: str | None) -> Bearer:
    """A token that stays what it is."""
    return lambda: token


class TokenFile:
    """A token in a file that others replace, as Kubernetes does with those of service accounts.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, ...] | None = None
        self._token = ""  # nosec B105 # none yet

    def __call__(self) -> str:
        """The token that is in it now.

        Raises:
            InvalidInput: it was never there.
        """
        try:
            about = self._path.stat()
            seen = (about.st_ino, about.st_mtime_ns, about.st_size)
            if seen != self._seen:
                token = self._path.read_text("ascii").strip()
                if token:  # one that is just being written holds nothing yet
                    self._token, self._seen = token, seen
        except (OSError, UnicodeDecodeError) as exc:
            if not self._token:
                raise InvalidInput(
                    f"the token file {self._path} (token_file) cannot be read: {exc}",
                    "Set SHUNTER_TOKEN_FILE to a file that holds a token.",
                ) from exc
        if not self._token:
            raise InvalidInput(f"the token file {self._path} (token_file) is empty")
        return self._token
