"""What docs/client.md shows works as it stands, from the first line to the last."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shunter_work_pools.client import AsyncClient, Client, RunFilters, endpoint
from shunter_work_pools.contracts import errors
from tests.api.serving import server_process

PAGE = Path(__file__).parents[2] / "docs" / "client.md"
TEXT = PAGE.read_text()


def test_the_examples_run_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = [(match.start(), match[1]) for match in re.finditer(r"```python\n(.*?)```", TEXT, re.DOTALL)]
    assert len(blocks) >= 7
    with server_process(tmp_path) as server:
        monkeypatch.setenv("SHUNTER_API_URL", f"http://127.0.0.1:{server.port}/api")
        monkeypatch.setenv("SHUNTER_HOME", str(tmp_path))
        known: dict[str, object] = {}
        for start, block in blocks:
            lines = TEXT[:start].count("\n") + 1
            exec(compile("\n" * lines + block, str(PAGE), "exec"), known)
    shown = capsys.readouterr().out
    assert shown.startswith("Scheduled\n")
    assert "created 1 " in shown
    assert "there is no deployment 'helo' - Did you mean 'hello'?" in shown


def test_every_filter_iterator_and_error_is_on_the_page() -> None:
    for name in RunFilters.__annotations__:
        assert f"`{name}`" in TEXT, name
    iterators = [name for name in vars(Client) if name.startswith("each_")]
    assert len(iterators) >= 4
    for name in iterators:
        assert f"`{name}`" in TEXT, name
        assert name in vars(AsyncClient)
    for cls in errors.Refused.__subclasses__():
        assert f"`{cls.__name__}` {cls.status}" in TEXT or f"`{cls.__name__}`" in TEXT, cls


def test_a_filter_that_does_not_exist_is_refused() -> None:
    with Client("http://127.0.0.1:1/api", "t") as client, pytest.raises(TypeError, match="'stats'"):
        client.list_runs(stats=["Failed"])  # type: ignore[call-arg]


def test_both_clients_have_the_same_methods() -> None:
    own = {name for name in vars(Client) if not name.startswith("_")}
    assert own == {name for name in vars(AsyncClient) if not name.startswith("_")}
    assert any(isinstance(value, endpoint) for value in vars(Client.__mro__[2]).values())
