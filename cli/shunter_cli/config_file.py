"""Change the configuration file: what is not changed stays as it was written, comments too.

The file is replaced as a whole, under a lock on its folder, so that it is never half written and of two
changes at the same time none is lost.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from shunter_work_pools.contracts.configuration import DEFAULT, Values, check_relations
from shunter_work_pools.contracts.errors import InvalidInput
from shunter_work_pools.contracts.profiles import (
    DEFAULT_PROFILE,
    Profiles,
    flat,
    known,
    parse,
    read_text,
    tables_of,
    value_of,
)
from shunter_work_pools.contracts.settings import SETTINGS

#: The key that names the profile in use; it lies beside the profiles.
PROFILE_KEY = "profile"


def set_value(path: Path, profile: str | None, name: str, text: str) -> str:
    """Write a setting into a profile; returns the profile's name.

    Args:
        profile: made if there is none of the name; None: the one in use.
        name: of the setting; ``profile`` chooses the one in use.

    Raises:
        InvalidInput: an unknown setting, a wrong value, values that do not fit, a file that cannot be
            changed. Nothing was changed then.
    """
    if name == PROFILE_KEY:
        return _choose(path, text)
    return set_values(path, profile, {name: text})


def set_values(path: Path, profile: str | None, texts: Mapping[str, str]) -> str:
    """Write several settings at once, all or none; as :func:`set_value`."""
    return _change(path, profile, {name: _written(name, text) for name, text in texts.items()})


def _written(name: str, text: str) -> Any:
    value = value_of(known(name, "config set"), text, "config set")
    plain = isinstance(value, tuple) and all(isinstance(one, str) for one in value)
    return value if isinstance(value, int) else list(value) if plain else text.strip()


def unset_value(path: Path, profile: str | None, name: str) -> str:
    """Take a setting out of a profile, also one that is unknown; returns the profile's name.

    Raises:
        InvalidInput: it is not there, or the rest does not fit without it.
    """
    return _choose(path, None) if name == PROFILE_KEY else _change(path, profile, {name: None})


def _choose(path: Path, profile: str | None) -> str:
    import tomlkit

    with _locked(path.parent):
        text = read_text(path) or ""
        there = tables_of(path, parse(path, text))
        document = tomlkit.parse(text)
        if profile is None:
            document.pop(PROFILE_KEY, None)
        elif profile in there:
            document[PROFILE_KEY] = profile
        else:
            raise InvalidInput(
                f"there is no profile {profile!r} in {path}",
                f"There are: {', '.join(there) or 'none'}. `shunter config set NAME VALUE --profile {profile}` makes it.",
            )
        _replace(path, tomlkit.dumps(document))
    return profile or DEFAULT_PROFILE


def _change(path: Path, profile: str | None, changes: Mapping[str, Any]) -> str:
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    with _locked(path.parent):
        text = read_text(path) or ""
        tree = parse(path, text)
        chosen = str(profile or tree.get(PROFILE_KEY) or DEFAULT_PROFILE)
        tables = _flat_tables(path, text)
        after = dict(tables.get(chosen, {}))
        for name, value in changes.items():
            if value is not None:
                after[name] = value
            elif after.pop(name, None) is None:
                raise InvalidInput(
                    f"{name} is not set in profile {chosen!r} of {path}",
                    "`shunter config show` tells where it is.",
                )
        _check_fit(path, chosen, after)
        try:
            document = tomlkit.parse(text)
            for name, value in changes.items():
                _edit(document, chosen, name, value)
            changed = tomlkit.dumps(document)
            as_meant = _flat_tables(path, changed) == {**tables, chosen: after}
        except (TOMLKitError, InvalidInput, KeyError, TypeError, AttributeError) as exc:
            raise _by_hand(path, changes) from exc
        if not as_meant:
            raise _by_hand(path, changes)
        _replace(path, changed)
    return chosen


def _flat_tables(path: Path, text: str) -> dict[str, dict[str, Any]]:
    return {profile: dict(flat(table)) for profile, table in tables_of(path, parse(path, text)).items()}


def _edit(document: Any, profile: str, name: str, value: Any) -> None:
    import tomlkit
    from tomlkit.items import InlineTable

    if "profiles" not in document:
        document["profiles"] = tomlkit.table(is_super_table=True)
    if profile not in document["profiles"]:
        document["profiles"][profile] = tomlkit.table()
    table, steps = document["profiles"][profile], name.split(".")
    if name in table:  # one key, in quotes
        steps = [name]
    while len(steps) > 1 and steps[0] in table:
        table, steps = table[steps[0]], steps[1:]
    if value is None:
        del table[steps[0]]
    elif len(steps) == 1:
        table[steps[0]] = value
    elif isinstance(table, InlineTable):
        inner = tomlkit.inline_table()
        inner.append(".".join(steps[1:]), value)
        table[steps[0]] = inner
    else:
        table.append(tomlkit.key(steps), value)


def _check_fit(path: Path, profile: str, table: Mapping[str, Any]) -> None:
    """Refuse a profile whose values do not fit; what is wrong by itself is for another command to tell."""
    found: dict[str, tuple[Any, str]] = {name: (one.default, DEFAULT) for name, one in SETTINGS.items()}
    for name, given in table.items():
        if name in SETTINGS:
            with suppress(InvalidInput):
                found[name] = value_of(SETTINGS[name], given, ""), f"profile {profile}"
    check_relations(Values(found, profile, Profiles(path)))


def _by_hand(path: Path, names: Iterable[str]) -> InvalidInput:
    return InvalidInput(
        f"{' and '.join(names)} cannot be changed in {path} as it is written", "Change it in an editor."
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Alone in the folder; where there are no such locks (Windows), the last of two changes wins."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            import fcntl
        except ImportError:
            yield
            return
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)
    except OSError as exc:
        raise InvalidInput(
            f"the folder {folder} cannot be written: {exc.strerror or exc}",
            "Set SHUNTER_HOME to a folder of your own, or free space there.",
        ) from exc


def _replace(path: Path, text: str) -> None:
    """Write anew, for the user alone: it may hold a token. A link stays a link."""
    target = path.resolve()
    draft = target.with_name(f"{target.name}.{os.getpid()}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
