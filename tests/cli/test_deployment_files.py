"""Deployment files: what they say, and every fault at its line and column."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from shunter_cli.commands.init import start
from shunter_cli.deployment_files import schema, toml_tree, yaml_tree
from shunter_cli.deployment_files.checking import Loaded, load
from shunter_cli.deployment_files.places import FileFaults, Place, plain
from shunter_work_pools.contracts.deployments import DeploymentSpec, Work
from shunter_work_pools.contracts.errors import BadRequest, InvalidInput

DOCS = Path(__file__).parents[2] / "docs"
ENV = {"WHO": "world", "N": "3", "EMPTY": "", "TRICK": 'x"\n- a: ${WHO}: {b: 1}'}


def _load(folder: Path, text: str | bytes, name: str = "shunter.yaml", *, check: bool = False) -> Loaded:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(path, name, ENV, check=check)


def _specs(
    folder: Path, text: str, name: str = "shunter.yaml", *, check: bool = False
) -> list[DeploymentSpec]:
    return [one.spec for one in _load(folder, text, name, check=check).deployments]


def _faults(folder: Path, text: str | bytes, name: str = "shunter.yaml", *, check: bool = False) -> list[str]:
    with pytest.raises(FileFaults) as caught:
        _load(folder, text, name, check=check)
    return [fault.line(caught.value.file) for fault in caught.value.faults]


# ---- what a file says

FULL = """\
deployments:
  - name: full
    description: All there is.
    command: sh -c 'echo "a b"'
    parameters: {year: 2013, deep: {list: [1, null, true, 1.5]}}
    tags: [a, b=c]
    require: [gpu]
    need: {gpu: 1, cpu: 0.5, memory: 8GiB}
    limits: [warehouse, api]
    max_active: 3
    when_full: cancel_new
    pool: default
    queue: fast
    priority: -5
    retries: {count: 3, delay: 1m, backoff: 2, max_delay: 10m, jitter: 0.5, on: [oom, timeout],
      uncounted: [preempted, evicted], more_memory: {factor: 2, up_to: 8GiB}}
    timeout: 5m
    start_timeout: 30
    grace: 0
    memory_limit: 1.5GiB
    env: {A: "1"}
    pass_env: [HOME]
    working_dir: sub
    token: true
    on_lost: retry
    exclusive: true
    keep: {runs: 10, logs_for: 2d}
    schedules:
      - name: daily
        cron: "0 6 * * *"
        timezone: Europe/Berlin
        day: and
        start: 2027-01-01
        end: 2027-06-01 12:00
        jitter: 30s
        catch_up: latest
        catch_up_age: 2h
        catch_up_slots: 7
        paused: true
        parameters: {year: 2014}
      - name: often
        interval: 1h30m
        anchor: 2027-01-01T00:00:00Z
      - name: rule
        rrule: FREQ=DAILY
"""


def test_everything_that_can_be_said(tmp_path: Path) -> None:
    [spec] = _specs(tmp_path, FULL)
    assert spec.model_dump(mode="json", exclude_defaults=True) == {
        "work": {
            "command": ["sh", "-c", 'echo "a b"'],
            "source": str(tmp_path),
            "working_dir": str(tmp_path / "sub"),
            "env": {"A": "1"},
            "pass_env": ["HOME"],
            "timeout": 300.0,
            "start_timeout": 30.0,
            "grace": 0.0,
            "memory_limit": 1536 * 2**20,
            "token": True,
        },
        "description": "All there is.",
        "parameters": {"year": 2013, "deep": {"list": [1, None, True, 1.5]}},
        "tags": ["a", "b=c"],
        "require": ["gpu"],
        "need": {"cpu": 0.5, "gpu": 1.0, "memory": 8 * 2.0**30},
        "limits": ["warehouse", "api"],
        "max_active": 3,
        "when_full": "cancel_new",
        "pool": "default",
        "queue": "fast",
        "priority": -5,
        "retries": {
            "count": 3,
            "delay": 60.0,
            "backoff": 2.0,
            "max_delay": 600.0,
            "jitter": 0.5,
            "on": ["oom", "timeout"],
            "uncounted": ["preempted", "evicted"],
            "more_memory": {"factor": 2.0, "up_to": 8 * 2**30},
        },
        "on_lost": "retry",
        "exclusive": True,
        "keep": {"runs": 10, "logs_for": 172_800.0},
        "schedules": [
            {
                "name": "daily",
                "when": {"cron": "0 6 * * *", "timezone": "Europe/Berlin", "day": "and"},
                "start": "2026-12-31T23:00:00Z",
                "end": "2027-06-01T10:00:00Z",
                "jitter": 30.0,
                "catch_up": "latest",
                "catch_up_age": 7200.0,
                "catch_up_slots": 7,
                "paused": True,
                "parameters": {"year": 2014},
            },
            {"name": "often", "when": {"seconds": 5400.0, "anchor": "2027-01-01T00:00:00Z"}},
            {"name": "rule", "when": {"rrule": "FREQ=DAILY"}},
        ],
    }


def test_toml_says_the_same(tmp_path: Path) -> None:
    text = """\
[[deployments]]
name = "full"
command = ["echo", "a b"]
retries = 3
timeout = 2.5
max_active = 2
need = { memory = 1024.0, gpu = 2.0 }
parameters = { year = 2013 }
[[deployments.schedules]]
cron = "0 6 * * *"
timezone = "Europe/Berlin"
start = 2027-01-01
end = 2027-06-01T10:00:00Z
[[deployments.schedules]]
name = "often"
interval = "1h"
"""
    yaml = """\
deployments:
  - name: full
    command: [echo, a b]
    retries: 3
    timeout: 2.5
    max_active: 2
    need: {memory: 1KiB, gpu: 2}
    parameters: {year: 2013}
    schedules:
      - {cron: "0 6 * * *", timezone: Europe/Berlin, start: 2027-01-01, end: 2027-06-01 12:00}
      - {name: often, interval: 3600}
"""
    assert _specs(tmp_path, text, "shunter.toml") == _specs(tmp_path, yaml)


def test_defaults_are_under_every_deployment(tmp_path: Path) -> None:
    text = """\
defaults: {pool: default, tags: [x], env: {A: "1", B: "2"}, python: python3, retries: 2, need: {gpu: 1, cpu: 2}}
deployments:
  - {name: a, command: [echo]}
  - {name: b, entrypoint: "b.py", tags: [y], env: {B: "3"}, pool: other, need: {gpu: 0, memory: 1GiB}}
"""
    a, b = _specs(tmp_path, text)
    assert (a.need, b.need) == ({"cpu": 2, "gpu": 1}, {"cpu": 2, "memory": 2**30})
    assert (a.pool, a.tags, a.work.env, a.work.python, a.retries.count) == (
        "default",
        ["x"],
        {"A": "1", "B": "2"},
        None,
        2,
    )
    assert (b.pool, b.tags, b.work.env, b.work.python) == ("other", ["y"], {"A": "1", "B": "3"}, "python3")


def test_an_alias_repeats_what_its_anchor_says(tmp_path: Path) -> None:
    text = """\
deployments:
  - {name: a, command: &c [echo, "$${WHO} ${WHO}"], schedules: &s [{interval: 60}]}
  - {name: b, command: *c, schedules: *s}
"""
    a, b = _specs(tmp_path, text)
    assert a == b
    assert a.work.command == ["echo", "${WHO} world"]  # substituted once, though it is there twice


def test_an_entrypoint_brings_schema_and_description(tmp_path: Path) -> None:
    (tmp_path / "flow.py").write_text('def main(year: int, name: str = "x"):\n    """Does it."""\n')
    text = (
        "deployments:\n  - {name: a, entrypoint: 'flow.py:main', parameters: {year: '${N}', name: '${N}'}}\n"
    )
    [spec] = _specs(tmp_path, text, check=True)
    assert spec.parameters == {"year": 3, "name": "3"}  # typed by the signature, as -p is
    assert spec.parameter_schema is not None
    assert spec.description == "Does it."


def test_paths_are_meant_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "project"
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "flow.py").write_text("def main(): ...\n")
    monkeypatch.chdir(tmp_path)
    path = Path("project/shunter.yaml")
    path.write_text("deployments:\n  - {name: a, entrypoint: 'flow.py:main', source: src, working_dir: .}\n")
    [one] = load(path, "f", {}).deployments
    assert (one.spec.work.source, one.spec.work.working_dir) == (str(folder / "src"), str(folder))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("${WHO}", "world"),
        ("a ${WHO} b ${N}", "a world b 3"),
        ("$$", "$"),
        ("$${WHO}", "${WHO}"),
        ("$$${WHO}", "$world"),
        ("$WHO $", "$WHO $"),
        ("${NOPE:-there}", "there"),
        ("${EMPTY:-there}", "there"),
        ("${EMPTY}", ""),
        ("${WHO:-there}", "world"),
        ("${NOPE:-}", ""),
        ("${TRICK}", ENV["TRICK"]),
    ],
)
@pytest.mark.parametrize("name", ["shunter.yaml", "shunter.toml"])
def test_variables(tmp_path: Path, written: str, meant: str, name: str) -> None:
    text = f"deployments:\n  - {{name: a, command: [echo], env: {{A: '{written}'}}}}\n"
    if name.endswith("toml"):
        text = f"[[deployments]]\nname = 'a'\ncommand = ['echo']\nenv = {{A = '{written}'}}\n"
    [spec] = _specs(tmp_path, text, name)
    assert spec.work.env == {"A": meant}


def test_a_variable_may_stand_for_a_number_or_a_switch(tmp_path: Path) -> None:
    text = """\
deployments:
  - name: a
    command: [echo]
    retries: ${N}
    priority: ${NOPE:-7}
    timeout: ${NOPE:-5m}
    max_active: ${N}
    need: {gpu: "${N}", memory: "${NOPE:-1GiB}"}
    schedules: [{interval: "${NOPE:-90}", paused: "${NOPE:-true}"}]
"""
    [spec] = _specs(tmp_path, text)
    assert (spec.retries.count, spec.priority, spec.work.timeout) == (3, 7, 300.0)
    assert (spec.max_active, spec.need) == (3, {"gpu": 3, "memory": 2**30})
    assert spec.schedules[0].paused is True


def test_a_variable_becomes_neither_list_nor_key(tmp_path: Path) -> None:
    env = "deployments:\n  - {name: a, command: [echo], tags: '${NOPE:-[a, b]}'}\n"
    assert _faults(tmp_path, env) == ["shunter.yaml:2:38: deployments[0].tags: must be a list, not text"]
    keys = 'deployments:\n  - {name: a, command: [echo], env: {"${WHO}": x}}\n'
    [fault] = _faults(tmp_path, keys)
    assert "'${WHO}' is no name of a variable" in fault


# ---- faults

ENTRY = "deployments:\n  - name: a\n    command: [echo]\n"


def _schedule(text: str) -> str:
    return f"{ENTRY}    schedules:\n      - {text}\n"


FAULTS: dict[str, tuple[str, list[str]]] = {
    "30 February": (
        _schedule('cron: "0 0 30 2 *"'),
        ['5:15: deployments[0].schedules[0].cron: "0 0 30 2 *" never fires, no date matches it'],
    ),
    "an interval under one second": (
        _schedule("interval: 999ms"),
        ["5:19: deployments[0].schedules[0].interval: '999ms' is shorter than one second"],
    ),
    "an interval under one second, as a number": (
        _schedule("interval: 0.5"),
        ["5:19: deployments[0].schedules[0].interval: 0.5 is shorter than one second"],
    ),
    "end before start": (
        _schedule("{interval: 60, start: 2027-01-02, end: 2027-01-01}"),
        ["5:48: deployments[0].schedules[0].end: must be after start"],
    ),
    "10,000 schedules": (
        ENTRY
        + "    schedules:\n"
        + "".join(f"      - {{name: s{n}, interval: 60}}\n" for n in range(10_000)),
        ["5:7: deployments[0].schedules: has 10,000 items, more than 1,000"],
    ),
    "an unknown zone": (
        _schedule('{cron: "0 6 * * *", timezone: Europe/Berln}'),
        ['5:39: deployments[0].schedules[0].timezone: "Europe/Berln" is not a known time zone'],
    ),
    "jitter longer than the interval": (
        _schedule("{interval: 60, jitter: 2m}"),
        [
            "5:32: deployments[0].schedules[0].jitter: 120 seconds is not shorter than the shortest time "
            "between two slots, 60 seconds"
        ],
    ),
    "several faults of one schedule": (
        _schedule('{cron: "61 * * * *", timezone: Mars, end: 2026-01-01, start: 2027-01-01, day: xor}'),
        ["5:87: deployments[0].schedules[0].day: 'xor' is not one of 'or' or 'and'"],
    ),
    "all that is wrong with one schedule": (
        _schedule(
            '{cron: "61 * * * *", timezone: Mars, end: 2026-01-01, start: 2027-01-01, anchor: 2027-01-01}'
        ),
        [
            '5:16: deployments[0].schedules[0].cron: "61" in "61 * * * *" does not fit the minute',
            '5:40: deployments[0].schedules[0].timezone: "Mars" is not a known time zone',
            "5:51: deployments[0].schedules[0].end: must be after start",
            "5:90: deployments[0].schedules[0].anchor: anchor is for an interval",
        ],
    ),
    "two kinds of schedule": (
        _schedule('{cron: "0 6 * * *", interval: 5}'),
        [
            "5:29: deployments[0].schedules[0].interval: only one of cron, interval and rrule may be given, and cron is"
        ],
    ),
    "no kind of schedule": (
        _schedule("timezone: UTC"),
        ["5:9: deployments[0].schedules[0]: there is none of cron, interval and rrule"],
    ),
    "two schedules without a name": (
        _schedule("interval: 60\n      - interval: 90"),
        ["6:9: deployments[0].schedules[1].name: two schedules are named 'default', the first in line 5"],
    ),
    "tabs": (
        "deployments:\n\t- name: a\n",
        ["2:1: a tab is used to indent, which YAML does not allow"],
    ),
    "tabs further in": (
        "deployments:\n  - name: a\n\t  command: [echo]\n",
        ["3:1: a tab is used to indent, which YAML does not allow"],
    ),
    "duplicate keys": (
        ENTRY + "    command: [ls]\n    command: [cat]\n",
        [
            "4:5: deployments[0].command: the key 'command' is there already, in line 3, column 5",
            "5:5: deployments[0].command: the key 'command' is there already, in line 3, column 5",
        ],
    ),
    "one name twice": (
        ENTRY + "  - {name: a, command: [ls]}\n",
        ["4:12: deployments[1].name: two deployments are named 'a', the first in line 2"],
    ),
    "one deployment twice, by an alias": (
        "deployments:\n  - &a {name: a, command: [ls]}\n  - *a\n",
        ["2:15: deployments[0].name: two deployments are named 'a', the first in line 2"],
    ),
    "an unknown key": (ENTRY + "    shedules: []\n", ["4:5: deployments[0].shedules: unknown key"]),
    "an unknown key at the top": (ENTRY + "deployment: []\n", ["4:1: deployment: unknown key"]),
    "a wrong type": (ENTRY + "    tags: x\n", ["4:11: deployments[0].tags: must be a list, not text"]),
    "a number for a text": (
        ENTRY + "    env: {PORT: 8080}\n",
        ["4:17: deployments[0].env.PORT: must be text, not a number"],
    ),
    "a text for a number": (
        ENTRY + '    priority: "5"\n',
        ["4:15: deployments[0].priority: must be a whole number, not text"],
    ),
    "too many retries": (
        ENTRY + "    retries: 1001\n",
        ["4:14: deployments[0].retries.count: 1001 is out of bounds: it must be at most 1,000"],
    ),
    "a delay that shrinks": (
        ENTRY + "    retries: {count: 1, backoff: 0.5}\n",
        ["4:34: deployments[0].retries.backoff: 0.5 is out of bounds: it must be at least 1.0"],
    ),
    "no cause": (
        ENTRY + "    retries: {count: 1, on: [oon]}\n",
        ["4:29: deployments[0].retries.on: 'oon' is no cause of an end"],
    ),
    "a cause that somebody asked for": (
        ENTRY + "    retries: {count: 1, on: [cancelled]}\n",
        [
            "4:29: deployments[0].retries.on: 'cancelled' is no cause to try again after: somebody asked for it"
        ],
    ),
    "one cause that is no list": (
        ENTRY + "    retries: {count: 1, on: oom}\n",
        ["4:29: deployments[0].retries.on: must be a list of causes"],
    ),
    "a cause that always counts": (
        ENTRY + "    retries: {uncounted: [oom]}\n",
        ["4:26: deployments[0].retries.uncounted: 'oom' always counts: it may be the run's own doing"],
    ),
    "memory that does not grow": (
        ENTRY + "    retries: {more_memory: {factor: 1, up_to: 8GiB}}\n",
        ["4:37: deployments[0].retries.more_memory.factor: 1 is out of bounds: it must be more than 1.0"],
    ),
    "memory up to no more": (
        ENTRY + "    memory_limit: 8GiB\n    retries: {more_memory: {factor: 2, up_to: 8GiB}}\n",
        [
            "2:5: deployments[0]: retries.more_memory goes up to 8GiB, which is no more than its "
            "memory_limit of 8GiB"
        ],
    ),
    "half a device": (
        ENTRY + "    need: {gpu: 1.5}\n",
        ["4:11: deployments[0].need: gpu=1.5: a device cannot be divided"],
    ),
    "memory that is no size": (
        ENTRY + "    need: {memory: much}\n",
        ["4:11: deployments[0].need: 'much' is no amount of memory"],
    ),
    "something that one cannot have": (
        ENTRY + "    need: {GPU: 1}\n",
        ["4:11: deployments[0].need: 'GPU' is no name of something that one has"],
    ),
    "a need that is no mapping": (
        ENTRY + "    need: gpu\n",
        ["4:11: deployments[0].need: must be a mapping"],
    ),
    "a strategy that there is not": (
        ENTRY + "    max_active: 1\n    when_full: cancel_old\n",
        [
            "5:16: deployments[0].when_full: 'cancel_old' is not one of 'enqueue', 'cancel_new' or "
            "'cancel_running'"
        ],
    ),
    "a strategy without a limit": (
        ENTRY + "    when_full: cancel_new\n",
        ["4:16: deployments[0].when_full: cancel_new needs a max_active of at least 1"],
    ),
    "fewer than none at once": (
        ENTRY + "    max_active: -1\n",
        ["4:17: deployments[0].max_active: -1 is out of bounds: it must be at least 0"],
    ),
    "a name that no limit can have": (
        ENTRY + "    limits: [a b]\n",
        ["4:14: deployments[0].limits[0]: 'a b' is no name"],
    ),
    "no size": (
        ENTRY + "    memory_limit: much\n",
        ["4:19: deployments[0].memory_limit: 'much' is not a size"],
    ),
    "a size that is too small": (
        ENTRY + "    memory_limit: 512\n",
        ["4:19: deployments[0].memory_limit: 512 is no limit of memory: it must be from 1MiB to 1024TiB"],
    ),
    "no duration": (
        ENTRY + "    timeout: soon\n",
        ["4:14: deployments[0].timeout: 'soon' is not a duration"],
    ),
    "open quotes in a command": (
        "deployments:\n  - name: a\n    command: sh -c 'echo\n",
        ["3:14: deployments[0].command: cannot be split as a shell would: no closing quotation"],
    ),
    "a queue without a pool": (
        ENTRY + "    queue: fast\n",
        ["4:12: deployments[0].queue: a queue needs a pool"],
    ),
    "nothing to run": (
        "deployments:\n  - name: a\n",
        ["2:5: deployments[0]: there is none of entrypoint and command"],
    ),
    "two things to run": (
        ENTRY + "    entrypoint: a.py\n",
        ["4:5: deployments[0].entrypoint: only one of entrypoint and command may be given, and command is"],
    ),
    "no name": ("deployments:\n  - command: [echo]\n", ["2:5: deployments[0].name: is missing"]),
    "an unset variable": (
        ENTRY + "    pool: ${NOPE}\n    timeout: ${ALSO}\n",
        [
            "4:11: deployments[0].pool: the variable NOPE is not set",
            "5:14: deployments[0].timeout: the variable ALSO is not set",
        ],
    ),
    "an open variable": (
        ENTRY + '    pool: "${WHO"\n',
        ["4:11: deployments[0].pool: ${ is not closed by }, or has { inside"],
    ),
    "no variable": (ENTRY + '    pool: "${a b}"\n', ["4:11: deployments[0].pool: ${a b} names no variable"]),
    "a tag of YAML": (
        ENTRY + "    pool: !!python/name:os.system x\n",
        ["4:11: deployments[0].pool: the tag tag:yaml.org,2002:python/name:os.system cannot be used"],
    ),
    "a merge key": (
        "x: &x {pool: a}\ndeployments:\n  - {<<: *x, name: a, command: [echo]}\n",
        [
            "1:1: x: unknown key",
            "3:6: deployments[0]: << (merging mappings) is not part of YAML 1.2",
            "3:6: deployments[0].<<: unknown key",
        ],
    ),
    "an alias of nothing": ("deployments: *d\n", ["1:14: deployments: there is no &d above"]),
    "an alias of itself": ("deployments: &d [*d]\n", ["1:18: deployments[0]: *d contains itself"]),
    "two documents": (ENTRY + "---\na: 1\n", ["4:1: a second document begins here"]),
    "an empty file": ("", ["the file is empty"]),
    "nothing but a comment": ("# nothing\n", ["the file is empty"]),
    "a list at the top": (
        "- name: a\n",
        ["1:1: the file is a list, and not a mapping with the key deployments"],
    ),
    "a word": ("hello", ["1:1: the file is one value, and not a mapping with the key deployments"]),
    "no deployments": ("deployments: []\n", ["1:14: deployments: is empty"]),
    "without deployments": ("defaults: {}\n", ["1:1: deployments: is missing"]),
    "no list of deployments": (
        "deployments: {a: {}}\n",
        ["1:14: deployments: must be a list, not a mapping"],
    ),
    "faults of the defaults are told once": (
        "defaults: {pool: -x}\n" + ENTRY + "  - {name: b, command: [ls]}\n",
        ["1:18: defaults.pool: '-x' is no name"],
    ),
    "infinity": (
        ENTRY + "    parameters: {x: .inf, y: 1e999}\n",
        [
            "4:21: deployments[0].parameters.x: .inf is no number of JSON",
            "4:30: deployments[0].parameters.y: 1e999 is too large a number",
        ],
    ),
    "half a character": (
        ENTRY + '    parameters: {x: "\\ud800"}\n',
        ["4:21: deployments[0].parameters.x: half of a surrogate pair is no character"],
    ),
    "a key that is no text": (
        ENTRY + "    parameters: {1: 2}\n",
        ["4:18: deployments[0].parameters: the key 1 is not text"],
    ),
    "deep nesting": ("[" * 5000, ["1:101: nested deeper than 100 levels"]),
    "brackets": (
        "deployments: [\n  {name: a\n",
        [
            "3:1: not YAML: expected ',' or '}', but got '<stream end>' while parsing a flow mapping that began in line 2"
        ],
    ),
    "a moment that no calendar has": (
        _schedule("{interval: 60, start: 2027-02-30}"),
        ["5:31: deployments[0].schedules[0].start: '2027-02-30' is not a time"],
    ),
    "the end of the calendar": (
        _schedule('{interval: 60, start: "0001-01-01T00:00:00+10:00"}'),
        ["5:31: deployments[0].schedules[0].start: the moment is outside of the calendar"],
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_told_at_its_line_and_column(tmp_path: Path, case: str) -> None:
    text, expected = FAULTS[case]
    begin = time.perf_counter()
    assert _faults(tmp_path, text) == [
        f"shunter.yaml:{line}" if line[0].isdigit() else f"shunter.yaml: {line}" for line in expected
    ]
    assert time.perf_counter() - begin < 10


TOML_FAULTS: dict[str, tuple[str, list[str]]] = {
    "a fault in a table": (
        '[[deployments]]\nname = "a"\ncommand = ["echo"]\n[[deployments.schedules]]\n  cron = "0 0 30 2 *"\n',
        ['5:10: deployments[0].schedules[0].cron: "0 0 30 2 *" never fires, no date matches it'],
    ),
    "one in the second table": (
        '[[deployments]]\nname="a"\ncommand=["echo"]\n\n[[deployments]]\nname="b"\ncommand=["ls"]\ntags = 5 # x\n',
        ["8:8: deployments[1].tags: must be a list, not a number"],
    ),
    "one in an inline table": (
        'deployments = [\n  {name = "a", command = ["echo"], env = {A = 1}},\n]\n',
        ["2:47: deployments[0].env.A: must be text, not a number"],
    ),
    "an unknown key": (
        '[[deployments]]\nname="a"\ncommand=["x"]\n"po\\u0075l" = "x"\n',
        ["4:1: deployments[0].poul: unknown key"],
    ),
    "duplicate keys": (
        '[[deployments]]\nname = "a"\nname = "b"\n',
        ["3:1: deployments[0].name: the key 'name' is there already, in line 2, column 1"],
    ),
    "a broken string": ('[[deployments]]\nname = "a\n', ["2:10: not TOML: illegal character '\\n'"]),
    "infinity": (
        '[[deployments]]\nname = "a"\ncommand = ["x"]\nparameters.x = inf\n',
        ["4:16: deployments[0].parameters.x: inf is no number of JSON"],
    ),
    "deep nesting": ("a = " + "[" * 3000, ["nested deeper than 100 levels"]),
    "an empty file": ("", ["the file is empty"]),
    "an unset variable": (
        '[[deployments]]\nname = "a"\ncommand = """\\\n  echo ${NOPE}"""\n',
        ["3:11: deployments[0].command: the variable NOPE is not set"],
    ),
}


@pytest.mark.parametrize("case", TOML_FAULTS)
def test_a_fault_in_toml_is_told_at_its_line_and_column(tmp_path: Path, case: str) -> None:
    text, expected = TOML_FAULTS[case]
    assert _faults(tmp_path, text, "shunter.toml") == [
        f"shunter.toml:{line}" if line[0].isdigit() else f"shunter.toml: {line}" for line in expected
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (ENTRY.encode("utf-16"), "shunter.yaml:1:1: the file is UTF-16 and not UTF-8"),
        (ENTRY.encode("utf-16-le"), "shunter.yaml:1:2: a NUL character, which no text has"),
        (ENTRY.encode("utf-32"), "shunter.yaml:1:1: the file is UTF-32 and not UTF-8"),
        (
            f"{ENTRY}    description: Grüße\n".encode("latin-1"),
            "shunter.yaml:4:20: the byte 0xfc is not UTF-8",
        ),
        (f"{ENTRY}    description: a\0b\n".encode(), "shunter.yaml:4:19: a NUL character"),
        (
            f"{ENTRY}    description: a\x07b\n".encode(),
            "shunter.yaml:4:19: the character U+0007 is not allowed",
        ),
        (b"# " + b"x" * 1024 * 1024, "shunter.yaml: the file is larger than 1024 KiB"),
    ],
)
def test_wrong_encodings(tmp_path: Path, content: bytes, says: str) -> None:
    [fault] = _faults(tmp_path, content)
    assert fault.startswith(says)


def test_what_is_in_quotes_is_text(tmp_path: Path) -> None:
    text = ENTRY + '    parameters: {"<<": {a: 1}, "1": "no", "null": "!x", "~": "*a"}\n'
    [spec] = _specs(tmp_path, text)
    assert spec.parameters == {"<<": {"a": 1}, "1": "no", "null": "!x", "~": "*a"}


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path: Path) -> None:
    text = FULL.replace("\n", "\r\n").encode("utf-8-sig")
    assert _load(tmp_path, text).deployments == _load(tmp_path, FULL).deployments
    bad = b"\xef\xbb\xbfdeployments:\r\n  - name: a\r\n    command: [echo]\r\n    tags: x\r\n"
    assert _faults(tmp_path, bad) == ["shunter.yaml:4:11: deployments[0].tags: must be a list, not text"]


def test_a_bomb_is_refused_before_it_goes_off(tmp_path: Path) -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(20)
    )
    begin = time.perf_counter()
    [fault] = _faults(tmp_path, bomb)
    assert "the file has more than 100,000 values, with what its aliases repeat" in fault
    assert time.perf_counter() - begin < 1


def test_a_bomb_of_long_texts_is_refused(tmp_path: Path) -> None:
    text = f"a: &a {'x' * 500_000}\nb: [{', '.join(['*a'] * 1000)}]\n"
    [fault] = _faults(tmp_path, text)
    assert "more than 100,000 values" in fault


def test_a_bomb_of_variables_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "shunter.yaml"
    path.write_text(f"{ENTRY}    description: {'${BIG}' * 150_000}\n")  # 15 GB
    with pytest.raises(FileFaults) as caught:
        load(path, "f", {"BIG": "x" * 100_000}, check=False)
    assert "more than 10 MiB of text" in "".join(caught.value.lines())


def test_one_bad_entry_among_good_ones_and_all_faults_at_once(tmp_path: Path) -> None:
    (tmp_path / "flow.py").write_text("def main(): ...\n")
    text = """\
deployments:
  - {name: good, command: [echo]}
  - name: bad
    entrypoint: flow.py:man
    schedules:
      - cron: "0 0 30 2 *"
  - {name: worse, command: [no-such-program-at-all], tags: [ok]}
  - {name: worst, comand: [echo], retries: {count: many}}
  - {name: fine, entrypoint: "flow.py:main"}
"""
    assert [fault.partition(" ")[0] for fault in _faults(tmp_path, text, check=True)] == [
        "shunter.yaml:4:17:",
        "shunter.yaml:6:15:",
        "shunter.yaml:7:28:",
        "shunter.yaml:8:5:",
        "shunter.yaml:8:19:",
        "shunter.yaml:8:52:",
    ]


def test_remedies_stand_under_their_faults(tmp_path: Path) -> None:
    with pytest.raises(FileFaults) as caught:
        _load(tmp_path, ENTRY + "    shedules: []\n    onlost: crash\n")
    assert caught.value.lines() == [
        "shunter.yaml:4:5: deployments[0].shedules: unknown key",
        "  Did you mean 'schedules'?",
        "shunter.yaml:5:5: deployments[0].onlost: unknown key",
        "  Did you mean 'on_lost'?",
    ]
    assert caught.value.detail == "shunter.yaml has 2 faults: nothing is deployed"


@pytest.mark.parametrize(
    ("loc", "place"),
    [
        (["pool"], "1:18: defaults.pool"),
        (["work", "command"], "3:24: deployments[0].command"),
        (["work", "env", "A"], "3:41: deployments[0].env.A"),
        (["schedules", 0, "when", "cron"], "5:14: deployments[0].schedules[0].cron"),
        (["schedules", 0, "when", "cron", "cron"], "5:14: deployments[0].schedules[0].cron"),
        (["schedules", 1, "when", "seconds"], "6:27: deployments[0].schedules[1].interval"),
        (["schedules", 1, "jitter"], "6:7: deployments[0].schedules[1].jitter"),
        (["limits", 0], "3:5: deployments[0].limits[0]"),
        (["parameters", "year"], "3:5: deployments[0].parameters.year"),
    ],
)
def test_what_the_server_finds_is_told_at_its_place(tmp_path: Path, loc: list[Any], place: str) -> None:
    loaded = _load(tmp_path, FILE_OF_PLACES)
    refusal = BadRequest(
        "no", faults=[{"deployment": 0, "loc": loc, "detail": "is wrong", "remedy": "Mend."}]
    )
    located = loaded.located(refusal)
    assert isinstance(located, FileFaults)
    assert located.lines() == [f"shunter.yaml:{place}: is wrong", "  Mend."]


FILE_OF_PLACES = """\
defaults: {pool: nowhere}
deployments:
  - {name: a, command: [echo], env: {A: x}, schedules: [
      # one a day
      {cron: "0 6 * * *"},
      {name: b, interval: 90},
    ]}
"""


def test_a_refusal_without_places_stays_what_it_is(tmp_path: Path) -> None:
    refusal = BadRequest("no")
    assert _load(tmp_path, ENTRY).located(refusal) is refusal


# ---- the schema


def test_the_published_schema_is_that_of_the_code() -> None:
    published = (DOCS / "shunter.schema.json").read_text("utf-8")
    assert published == schema.schema_text(), "run: shunter init --schema > docs/shunter.schema.json"


def test_editors_and_deploy_agree(tmp_path: Path) -> None:
    validator = jsonschema.Draft202012Validator(schema.schema())
    validator.check_schema(schema.schema())
    good = [FULL, ENTRY, start(toml=False, with_schema=True)]
    good += [ENTRY + "    memory_limit: ${N}\n    exclusive: ${N}\n    retries: {jitter: 0, on: []}\n"]
    good += [ENTRY + "    timeout: ${N}\n    priority: ${N}\n    retries: ${N}\n    on_lost: ${N:-crash}\n"]
    for text in good:
        tree, _ = yaml_tree.parse(text)
        assert tree is not None
        validator.validate(plain(tree))
    tree, _ = toml_tree.parse(start(toml=True, with_schema=True))
    assert tree is not None
    validator.validate(plain(tree))
    by_form = [
        "an unknown key",
        "an unknown key at the top",
        "a wrong type",
        "a number for a text",
        "a text for a number",
        "too many retries",
        "a delay that shrinks",
        "no cause",
        "a cause that somebody asked for",
        "one cause that is no list",
        "a size that is too small",
        "a need that is no mapping",
        "something that one cannot have",
        "a strategy that there is not",
        "fewer than none at once",
        "no duration",
        "nothing to run",
        "two things to run",
        "no name",
        "no deployments",
        "two kinds of schedule",
        "no kind of schedule",
        "10,000 schedules",
        "an interval under one second, as a number",
    ]
    for case in by_form:
        tree, _ = yaml_tree.parse(FAULTS[case][0])
        assert tree is not None
        assert not validator.is_valid(plain(tree)), case


def test_every_key_is_described_for_editors_and_on_the_page() -> None:
    made = schema.schema()
    page = (DOCS / "deployment-files.md").read_text("utf-8")
    for part in [made, *made["$defs"].values()]:
        for key, about in part["properties"].items():
            assert about.get("description"), key
            assert f"`{key}`" in page, f"docs/deployment-files.md says nothing of {key}"


def test_the_example_of_the_page_is_right(tmp_path: Path) -> None:
    page = (DOCS / "deployment-files.md").read_text("utf-8")
    example = page.partition("```yaml\n")[2].partition("```")[0]
    assert [one.name for one in _load(tmp_path, example).deployments] == ["etl", "hello"]


# ---- files that are not read


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read: No such file"):
        load(tmp_path / "nope.yaml", "nope.yaml", {})
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(InvalidInput, match="is no deployment file"):
        load(tmp_path / "a.txt", "a.txt", {})


def test_places_count_characters_of_the_text_as_it_is() -> None:
    tree, _ = yaml_tree.parse("ä: [𝄞, {ß: 1}]\n")
    assert tree is not None
    assert tree.value["ä"].value[1].value["ß"].place == Place(1, 12)


def test_ruamel_is_loaded_only_to_read_yaml(tmp_path: Path) -> None:
    import subprocess
    import sys

    script = (
        "import sys\nfrom pathlib import Path\n"
        "from shunter_cli.deployment_files.checking import load\n"
        "load(Path('shunter.toml'), 'f', {}, check=False)\n"
        "print('ruamel.yaml' in sys.modules)\n"
        "import shunter_cli.commands.deploy\n"
    )
    (tmp_path / "shunter.toml").write_text('[[deployments]]\nname = "a"\ncommand = ["x"]\n')
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ),
    )
    assert done.stdout == "False\n"


def test_work_of_the_file_is_the_contract(tmp_path: Path) -> None:
    [spec] = _specs(tmp_path, ENTRY)
    assert spec == DeploymentSpec(work=Work(command=["echo"], source=str(tmp_path)))
    assert json.loads(spec.model_dump_json())["work"]["command"] == ["echo"]
