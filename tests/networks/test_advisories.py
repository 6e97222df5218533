"""The check of known holes in what is pinned: a source that knows nothing is not believed, one that knows fails it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILE = Path(__file__).resolve().parents[2] / ".ci/check_advisories.py"
CLEAN = {"dependencies": [{"name": "a", "version": "1", "vulns": []}]}
BAD = {"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}]}
UNKNOWN = {"dependencies": [{"name": "a", "skip_reason": "not found"}]}


@pytest.fixture
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_advisories", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("canary", "lock", "required", "code", "says"),
    [
        (BAD, CLEAN, "", 0, "advisories (osv): 0 for 1 packages"),
        (BAD, BAD, "", 1, "a 1: PYSEC-1, mended in 2"),
        (BAD, UNKNOWN, "", 1, "a: osv says nothing of it"),
        (BAD, {}, "", 1, "could not read requirements.lock"),
        (CLEAN, CLEAN, "", 0, "*** NOT AUDITED"),
        (UNKNOWN, CLEAN, "", 0, "*** NOT AUDITED"),
        ({}, CLEAN, "", 0, "*** NOT AUDITED"),
        ({}, CLEAN, "1", 1, "*** NOT AUDITED"),
    ],
)
def test_what_is_made_of_what_a_source_says(
    check: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    canary: Any,
    lock: Any,
    required: str,
    code: int,
    says: str,
) -> None:
    def audited(requirements: Path, source: str) -> Any:
        if source == "pypi":
            return UNKNOWN  # as a mirror without advisories
        return lock if requirements.name == "requirements.lock" else canary

    monkeypatch.setattr(check, "audited", audited)
    monkeypatch.setenv("SHUNTER_AUDIT_REQUIRE", required)
    assert check.main() == code
    assert says in capsys.readouterr().out
