"""``shunter init``: a start that deploys as it stands and overwrites nothing."""

from __future__ import annotations

import re
from pathlib import Path

import jsonschema
import pytest

from shunter_cli.deployment_files import toml_tree, yaml_tree
from shunter_cli.deployment_files.places import plain
from tests.cli.console import Console, Live


@pytest.mark.parametrize(("words", "name"), [([], "shunter.yaml"), (["--toml"], "shunter.toml")])
def test_the_start_deploys_as_it_stands(live: Live, tmp_path: Path, words: list[str], name: str) -> None:
    shunter = Console(live.shunter.env, tmp_path)
    assert (
        shunter.ok("init", *words).text
        == f"{name} written; `shunter deploy --dry-run` shows what it would deploy\n"
    )
    done = shunter.ok("deploy", "--dry-run")
    assert re.match(r"[+~=] hello \(", done.text)
    assert done.err == ""


@pytest.mark.parametrize(("words", "name"), [([], "shunter.yaml"), (["--toml"], "shunter.toml")])
def test_what_is_commented_out_is_right_too(alone: Console, words: list[str], name: str) -> None:
    alone.ok("init", *words)
    text = (alone.folder / name).read_text()
    # All but the prose: lines whose comment is a key, a table or a list item.
    code = re.compile(r"^( *)# (?=[\[{ -]*[a-z_.]+\"?(:|\]| = )| {2,}[A-Z]+: )", re.MULTILINE)
    heading = re.compile(r"^#( The| Deploy| Every| What| For| A Python|:| yaml-).*\n", re.MULTILINE)
    body = heading.sub("", re.sub(r"^ +# A Python.*\n", "", text, flags=re.MULTILINE))
    (alone.folder / name).write_text(code.sub(r"\1", body))
    assert "# -" not in (alone.folder / name).read_text()
    done = alone("deploy", "--dry-run", "--no-check")
    assert "no server answers" in done.err, done.err + code.sub(r"\1", body)


def test_nothing_is_overwritten(alone: Console) -> None:
    alone.ok("init")
    (alone.folder / "shunter.yaml").write_text("mine")
    for words in ([], ["--toml"]):
        done = alone("init", *words)
        assert done.code == 2
        assert "there is a shunter.yaml in" in done.err
    assert (alone.folder / "shunter.yaml").read_text() == "mine"
    assert not (alone.folder / "shunter.toml").exists()


def test_a_link_to_nowhere_is_not_followed(alone: Console, tmp_path: Path) -> None:
    (alone.folder / "shunter.yaml").symlink_to(tmp_path / "elsewhere")
    done = alone("init")
    assert done.code == 2
    assert not (tmp_path / "elsewhere").exists()


def test_the_schema_for_editors(alone: Console) -> None:
    done = alone.shell("shunter init --schema > shunter.schema.json && shunter init")
    assert done.code == 0, done.err
    schema = alone.ok("init", "--schema").json
    text = (alone.folder / "shunter.yaml").read_text()
    assert text.splitlines()[0] == "# yaml-language-server: $schema=./shunter.schema.json"
    tree, _ = yaml_tree.parse(text)
    assert tree is not None
    jsonschema.Draft202012Validator(schema).validate(plain(tree))
    (alone.folder / "shunter.yaml").unlink()
    alone.ok("init", "--toml")
    text = (alone.folder / "shunter.toml").read_text()
    assert text.splitlines()[0] == "#:schema ./shunter.schema.json"
    tree, _ = toml_tree.parse(text)
    assert tree is not None
    jsonschema.Draft202012Validator(schema).validate(plain(tree))
