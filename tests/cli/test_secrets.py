"""``shunter secret``, and deployments that name secrets by flags and in files."""

from __future__ import annotations

import os
import pty
import re
import subprocess

import pytest

from tests.cli.console import SHUNTER, Console, Live
from tests.patience import SOON

VALUE = "of-the-warehouse-7Gh2"


@pytest.fixture(scope="module")
def shunter(live: Live) -> Console:
    console = Console(live.shunter.env, live.shunter.folder / "secrets")
    console.folder.mkdir()
    return console


def put(shunter: Console, name: str, value: bytes, *words: str) -> str:
    done = shunter("secret", "set", name, *words, input=value)
    assert done.code == 0, done.err
    return done.text + done.err


def test_a_value_comes_by_stdin_or_a_file_and_is_shown_to_nobody(shunter: Console) -> None:
    assert put(shunter, "piped", f"{VALUE}\n".encode()) == "secret piped set (version 1)\n"
    (shunter.folder / "key.pem").write_text("--BEGIN--\nabc\n--END--\n")
    assert (
        shunter.ok("secret", "set", "filed", "--from-file", "key.pem").text
        == "secret filed set (version 1)\n"
    )
    assert put(shunter, "piped", b"another") == "secret piped set (version 2)\n"
    assert put(shunter, "short", b"abc\n") == (
        "secret short set (version 1)\nWarning: values shorter than 4 characters are not masked in logs.\n"
    )
    assert shunter.ok("secret", "list", "-q").text.split() == ["filed", "piped", "short"]
    listed = shunter.ok("secret", "list", "-o", "json")
    assert not [word for word in (VALUE, "another", "BEGIN") if word in listed.text]
    assert shunter.ok("secret", "delete", "short", "--yes").text == "secret short deleted\n"


def test_a_value_is_asked_for_without_echo(shunter: Console) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [SHUNTER, "secret", "set", "typed"],
        env=shunter.env,
        cwd=shunter.folder,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: os.close(os.open(os.ttyname(theirs), os.O_RDWR)),  # its terminal
    )
    os.close(theirs)
    seen = b""
    while b"Value of typed: " not in seen:
        seen += os.read(ours, 1024)
    os.write(ours, f"{VALUE}\n".encode())
    try:
        while piece := os.read(ours, 1024):
            seen += piece
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert process.wait(SOON) == 0
    assert b"secret typed set (version 1)" in seen
    assert VALUE.encode() not in seen


@pytest.mark.parametrize(
    ("words", "input", "told"),
    [
        (["secret", "set", "x", "hunter2"], b"", ["as an argument", "use another value"]),
        (["secret", "set", "x"], b"\n", ["the value is empty"]),
        (["secret", "set", "x"], b"a\0b", ["NUL"]),
        (["secret", "set", "x"], b"\xff\xfe", ["not UTF-8", "base64"]),
        (
            ["deploy", "--name", "d", "--secret-env", "A", "--", "true"],
            b"",
            ["--secret-env 'A' is not NAME=VALUE"],
        ),
        (["deploy", "--name", "d", "--secret-env", "A=b c", "--", "true"], b"", ["--secret-env 'b c'"]),
        (
            ["deploy", "--name", "d", "--env", "A=1", "--secret-env", "A=b", "--", "true"],
            b"",
            ["the variable A is given twice"],
        ),
        (
            ["deploy", "--name", "d", "--secret-env", "A=nobody", "--", "true"],
            b"",
            ["there is no secret 'nobody'", "shunter secret set nobody"],
        ),
    ],
)
def test_bad_input(shunter: Console, words: list[str], input: bytes, told: list[str]) -> None:
    done = shunter(*words, input=input)
    assert done.code in (1, 2)
    assert not [word for word in told if word not in done.err], done.err
    assert "hunter2" not in done.err


FILE = """
deployments:
  - name: filed
    pool: default
    command: [sh, -c, 'echo "$TOKEN and $MINE"']
    env: {TOKEN: {secret: named}, PLAIN: x}
"""


def test_deployments_name_them(shunter: Console, live: Live) -> None:
    put(shunter, "named", VALUE.encode())
    (shunter.folder / "shunter.yaml").write_text(FILE)
    assert "    env.TOKEN: secret named\n" in shunter.ok("deploy", "--dry-run").text
    shunter.ok("deploy")
    shown = shunter.ok("deployment", "inspect", "filed").text
    assert "TOKEN (secret named), PLAIN" in shown
    spec = shunter.ok("deployment", "inspect", "filed", "-o", "json").json["spec"]
    assert spec["work"]["env"] == {"TOKEN": {"secret": "named"}, "PLAIN": "x"}
    run = shunter.ok("run", "start", "filed", "-q").text.strip()
    assert shunter.ok("run", "logs", "-f", run).text == f"{'*' * len(VALUE)} and \n"
    done = shunter("secret", "delete", "named", "--yes")
    assert "secret 'named' is named by deployment 'filed'" in done.err
    assert shunter.ok("secret", "delete", "named", "--yes", "--force").code == 0
    run = shunter.ok("run", "start", "filed", "-q").text.strip()
    shunter("run", "logs", "-f", run)
    why = " ".join(shunter.ok("run", "explain", run).text.split())
    assert "rejected" in why
    assert "there is no secret 'named' any more" in why
    changed = shunter(
        "deploy", "--name", "filed", "--agent-secret-env", "TOKEN=mine", "--dry-run", "--", "true"
    )
    assert "    env.TOKEN: secret named -> the agent's secret mine\n" in changed.text


def test_faults_of_a_file_have_their_place(shunter: Console) -> None:
    faults = {
        "{secret: 5}": "names no secret: 5",
        "{secret: a, agent_secret: b}": "must be a text or name a secret",
        "{value: a}": "must be a text or name a secret",
        "[a]": "must be text",
    }
    lines = [f"  - {{name: d{at}, command: x, env: {{A: {value}}}}}" for at, value in enumerate(faults)]
    (shunter.folder / "f.yaml").write_text("\n".join(["deployments:", *lines]))
    done = shunter("deploy", "-f", "f.yaml", "--no-check")
    assert done.code != 0
    for at, told in enumerate(faults.values()):
        assert re.search(rf"f\.yaml:{at + 2}:\d+: deployments\[{at}\]\.env\.A: {told}", done.err), done.err
    (shunter.folder / "f.yaml").write_text(FILE.replace("named", "nobody-has-it"))
    done = shunter("deploy", "-f", "f.yaml")
    assert re.search(r"f\.yaml:6:\d+: .*there is no secret 'nobody-has-it'", done.err), done.err


def test_names_are_completed(shunter: Console) -> None:
    put(shunter, "named-so", b"abcd")
    env = {
        "_SHUNTER_COMPLETE": "complete_bash",
        "COMP_WORDS": "shunter secret delete named-",
        "COMP_CWORD": "3",
    }
    assert "named-so" in shunter.having(**env)().text
