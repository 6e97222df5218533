"""The configuration file: profiles, each a table of settings.

    profile = "work"                     # the one in use; else "default", if there is one

    [profiles.work]
    api_url = "https://shunter.example/api"
    server.late_after = "30s"

The whole file is checked, also the profiles that are not in use: a mistake is told when it is made.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shunter_work_pools.contracts.errors import InvalidInput
from shunter_work_pools.contracts.settings import SETTINGS, Setting

#: Used where none is chosen.
DEFAULT_PROFILE = "default"
_EDIT = "Correct the file in an editor, or move it away."
#: Bytes of a file that is still one of settings.
_LARGEST = 1_000_000


@dataclass(frozen=True)
class Profiles:
    """What the file says, checked.

    Attributes:
        path: the file.
        chosen: the profile it says is in use; None: it does not say.
        tables: profile -> name of a setting -> its value.
    """

    path: Path
    chosen: str | None = None
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    text: str = field(default="", repr=False)

    def origin(self, profile: str, name: str) -> str:
        """Where a setting is written: ``FILE:LINE``, or the file alone where the line is hard to tell."""
        return _origin(self.path, self.text, ("profiles", profile, *name.split(".")))


def read_profiles(path: Path) -> Profiles:
    """The profiles of a file; none if it does not exist.

    Raises:
        InvalidInput: it cannot be read, is not TOML in UTF-8, or says what is unknown or wrong.
    """
    text = read_text(path)
    if text is None:
        return Profiles(path)
    tree = parse(path, text)
    for key in tree:
        if key not in ("profile", "profiles"):
            remedy = (
                f"{near(key, ['profile', 'profiles'])} Settings belong into [profiles.{DEFAULT_PROFILE}]."
            )
            raise InvalidInput(f"{_origin(path, text, (key,))}: unknown key {key!r}", remedy.strip())
    chosen, tables = tree.get("profile"), tables_of(path, tree)
    if chosen is not None and not isinstance(chosen, str):
        raise InvalidInput(
            f"{_origin(path, text, ('profile',))}: profile {chosen!r} is not a name",
            'Write profile = "NAME".',
        )
    found = Profiles(path, chosen, {}, text)
    checked = {profile: _checked(found, profile, table) for profile, table in tables.items()}
    return Profiles(path, chosen, checked, text)


def read_text(path: Path) -> str | None:
    """The text of the file; None if there is none.

    Raises:
        InvalidInput: it cannot be read, or is not UTF-8.
    """
    try:
        if not path.is_file() and path.exists():
            raise InvalidInput(f"{path} is not a file", "Move it away.")
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise InvalidInput(
            f"the configuration file {path} cannot be read: {exc.strerror or exc}",
            "Give it to the user who runs this command, with mode 0600.",
        ) from exc
    if len(data) > _LARGEST:
        raise InvalidInput(f"the configuration file {path} is larger than 1 MB", _EDIT)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise InvalidInput(f"{path}:{line}: this is not UTF-8: {exc.reason}", "Save it in UTF-8.") from exc


def parse(path: Path, text: str) -> dict[str, Any]:
    """The file's tree.

    Raises:
        InvalidInput: it is not TOML.
    """
    import tomllib

    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as exc:
        said = re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", str(exc), re.DOTALL)
        place = f"{path}:{said[2]}:{said[3]}" if said else str(path)
        reason = said[1] if said else str(exc)
        raise InvalidInput(f"{place}: this is not TOML: {reason}", _EDIT) from exc


def tables_of(path: Path, tree: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The profiles of a tree.

    Raises:
        InvalidInput: they are no tables.
    """
    tables = tree.get("profiles", {})
    if not isinstance(tables, dict) or not all(isinstance(one, dict) for one in tables.values()):
        raise InvalidInput(f"{path}: profiles is not a table of tables", "Write [profiles.NAME].")
    return tables


def flat(table: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of a table."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def known(name: str, origin: str) -> Setting:
    """The setting of a name.

    Raises:
        InvalidInput: there is none; ``origin`` says where it was written.
    """
    if name not in SETTINGS:
        raise InvalidInput(
            f"{origin}: there is no setting {name!r}",
            f"{near(name, SETTINGS)} `shunter config show` lists them, docs/settings.md explains them.".strip(),
        )
    return SETTINGS[name]


def value_of(setting: Setting, given: object, origin: str) -> Any:
    """The value that was given for a setting.

    Raises:
        InvalidInput: it cannot be that; ``origin`` says where it came from.
    """
    try:
        return setting.read(given)
    except ValueError as exc:
        wrong, remedy = exc.args
        shown = repr(setting.mask(str(given)) if setting.mask is not None else given)
        raise InvalidInput(f"{origin}: {shown} {wrong} ({setting.name})", remedy) from exc


def near(word: str, names: Iterable[str]) -> str:
    """``Did you mean X?`` if there is one like it, else nothing."""
    from difflib import get_close_matches

    matches = get_close_matches(word, list(names), n=2)
    return f"Did you mean {' or '.join(matches)}?" if matches else ""


def _checked(file: Profiles, profile: str, table: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, given in flat(table):
        origin = file.origin(profile, name)
        setting = known(name, origin)
        if name in values:
            raise InvalidInput(f"{origin}: {name} is written twice", "Leave one of them.")
        values[name] = value_of(setting, given, origin)
    return values


def _origin(path: Path, text: str, steps: tuple[str, ...]) -> str:
    """``FILE:LINE`` of a key; tomllib keeps no places, so the lines are looked through for it."""
    above: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        found: tuple[str, ...] = ()
        if table := re.match(r"\s*\[([^\[\]]+)\]", line):
            found = above = _steps(table[1])
        elif key := re.match(r"\s*([\w.\"' -]+?)\s*=", line):
            found = (*above, *_steps(key[1]))
        if found[: len(steps)] == steps:
            return f"{path}:{number}"
    return str(path)


def _steps(key: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in key.split("."))
