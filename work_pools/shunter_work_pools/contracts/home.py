"""Where things live on a machine: database, token, logs and agents' state.

With ``SHUNTER_HOME`` set, everything is below it. Without, the XDG base directories are used
(https://specifications.freedesktop.org/basedir-spec/latest/): configuration (the token, config.toml) in
``$XDG_CONFIG_HOME/shunter``, data (database, logs) in ``$XDG_DATA_HOME/shunter``, agents' state in
``$XDG_STATE_HOME/shunter``.
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

    @property
    def config_file(self) -> Path:
        """The file of profiles and their settings."""
        return self.config / "config.toml"

    @property
    def token_file(self) -> Path:
        """The file that holds the server's token, mode 0600."""
        return self.config / "token"

    @property
    def database_file(self) -> Path:
        """The embedded SQLite database."""
        return self.data / "shunter.db"

    @property
    def logs(self) -> Path:
        """The folder of the file LogStore."""
        return self.data / "logs"

    @property
    def agents(self) -> Path:
        """The folder that holds one state folder per agent name."""
        return self.state / "agents"


def home_from_env() -> Home:
    """The folders by ``SHUNTER_HOME``, else by XDG, else its defaults."""
    root = os.environ.get("SHUNTER_HOME")
    if root:
        base = Path(root).expanduser().absolute()
        return Home(base, base, base)

    def xdg(variable: str, default: str) -> Path:
        return Path(os.environ.get(variable) or Path.home() / default) / "shunter"

    return Home(
        config=xdg("XDG_CONFIG_HOME", ".config"),
        data=xdg("XDG_DATA_HOME", ".local/share"),
        state=xdg("XDG_STATE_HOME", ".local/state"),
    )


def stored_token(home: Home) -> str | None:
    """The token of the token file, None if there is none.

    Raises:
        InvalidInput: the file is there but cannot be read.
    """
    try:
        return home.token_file.read_text("ascii").strip() or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidInput(
            f"the token file {home.token_file} cannot be read: {exc}",
            "Run as the user who started the server, or set SHUNTER_TOKEN.",
        ) from exc


def ensure_token(home: Home) -> str:
    """The stored token, made with mode 0600 if there is none yet; safe against two servers starting at once.

    Raises:
        InvalidInput: the folder cannot be written.
    """
    import secrets  # 7 ms that only the server's first start has to take

    token = stored_token(home)
    if token:
        return token
    try:
        home.config.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = home.token_file.with_name(f"token.{os.getpid()}")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
        try:
            os.link(draft, home.token_file)  # the first of two wins, the other reads what it wrote
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    except OSError as exc:
        raise InvalidInput(
            f"the folder {home.config} cannot be written: {exc}",
            "Set SHUNTER_HOME to a folder of your own, or free space there.",
        ) from exc
    token = stored_token(home)
    if token is None:
        raise InvalidInput(f"the token file {home.token_file} is empty", "Delete it and start again.")
    return token
