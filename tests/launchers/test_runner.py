"""Python entrypoints, run by the process launcher as an agent would: every form, every way to fail."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shunter_infrastructure.launcher import Exit
from shunter_infrastructure.process.launcher import ProcessLauncher
from shunter_work_pools.contracts.states import Cause
from tests.launchers.attempts import Attempt, ended, output

Run = Callable[..., Any]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with the user's code: ``flow.py``, and a module beside it."""
    folder = tmp_path / "my code"
    (folder / "sub").mkdir(parents=True)
    return folder


@pytest.fixture
def run(attempts: Callable[..., Attempt], processes: ProcessLauncher, source: Path) -> Run:
    """Runs an entrypoint after writing ``code`` to flow.py; its end and its output."""

    async def run(
        entrypoint: str, code: str = "", parameters: dict[str, Any] | None = None, **work: Any
    ) -> tuple[Exit, str]:
        (source / "flow.py").write_text(textwrap.dedent(code))
        attempt = attempts(entrypoint=entrypoint, source=str(source), parameters=parameters, **work)
        handle = await attempt.start(processes)
        end = await ended(processes, handle)
        return end, (await output(processes, handle)).decode()

    return run


@pytest.mark.parametrize("entrypoint", ["flow.py:main", "flow:main"])
async def test_a_function_with_parameters(run: Run, entrypoint: str) -> None:
    code = """
    def main(year: int, name: str = "x", *rest, flags: list[str] | None = None):
        print("running", year, name, flags)
        return {"year": year + 1}
    """
    end, text = await run(entrypoint, code, {"year": 2013, "flags": ["a"]})
    assert text == "running 2013 x ['a']\n"
    assert (end.exit_code, end.result, end.message, end.error) == (0, {"year": 2014}, None, None)


async def test_a_file(run: Run, source: Path) -> None:
    code = """
    import sys, os, json
    print(__name__, sys.argv, sys.path[0], __file__)
    print(json.load(open(os.environ["SHUNTER_PARAMETERS"])))
    if __name__ == "__main__":
        sys.exit(3)
    """
    end, text = await run("flow.py", code, {"year": 1})
    path = source / "flow.py"
    assert text == f"__main__ ['{path}'] {source} {path}\n{{'year': 1}}\n"
    assert (end.exit_code, end.exception, end.message) == (3, False, None)


async def test_neighbours_are_found_and_the_runners_are_not(run: Run, source: Path) -> None:
    (source / "sub" / "near.py").write_text("NEAR = 1\n")
    (source / "far.py").write_text("FAR = 2\n")
    (source / "runner.py").write_text("MINE = 3\n")
    (source / "sub" / "job.py").write_text(
        "import near, far, runner, sys\n"
        "def main():\n    return [near.NEAR, far.FAR, runner.MINE, sum('flows/shunter' in p for p in sys.path)]\n"
    )
    end, _ = await run("sub/job.py:main")
    assert end.result == [1, 2, 3, 0]


async def test_an_async_function(run: Run) -> None:
    code = """
    import asyncio
    async def main(n: int):
        await asyncio.sleep(0)
        return n * 2
    """
    end, _ = await run("flow:main", code, {"n": 4})
    assert end.result == 8


TYPED = """
from __future__ import annotations
import dataclasses, datetime, enum, pathlib
from typing import Any, Literal, Optional
from pydantic import BaseModel

class Color(enum.Enum):
    RED = "red"

@dataclasses.dataclass
class Point:
    x: int
    when: datetime.date

class Model(BaseModel):
    names: list[str]

def main(day: datetime.date, at: datetime.datetime, path: pathlib.Path, color: Color, point: Point, model: Model,
         mode: Literal["a", "b"], maybe: Optional[datetime.date], points: list[Point], anything: Any,
         by: dict[str, datetime.timedelta], **more: datetime.date):
    print(day.year, at.tzinfo is not None, path / "x", color is Color.RED, point, model, mode, maybe, points[0].x,
          anything, by["k"].total_seconds(), more["extra"].month)
"""


async def test_parameters_of_other_types_than_json_has(run: Run) -> None:
    point = {"x": 1, "when": "2026-01-02"}
    parameters = {
        "day": "2013-05-06",
        "at": "2013-05-06T07:08:09Z",
        "path": "/data",
        "color": "red",
        "point": point,
        "model": {"names": ["n"]},
        "mode": "a",
        "maybe": None,
        "points": [point],
        "anything": {"k": [1]},
        "by": {"k": "PT2S"},
        "extra": "2013-09-01",
    }
    end, text = await run("flow.py:main", TYPED, parameters)
    assert end.exit_code == 0, text
    shown = "Point(x=1, when=datetime.date(2026, 1, 2))"
    assert text == f"2013 True /data/x True {shown} names=['n'] a None 1 {{'k': [1]}} 2.0 9\n"


async def test_a_parameter_that_does_not_fit(run: Run) -> None:
    code = """
    import datetime
    def main(day: datetime.date): print("never")
    """
    end, text = await run("flow.py:main", code, {"day": "soon"})
    assert (end.exit_code, end.exception) == (1, True)
    assert end.message is not None
    assert end.message.startswith("TypeError: parameter day: Input should be a valid date")
    assert "never" not in text


async def test_a_parameter_that_is_not_there(run: Run) -> None:
    end, text = await run("flow.py:main", "def main(a): pass", {"b": 1})
    assert end.exception
    assert "unexpected keyword argument 'b'" in text


async def test_nothing_large_is_loaded_for_plain_types(run: Run) -> None:
    code = """
    import sys
    LOADED = sorted(set(sys.modules) & {"pydantic", "httpx", "asyncio", "typing", "inspect", "shunter"})
    def main(a: int, b: "str | None" = None, c: dict[str, list[float]] = {}):
        return [LOADED, sorted(set(sys.modules) & {"pydantic", "httpx", "asyncio", "inspect", "shunter"})]
    """
    end, _ = await run("flow.py:main", code, {"a": 1, "b": "x", "c": {}})
    assert end.result == [[], []]


async def test_an_exception(run: Run, source: Path) -> None:
    code = """
    class Trouble(Exception): pass
    def inner(): raise Trouble("the data is ä")
    def main(): inner()
    """
    end, text = await run("flow.py:main", code)
    assert (end.exit_code, end.exception, end.error) == (1, True, None)
    assert end.message == "flow.Trouble: the data is ä"
    assert text.startswith(
        "Traceback (most recent call last):\n" + f'  File "{source}/flow.py", line 4, in main'
    )
    assert text.endswith("flow.Trouble: the data is ä\n")
    assert "runner.py" not in text


@pytest.mark.parametrize("code", ["async def main(): 1 / 0", "def main(): 1 / 0"])
async def test_only_the_users_frames_are_shown(run: Run, code: str) -> None:
    end, text = await run("flow:main", code)
    assert end.message == "ZeroDivisionError: division by zero"
    assert text.count("File ") == 1


async def test_an_exception_of_a_file(run: Run) -> None:
    end, text = await run("flow.py", "print('begun')\nraise ValueError('no')")
    assert (end.exit_code, end.exception, end.message) == (1, True, "ValueError: no")
    assert text.startswith("begun\nTraceback")


@pytest.mark.parametrize(("call", "code"), [("5", 5), ("0", 0), ("None", 0), ("'bye'", 1)])
async def test_system_exit_is_no_exception(run: Run, call: str, code: int) -> None:
    end, text = await run("flow.py:main", f"import sys\ndef main(): sys.exit({call})")
    assert (end.exit_code, end.exception, end.message) == (code, False, None)
    assert text == ("bye\n" if code == 1 else "")


@pytest.mark.parametrize(
    ("entrypoint", "code", "text"),
    [
        ("nosuch:main", "", "there is no module 'nosuch'"),
        ("flow.nosuch:main", "", "there is no module 'flow.nosuch'"),
        ("flow:nosuch", "", "module flow has no function 'nosuch'"),
        ("flow.py:nosuch", "", "flow.py has no function 'nosuch'"),
        ("flow.py:main", "main = 3", "'main' in flow.py is not a function"),
        ("flow.py:main", "def main(:", "SyntaxError"),
        ("flow.py", "def main(:", "SyntaxError"),
        ("flow:main", "import nosuchpackage", "ModuleNotFoundError: No module named 'nosuchpackage'"),
        ("flow:main", "1 / 0", "ZeroDivisionError"),
        ("flow:main", "raise SystemExit(0)", "SystemExit: 0"),
        ("flow:", "", "is not of the form"),
    ],
)
async def test_source_that_cannot_be_had(run: Run, entrypoint: str, code: str, text: str) -> None:
    end, shown = await run(entrypoint, code)
    assert end.error is Cause.SOURCE
    assert end.exit_code == 1
    assert end.exception is False
    assert end.message is not None
    assert text in end.message
    assert end.message in shown
    assert "runner.py" not in shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("object()", "Object of type object is not JSON serializable"),
        ("float('nan')", "Out of range float values are not JSON compliant"),
        ("'x' * 70_000", "70002 bytes"),
    ],
)
async def test_a_result_that_cannot_be_kept_does_no_harm(run: Run, value: str, text: str) -> None:
    end, shown = await run("flow.py:main", f"def main(): return {value}")
    assert (end.exit_code, end.result, end.error) == (0, None, None)
    assert text in shown


async def test_where_less_may_be_left_both_result_and_failure_keep_to_it(run: Run) -> None:
    code = """
    def result():
        return "x" * 99

    def failure():
        raise ValueError("ü" * 5000)
    """
    end, text = await run("flow:result", code, env={"SHUNTER_RESULT_LIMIT": "100"})
    assert (end.result, end.exit_code) == (None, 0)
    assert "it takes 101 bytes as JSON, more than the 100 allowed" in text
    end, _ = await run("flow:failure", code, env={"SHUNTER_RESULT_LIMIT": "400"})
    assert end.exception
    assert end.message.startswith("ValueError: üüü")
    assert len(end.message) < 100


async def test_a_pydantic_model_is_a_result(run: Run) -> None:
    code = """
    import datetime
    from pydantic import BaseModel
    class Answer(BaseModel):
        day: datetime.date
    def main(): return [Answer(day=datetime.date(2026, 1, 2))]
    """
    end, _ = await run("flow.py:main", code)
    assert end.result == [{"day": "2026-01-02"}]


async def test_the_result_may_be_written_by_hand(run: Run) -> None:
    code = """
    import os
    def main():
        with open(os.environ["SHUNTER_RESULT"], "w") as file: file.write("[1]")
    """
    end, _ = await run("flow.py:main", code)
    assert end.result == [1]


async def test_output_is_not_held_back(run: Run) -> None:
    _, text = await run("flow.py:main", "import os\ndef main():\n    print('seen')\n    os._exit(0)")
    assert text == "seen\n"


async def test_another_interpreter(run: Run, tmp_path: Path) -> None:
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\necho wrapped\nexec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    end, text = await run("flow.py:main", "def main(): return 1", python=str(wrapper))
    assert end.result == 1
    assert text == "wrapped\n"
