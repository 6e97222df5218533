"""``serve``, ``deploy`` and ``to_deployment``: real scripts, a real server, agents of their own."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import psutil
import pytest

from shunter.serving import PAUSED, _Service
from shunter_work_pools.contracts.deployments import Named, SchedulePatch
from shunter_work_pools.contracts.errors import NotFound
from shunter_work_pools.contracts.pools import PoolSpec
from shunter_work_pools.contracts.runs import Run
from tests.agents.real_server import Site, site
from tests.patience import SOON
from tests.serving import page
from tests.serving.scripts import ended, script, started, until, written

if TYPE_CHECKING:
    from shunter_work_pools.client import Client

#: As it stands in the issue of flows, but for what the tasks do.
SUMS = """
from shunter import flow, task, serve, deploy

@task(retries=2, retry_delay=1)
def fetch(n: int) -> int:
    return n * n

@task
def total(values: list[int]) -> int:
    return sum(values)

@flow(name="sums", executor="threads")
def sums(upto: int = 10) -> int:
    "Squares, added."
    return total.submit(fetch.map(range(upto))).result()

if __name__ == "__main__":
    print(sums(5), flush=True)
    sums.serve(name="every-minute", tags=["demo"], parameters={"upto": 20}, interval=60)
"""

TICKS = """
import time
from pathlib import Path
from shunter import context, flow, serve

HERE = Path(__file__).parent

@flow
def tick(seconds: float = 0.0) -> str:
    with open(HERE / "ticks", "a") as file:
        file.write(f"{context.run_id} {context.attempt}\\n")
    time.sleep(seconds)
    return str(Path.cwd())

if __name__ == "__main__":
    serve(tick.to_deployment("ticks", interval=1), tick.to_deployment("long", parameters={"seconds": 4.0}))
"""


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("serving") / "home") as found:
        yield found
        assert found.left_over() == []


def schedule(one: Site, deployment: str) -> Any:
    (found,) = one.client.each_schedule(deployment)
    return found


def failed(one: Site, path: Path, *words: str) -> str:
    """What a script said that could not serve or deploy."""
    done = subprocess.run(
        [sys.executable, str(path), *words], env=one.env, cwd=path.parent, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stderr


def test_the_lines_of_the_issue_work_as_they_stand(one: Site, tmp_path: Path) -> None:
    path = written(tmp_path, SUMS)
    with script(one, path) as process:
        log = path.with_suffix(".log")
        assert log.read_text().startswith("30\n")
        deployed = one.client.get_deployment("every-minute")
        assert deployed.spec.tags == ["demo"]
        assert deployed.spec.description == "Squares, added."
        assert deployed.spec.parameter_schema is not None
        assert deployed.spec.parameter_schema["properties"]["upto"] == {
            "default": 10, "title": "Upto", "type": "integer",
        }  # fmt: skip
        assert deployed.schedules[0].words == "every minute"
        run = one.ended(started(one, "every-minute"))
        assert (run.state, run.result) == ("Completed", sum(n * n for n in range(20)))
        assert one.ended(started(one, "every-minute", upto=3)).result == 5
        assert ended(process, signal.SIGINT) == 0
        assert schedule(one, "every-minute").paused
        assert schedule(one, "every-minute").next_at is None
        assert "Traceback" not in log.read_text()
        assert "WARNING" not in log.read_text()
    with script(one, path) as process:
        assert not schedule(one, "every-minute").paused
        assert one.client.get_deployment("every-minute").revision == 1  # the same again changes nothing
        assert ended(process) == 0
    one.client.delete_deployment("every-minute")


def test_after_kill_9_its_runs_go_on_and_late_ones_are_made_up_for(one: Site, tmp_path: Path) -> None:
    path = written(tmp_path, TICKS)
    with script(one, path) as process:
        long = started(one, "long")
        until(lambda: long in ticks(tmp_path))
        (agent,) = psutil.Process(process.pid).children()
        process.kill()
        process.wait()
        agent.wait(10)  # it dies with its script
    late = until(lambda: len(waiting(one)) >= 3 and waiting(one))
    assert not schedule(one, "ticks").paused  # nobody was there to pause it
    written(
        tmp_path, TICKS.replace("serve(", 'serve(tick.to_deployment("another"), ')
    )  # the agent is the same one
    with script(one, path) as process:
        for run in late:
            assert one.ended(run.id).state == "Completed"
        found = one.ended(long)
        assert (found.state, found.attempt_count) == ("Completed", 1)  # the same process, found again
        assert ticks(tmp_path).count(long) == 1
        assert ended(process) == 0
    slots = [run.slot for run in one.client.each_run(deployment="ticks")][::-1]
    assert {later - slot for slot, later in pairwise(slots)} == {timedelta(seconds=1)}
    for name in ("ticks", "long", "another"):
        one.client.delete_deployment(name)


def ticks(folder: Path) -> list[str]:
    path = folder / "ticks"
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


def waiting(one: Site) -> list[Run]:
    return list(one.client.each_run(deployment="ticks", states=["Scheduled"]))


def test_slots_of_the_pause_are_made_up_for_unless_a_person_paused(one: Site, tmp_path: Path) -> None:
    path = written(tmp_path, TICKS)
    with script(one, path) as process:
        until(lambda: list(one.client.each_run(deployment="ticks", states=["Completed"])))
        assert ended(process) == 0
    before = len(list(one.client.each_run(deployment="ticks")))
    paused_at = time.time()
    until(lambda: time.time() > paused_at + 3)
    assert len(list(one.client.each_run(deployment="ticks"))) == before
    with script(one, path) as process:
        until(lambda: len(list(one.client.each_run(deployment="ticks", states=["Completed"]))) >= before + 3)
        slots = [run.slot for run in one.client.each_run(deployment="ticks")][::-1]
        assert {later - slot for slot, later in pairwise(slots)} == {timedelta(seconds=1)}
        one.client.update_schedule("ticks", "default", SchedulePatch(paused=True, reason="by hand"))
        assert ended(process) == 0
    with script(one, path) as process:
        found = schedule(one, "ticks")
        assert (found.paused, found.pause.reason) == (True, "by hand")
        assert ended(process) == 0
    one.client.delete_deployment("ticks")
    one.client.delete_deployment("long")


@contextmanager
def other_machine(one: Site, folder: Path) -> Iterator[Site]:
    """The same server from a home of its own, as on another machine of the same name."""
    home = folder / "other-home"
    found = replace(one, home=home, env=one.env | {"SHUNTER_HOME": str(home)})
    yield found
    assert found.left_over() == []


def serving(one: Site, deployment: str) -> list[str]:
    """Agents that serve it now."""
    agents = one.client.list_agents().agents
    return [each.name for each in agents if f"serves={deployment}" in each.tags and not each.draining]


def well(process: subprocess.Popen[str]) -> None:
    """Have a script hear at once what its agent says every 15 seconds."""
    (agent,) = psutil.Process(process.pid).children()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as mouth:
        mouth.sendto(b"READY=1", agent.environ()["NOTIFY_SOCKET"])


def test_machines_that_serve_one_deployment_do_not_pause_each_other(one: Site, tmp_path: Path) -> None:
    path = written(tmp_path, TICKS)
    with other_machine(one, tmp_path) as two:
        with script(two, path) as second:
            with script(one, path) as first:
                names = serving(one, "ticks")
                assert len(set(names)) == 2
                assert ended(first) == 0
            assert not schedule(one, "ticks").paused
            (left,) = serving(one, "ticks")
            with script(one, path) as first:
                assert sorted(serving(one, "ticks")) == sorted(names)  # it has the name that it had
                assert ended(second) == 0
                assert not schedule(one, "ticks").paused
                # One that was cut off while the last one that the server knew of ended:
                pause = SchedulePatch(paused=True, reason=PAUSED)
                one.client.update_schedule("ticks", "default", pause)
                well(first)
                until(lambda: not schedule(one, "ticks").paused)
                # Two that end at once:
                with script(two, path) as second:
                    for each in (first, second):
                        each.terminate()
                    assert (first.wait(30), second.wait(30)) == (0, 0)
        assert left in names
        assert schedule(one, "ticks").paused
    one.client.delete_deployment("ticks")
    one.client.delete_deployment("long")


def test_one_that_begins_while_another_pauses_goes_on(one: Site, tmp_path: Path) -> None:
    path = written(tmp_path, TICKS)
    with script(one, path) as process:
        assert ended(process) == 0
    one.client.update_schedule("ticks", "default", SchedulePatch(paused=False))
    begun: list[subprocess.Popen[str]] = []
    with ExitStack() as stack:

        class Late:
            """Another script begins just before the schedule is paused."""

            def __getattr__(self, name: str) -> Any:
                return getattr(one.client, name)

            def update_schedule(self, *words: Any) -> None:
                if not begun:
                    begun.append(stack.enter_context(script(one, path)))
                one.client.update_schedule(*words)

        named = [Named(name="ticks", spec=one.client.get_deployment("ticks").spec)]
        _Service(cast("Client", Late()), "ending", named, None, pause_on_exit=True)._pause()
        assert not schedule(one, "ticks").paused
        assert ended(begun[0]) == 0
    one.client.delete_deployment("ticks")
    one.client.delete_deployment("long")


def test_a_deployment_served_from_another_folder_is_left_alone(one: Site, tmp_path: Path) -> None:
    here, there = written(tmp_path, TICKS, "here/script.py"), written(tmp_path, TICKS, "there/script.py")
    with script(one, here) as process, other_machine(one, tmp_path) as two:
        said = failed(two, there)
        (agent,) = serving(one, "ticks")
        assert f"deployment 'ticks' is served already, by agent {agent} on" in said
        assert f"from {here.parent}, and here it is in {there.parent}" in said
        assert one.client.get_deployment("ticks").revision == 1
        one.client.delete_deployment("long")  # whoever serves it
        only = written(
            tmp_path, TICKS.replace('tick.to_deployment("ticks", interval=1), ', ""), "third/script.py"
        )
        with script(two, only) as third:
            assert ended(third) == 0
        assert ended(process) == 0
    with script(one, there) as process:  # nobody serves it any more
        assert ended(process) == 0
    one.client.delete_deployment("ticks")
    one.client.delete_deployment("long")


def test_told_to_stop_runs_may_finish_and_told_twice_they_are_cancelled(one: Site, tmp_path: Path) -> None:
    path = written(tmp_path, TICKS.replace('tick.to_deployment("ticks", interval=1), ', ""))
    with script(one, path) as process:
        run = started(one, "long", seconds=3.0)
        until(lambda: run in ticks(tmp_path))
        assert ended(process) == 0
        found = one.client.get_run(run)
        assert found.state == "Completed"
        assert found.result == str(tmp_path)  # runs start where the script did
    with script(one, path) as process:
        run = started(one, "long", seconds=60.0)
        until(lambda: run in ticks(tmp_path))
        log = path.with_suffix(".log")
        (agent,) = psutil.Process(process.pid).children()
        agent.suspend()  # too busy to hear the first signal before the second one: they must not become one
        process.terminate()
        until(lambda: "once more cancels them" in log.read_text().rsplit("Ctrl-C ends it")[-1])
        process.terminate()
        until(lambda: "cancelling what runs" in log.read_text())
        agent.resume()
        assert process.wait(SOON) == 0
        assert one.client.get_run(run).state == "Cancelled"
    one.client.delete_deployment("long")


def test_the_page_for_people_who_know_prefect_shows_what_works(one: Site, tmp_path: Path) -> None:
    path = written(tmp_path, page.blocks()[1])
    with script(one, path) as process:
        run = one.ended(started(one, "nightly", upto=4, day="2026-11-26"))
        assert (run.state, run.result) == ("Completed", 14)
        told = one.output(run.id).decode()
        assert "squares up to 4 on 26.11." in told
        assert "| INFO    | shunter.Squares | mapping" in told
        assert one.client.get_deployment("nightly").schedules[0].words == "every day at 06:00 UTC"
        assert ended(process) == 0


DEMANDING = """
from shunter import flow

@flow
def heavy() -> None: ...

if __name__ == "__main__":
    heavy.serve("heavy", need={"gpu": 1})
"""


def test_what_the_scripts_agent_cannot_execute_is_said(one: Site, tmp_path: Path) -> None:
    path = written(tmp_path, DEMANDING)
    with script(one, path) as process:
        told = path.with_suffix(".log").read_text()
        assert one.client.get_deployment("heavy").spec.description == ""  # it has none
        assert told.count("WARNING") == 1
        assert "deployment heavy: " in told
        assert "gpu" in told
        assert ended(process) == 0
    one.client.delete_deployment("heavy")


TWO = """
import sys
from pathlib import Path
from shunter import flow, serve

@flow
async def a(n: int = 1) -> str:
    return f"{Path(__file__).stem} a{n}"

@flow
def b() -> str:
    return f"{Path(__file__).stem} b"

other = b.with_options(name="other", retries=1)

if __name__ == "__main__":
    stem = Path(__file__).stem
    serve(a.to_deployment(f"{stem}-a", parameters={"n": 2}), other.to_deployment(f"{stem}-b"), limit=2)
"""


def test_scripts_have_their_own_runs_and_several_flows(one: Site, tmp_path: Path) -> None:
    first, second = written(tmp_path, TWO, "first.py"), written(tmp_path, TWO, "second.py")
    with script(one, first) as process, script(one, second) as other:
        runs = {
            name: started(one, name)
            for name in ("first-a", "first-b", "second-a", "second-b")
            for _ in range(2)
        }
        told = {name: one.ended(run).result for name, run in runs.items()}
        assert told == {
            "first-a": "first a2", "first-b": "first b", "second-a": "second a2", "second-b": "second b",
        }  # fmt: skip
        assert one.client.get_deployment("first-b").spec.work.entrypoint == "first.py:other"
        said = failed(one, first)
        assert f"deployment 'first-a' is served already, by process {process.pid}" in said
        assert "End that one first" in said
        assert ended(process) == 0
        waits = started(one, "first-b")
        assert one.ended(started(one, "second-b")).state == "Completed"
        assert one.client.get_run(waits).state == "Scheduled"  # the other one does not take it
        one.client.cancel_run(waits)
        assert ended(other) == 0


def test_an_agent_that_ends_by_itself_ends_the_script_and_pauses(one: Site, tmp_path: Path) -> None:
    path = written(tmp_path, TICKS)
    with script(one, path) as process:
        (agent,) = psutil.Process(process.pid).children()
        agent.kill()
        assert process.wait(SOON) == 1
        assert "ended by itself (killed by SIGKILL)" in path.with_suffix(".log").read_text()
        assert schedule(one, "ticks").paused
    with script(one, path) as process:  # its runs are found again
        assert ended(process) == 0
    one.client.delete_deployment("ticks")
    one.client.delete_deployment("long")


PACKAGE = """
from shunter import flow
from .inner import VALUE

@flow
def where(n: int = 0) -> int:
    return VALUE + n

class Kept:
    @flow
    @staticmethod
    def never() -> None: ...
"""


def test_deploy_to_a_pool_from_modules_and_packages(one: Site, tmp_path: Path) -> None:
    written(tmp_path, "VALUE = 40", "team/inner.py")
    written(tmp_path, "", "team/__init__.py")
    main = '\n\nif __name__ == "__main__":\n    print(where.deploy("by-module", pool="default").change)\n'
    written(tmp_path, PACKAGE.split("class")[0] + main, "team/jobs.py")
    path = written(
        tmp_path,
        "from shunter import deploy\nfrom team.jobs import where\n"
        'print([one.change for one in deploy(where.to_deployment("by-import", parameters={"n": 2}, timeout=60),'
        ' where.to_deployment(tags=["x"]), pool="default")])\n',
        "deploys.py",
    )

    def run(*words: str) -> str:
        return subprocess.run(
            [sys.executable, *words], env=one.env, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
        ).stdout  # fmt: skip

    assert run(str(path)) == "['created', 'created']\n"
    assert run(str(path)) == "['unchanged', 'unchanged']\n"
    assert run("-m", "team.jobs") == "created\n"
    spec = one.client.get_deployment("by-module").spec
    assert (spec.work.entrypoint, spec.work.source) == ("team.jobs:where", str(tmp_path))
    assert one.client.get_deployment("by-import").spec.work.timeout == 60
    assert not spec.work.token


def test_deploy_to_a_pool_of_containers(one: Site, tmp_path: Path) -> None:
    """Runs bring their journals themselves there, and have no folder of this machine."""
    one.client.create_pool(PoolSpec(name="boxes", type="docker", template={"image": "localhost/python:3.11"}))
    main = (
        '\nif __name__ == "__main__":\n    where.deploy("folder", pool="boxes")\n'
        '    where.deploy("image", pool="boxes", source=None)\n'
    )
    text = PACKAGE.split("class")[0].replace("from .inner import VALUE", "VALUE = 1") + main
    path = written(tmp_path, text, "boxed.py")
    done = subprocess.run(
        [sys.executable, str(path)], env=one.env, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )  # fmt: skip
    assert done.stderr.count("know nothing of the folder") == 1, done.stderr
    assert f"deployment folder: the runs of pool boxes know nothing of the folder {tmp_path}" in done.stderr
    for name in ("folder", "image"):
        assert one.client.get_deployment(name).spec.work.token
    assert one.client.get_deployment("where").spec.tags == ["x"]
    with one.agent("a1"):
        assert one.ended(started(one, "by-import")).result == 42
        assert one.ended(started(one, "by-module", n=1)).result == 41


#: What a script does -> what it is told.
BAD = {
    "two of one name": (
        'serve(fine.to_deployment("same"), fine.to_deployment("same"))',
        "two deployments are named 'same'",
    ),
    "none": ("serve()", "serve was given no deployment"),
    "a flow": ("serve(fine)", "serve takes deployments, not a flow"),
    "no name": ('fine.serve(name="no name")', "deployment 'no name': name: 'no name' cannot be one"),
    "an empty name": ('fine.serve(name="")', "deployment '': name: '' cannot be one"),
    "unknown option": ('fine.serve("x", intervall=1)', "a deployment has no option 'intervall'"),
    "two schedules": ('fine.serve("x", interval=1, cron="* * * * *")', "interval and cron exclude each other"),
    "a zone for nothing": ('fine.serve("x", timezone="Europe/Berlin")', "timezone belongs to interval, cron or rrule"),
    "bad cron": ('fine.serve("x", cron="0 0 30 2 *")', "never fires"),
    "short interval": ('fine.serve("x", interval=0.1)', "when.interval.seconds: Input should be greater"),
    "limit": ('fine.serve("x", limit=0)', "limit is 0"),
    "unknown parameter": ('fine.serve("x", parameters={"m": 1})', "'m'"),
    "wrong parameter": ('fine.serve("x", parameters={"n": "y"})', "is not of type 'integer'"),
    "no JSON": ('fine.serve("x", parameters={"n": object()})', "its parameters cannot be written as JSON"),
    "no tag": ('fine.serve("x", tags=["a b"])', "deployment 'x': tags.0: 'a b' cannot be one"),
    "pool missing": ('fine.deploy("x", pool="nowhere")', "deployment 'x': there is no pool 'nowhere'"),
    "pool misspelt": ('fine.deploy("x", pool="defalt")', "Did you mean 'default'?"),
    "several faults": (
        'deploy(fine.to_deployment("x", cron="0 0 30 2 *"), fine.to_deployment("y", limits=["l"]), pool="nowhere")',
        "4 faults, and nothing is deployed",
    ),
    "a lambda": ('flow(lambda: 1).serve("x")', "flow lambda has no name in"),
    "inside a function": ('inside().serve("x")', "was made inside a function, or given no name"),
    "in the guarded part": ('hidden.serve("x")', "what is under `if __name__` is not there"),
    "a file of another name": ('fine.deploy("x", pool="default", entrypoint="gone.py:f")', "gone.py does not exist"),
    "in a thread": ("in_a_thread()", "serve was called in a thread"),
    "positional only": ('positional.serve("x")', "takes 'n' by position only"),
    "no type for JSON": ('strange.serve("x")', "parameter 'n': a value of type"),
}  # fmt: skip


BAD_SCRIPT = """
import json, sys, threading, traceback
from shunter import deploy, flow, serve

@flow
def fine(n: int = 1) -> int:
    return n

@flow
def positional(n: int, /) -> int:
    return n

@flow
def strange(n: threading.Lock) -> int:
    return 1

def inside():
    @flow
    def within() -> None: ...
    return within

def in_a_thread():
    done = []
    def call():
        try:
            fine.serve("x")
        except Exception as exc:
            done.append(exc)
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    raise done[0]

if __name__ == "__main__":
    @flow
    def hidden() -> None: ...

    told = {}
    for what, line in json.load(sys.stdin).items():
        try:
            exec(line)
        except Exception as exc:
            told[what] = "".join(traceback.format_exception_only(exc))
    print(json.dumps(told))
    sys.stderr.write("\\n".join(told.values()))
"""


@pytest.fixture(scope="module")
def told(one: Site, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each bad line raised, one after the other in one script."""
    path = written(tmp_path_factory.mktemp("bad"), BAD_SCRIPT)
    before = [(each.name, each.revision) for each in one.client.each_deployment()]
    lines = {what: line for what, (line, _) in BAD.items()}
    done = subprocess.run(
        [sys.executable, str(path)], env=one.env, cwd=path.parent, input=json.dumps(lines),
        capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip
    assert [(each.name, each.revision) for each in one.client.each_deployment()] == before
    print(done.stderr)
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_told_and_changes_nothing(told: dict[str, str], what: str) -> None:
    assert BAD[what][1] in told[what]


def test_a_script_without_its_guard_is_told_so(one: Site, tmp_path: Path) -> None:
    path = written(tmp_path, 'from shunter import flow\n@flow\ndef f() -> None: ...\nf.serve("unguarded")\n')
    said = failed(one, path)
    assert "serve was called while a run imports the script" in said
    with pytest.raises(NotFound):
        one.client.get_deployment("unguarded")


def test_what_is_in_no_file_is_told_so(one: Site, tmp_path: Path) -> None:
    text = 'from shunter import flow\n@flow\ndef f() -> None: ...\nf.serve("x")\n'
    for words, given in (([sys.executable, "-c", text], ""), ([sys.executable, "-"], text)):
        done = subprocess.run(
            words, env=one.env, cwd=tmp_path, input=given, capture_output=True, text=True, timeout=60
        )
        assert "is in no file: it was defined in a notebook, an interactive session or text" in done.stderr
        assert "Put it into a file that ends with .py" in done.stderr
    path = written(tmp_path, text, "script")
    assert "which is no .py file" in failed(one, path)


def test_a_server_that_is_not_there_is_told_at_once(one: Site, tmp_path: Path) -> None:
    path = written(tmp_path, SUMS)
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(path)], env=one.env | {"SHUNTER_API_URL": "http://127.0.0.1:9/api"}, cwd=tmp_path,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == "30\n"  # it needs none for that
    assert "ServerUnreachable" in done.stderr
    assert time.monotonic() - begun < 30


def test_a_server_that_goes_away_holds_nothing_up(tmp_path: Path) -> None:
    """Runs are executed to their end, and the script ends in time."""
    path = written(tmp_path, TICKS)
    with site(tmp_path / "home") as own:
        with script(own, path) as process:
            long = started(own, "long", seconds=3.0)
            until(lambda: long in ticks(tmp_path))
            own.server.kill()
            own.server.wait()
            begun = time.monotonic()
            process.terminate()
            until(lambda: "could not be paused" in path.with_suffix(".log").read_text())
            process.terminate()  # a second time: it does not wait for the server
            assert process.wait(SOON) == 0
            assert time.monotonic() - begun < 45
        own.start_server()
        with script(own, path) as process:
            assert own.ended(long).state == "Cancelled"
            assert ended(process) == 0


def test_a_name_that_was_another_flow_is_said(one: Site, tmp_path: Path) -> None:
    text = TWO.split("if __name__")[0] + '\nif __name__ == "__main__":\n    b.deploy("taken")\n'
    first, second = written(tmp_path, text, "third.py"), written(tmp_path, text, "fourth.py")
    subprocess.run([sys.executable, str(first)], env=one.env, cwd=tmp_path, check=True, timeout=60)
    done = subprocess.run(
        [sys.executable, str(second)], env=one.env, cwd=tmp_path, check=True, timeout=60, capture_output=True, text=True
    )  # fmt: skip
    assert f"deployment taken was {tmp_path}/third.py:b, and is {tmp_path}/fourth.py:b now" in done.stderr
