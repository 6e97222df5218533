"""Any row of changes to any file leaves what was meant, and a file that is TOML."""

from __future__ import annotations

import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from shunter_cli.config_file import set_value, unset_value
from shunter_work_pools.contracts.errors import InvalidInput
from shunter_work_pools.contracts.profiles import flat

Change = tuple[str, str, bool]
Tables = dict[str, dict[str, object]]

#: Settings that fit whatever the others are; of one letter and of several.
VALUES = {
    "token": "abc",
    "api_url": "http://a/api",
    "log.level": "debug",
    "log.format": "json",
    "server.host": "::1",
    "server.late_after": "1m",
    "server.allowed_hosts": "a,b",
    "keep.runs": "5",
    "agent.limit": "3",
}
FILES = (
    "",
    "# only this",
    "profile = 'a'\n",
    "[profiles.a]\nlog.level = 'info'  # why\nserver = { host = 'x', late_after = 3 }\n[profiles.b]\n",
    "[profiles]\na = { token = 'x' }\n\n[profiles.'b']\n'log.level' = 'info'\n",
    "[profiles.a]\r\ntoken = '''x'''\r\n\r\n# end\r\n",
)
#: Legal, but nobody writes so: what the library cannot change there is refused.
ODD = (
    "[profiles.a.log]\nlevel = 'info'\n[profiles.b.server]\nhost = 'x'\n[profiles.a.server]\nhost = 'y'\n",
    "profiles.a.token = 'x'\nprofiles.a.log.level = 'info'\n",
)
CHANGES = st.lists(
    st.tuples(st.sampled_from(["a", "b", "a b.c"]), st.sampled_from(sorted(VALUES)), st.booleans()),
    max_size=8,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(FILES), CHANGES)
def test_the_file_says_what_was_set(text: str, changes: list[Change]) -> None:
    with _file(text) as path:
        expected = _read(path)
        for profile, name, setting in changes:
            if setting or name in expected.get(profile, {}):
                _make(path, expected, profile, name, setting)
            assert _read(path) == expected
        assert all(line in path.read_text() for line in text.splitlines() if line.startswith("#"))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(ODD), CHANGES)
def test_an_odd_file_is_changed_as_meant_or_not_at_all(text: str, changes: list[Change]) -> None:
    with _file(text) as path:
        expected = _read(path)
        for profile, name, setting in changes:
            before = path.read_text()
            try:
                if setting or name in expected.get(profile, {}):
                    _make(path, expected, profile, name, setting)
            except InvalidInput:
                assert path.read_text() == before
            assert _read(path) == expected


def _make(path: Path, expected: Tables, profile: str, name: str, setting: bool) -> None:
    if setting:
        set_value(path, profile, name, VALUES[name])
        expected.setdefault(profile, {})[name] = _typed(name)
    else:
        unset_value(path, profile, name)
        del expected[profile][name]
        if not expected[profile]:
            del expected[profile]


@contextmanager
def _file(text: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        path.write_text(text, newline="")
        yield path


def _typed(name: str) -> object:
    value = VALUES[name]
    return int(value) if value.isdigit() else value.split(",") if "," in value else value


def _read(path: Path) -> Tables:
    """Profiles that say anything."""
    profiles = tomllib.loads(path.read_text()).get("profiles", {})
    tables = {profile: dict(flat(table)) for profile, table in profiles.items()}
    return {profile: table for profile, table in tables.items() if table}
