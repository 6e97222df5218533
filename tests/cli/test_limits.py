"""``shunter limit``, and what ``deploy`` says of limits and needs, on a real server with a real agent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from shunter_work_pools.client import Client
from shunter_work_pools.contracts.limits import Limit
from tests.cli.console import Console, Live, until
from tests.cli.test_bad_input import refused


@pytest.fixture(scope="module")
def shunter(live: Live) -> Console:
    """A terminal in a folder with a script."""
    console = Console(live.shunter.env, live.shunter.folder / "limits")
    console.folder.mkdir()
    script = console.folder / "load.sh"
    script.write_text("#!/bin/sh\nuntil [ -e done ]; do sleep 0.05; done\n")
    script.chmod(0o755)
    console.ok("limit", "create", "taken", "--max", "1")
    console.ok("deploy", "--name", "taker", "--pool", "default", "--limit", "taken", "--", "true")
    return console


@pytest.fixture
def unchanged(shunter: Console) -> Iterator[None]:
    """Sees to it that a test changed neither limits nor deployments."""
    token = (Path(shunter.env["SHUNTER_HOME"]) / "token").read_text().strip()
    with Client(shunter.env["SHUNTER_API_URL"], token) as client:

        def picture() -> object:
            return client.list_limits(), [(one.name, one.revision) for one in client.each_deployment()]

        before = picture()
        yield
        assert picture() == before


def test_the_lines_that_were_promised(shunter: Console) -> None:
    line = (
        "shunter limit create warehouse --max 3 ; shunter deploy --name load --limit warehouse -- ./load.sh"
    )
    done = shunter.shell(line)
    assert (done.code, done.text) == (
        0,
        "limit warehouse created (3 runs at once)\nload deployed as revision 1 (pool by tags)\n",
    )
    line = (
        "shunter deploy --name train --tag gpu --tag region=eu --require gpu --need gpu=1 "
        "-- sh -c 'echo $CUDA_VISIBLE_DEVICES'"
    )
    assert shunter.shell(line).code == 0
    spec = shunter.ok("deployment", "inspect", "train", "-o", "json").json["spec"]
    assert (spec["tags"], spec["require"], spec["need"]) == (["gpu", "region=eu"], ["gpu"], {"gpu": 1.0})
    assert spec["work"]["command"] == ["sh", "-c", "echo $CUDA_VISIBLE_DEVICES"]
    assert "gpu=1" in shunter.ok("deployment", "inspect", "train").text
    shunter.ok("deployment", "delete", "train", "--yes")


def test_a_limit_holds_for_real_processes(shunter: Console) -> None:
    shunter.ok("limit", "create", "door", "--max", "2")
    work = ("--pool", "default", "--working-dir", ".", "--", "./load.sh")
    shunter.ok("deploy", "--name", "through", "--limit", "door", *work)
    shunter.ok("run", "start", "through", "--count", "5")
    shown = until(lambda: _shown(shunter, "door", active=2))
    assert (shown.waiting, shown.deployments) == (3, ["through"])
    text = shunter.ok("limit", "list").text
    assert "door" in text
    shunter.ok("limit", "update", "door", "--max", "4")
    until(lambda: _shown(shunter, "door", active=4))
    (shunter.folder / "done").write_text("")
    until(lambda: _shown(shunter, "door", active=0, waiting=0))
    states = {run["state"] for run in shunter.ok("run", "list", "--deployment", "through", "-o", "json").json}
    assert states == {"Completed"}


def _shown(shunter: Console, name: str, **wanted: int) -> Limit | None:
    found = Limit.model_validate(shunter.ok("limit", "inspect", name, "-o", "json").json)
    return found if all(getattr(found, key) == value for key, value in wanted.items()) else None


def test_made_changed_listed_and_deleted(shunter: Console) -> None:
    words = ("--tag", "api", "--rate", "10/1m", "--max", "2", "--when-full", "cancel_running")
    done = shunter.ok("limit", "create", "api-calls", *words)
    assert done.text == (
        "limit api-calls created (tag api, 2 runs at once, 10/60s starts, when full: cancel_running)\n"
    )
    assert shunter.ok("limit", "create", "quiet", "--max", "0", "-q").text == "quiet\n"
    assert {"api-calls", "quiet"} <= set(shunter.ok("limit", "list", "-q").text.split())
    listed = {one["name"]: one for one in shunter.ok("limit", "list", "-o", "json").json}
    assert listed["api-calls"]["rate"] == {"count": 10, "seconds": 60.0}
    text = shunter.ok("limit", "inspect", "api").text  # shortened
    for said in ("api-calls", "10/60s", "cancel_running"):
        assert said in text
    done = shunter.ok("limit", "update", "api-calls", "--when-full", "enqueue", "--max", "none")
    assert done.text == "limit api-calls updated (tag api, 10/60s starts)\n"
    done = shunter.ok("limit", "update", "api-calls", "--rate", "none", "--max", "7", "-o", "json")
    assert (done.json["max"], done.json["rate"]) == (7, None)
    gone = shunter.ok("limit", "delete", "api-calls", "--yes", "-o", "json")
    assert json.loads(gone.out)["name"] == "api-calls"
    assert shunter.ok("limit", "delete", "quiet", "--yes").text == "limit quiet deleted\n"


def test_what_a_deploy_says_is_shown_and_compared(shunter: Console) -> None:
    shunter.ok("limit", "create", "shown", "--rate", "5/1h")
    deploy = ("deploy", "--name", "needy", "--pool", "default")
    more = ("--need", "gpu=1", "--need", "memory=8GiB", "--limit", "shown", "--max-active", "3")
    shunter.ok(*deploy, *more, "--when-full", "cancel_new", "--", "true")
    text = shunter.ok("deployment", "inspect", "needy").text
    for said in ("gpu=1 memory=8GiB", "shown", "3, when full: cancel_new"):
        assert said in text
    done = shunter.ok(*deploy, "--need", "cpu=0.5", "--dry-run", "--", "true")
    assert done.text.splitlines()[1:] == [
        '    limits: ["shown"] -> (none)',
        "    max_active: 3 -> (none)",
        '    when_full: "cancel_new" -> "enqueue"',
        "    need.cpu: (none) -> 0.5",
        "    need.gpu: 1 -> (none)",
        "    need.memory: 8GiB -> (none)",
    ]
    shunter.ok(*deploy, "--need", "gpu=2", "--", "true")
    history = shunter.having(COLUMNS="200").ok("deployment", "history", "needy").text
    assert (
        "need.gpu 1 → 2, need.memory 8GiB → none, limits -shown, max_active 3 → none, "
        "when_full cancel_new → enqueue" in history
    )
    shunter.ok("limit", "delete", "shown", "--yes")


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["create", "x"], ["limit 'x' limits nothing", "Give --max (runs at once), --rate or both."]),
        (["create", "x", "--rate", "5"], ["--rate '5' is no rate", "10/1m"]),
        (["create", "x", "--rate", "5/"], ["--rate '5/' does not say within which time"]),
        (["create", "x", "--rate", "-5/1m"], ["--rate '-5/1m' is no rate"]),
        (["create", "x", "--rate", "0/1m"], ["--rate '0/1m': it must be 1 to 10,000 starts"]),
        (["create", "x", "--rate", "1/0s"], ["--rate '0s' is zero"]),
        (["create", "x", "--rate", "1/40d"], ["40d is more than 31d"]),
        (["create", "x", "--rate", "1/soon"], ["--rate 'soon' is not a duration"]),
        (["create", "x", "--max", "-1"], ["--max"]),
        (["create", "x", "--max", "0", "--when-full", "cancel_new"], ["needs a --max of at least 1"]),
        (["create", "x", "--max", "1", "--when-full", "cancel"], ["'cancel'", "cancel_new"]),
        (["create", "a b", "--max", "1"], ["'a b' cannot be a name"]),
        (["create", "x", "--tag", "a b", "--max", "1"], ["--tag 'a b' cannot be a tag"]),
        (["create", "taken", "--max", "1"], ["there is a limit 'taken' already", "Choose another name"]),
        (["inspect", "takne"], ["there is no limit 'takne'", "Did you mean 'taken'?"]),
        (["update", "takne", "--max", "1"], ["Did you mean 'taken'?"]),
        (["update", "taken"], ["there is nothing to change"]),
        (["update", "taken", "--max", "many"], ["--max 'many' is no number of runs", "none"]),
        (["update", "taken", "--max", "none"], ["a limit needs max, rate or both", "delete it"]),
        (["delete", "take", "--yes"], ["This needs the whole name: taken."]),
        (["delete", "taken"], ["Add --yes"]),
        (["delete", "taken", "--yes"], ["limit 'taken' is named by deployment 'taker'"]),
    ],
)
def test_bad_words(shunter: Console, words: list[str], says: list[str]) -> None:
    done = shunter("limit", *words)
    if "a b" in words:  # the rule stands in the sentence itself
        assert (done.code, says[0] in done.err) == (2, True)
    else:
        refused(done, *says, code=2)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["--limit", "takne"],
            ["there is no limit 'takne' that deployments can name", "Did you mean 'taken'?"],
        ),
        (["--when-full", "cancel_new"], ["--when-full cancel_new needs a --max-active of at least 1"]),
        (["--need", "gpu"], ["--need 'gpu' is no amount", "gpu=2"]),
        (["--need", "gpu=1.5"], ["--need gpu=1.5: a device cannot be divided"]),
        (["--need", "memory=lots"], ["--need 'lots' is no amount of memory", "512MiB"]),
        (["--need", "gpu=1", "--need", "gpu=2"], ["--need gpu is given twice"]),
        (["--max-active", "-1"], ["--max-active"]),
    ],
)
def test_bad_deploys(shunter: Console, words: list[str], says: list[str]) -> None:
    refused(shunter("deploy", "--name", "never", "--pool", "default", *words, "--", "true"), *says, code=2)


def test_names_are_completed(shunter: Console) -> None:
    for line, at in (("shunter limit inspect tak", 3), ("shunter deploy --limit tak", 3)):
        asked = shunter.having(_SHUNTER_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(at))
        assert asked().text.split() == ["taken"], line
