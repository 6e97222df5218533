"""Where things live on a machine: database, token, logs and agents' state.

With ``SHUNTER_HOME`` set, everything is below it. Without, the XDG base directories are used
(https://specifications.freedesktop.org/basedir-spec/latest/): configuration (the token, config.toml) in
``$XDG_CONFIG_HOME/shunter``, data (database, logs) in ``$XDG_DATA_HOME/shunter``, agents' state in
``$XDG_STATE_HOME/shunter``, and what agents fetch and build for runs in ``$XDG_CACHE_HOME/shunter``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from shunter_work_pools.contracts.errors import InvalidInput


@dataclass(frozen=True)
class Home:
    """The folders of one user's Shunter. None needs to exist yet."""

    config: Path
    data: Path
    state: Path
    cache: Path

    @property
    def config_file(self) -> Path:
        """The file of profiles and their settings."""
        return self.config / "config.toml"

    @property
    def token_file(self) -> Path:
        """The file that holds the server's token, mode 0600."""
        return self.config / "token"

    @property
    def secret_key_file(self) -> Path:
        """The file that holds the server's secret keys, newest first, mode 0600."""
        return self.config / "secret_key"

    @property
    def database_file(self) -> Path:
        """The embedded SQLite database."""
        return self.data / "shunter.db"

    @property
    def logs(self) -> Path:
        """The folder of the file LogStore."""
        return self.data / "logs"

    @property
    def results(self) -> Path:
        """The folder of the results of tasks that are too large for the database."""
        return self.data / "results"

    @property
    def agents(self) -> Path:
        """The folder that holds one state folder per agent name."""
        return self.state / "agents"


def home_from_env() -> Home:
    """The folders by ``SHUNTER_HOME``, else by XDG, else its defaults."""
    root = os.environ.get("SHUNTER_HOME")
    if root:
        base = Path(root).expanduser().absolute()
        return Home(base, base, base, base / "cache")

    def xdg(variable: str, default: str) -> Path:
        return Path(os.environ.get(variable) or Path.home() / default) / "shunter"

    return Home(
        config=xdg("XDG_CONFIG_HOME", ".config"),
        data=xdg("XDG_DATA_HOME", ".local/share"),
        state=xdg("XDG_STATE_HOME", ".local/state"),
        cache=xdg("XDG_CACHE_HOME", ".cache"),
    )


def stored_token(home: Home) -> str | None:
    """The token of the token file, None if there is none.

    Raises:
        InvalidInput: the file is there but cannot be read.
    """
    return _stored(home.token_file, "token", "Run as the user who started the server, or set SHUNTER_TOKEN.")


def ensure_token(home: Home) -> str:
    """The stored token, made with mode 0600 if there is none yet; safe against two servers starting at once.

    Raises:
        InvalidInput: the folder cannot be written.
    """
    return ensure_secret(home.token_file, "token")


def ensure_secret(path: Path, what: str) -> str:
    """What a file of one secret says; made with mode 0600, by chance, if there is none yet.

    Safe against two servers that start at once.

    Args:
        path: the file.
        what: it holds, in words.

    Raises:
        InvalidInput: the file cannot be read, its folder not be written.
    """
    import secrets  # 7 ms that only the server's first start has to take

    found = _stored(path, what, "Run as the user who started the server first.")
    if found:
        return found
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
        try:
            os.link(draft, path)  # the first of two wins, the other reads what it wrote
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    except OSError as exc:
        raise InvalidInput(
            f"the folder {path.parent} cannot be written: {exc}",
            "Set SHUNTER_HOME to a folder of your own, or free space there.",
        ) from exc
    found = _stored(path, what, "")
    if found is None:
        raise InvalidInput(f"the {what} file {path} is empty", "Delete it and start again.")
    return found


def _stored(path: Path, what: str, remedy: str) -> str | None:
    try:
        return path.read_text("ascii").strip() or None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidInput(f"the {what} file {path} cannot be read: {exc}", remedy) from exc
