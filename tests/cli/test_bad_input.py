"""Bad input: one clear message that names the place and the remedy, non-zero exit, nothing changed."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shunter_work_pools.client import Client
from tests.cli.console import SHUNTER, Console, Done, Live, free_port
from tests.cli.test_client import answering


def refused(done: Done, *says: str, code: int | None = None) -> None:
    """One message, no traceback, nothing on stdout."""
    assert done.code not in (0, None), done.text
    assert code is None or done.code == code, done.err
    assert sum(line.startswith("Error: ") for line in done.err.splitlines()) == 1, done.err
    assert "Traceback" not in done.err
    assert done.out == b""
    for one in says:
        assert one in done.err, done.err
    assert len(done.err.strip().splitlines()) >= 2, f"no remedy: {done.err}"


@pytest.fixture(scope="module")
def shunter(live: Live) -> Console:
    """A terminal in a folder with good and bad files."""
    console = Console(live.shunter.env, live.shunter.folder / "bad")
    console.folder.mkdir()
    files = {
        "good.py": "def main(year: int, name: str = 'x') -> None:\n    print(year)\n",
        "raises.py": "raise RuntimeError('no data here')\n",
        "needs.py": "import a_module_that_is_not_there\n\ndef main() -> None: ...\n",
        "syntax.py": "def main(:\n",
        "value.py": "main = 1\n",
        "script.sh": "#!/bin/sh\n",
    }
    for name, text in files.items():
        (console.folder / name).write_text(text)
    (console.folder / "big.json").write_text(json.dumps({"year": 1, "name": "x" * 600_000}))
    (console.folder / "nofolder").write_text("")
    console.ok("deploy", "good.py:main", "--name", "bad-good", "--pool", "default")
    return console


@pytest.fixture
def unchanged(shunter: Console) -> Iterator[None]:
    """Sees to it that a test changed nothing on the server."""

    token = (Path(shunter.env["SHUNTER_HOME"]) / "token").read_text().strip()

    def picture(client: Client) -> object:
        deployments = [(one.name, one.revision, one.paused) for one in client.each_deployment()]
        pools = [
            (pool.name, pool.paused, [queue.name for queue in pool.queues])
            for pool in client.list_pools().pools
        ]
        return deployments, pools, [run.id for run in client.each_run(deployment="bad-good")]

    with Client(shunter.env["SHUNTER_API_URL"], token) as client:
        before = picture(client)
        yield
        assert picture(client) == before


DEPLOYS = {
    "cron of two fields": (["--cron", "6 *", "--", "true"], 'cron: "6 *" has 2'),
    "cron out of range": (["--cron", "61 * * * *", "--", "true"], "61 * * * *"),
    "cron of words": (["--cron", "every day at six o'clock", "--", "true"], "cron"),
    "unknown zone": (["--cron", "0 6 * * *", "--timezone", "Mars/Olympus", "--", "true"], "Mars/Olympus"),
    "zero interval": (["--interval", "0", "--", "true"], "--interval '0' is zero"),
    "negative interval": (["--interval", "-5s", "--", "true"], "--interval '-5s' is negative"),
    "tiny interval": (["--interval", "10ms", "--", "true"], "--interval '10ms' is shorter"),
    "no interval": (["--interval", "soon", "--", "true"], "--interval 'soon' is not a duration"),
    "two schedules": (["--interval", "5s", "--cron", "* * * * *", "--", "true"], "exclude each other"),
    "zone of nothing": (["--timezone", "UTC", "--", "true"], "--timezone"),
    "unknown pool": (["--pool", "defualt", "--", "true"], "Did you mean 'default'?"),
    "unknown queue": (["--pool", "default", "--queue", "fst", "--", "true"], "no queue 'fst'"),
    "queue without pool": (["--queue", "default", "--", "true"], "a queue needs a pool"),
    "parameter of wrong type": (["good.py:main", "-p", "year=abc"], "year"),
    "parameter too many": (["good.py:main", "-p", "year=1", "-p", "yeer=1"], "yeer"),
    "parameter missing with a schedule": (["good.py:main", "--interval", "60s"], "year"),
    "parameters too large": (["good.py:main", "--params-file", "big.json"], "524288"),
    "no parameter": (["good.py:main", "-p", "year"], "-p 'year' is not key=value"),
    "no such file": (["nofile.py:main"], "nofile.py does not exist"),
    "no such module": (["nomodule:main"], "no module 'nomodule'"),
    "no such function": (["good.py:nope"], "no function 'nope'"),
    "not a function": (["value.py:main"], "is not a function"),
    "fails at import": (["raises.py:main"], "cannot be imported: RuntimeError: no data here"),
    "needs what is not there": (["needs.py:main"], "No module named 'a_module_that_is_not_there'"),
    "no Python": (["syntax.py:main"], "SyntaxError"),
    "no such interpreter": (["good.py:main", "--python", "/no/python"], "--python '/no/python'"),
    "no such command": (["--", "no-such-command"], "'no-such-command' is not found on PATH"),
    "no such path": (["--", "./nothing.sh"], "nothing.sh does not exist"),
    "no such absolute path": (["--", "/no/such/program"], "/no/such/program does not exist"),
    "not executable": (["--", "./script.sh"], "chmod +x"),
    "a folder": (["--", "./.."], "is a folder"),
    "no working folder": (["--working-dir", "nowhere", "--", "true"], "--working-dir"),
    "a bad tag": (["--tag", "two words", "--", "true"], "--tag 'two words'"),
    "a bad variable": (["--env", "1X=1", "--", "true"], "1X"),
    "negative retries": (["--retries", "-1", "--", "true"], "--retries"),
    "a jitter over one": (["--retry-jitter", "2", "--", "true"], "--retry-jitter 2.0"),
    "a backoff under one": (["--retry-backoff", "0.5", "--", "true"], "--retry-backoff 0.5"),
    "an unknown cause": (["--retry-on", "oon", "--", "true"], "--retry-on 'oon' is no cause of an end"),
    "a cause somebody asked for": (["--retry-on", "cancelled", "--", "true"], "somebody asked for it"),
    "a cause with a near one": (["--retry-on", "time-out", "--", "true"], "Did you mean 'timeout'"),
    "a cause that always counts": (
        ["--retry-uncounted", "oom", "--", "true"],
        "--retry-uncounted 'oom' always counts: it may be the run's own doing",
    ),
    "an unknown cause that is not to count": (
        ["--retry-uncounted", "evictet", "--", "true"],
        "Did you mean 'evicted'?",
    ),
    "memory that does not grow": (
        ["--retry-memory", "1x:8GiB", "--", "true"],
        "--retry-memory '1x:8GiB' is no",
    ),
    "memory without a limit": (["--retry-memory", "2x", "--", "true"], "As in 2x:8GiB"),
    "memory up to no size": (
        ["--retry-memory", "2:much", "--", "true"],
        "--retry-memory 'much' is not a size",
    ),
    "memory up to no more": (
        ["--retry-memory", "2x:1GiB", "--memory-limit", "1GiB", "--", "true"],
        "retries.more_memory goes up to 1GiB, which is no more than its memory_limit of 1GiB",
    ),
    "no size": (["--memory-limit", "much", "--", "true"], "--memory-limit 'much' is not a size"),
    "a size too small": (
        ["--memory-limit", "1kB", "--", "true"],
        "--memory-limit '1kB' is no limit of memory",
    ),
    "exclusive with a long grace": (
        ["--exclusive", "--grace", "4m", "--pool", "default", "--", "true"],
        "a grace of 4m does not fit an exclusive run",
    ),
    "an endless time-out": (["--timeout", "99999d", "--", "true"], "--timeout"),
    "a zero time-out": (["--timeout", "0", "--", "true"], "--timeout '0' is zero"),
    "nothing": ([], "nothing to run"),
    "both": (["good.py:main", "--", "true"], "both an entrypoint and a command"),
}


_RULES = ("negative retries", "a jitter over one", "a backoff under one", "memory up to no more")


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("case", DEPLOYS)
def test_a_bad_deploy(shunter: Console, case: str) -> None:
    words, says = DEPLOYS[case]
    done = shunter("deploy", "--name", "bad", *words)
    if case in ("queue without pool", "a bad tag", "a bad variable", *_RULES):
        assert done.code == 2  # the rule is the remedy
        assert done.err.startswith("Error: ")
        assert says in done.err
    else:
        refused(done, says, code=2)


STARTS = {
    "unknown deployment": (["bad-god"], "Did you mean 'bad-good'?"),
    "missing parameter": (["bad-good"], "'year' is a required property"),
    "extra parameter": (["bad-good", "-p", "year=1", "-p", "yeer=1"], "yeer"),
    "wrong type": (["bad-good", "-p", "year=abc"], "'abc' is not of type 'integer'"),
    "too large": (["bad-good", "--params-file", "big.json"], "524288"),
    "no time": (["bad-good", "-p", "year=1", "--at", "soon"], "--at 'soon' is not a time"),
    "no file": (["bad-good", "--params-file", "none.json"], "--params-file none.json cannot be read"),
}


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("case", STARTS)
def test_a_bad_start(shunter: Console, case: str) -> None:
    words, says = STARTS[case]
    refused(shunter("run", "start", *words), says, code=2)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["pool", "create", "default"], "'default'"),
        (["queue", "create", "default", "default"], "'default'"),
        (["pool", "inspect", "defalt"], "Did you mean 'default'?"),
        (["pool", "pause", "nothing"], "'nothing'"),
        (["queue", "pause", "default", "defalt"], "Did you mean 'default'?"),
        (["queue", "create", "defalt", "x"], "Did you mean 'default'?"),
        (["deployment", "inspect", "bad-goof"], "Did you mean 'bad-good'?"),
        (["deployment", "pause", "bad-goof"], "Did you mean 'bad-good'?"),
        (["run", "inspect", "00000000-0000-7000-8000-000000000000"], "00000000-0000-7000-8000-000000000000"),
        (["run", "inspect", "not-an-id"], "not-an-id"),
        (["run", "wait", "not-an-id"], "not-an-id"),
        (["run", "logs", "not-an-id"], "not-an-id"),
        (["run", "cancel", "not-an-id"], "not-an-id"),
        (["run", "list", "--state", "Compleded"], "Did you mean 'Completed'?"),
        (["run", "list", "--deployment", "bad-goof"], "'bad-goof'"),
        (["run", "list", "--pool", "defalt"], "Did you mean 'default'?"),
        (["run", "list", "--cursor", "nonsense"], "cursor"),
    ],
)
def test_a_name_that_is_not_there_or_is_already(shunter: Console, words: list[str], says: str) -> None:
    refused(shunter(*words), says, code=2)


def test_a_command_that_exists_elsewhere_can_be_deployed(shunter: Console) -> None:
    shunter.ok("deploy", "--name", "elsewhere", "--pool", "default", "--no-check", "--", "/no/such/program")
    run = shunter.ok("run", "start", "elsewhere", "-q").text.strip()
    assert shunter("run", "wait", run, "--timeout", "30").code == 1
    found = shunter("run", "inspect", run, "-o", "json").json
    assert (found["state"], found["cause"]) == ("Crashed", "start_failed")


# -- the server's address, token and version


def test_no_server(alone: Console) -> None:
    for words in (["run", "list"], ["run", "start", "x"], ["deploy", "--name", "x", "--", "true"]):
        refused(
            alone(*words),
            f"no server answers at {alone.env['SHUNTER_API_URL']}",
            "shunter server start",
            code=1,
        )


def test_an_address_that_is_none(alone: Console) -> None:
    refused(alone.having(SHUNTER_API_URL="127.0.0.1:4400")("run", "list"), "SHUNTER_API_URL", code=2)


def test_a_wrong_token_and_none(shunter: Console, alone: Console) -> None:
    refused(shunter.having(SHUNTER_TOKEN="wrong")("run", "list"), "token", "SHUNTER_TOKEN", code=1)
    without = alone.having(SHUNTER_API_URL=shunter.env["SHUNTER_API_URL"])
    refused(without("run", "list"), "token", code=1)


def test_a_server_of_another_protocol_version(alone: Console) -> None:
    with answering(200, {"Shunter-Protocol": "99"}, b"{}") as (url, _):
        for words in (["run", "list"], ["deploy", "--name", "x", "--", "true"]):
            refused(alone.having(SHUNTER_API_URL=url)(*words), url, "speaks protocol 99", code=1)
        agent = alone.having(SHUNTER_API_URL=url)("agent", "start", "--pool", "default", timeout=30)
    assert agent.code not in (0, None)
    assert "protocol 99" in agent.err
    assert "Traceback" not in agent.err


def test_not_a_shunter_server(alone: Console) -> None:
    with answering(200, {}, b"<html>") as (url, _):
        refused(alone.having(SHUNTER_API_URL=url)("run", "list"), "is not a Shunter server", code=1)


# -- the server's start


def test_a_port_in_use(alone: Console) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for command in (["server", "start"], ["up"]):
            refused(alone(*command, "--port", port), port, "--port", code=2)
    assert not (alone.folder.parent / "home").exists()


def test_a_folder_that_cannot_be_written(alone: Console) -> None:
    for home in ("/proc/shunter", "/dev/null/shunter"):
        console = alone.having(SHUNTER_HOME=home)
        refused(console("server", "start", "--port", str(free_port())), home, "SHUNTER_HOME")


def test_a_folder_that_cannot_be_written_by_an_agent(shunter: Console) -> None:
    token = (Path(shunter.env["SHUNTER_HOME"]) / "token").read_text().strip()
    agent = shunter.having(SHUNTER_HOME="/proc/shunter", SHUNTER_TOKEN=token)
    done = agent("agent", "start", "--pool", "default", "--name", "unwritable", timeout=30)
    assert done.code not in (0, None)
    assert "/proc/shunter" in done.err
    assert "Traceback" not in done.err
    assert "unwritable" not in shunter("agent", "list", "-q").text.split()


def test_a_full_folder(alone: Console) -> None:
    home = alone.folder.parent / "full"
    home.mkdir()
    inside = (
        f"mount -t tmpfs -o size=16k none {home} && dd if=/dev/zero of={home}/x bs=1k count=64 2>/dev/null;"
        f" exec {SHUNTER} server start --port {free_port()}"
    )
    unshare = shutil.which("unshare")
    probe = f"mount -t tmpfs none {home}"
    own = ["--mount"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--mount"]
    if (
        unshare is None
        or subprocess.run([unshare, *own, "sh", "-c", probe], capture_output=True, check=False).returncode
    ):
        pytest.skip("no mount namespace can be made here (unshare --mount)")
    done = alone.having(SHUNTER_HOME=str(home)).execute([unshare, *own, "sh", "-c", inside], timeout=30)
    refused(done, str(home))
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("content", [b"this is no database\n" * 500, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_database_file_that_is_not_one(alone: Console, content: bytes) -> None:
    home = alone.folder.parent / "home"
    home.mkdir()
    file = home / "shunter.db"
    file.write_bytes(content)
    refused(alone("server", "start", "--port", str(free_port())), str(file))
    assert file.read_bytes() == content


def test_a_database_url_that_is_none(alone: Console) -> None:
    for url, says in (("nonsense", "nonsense"), ("mysql://user:secret@x/y", "mysql")):
        done = alone("server", "start", "--port", str(free_port()), "--database-url", url)
        refused(done, says)
        assert "secret" not in done.err
