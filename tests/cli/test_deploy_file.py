"""``shunter deploy`` with a file, on a real server: all or none, the difference, faults at their places."""

from __future__ import annotations

import os
import pty
import select
import subprocess
from pathlib import Path
from typing import Any

import pytest

from shunter_work_pools.contracts.deployments import Deployment
from tests.cli.console import SHUNTER, Console, Live
from tests.patience import SOON

FILE = """\
deployments:
  - name: {base}-etl
    pool: default
    command: sh -c 'echo etl'
    timeout: 5m
    env: {{TOKEN: "${{TOKEN:-secret}}"}}
    schedules:
      - cron: "0 6 * * *"
        timezone: Europe/Berlin
        paused: true
  - name: {base}-hi
    pool: default
    command: [echo, hi]
"""


@pytest.fixture
def shunter(live: Live, tmp_path: Path) -> Console:
    """A terminal in a folder of the test's own."""
    return Console(live.shunter.env, tmp_path)


@pytest.fixture
def base(request: pytest.FixtureRequest) -> str:
    """Names of deployments begin with it: the server is shared."""
    return "f" + str(abs(hash(request.node.name)) % 10**8)


def _write(shunter: Console, text: str, name: str = "shunter.yaml") -> None:
    (shunter.folder / name).write_text(text)


def _names(shunter: Console) -> list[str]:
    return shunter.ok("deployment", "list", "-q").text.split()


def _inspect(shunter: Console, name: str) -> Deployment:
    return Deployment.from_answer(shunter.ok("deployment", "inspect", name, "-o", "json").out)


def test_dry_run_then_deploy_then_a_change(shunter: Console, base: str) -> None:
    _write(shunter, FILE.format(base=base))
    done = shunter.ok("deploy", "--dry-run")
    assert done.text == (
        f"+ {base}-etl (new)\n"
        "    command: sh -c 'echo etl'\n"
        f"{_source(shunter)}"
        "    timeout: 5m\n"
        '    pool: "default"\n'
        "    env.TOKEN: (hidden)\n"
        '    schedules.default.cron: "0 6 * * *"\n'
        '    schedules.default.timezone: "Europe/Berlin"\n'
        "    schedules.default.paused: true\n"
        f"+ {base}-hi (new)\n"
        "    command: echo hi\n"
        f"{_source(shunter)}"
        '    pool: "default"\n'
    )
    assert not any(name.startswith(base) for name in _names(shunter))

    done = shunter.ok("deploy")
    assert done.text.splitlines() == [
        f"{base}-etl deployed as revision 1 (pool default, every day at 06:00 in Berlin)",
        f"{base}-hi deployed as revision 1 (pool default)",
    ]
    assert shunter.ok("deploy").text.splitlines() == [
        f"{base}-etl is unchanged (revision 1)",
        f"{base}-hi is unchanged (revision 1)",
    ]

    changed = FILE.replace("0 6 * * *", "0 7 * * *").replace("timeout: 5m", "tags: [night]\n    retries: 3")
    _write(shunter, changed.format(base=base))
    expected = (
        f"~ {base}-etl (revision 1 -> 2)\n"
        "    timeout: 5m -> (none)\n"
        '    tags: (none) -> ["night"]\n'
        "    retries.count: 0 -> 3\n"
        "    env.TOKEN: (hidden) -> (hidden)\n"
        '    schedules.default.cron: "0 6 * * *" -> "0 7 * * *"\n'
        f"= {base}-hi (unchanged)\n"
    )
    assert shunter.having(TOKEN="other").ok("deploy", "--dry-run").text == expected
    assert _inspect(shunter, f"{base}-etl").revision == 1
    shunter.having(TOKEN="other").ok("deploy")
    found = _inspect(shunter, f"{base}-etl")
    assert (found.revision, found.spec.work.env) == (2, {"TOKEN": "other"})


def _source(shunter: Console) -> str:
    line = f'    source: "{shunter.folder}"\n'
    if len(line) <= 81:
        return line
    width = 72
    parts = [f'"{shunter.folder}"'[at : at + width] for at in range(0, len(line) - 13, width)]
    return "    source:\n" + "".join(
        f"      {'+' if at == 0 else ' '} {part}\n" for at, part in enumerate(parts)
    )


def test_a_warning_is_told_once(shunter: Console, base: str) -> None:
    shunter.ok("pool", "create", f"{base}-pool", "--type", "process")
    entries = "".join(f"  - {{name: {base}-{n}, command: [echo]}}\n" for n in range(5))
    _write(shunter, f"defaults: {{pool: {base}-pool}}\ndeployments:\n{entries}")
    done = shunter.ok("deploy", "--dry-run")
    assert done.err == (
        f"Warning: {base}-0, {base}-1, {base}-2 and 2 others: "
        f"no agent has ever served pool {base}-pool; its runs will wait. "
        f"Start one: `shunter agent start --pool {base}-pool`.\n"
    )
    shunter.ok("pool", "delete", f"{base}-pool", "--yes")


def test_the_difference_for_programs(shunter: Console, base: str) -> None:
    _write(shunter, FILE.format(base=base))
    [etl, hi] = shunter.ok("deploy", "--dry-run", "--output", "json").json
    assert (etl["name"], etl["change"], etl["revision"], etl["warnings"]) == (f"{base}-etl", "created", 1, [])
    assert {"field": "timeout", "before": None, "after": 300.0} in etl["fields"]
    assert hi["fields"][0] == {"field": "command", "before": None, "after": ["echo", "hi"]}
    yaml = shunter.ok("deploy", "--dry-run", "--output", "yaml").text
    assert yaml.startswith((f'- name: "{base}-etl"\n', f"- name: {base}-etl\n"))

    shunter.ok("deploy", "--output", "json")
    _write(shunter, FILE.format(base=base).replace("5m", "10m"))
    [etl, hi] = shunter.ok("deploy", "--output", "json").json
    assert (etl["change"], etl["revision"]) == ("changed", 2)
    assert etl["fields"] == [{"field": "timeout", "before": 300.0, "after": 600.0}]
    assert (hi["change"], hi["fields"]) == ("unchanged", [])


def test_nothing_is_deployed_if_one_entry_is_bad(shunter: Console, base: str) -> None:
    bad = (
        FILE
        + '  - name: {base}-bad\n    command: [echo]\n    schedules: [{{cron: "0 0 30 2 *"}}]\n    pol: x\n'
    )
    _write(shunter, bad.format(base=base))
    for words in (["deploy"], ["deploy", "--dry-run"], ["deploy", "--only", f"{base}-hi"]):
        done = shunter(*words)
        assert (done.code, done.out) == (2, b"")
        assert done.err.splitlines() == [
            'shunter.yaml:16:24: deployments[2].schedules[0].cron: "0 0 30 2 *" never fires, no date matches it',
            "  Change the day or the month: no year has, for example, a 30 February.",
            "shunter.yaml:17:5: deployments[2].pol: unknown key",
            "  Did you mean 'pool'?",
            "Error: shunter.yaml has 2 faults: nothing is deployed",
            "  Mend it and deploy again.",
        ]
    assert not any(name.startswith(base) for name in _names(shunter))


def test_what_only_the_server_knows_is_told_at_its_place(shunter: Console, base: str) -> None:
    (shunter.folder / "flow.py").write_text("def main(year: int): ...\n")
    text = FILE.replace("pool: default\n    command: [echo", "pool: defalt\n    command: [echo") + (
        "  - name: {base}-flow\n    pool: default\n    entrypoint: flow.py:main\n    parameters:\n      year: soon\n"
        "  - {{name: {base}-queue, command: [echo], pool: default, queue: fast}}\n"
    )
    _write(shunter, text.format(base=base))
    for words in (["deploy"], ["deploy", "--dry-run"]):
        done = shunter(*words)
        assert done.code == 2
        told = done.err.splitlines()
        assert told[0] == "shunter.yaml:12:11: deployments[1].pool: there is no pool 'defalt'"
        assert told[1] == "  Did you mean 'default'?"
        places = [line for line in told if line.startswith("shunter.yaml:")]
        assert len(places) == 3
        assert places[1].startswith("shunter.yaml:18:13: deployments[2].parameters.year: ")
        column = len(f"  - {{name: {base}-queue, command: [echo], pool: default, queue: ") + 1
        assert places[2].startswith(f"shunter.yaml:19:{column}: deployments[3].queue: ")
        assert "Error: shunter.yaml has 3 faults: nothing is deployed" in told
    assert not any(name.startswith(base) for name in _names(shunter))


def test_what_only_the_server_knows_is_told_beside_what_is_seen_here(shunter: Console, base: str) -> None:
    text = FILE.replace("pool: default\n    command: [echo", "pool: defalt\n    command: [echo") + (
        "  - {{name: {base}-bad, command: [echo], pol: x}}\n  - {{name: {base}-etl, command: [echo], pool: default}}\n"
    )
    _write(shunter, text.format(base=base))
    done = shunter("deploy")
    assert done.code == 2
    assert [
        line.partition(": ")[2] for line in done.err.splitlines() if line.startswith("shunter.yaml:")
    ] == [
        "deployments[1].pool: there is no pool 'defalt'",
        "deployments[2].pol: unknown key",
        f"deployments[3].name: two deployments are named '{base}-etl', the first in line 2",
    ]
    assert not any(name.startswith(base) for name in _names(shunter))
    # Without a server the rest is told all the same.
    away = shunter.having(SHUNTER_API_URL="http://127.0.0.1:1/api")("deploy")
    assert (away.code, "has 2 faults" in away.err, "defalt" in away.err) == (2, True, False)


def test_places_are_those_of_the_file_with_only(shunter: Console, base: str) -> None:
    _write(
        shunter,
        FILE.replace("pool: default\n    command: [echo", "pool: defalt\n    command: [echo").format(
            base=base
        ),
    )
    done = shunter("deploy", "--only", f"{base}-hi")
    assert "shunter.yaml:12:11: deployments[1].pool: there is no pool 'defalt'" in done.err
    shunter.ok("deploy", "--only", f"{base}-etl")
    assert [name for name in _names(shunter) if name.startswith(base)] == [f"{base}-etl"]
    done = shunter("deploy", "--only", f"{base}-elt")
    assert done.code == 2
    assert f"Did you mean '{base}-etl'" in done.err


def test_toml_and_another_file(shunter: Console, base: str) -> None:
    toml = f'[[deployments]]\nname = "{base}-t"\npool = "default"\ncommand = "sh -c true"\n'
    _write(shunter, toml, "shunter.toml")
    assert f"{base}-t deployed as revision 1" in shunter.ok("deploy").text
    (shunter.folder / "sub").mkdir()
    _write(shunter, FILE.format(base=base), "sub/other.yaml")
    assert f"{base}-hi deployed" in shunter.ok("deploy", "-f", "sub/other.yaml").text
    assert _inspect(shunter, f"{base}-hi").spec.work.source == str(shunter.folder / "sub")

    _write(shunter, FILE.format(base=base))
    done = shunter("deploy")
    assert done.code == 2
    assert "both shunter.yaml and shunter.toml" in done.err
    shunter.ok("deploy", "-f", "shunter.toml")


def test_a_file_that_is_not_there_and_options_that_do_not_go_with_it(alone: Console) -> None:
    cases: list[tuple[list[str], str]] = [
        (["deploy"], "neither shunter.yaml nor shunter.toml is in"),
        (["deploy", "-f", "nope.yaml"], "nope.yaml cannot be read: No such file or directory"),
        (["deploy", "-f", "x.yaml", "--pool", "default"], "--pool does not go with a deployment file"),
        (["deploy", "-f", "x.yaml", "--retries", "0"], "--retries does not go with a deployment file"),
        (["deploy", "-f", "x.yaml", "flow.py:main"], "an entrypoint does not go with a deployment file"),
        (["deploy", "--only", "a", "--", "true"], "a command behind -- does not go with a deployment file"),
    ]
    for words, says in cases:
        done = alone(*words)
        assert (done.code, done.out) == (2, b"")
        assert says in done.err
    _write(alone, "", "shunter.yml")
    assert "Rename shunter.yml to shunter.yaml" in alone("deploy").err


def test_a_file_with_faults_needs_no_server(alone: Console) -> None:
    _write(alone, "deployments:\n\t- name: a\n")
    done = alone("deploy", "--dry-run")
    assert done.code == 2
    assert done.err.startswith("shunter.yaml:2:1: a tab is used to indent, which YAML does not allow\n")


def test_a_file_cannot_steer_the_terminal(alone: Console) -> None:
    _write(alone, 'deployments:\n  - {name: a, command: [echo], "po\\e[31mol": x}\n')
    done = alone("deploy")
    assert "\x1b" not in done.err
    assert "po\\x1b[31mol: unknown key" in done.err


@pytest.mark.parametrize("no_color", ["", "1"])
def test_colours_are_for_terminals(shunter: Console, base: str, no_color: str) -> None:
    _write(shunter, FILE.format(base=base))
    seen = _on_a_terminal(shunter.having(NO_COLOR=no_color, TERM="xterm-256color"), "deploy", "--dry-run")
    assert f"+ {base}-etl (new)" in seen
    assert ("\x1b[32m" in seen) is (no_color == "")
    assert "\x1b" not in shunter.ok("deploy", "--dry-run").text


def _on_a_terminal(shunter: Console, *words: str) -> str:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [SHUNTER, *words], env=shunter.env, cwd=shunter.folder, stdout=theirs, stdin=theirs
    )
    os.close(theirs)
    seen = b""
    try:
        while select.select([ours], [], [], 30)[0]:
            piece = os.read(ours, 65536)
            if not piece:
                break
            seen += piece
    except OSError:  # the terminal is gone with its last process
        pass
    finally:
        os.close(ours)
    assert process.wait(SOON) == 0
    return seen.decode()


def test_the_difference_fits_80_columns(shunter: Console, base: str) -> None:
    long = "word " * 60
    text = (
        FILE.format(base=base)
        + f"    description: {long}\n    parameters: {{p: {{q: [{'1234567, ' * 30}]}}}}\n"
    )
    _write(shunter, text)
    for _ in range(2):
        done = shunter.ok("deploy", "--dry-run")
        assert max(map(len, done.text.splitlines())) <= 80
        assert "parameters.p.q:" in done.text
        shunter.ok("deploy")
        _write(shunter, text.replace("word", "other").replace("1234567", "7654321"))


# ---- one deployment, by options


def test_dry_run_of_one_deployment(shunter: Console, base: str) -> None:
    words = ("deploy", "--name", base, "--pool", "default", "--interval", "60s")
    assert shunter.ok(*words, "--dry-run", "--", "true").text.startswith(
        f"+ {base} (new)\n    command: true\n"
    )
    assert base not in _names(shunter)
    shunter.ok(*words, "--", "true")
    assert shunter.ok(*words, "--dry-run", "--", "true").text == f"= {base} (unchanged)\n"
    done = shunter.ok(*words[:-1], "90s", "--dry-run", "--", "true")
    assert done.text == f"~ {base} (revision 1 -> 2)\n    schedules.default.interval: 60s -> 1m30s\n"
    [change] = shunter.ok(*words[:-1], "90s", "--dry-run", "-o", "json", "--", "true").json
    assert change["fields"] == [{"field": "schedules.default.interval", "before": 60.0, "after": 90.0}]


OPTIONS: list[tuple[list[str], dict[str, Any]]] = [
    (
        ["--cron", "0 6 13 * 5", "--day-and", "--timezone", "Europe/Berlin", "--start", "2027-01-01"],
        {
            "when": {"cron": "0 6 13 * 5", "day": "and", "timezone": "Europe/Berlin"},
            "start": "2026-12-31T23:00:00Z",
        },
    ),
    (
        ["--interval", "1h", "--anchor", "2027-01-01T00:10:00Z", "--jitter", "30s", "--catch-up", "latest"],
        {"when": {"seconds": 3600.0, "anchor": "2027-01-01T00:10:00Z"}, "jitter": 30.0, "catch_up": "latest"},
    ),
    (
        ["--rrule", "DTSTART:20270101T060000\\nRRULE:FREQ=DAILY", "--end", "2028-01-01T00:00:00Z"],
        {"when": {"rrule": "DTSTART:20270101T060000\nRRULE:FREQ=DAILY"}, "end": "2028-01-01T00:00:00Z"},
    ),
]


@pytest.mark.parametrize(("words", "meant"), OPTIONS)
def test_schedules_by_options(shunter: Console, base: str, words: list[str], meant: dict[str, Any]) -> None:
    shunter.ok("deploy", "--name", base, "--pool", "default", *words, "--", "true")
    [schedule] = _inspect(shunter, base).spec.schedules
    assert schedule.model_dump(mode="json", exclude_defaults=True) == meant


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--interval", "5s", "--rrule", "FREQ=DAILY"], "--interval and --rrule exclude each other"),
        (["--interval", "60", "--day-and"], "--day-and belongs to --cron, and there is none"),
        (["--cron", "@daily", "--anchor", "2027-01-01"], "--anchor belongs to --interval, and there is none"),
        (["--jitter", "5s"], "--jitter belongs to a schedule, and there is none"),
        (["--catch-up", "none"], "--catch-up belongs to a schedule, and there is none"),
        (["--interval", "60", "--start", "2027-01-02", "--end", "2027-01-01"], "--end must be after --start"),
        (["--interval", "60", "--start", "soon"], "--start 'soon' is not a time"),
        (["--interval", "60", "--jitter", "61s"], "61 seconds is not shorter"),
        (["--rrule", "FREQ=NEVER"], "NEVER"),
    ],
)
def test_bad_schedules_by_options(shunter: Console, base: str, words: list[str], says: str) -> None:
    done = shunter("deploy", "--name", base, *words, "--", "true")
    assert (done.code, done.out) == (2, b"")
    assert says in done.err
    assert base not in _names(shunter)


def test_an_exclusive_deployment_whose_grace_does_not_fit_is_refused_with_its_place(shunter: Console) -> None:
    text = """\
deployments:
  - name: does-not-fit
    command: "true"
    pool: default
    exclusive: true
    grace: 4m
"""
    _write(shunter, text)
    done = shunter("deploy")
    assert (done.code, done.out) == (2, b"")
    assert "shunter.yaml:6:12: deployments[0].grace: a grace of 4m does not fit an exclusive run" in done.err
    assert "--lease-for" in done.err
    assert "does-not-fit" not in _names(shunter)


def test_limits_and_needs_in_a_file(shunter: Console, base: str) -> None:
    shunter.ok("limit", "create", f"{base}-db", "--max", "2")
    text = (
        f"deployments:\n  - name: {base}\n    pool: default\n    command: [echo]\n"
        f"    need: {{gpu: 1, memory: 8GiB}}\n    limits: [{base}-bd]\n    max_active: 1\n"
    )
    _write(shunter, text)
    done = shunter("deploy")
    assert (done.code, done.err.splitlines()[:2]) == (
        2,
        [
            f"shunter.yaml:6:14: deployments[0].limits[0]: there is no limit '{base}-bd' that deployments can name",
            f"  Did you mean '{base}-db'?",
        ],
    )
    assert base not in _names(shunter)
    _write(shunter, text.replace("-bd", "-db"))
    assert shunter.ok("deploy", "--dry-run").text == (
        f"+ {base} (new)\n"
        "    command: echo\n"
        f"{_source(shunter)}"
        f'    limits: ["{base}-db"]\n'
        "    max_active: 1\n"
        '    pool: "default"\n'
        "    need.gpu: 1\n"
        "    need.memory: 8GiB\n"
    )
    shunter.ok("deploy")
    assert _inspect(shunter, base).spec.need == {"gpu": 1, "memory": 8 * 2**30}
    changed = text.replace("-bd", "-db").replace("8GiB", "512MiB") + "    when_full: cancel_running\n"
    _write(shunter, changed)
    assert shunter.ok("deploy", "--dry-run").text == (
        f"~ {base} (revision 1 -> 2)\n"
        '    when_full: "enqueue" -> "cancel_running"\n'
        "    need.memory: 8GiB -> 512MiB\n"
    )
    assert shunter("limit", "delete", f"{base}-db", "--yes").code == 2
