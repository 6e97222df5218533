"""Where the code comes from and what it runs in: flags, deployment files, what is shown of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cli.console import Console, Live

REPOSITORY = "https://git.example/code.git"


@pytest.fixture
def shunter(live: Live, tmp_path: Path) -> Console:
    """A terminal at a server, in a folder of its own."""
    return Console(live.shunter.env, tmp_path)


@pytest.fixture
def base(request: pytest.FixtureRequest) -> str:
    """Names of deployments begin with it: the server is shared."""
    return "c" + str(abs(hash(request.node.name)) % 10**8)


def work(shunter: Console, name: str) -> Any:
    return shunter("deployment", "inspect", name, "--output", "json").json["spec"]["work"]


def test_by_flags(shunter: Console, base: str) -> None:
    done = shunter(
        *("deploy", "flows/etl.py:main", "--name", f"{base}-git", "--git", REPOSITORY, "--branch", "main"),
        *(
            "--source-folder",
            "jobs",
            "--package",
            "pandas>=2",
            "--python",
            "3.12",
        ),
        *("--working-dir", "data"),
    )
    assert done.code == 0, done.err
    found = work(shunter, f"{base}-git")
    assert found["source"] == {
        "git": REPOSITORY,
        "branch": "main",
        "tag": None,
        "commit": None,
        "folder": "jobs",
        "secret": None,
        "user": None,
    }
    assert found["environment"] == {
        "python": "3.12",
        "requirements": ["pandas>=2"],
        "requirements_file": None,
        "lock": None,
    }
    assert (found["python"], found["working_dir"]) == (None, "data")
    shown = shunter("deployment", "inspect", f"{base}-git").text
    assert f"{REPOSITORY}, branch main, folder jobs" in shown
    assert "an environment with python 3.12, pandas>=2" in shown
    done = shunter(
        "deploy", "tool.jobs:nightly", "--name", f"{base}-pkg", "--package", "tool==1", "--no-source"
    )
    assert done.code == 0, done.err
    assert work(shunter, f"{base}-pkg")["source"] is None
    done = shunter(
        *("deploy", "--name", f"{base}-zip", "--archive", "s3://bucket/code.zip", "--sha256", "0" * 64),
        *("--", "./run.sh"),
    )
    assert done.code == 0, done.err
    assert work(shunter, f"{base}-zip")["source"]["archive"] == "s3://bucket/code.zip"


def test_files_of_an_environment_are_looked_for_where_they_are_at_hand(shunter: Console, base: str) -> None:
    (shunter.folder / "etl.py").write_text("import not_here\n\ndef main(): ...\n")
    words = ("deploy", "etl.py:main", "--name", f"{base}-here", "--requirements", "requirements.txt")
    done = shunter(*words)
    assert done.code == 2
    assert "--requirements 'requirements.txt' is not in" in done.err
    (shunter.folder / "requirements.txt").write_text("not-here\n")
    assert shunter(*words).code == 0
    assert work(shunter, f"{base}-here")["source"] == str(shunter.folder)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--git", "ext::sh -c id"], "begins with one of https://"),
        (["--git", "https://me:password@git.example/x"], "name a secret instead"),
        (["--git", REPOSITORY, "--branch", "a", "--git-tag", "b"], "at most one of branch, tag and commit"),
        (["--git", REPOSITORY, "--archive", "https://x.example/a.zip"], "exclude each other"),
        (["--git", REPOSITORY, "--source-folder", "../x"], "leaves the source"),
        (["--branch", "main"], "--branch goes with --git"),
        (["--sha256", "0" * 64], "--sha256 goes with --archive"),
        (["--source-secret", "x"], "--source-secret goes with --git or --archive"),
        (["--package", "a", "--lock", "uv.lock"], "give it without requirements"),
        (["--no-source", "--requirements", "a.txt"], "--no-source says that there is none"),
    ],
)
def test_what_does_not_go_together_is_told(alone: Console, flags: list[str], words: str) -> None:
    done = alone("deploy", "a.py:main", "--name", "x", *flags)
    assert done.code == 2, done.err
    assert words in " ".join(done.err.split())
    assert "password@" not in done.err


def test_by_a_file(shunter: Console, base: str) -> None:
    (shunter.folder / "shunter.yaml").write_text(
        f"""\
defaults:
  source: {{git: {REPOSITORY}, tag: v1}}
  environment: {{lock: uv.lock}}
deployments:
  - {{name: {base}-a, entrypoint: "etl.py:main", working_dir: data}}
  - {{name: {base}-b, entrypoint: "tool:main", no_source: true, environment: {{requirements: [tool]}}}}
"""
    )
    done = shunter("deploy")
    assert done.code == 0, done.err
    assert work(shunter, f"{base}-a")["source"]["tag"] == "v1"
    assert work(shunter, f"{base}-a")["working_dir"] == "data"
    assert work(shunter, f"{base}-b")["source"] is None
    text = (shunter.folder / "shunter.yaml").read_text()
    (shunter.folder / "shunter.yaml").write_text(text.replace("tag: v1", "tag: v2"))
    done = shunter("deploy", "--dry-run")
    assert 'source.tag: "v1" -> "v2"' in done.text


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("source: {git: 'ext::x'}", "source: git: 'ext::x' is no URL of a repository"),
        (f"source: {{git: {REPOSITORY}, brunch: main}}", "source: brunch: unknown key"),
        ("source: {folder: x}", "source: must be a folder, or a mapping with git or archive"),
        ("source: 3", "source: must be a folder, or a mapping with git or archive"),
        ("environment: {lock: a, requirements: [b]}", "environment: lock says all that is installed"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_at_its_place(alone: Console, entry: str, words: str) -> None:
    (alone.folder / "shunter.yaml").write_text(f"deployments:\n  - name: x\n    command: [x]\n    {entry}\n")
    done = alone("deploy")
    assert done.code == 2
    assert "shunter.yaml:4:" in done.err
    assert words in done.err
