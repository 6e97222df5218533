"""The lines of the documentation about docker pools, as they stand, and what is said to wrong ones."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agents.real_server import Site, site
from tests.engines.docker import IMAGE


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server; no engine is needed to speak of templates."""
    with site(tmp_path_factory.mktemp("lines")) as one:
        yield one


def shunter(where: Site, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
    folder = where.home / "folder"
    folder.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-m", "shunter_cli.main", *words],
        env=where.env | {"COLUMNS": "200"},
        cwd=folder,
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def said(where: Site, *words: str) -> str:
    done = shunter(where, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(where: Site, *words: str) -> str:
    done = shunter(where, *words)
    assert done.returncode not in (0, 1), (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return " ".join(done.stderr.split())


def test_a_pool_of_boxes_from_its_making_to_a_run(there: Site, docker_url: str) -> None:
    """The lines of the issue, and what preview prints is what the engine is asked for."""
    import docker

    said(there, "pool", "create", "boxes", "--type", "docker", "--template", f"image={IMAGE}")
    said(there, "pool", "template", "set", "boxes", 'networks=["none"]', "memory=64MiB")
    said(there, "deploy", "--name", "hi", "--pool", "boxes", "--", "python3", "-c", 'print("hi")')
    preview = json.loads(said(there, "pool", "template", "preview", "boxes", "hi"))
    there.env["DOCKER_HOST"] = docker_url
    with there.agent("boxes-1", pool="boxes"):
        done = shunter(there, "run", "start", "hi", "--watch")
        assert (done.returncode, "hi\n" in done.stdout) == (0, True), done
        # A second one is looked at while it runs.
        said(there, "deploy", "--name", "nap", "--pool", "boxes", "--", "sleep", "600")
        preview = json.loads(said(there, "pool", "template", "preview", "boxes", "nap"))
        run = json.loads(said(there, "run", "start", "nap", "-o", "json"))["id"]
        client = docker.APIClient(docker_url)
        while not (found := client.containers(filters={"label": f"shunter.run={run}"})):
            pass
        inspected = client.inspect_container(found[0]["Id"])
        client.close()
        said(there, "run", "cancel", run)
        there.ended(run)
    assert preview["name"].startswith("shunter-")
    for key, value in preview["HostConfig"].items():
        if key not in ("Mounts", "MemorySwap"):  # a kernel without a count of swap
            assert inspected["HostConfig"][key] == value, key
    assert inspected["Config"]["Entrypoint"] == preview["Entrypoint"] == ["sleep", "600"]
    assert inspected["HostConfig"]["Privileged"] is False
    assert inspected["Config"]["Labels"].keys() == preview["Labels"].keys()
    names = {one.partition("=")[0] for one in inspected["Config"]["Env"]}
    assert {one.partition("=")[0] for one in preview["Env"]} <= names
    assert "SHUNTER_TOKEN" not in names


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], ["template image: names no image", "--template image="]),
        (["image="], ["image"]),
        (["image=a b"], ["image"]),
        (["image=x", "imagee=y"], ["template imagee", "Did you mean image?"]),
        (["image=x", "memory=lots"], ["template memory", "'lots' is not a size", "512MiB"]),
        (["image=x", "memory=true"], ["template memory"]),
        (["image=x", "cpu=0"], ["template cpu", "greater than 0"]),
        (["image=x", "init=maybe"], ["template init", "boolean"]),
        (["image=x", "pull_policy=sometimes"], ["template pull_policy", "if_not_present"]),
        (["image=x", "auto_remove=true"], ["auto_remove", "how a restarted agent finds the run's end"]),
        (["image=x", "restart_policy=always"], ["restart_policy", "same attempt twice"]),
        (["image=x", "log_driver=syslog"], ["log_driver", "read back"]),
        (["image=x", "name=mine"], ["name", "made of run and attempt"]),
        (["image=x", "privileged=true"], ["privileged", "all rights", "cap_add"]),
        (["image=x", 'labels={"shunter.run": "1"}'], ["labels.shunter.run", "find the run again"]),
        (["image=x", 'env={"SHUNTER_RUN_ID": "1"}'], ["env.SHUNTER_RUN_ID", "set by the agent"]),
        (["image=x", 'env={"1A": "1"}'], ["template env.1A"]),
        (["image=x", 'mounts=[{"target": "/a", "type": "bind", "source": "b"}]'], ["mounts.0", "absolute path"]),
        (["image=x", 'mounts=[{"target": "/shunter/run"}]'], ["mounts.0", "/shunter"]),
        (["image=x", 'mounts=[{"target": "/a"}, {"target": "/a/"}]'], ["mounts", "two have the target /a"]),
        (["image=x", 'devices=["sda"]'], ["devices.0"]),
        (["image=x", "image=y"], ["given twice"]),
        (["image"], ["not key=value"]),
    ],
)  # fmt: skip
def test_a_wrong_template_makes_no_pool(there: Site, words: list[str], told: list[str]) -> None:
    flags = [part for word in words for part in ("--template", word)]
    text = refused(there, "pool", "create", "wrong", "--type", "docker", *flags)
    for part in told:
        assert part in text, text
    assert "wrong" not in [pool.name for pool in there.client.list_pools().pools]


def test_a_wrong_change_changes_nothing(there: Site) -> None:
    said(there, "pool", "create", "kept", "--type", "docker", "--template", "image=x")
    before = there.client.get_pool("kept").template
    assert "template memory" in refused(there, "pool", "template", "set", "kept", "memory=none")
    assert "names no image" in refused(there, "pool", "template", "set", "kept", "--unset", "image")
    assert "it is not set" in refused(there, "pool", "template", "set", "kept", "--unset", "cpu")
    assert "nothing to change" in refused(there, "pool", "template", "set", "kept")
    assert there.client.get_pool("kept").template == before


def test_a_template_is_set_shown_and_unset(there: Site, tmp_path: Path) -> None:
    file = tmp_path / "template.json"
    file.write_text('{"image": "x", "cpu": 2}')
    said(there, "pool", "create", "shown", "--type", "docker", "--template-file", str(file))
    said(there, "pool", "template", "set", "shown", "memory=1GiB", "user=1000", "init=false", "gpus=all")
    assert there.client.get_pool("shown").template == {
        "image": "x",
        "cpu": 2,
        "memory": "1GiB",
        "user": "1000",
        "init": False,
        "gpus": "all",
    }
    assert "1GiB" in said(there, "pool", "template", "show", "shown")
    said(there, "pool", "template", "set", "shown", "--unset", "memory", "cpu=0.5")
    assert json.loads(said(there, "pool", "template", "show", "shown", "-o", "json"))["cpu"] == 0.5
    schema = json.loads(said(there, "pool", "template", "show", "shown", "--schema"))
    assert schema["required"] == ["image"]
    assert schema["additionalProperties"] is False


def test_pools_of_processes_have_no_template(there: Site) -> None:
    for words in (["show"], ["set", "x=1"], ["preview"]):
        assert "is of type process" in refused(there, "pool", "template", words[0], "default", *words[1:])
    text = refused(there, "pool", "create", "p", "--template", "image=x")
    assert "pools of type process have no template" in text


def test_a_deployment_overrides_single_variables(there: Site) -> None:
    said(there, "pool", "create", "over", "--type", "docker", "--template", "image=x", "--template", "cpu=2")
    words = ["deploy", "--name", "over", "--pool", "over", "--no-check"]
    text = refused(there, *words, "--var", "cpus=1", "--", "true")
    assert "variable cpus of pool 'over'" in text
    assert "Did you mean cpu?" in text
    assert "variable memory" in refused(there, *words, "--var", "memory=[]", "--", "true")
    said(there, *words, "--var", "image=y", "--var", 'env={"A": "1"}', "--", "true")
    preview = json.loads(said(there, "pool", "template", "preview", "over", "over"))
    assert (preview["Image"], preview["HostConfig"]["NanoCpus"]) == ("y", 2_000_000_000)
    assert "A=1" in preview["Env"]


def test_a_deployment_file_has_variables(there: Site) -> None:
    said(there, "pool", "create", "filed", "--type", "docker", "--template", "image=x")
    folder = there.home / "folder"
    (folder / "shunter.yaml").write_text(
        "defaults:\n  variables: {cpu: 2}\ndeployments:\n- name: filed\n  pool: filed\n  command: 'true'\n"
        "  variables:\n    memory: 1GiB\n"
    )
    said(there, "deploy")
    assert there.client.get_deployment("filed").spec.variables == {"cpu": 2, "memory": "1GiB"}
    (folder / "shunter.yaml").write_text(
        "deployments:\n- name: filed\n  pool: filed\n  command: 'true'\n  variables:\n    memory: much\n"
    )
    text = refused(there, "deploy")
    assert "shunter.yaml:6" in text, text
    assert "is not a size" in text
