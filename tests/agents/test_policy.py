"""The agent's own policy: what it refuses, by which words, and that nothing gets around it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from shunter_agents import patterns
from shunter_agents.admission import Admission, PolicyFile, admitted
from shunter_agents.policy import Policy, parse, read
from shunter_infrastructure.fake import FakeLauncher
from shunter_infrastructure.launcher import LaunchFailed
from shunter_infrastructure.process.launcher import ProcessLauncher
from shunter_work_pools.contracts.agents import Assignment
from shunter_work_pools.contracts.deployments import Work
from shunter_work_pools.contracts.errors import InvalidInput
from shunter_work_pools.contracts.states import Cause
from tests.agents.fake_server import FakeServer, Key
from tests.agents.lives import life
from tests.launchers.attempts import assignment

WHERE = Path("/etc/shunter/agent.toml")


def policy(text: str) -> Policy:
    return parse(text.encode(), WHERE)


def refusal(text: str, given: Assignment, launcher: str = "process") -> str | None:
    """What the policy says against an attempt before anything is fetched; None: nothing."""
    admission = Admission(policy(text), WHERE)
    found = _raised(lambda: admission.admit(given, launcher))
    if found is None:
        return None
    assert found.cause is Cause.REJECTED
    assert str(WHERE) in found.detail
    return found.detail


def _raised(act: Callable[[], object]) -> LaunchFailed | None:
    try:
        act()
    except LaunchFailed as exc:
        return exc
    return None


ME = os.geteuid()
GIT = {"git": "https://git.example.com/team/flows.git"}
TRUE = ["/usr/bin/true"]


@pytest.mark.parametrize(
    ("rules", "work", "words"),
    [
        ("[launchers]\nallow = ['docker']", {"command": TRUE}, "pools of type process"),
        ("[launchers]\nallow = ['process']", {"command": TRUE}, None),
        ("[programs]\nallow = ['/usr/bin/true']", {"command": TRUE}, None),
        ("[programs]\nallow = ['/usr/bin/env']", {"command": TRUE}, "[programs] allow: /usr/bin/env"),
        ("[programs]\nallow = []", {"command": TRUE}, "[programs] allow: nothing"),
        ("[entrypoints]\nallow = ['etl.*:main']", {"entrypoint": "etl.daily:main"}, None),
        (
            "[entrypoints]\nallow = ['etl.*:main']",
            {"entrypoint": "etl.daily:other"},
            "the entrypoint etl.daily:other",
        ),
        (
            "[entrypoints]\nallow = ['flows/*.py:*']",
            {"entrypoint": "flows/../x.py:a"},
            "the entrypoint x.py:a",
        ),
        ("[entrypoints]\nallow = ['flows/*.py:*']", {"entrypoint": "./flows/a.py:a"}, None),
        ("[entrypoints]\nallow = ['flows/*.py']", {"entrypoint": "flows/b/a.py"}, "[entrypoints]"),
        ("[folders]\nallow = ['/usr']", {"command": TRUE, "working_dir": "/usr/bin"}, None),
        ("[folders]\nallow = ['/usr']", {"command": TRUE, "working_dir": "/usr/../etc"}, "the folder /etc"),
        (
            "[folders]\nallow = ['/usr']",
            {"command": TRUE, "source": "/usr", "working_dir": "../etc"},
            "the folder /etc",
        ),
        ("[folders]\nallow = ['/us']", {"command": TRUE, "source": "/usr"}, "the folder /usr"),
        (
            "[repositories]\nallow = ['https://git.example.com/team/*']",
            {"command": TRUE, "source": GIT},
            None,
        ),
        (
            "[repositories]\nallow = ['https://git.example.com/*']",
            {"command": TRUE, "source": GIT},
            "code from https",
        ),
        (f"[users]\nallow = ['{ME}']", {"command": TRUE}, None),
        ("[users]\nallow = ['61234']", {"command": TRUE}, "running as the agent's own user"),
        ("[users]\nallow = ['61234']", {"command": TRUE, "run_as": "61234"}, None),
        ("[users]\nallow = ['61234']", {"command": TRUE, "run_as": "061234"}, None),
        ("[users]\nallow = ['61234']", {"command": TRUE, "run_as": "root"}, "running as user root"),
        (
            "[environment]\ndeny = ['LD_*']",
            {"command": TRUE, "env": {"LD_PRELOAD": "x"}},
            "the variable LD_PRELOAD",
        ),
        ("[environment]\ndeny = ['LD_*']", {"command": TRUE, "env": {"LD": {"secret": "x"}}}, None),
        ("[environment]\ndeny = ['A']", {"command": TRUE, "env": {"A": {"secret": "x"}}}, "the variable A"),
        ("[environment]\nallow = ['ETL_*']", {"command": TRUE, "env": {"ETL_DAY": "1"}}, None),
        ("[environment]\nallow = ['ETL_*']", {"command": TRUE, "env": {"OTHER": "1"}}, "the variable OTHER"),
        ("[environment]\npass = ['A']", {"command": TRUE, "pass_env": ["A"]}, None),
        ("[environment]\npass = ['A']", {"command": TRUE, "pass_env": ["B"]}, "passing the variable B"),
        (
            "[programs]\nallow = ['/usr/bin/true']",
            {"command": TRUE, "env": {"LD_PRELOAD": "x"}},
            "by default beside",
        ),
        (
            "[entrypoints]\nallow = ['*']",
            {"command": TRUE, "env": {"PYTHONPATH": "x"}},
            "the variable PYTHONPATH",
        ),
        (
            "[programs]\nallow = ['/usr/bin/true']\n[environment]\ndeny=[]",
            {"command": TRUE, "env": {"PATH": "x"}},
            None,
        ),
        ("[maximum]\nmemory_limit = '1GiB'", {"command": TRUE, "memory_limit": 2**30}, None),
        ("[maximum]\nmemory_limit = '1GiB'", {"command": TRUE, "memory_limit": 2**31}, "2GiB memory_limit"),
        ("[maximum]\nmemory_limit = '1GiB'", {"command": TRUE}, "a run with no memory_limit"),
        ("[maximum]\ntimeout = '1h'", {"command": TRUE, "timeout": 3601.0}, "1h1s timeout"),
        ("[maximum]\ntimeout = '1h'", {"command": TRUE, "timeout": 60.0}, None),
        (
            "",
            {"command": TRUE, "run_as": "root", "env": {"LD_PRELOAD": "x"}, "pass_env": ["A"], "source": GIT},
            None,
        ),
    ],
)
def test_each_rule(rules: str, work: dict[str, Any], words: str | None) -> None:
    found = refusal(rules, assignment(**work))
    if words is None:
        assert found is None
    else:
        assert found is not None
        assert words in found


PYTHON = "[programs]\nallow = ['python', '/usr/bin/python3*']"
FROM = "[repositories]\nallow = ['https://git.example.com/team/*']"


@pytest.mark.parametrize(
    ("rules", "environment", "words"),
    [
        (PYTHON, {"python": "3.12"}, None),
        (PYTHON, {"python": "/usr/bin/python3"}, None),
        (PYTHON, {"python": "/bin/sh"}, "the program /bin/sh"),
        (PYTHON, {"python": "./evil"}, "the interpreter ./evil"),
        (PYTHON, {"python": "evil"}, "the interpreter evil"),
        ("", {"python": "./mine"}, None),
        (FROM, {"requirements": ["tiny>=1"]}, None),
        (FROM, {"requirements": ["a @ git+https://git.example.com/team/a.git@v1#egg=a"]}, None),
        (FROM, {"requirements": ["a@https://git.example.com/team/a"]}, None),
        (FROM, {"requirements": ["a @ git+https://evil.example/a.git"]}, "code from https://evil.example/a"),
        (FROM, {"requirements": ["a[x]@https://evil.example/a.whl"]}, "code from https://evil.example/a.whl"),
        (FROM, {"requirements": ["--index-url=https://evil.example/"]}, "code from https://evil.example/"),
        (FROM, {"requirements": ["-i https://me@git.example.com@evil.example/"]}, "code from"),
        (FROM, {"requirements": ["a @ https://${HOST}/team/a"]}, "code from"),
    ],
)
def test_what_building_an_environment_would_start_and_fetch(
    rules: str, environment: dict[str, Any], words: str | None
) -> None:
    found = refusal(rules, assignment(entrypoint="a:b", environment=environment))
    assert (found is None) if words is None else (words in (found or "nothing"))


def test_packages_run_no_code_while_they_are_built_where_there_are_rules_of_what_runs() -> None:
    for rules, builds in (
        ("", True),
        ("[folders]\nallow=[]", True),
        (PYTHON, False),
        ("[entrypoints]\nallow=[]", False),
    ):
        assert Admission(policy(rules), WHERE).rules().builds is builds


@pytest.mark.parametrize("name", ["HOME", "XDG_CONFIG_HOME", "OPENSSL_CONF", "UV_INDEX_URL", "ZDOTDIR"])
def test_variables_that_say_where_programs_find_what_they_load(name: str) -> None:
    rules = "[programs]\nallow = ['/usr/bin/true']"
    assert "by default beside" in (refusal(rules, assignment(TRUE, env={name: "/x"})) or "")


def test_needs() -> None:
    given = assignment(TRUE).model_copy(update={"need": {"gpu": 2.0, "memory": float(2**31)}})
    assert refusal("[maximum]\nneed = {gpu = 2, memory = '2GiB'}", given) is None
    assert "needs gpu=2" in (refusal("[maximum]\nneed = {gpu = 1}", given) or "")
    assert "[maximum] need.memory" in (refusal("[maximum]\nneed = {memory = '1GiB'}", given) or "")


IMAGE = {"image": "registry.example.com/etl/tool:1"}
ALIAS = {"ip": "10.0.0.9", "hostnames": ["db"]}
ADMIN = {"capabilities": {"add": ["SYS_ADMIN"]}}
KEYS = {"name": "keys", "key": "token"}
#: Templates by which a pod gets the Secret keys.
NAME_A_SECRET: list[dict[str, Any]] = [
    {"env_refs": {"A": {"secret": "keys", "key": "token"}}},
    {"env_from": [{"config_map": "a"}, {"secret": "keys"}]},
    {"mounts": [{"target": "/a", "type": "secret", "source": "keys"}]},
    {"sidecars": [{"name": "a", "image": "b", "env": [{"name": "A", "valueFrom": {"secretKeyRef": KEYS}}]}]},
    {"init_containers": [{"name": "a", "image": "b", "envFrom": [{"secretRef": {"name": "keys"}}]}]},
]


def claim(name: str) -> dict[str, Any]:
    """Of a template: a claim that is mounted."""
    return {"mounts": [{"target": "/a", "type": "pvc", "source": name}]}


PATCH = {"patch": {"spec": {"template": {"spec": {"hostAliases": [ALIAS]}}}}}


@pytest.mark.parametrize(
    ("rules", "template", "words"),
    [
        ("[images]\nallow = ['registry.example.com/etl/*']", IMAGE, None),
        ("[images]\nallow = ['registry.example.com/*']", IMAGE, "the image registry.example.com/etl/tool:1"),
        (
            "[docker]\nmounts = ['/usr']",
            IMAGE | {"mounts": [{"target": "/a", "type": "bind", "source": "/usr/lib"}]},
            None,
        ),
        (
            "[docker]\nmounts = ['/usr']",
            IMAGE | {"mounts": [{"target": "/a", "type": "bind", "source": "/usr/../etc"}]},
            "mounting /usr/../etc",
        ),
        ("[docker]\nmounts = []", IMAGE | {"mounts": [{"target": "/a", "type": "tmpfs"}]}, None),
        ("[docker]\nnetworks = ['none']", IMAGE | {"networks": ["host"]}, "the network host"),
        ("[docker]\nnetworks = ['none']", IMAGE, "the network bridge"),
        ("[docker]\ndevices = []", IMAGE | {"devices": ["/dev/sda:/dev/x:rw"]}, "the device /dev/sda"),
        (
            "[docker]\ncap_add = ['NET_ADMIN']",
            IMAGE | {"cap_add": ["CAP_SYS_ADMIN"]},
            "the capability SYS_ADMIN",
        ),
        ("[docker]\ncap_add = ['NET_ADMIN']", IMAGE | {"cap_add": ["CAP_NET_ADMIN"]}, None),
        ("[environment]\ndeny = ['HTTP_*']", IMAGE | {"env": {"HTTP_PROXY": "x"}}, "the variable HTTP_PROXY"),
        ("[maximum]\nmemory_limit = '1GiB'", IMAGE | {"memory": "512MiB"}, None),
        ("[maximum]\nmemory_limit = '1GiB'", IMAGE | {"memory": "2GiB"}, "2GiB memory_limit"),
        ("[maximum]\nneed = {cpu = 1}", IMAGE | {"cpu": 2.0}, "needs cpu=2"),
    ],
)
def test_docker(rules: str, template: dict[str, Any], words: str | None) -> None:
    found = refusal(rules, assignment(TRUE, template=template), "docker")
    assert (found is None) if words is None else (words in (found or ""))


@pytest.mark.parametrize(
    ("rules", "template", "words"),
    [
        ("[kubernetes]\nnamespaces = ['etl']", IMAGE | {"namespace": "etl"}, None),
        ("[kubernetes]\nnamespaces = ['etl']", IMAGE, "the namespace default"),
        (
            "[kubernetes]\nservice_accounts = ['default']",
            IMAGE | {"service_account": "admin"},
            "the service account admin",
        ),
        (
            "[kubernetes]\nhost_paths = []",
            IMAGE | {"mounts": [{"target": "/a", "type": "host_path", "source": "/"}]},
            "mounting /",
        ),
        (
            "[kubernetes]\ncap_add = []",
            IMAGE | {"cap_add": ["NET_BIND_SERVICE"]},
            "the capability NET_BIND_SERVICE",
        ),
        ("[kubernetes]\nclaims = ['data-*']", IMAGE | claim("server"), "the claim server"),
        ("[kubernetes]\nclaims = ['data-*']", IMAGE | claim("data-1"), None),
        ("[kubernetes]\nsecrets = []", IMAGE | claim("server"), None),
        ("[kubernetes]\nsecrets = []", IMAGE | {"pull_secrets": ["registry"]}, None),
        *(
            (f"[kubernetes]\nsecrets = {allowed}", IMAGE | one, words)
            for one in NAME_A_SECRET
            for allowed, words in (("['db']", "the Secret keys"), ("['db', 'keys']", None))
        ),
        ("[kubernetes]\ncap_add = []", IMAGE | PATCH, "a patch"),
        ("[kubernetes]\npatch = true\ncap_add = []", IMAGE | PATCH, None),
        (
            "[images]\nallow = ['registry.example.com/**']",
            IMAGE | PATCH,
            "a patch",
        ),
        (
            "[images]\nallow = ['registry.example.com/**']",
            IMAGE | {"sidecars": [{"name": "a", "image": "evil"}]},
            "the image evil",
        ),
        (
            "[kubernetes]\ncap_add = ['CHOWN']",
            IMAGE | {"sidecars": [{"name": "a", "image": "b", "securityContext": {"privileged": True}}]},
            "a privileged container",
        ),
        (
            "[kubernetes]\ncap_add = ['CHOWN']",
            IMAGE | {"init_containers": [{"name": "a", "image": "b", "securityContext": ADMIN}]},
            "the capability SYS_ADMIN",
        ),
        ("[environment]\nallow = ['A']", IMAGE | {"env_from": [{"secret": "s"}]}, "env_from"),
    ],
)
def test_kubernetes(rules: str, template: dict[str, Any], words: str | None) -> None:
    found = refusal(rules, assignment(TRUE, template=template), "kubernetes")
    assert (found is None) if words is None else (words in (found or ""))


# -- what is compared


def test_programs_are_compared_where_links_lead(tmp_path: Path) -> None:
    real, allowed = tmp_path / "real", tmp_path / "allowed"
    for folder in (real, allowed):
        folder.mkdir()
    for path in (real / "box", real / "other", allowed / "tool"):
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    (allowed / "box").symlink_to(real / "box")
    (allowed / "sh").symlink_to("/bin/sh")
    (tmp_path / "folder").symlink_to(allowed)
    (real / "applet").symlink_to("box")

    def may(path: Path | str, *rules: str) -> bool:
        return patterns.program_allowed(str(path), rules)

    everything = f"{allowed}/*"
    assert may(allowed / "tool", everything)
    assert may(tmp_path / "folder" / "tool", everything)
    assert may(f"{allowed}/../allowed/tool", everything)
    assert may(allowed / "tool", f"{tmp_path}/folder/*")
    assert not may(allowed / "sh", everything)  # a link out of the folder
    assert not may(f"{allowed}/../real/other", everything)
    assert not may(allowed / "deeper" / "tool", everything)
    assert may(allowed / "deeper" / "tool", f"{allowed}/**")
    assert not may(real / "other", f"{real}/othe")
    # A program by its name: the link is what was meant, not all else that it leads to.
    assert may(allowed / "box", f"{allowed}/box")
    assert not may(real / "applet", f"{allowed}/box")
    assert not may(real / "box", f"{allowed}/box")
    assert may(allowed / "box", f"{real}/box")


def test_folders_are_compared_where_links_lead(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    (inside / "deep").mkdir(parents=True)
    outside.mkdir()
    (inside / "link").symlink_to(outside)
    (tmp_path / "in-other").mkdir()
    assert patterns.folder_allowed(str(inside / "deep"), [str(inside)])
    assert patterns.folder_allowed(str(inside), [str(inside)])
    assert not patterns.folder_allowed(str(inside / "link"), [str(inside)])
    assert not patterns.folder_allowed(f"{inside}/../out", [str(inside)])
    assert not patterns.folder_allowed(str(tmp_path / "in-other"), [str(inside)])
    assert patterns.folder_allowed(str(tmp_path / "in-other"), [f"{tmp_path}/in*"])


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://git.example.com/team/a.git", True),
        ("https://git.example.com/team/a", True),
        ("https://user:word@git.example.com/team/a", True),
        ("HTTPS://GIT.example.com/team/a", True),
        ("git@git.example.com:team/a.git", False),  # ssh is another scheme
        ("https://git.example.com/team/../other/a", False),
        ("https://git.example.com/team/%2e%2e/other", False),
        ("https://git.example.com/other/../team/a", False),
        ("https://git.example.com/other/%2e%2e/team/a", False),
        ("https://git.example.com/team/a/b", False),
        ("https://git.example.com.evil.org/team/a", False),
        ("https://git.example.com@evil.org/team/a", False),
        ("https://evil.org/https://git.example.com/team/a", False),
        ("https://evil.org\\@git.example.com/team/a", False),
        ("https://evil.org/?x=https://git.example.com/team/a", False),
        ("https://git.example.com:8443/team/a", False),
        ("http://git.example.com/team/a", False),
        ("ext::sh -c id https://git.example.com/team/a", False),
        ("zip://x::https://git.example.com/team/a", False),
        ("/team/a", False),
        ("file:///team/a", False),
    ],
)
def test_addresses(url: str, allowed: bool) -> None:
    assert patterns.repository_allowed(url, ["https://git.example.com/team/*"]) is allowed


def test_addresses_of_other_kinds(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    assert patterns.repository_allowed("git@host:team/a.git", ["ssh://host/team/*"])
    assert patterns.repository_allowed(f"file://{tmp_path}/link", [f"file://{tmp_path}/in"])
    assert patterns.repository_allowed("s3://bucket/code/a.zip", ["s3://bucket/code/**"])
    assert not patterns.repository_allowed("s3://other/code/a.zip", ["s3://bucket/code/**"])


@pytest.mark.parametrize(
    ("name", "pattern", "allowed"),
    [
        ("python:3.11", "python", True),
        ("python:3.11", "docker.io/library/*", True),
        ("python:3.11", "python:3.*", True),
        ("python:2.7", "python:3.*", False),
        ("evil/python:3.11", "python", False),
        ("evil.org/python", "python", False),
        ("registry/python", "docker.io/registry/*", True),
        ("localhost:5000/a/b@sha256:00", "localhost:5000/a/*", True),
        ("localhost:5000/a/b@sha256:00", "localhost:5000/a/b:1", False),
        ("ghcr.io/org-evil/a", "ghcr.io/org/*", False),
        ("ghcr.io/org/a/b", "ghcr.io/org/*", False),
        ("ghcr.io/org/a/b", "ghcr.io/org/**", True),
        ("ghcr.io.evil.org/org/a", "ghcr.io/org/*", False),
    ],
)
def test_images(name: str, pattern: str, allowed: bool) -> None:
    assert patterns.image_allowed(name, [pattern]) is allowed


# -- the file


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[program]\nallow = []", "agent.toml:1: [program]: there is no such section; there are docker,"),
        (b"\n[programs]\nalow = []", "agent.toml:3: [programs] alow: there is no such key; there are allow"),
        (b"[programs]\nallow = '/bin/sh'", "agent.toml:2: [programs] allow: Input should be a valid list"),
        (b"[programs]\nallow = ['sh']", "agent.toml:2: [programs] allow.0: it must be an absolute path"),
        (
            b"[programs]\nallow = ['/bin/../x']",
            "[programs] allow.0: it must be an absolute path, without `..`",
        ),
        (b"[maximum]\nmemory_limit = 'much'", "[maximum] memory_limit: 'much' is not a size"),
        (b"[maximum]\ntimeout = 'long'", "[maximum] timeout: 'long' is not a duration"),
        (b"[limits]\numask = 27", "[limits] umask"),
        (b"[limits]\nnofile = '9'", "[limits] nofile: Input should be a valid integer"),
        (
            b"[repositories]\nallow = ['git.example.com']",
            "[repositories] allow.0: it must begin with a scheme",
        ),
        (
            b"[environment]\npass_ = []",
            "[environment] pass_: there is no such key; there are allow, deny, pass",
        ),
        (b"[programs\n", "is not TOML: Expected ']'"),
        (b"# caf\xe9\n", "agent.toml:1: this is not UTF-8"),
        (b"[secrets]\nA = {file = 'x'}", "agent.toml:2: [secrets] A.file"),
    ],
)
def test_a_file_that_is_wrong(text: bytes, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(text, WHERE)
    assert words in caught.value.detail


def test_a_file_that_others_can_change(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    with pytest.raises(InvalidInput, match=r"agent\.toml does not exist"):
        read(file)
    assert read(file, must=False) == Policy()
    file.write_text("[programs]\nallow = ['/bin/sh']\n")
    file.chmod(0o646)
    with pytest.raises(InvalidInput, match=r"can be changed by others .* mode 0646"):
        read(file, must=False)
    file.chmod(0o644)
    assert read(file).programs.allow == ["/bin/sh"]
    tmp_path.chmod(0o777)
    with pytest.raises(InvalidInput, match="can be written by everybody"):
        read(file)
    tmp_path.chmod(0o700)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InvalidInput, match="is not a regular file"):
        read(pipe)
    if ME == 0:
        os.chown(file, 61234, 0)
        with pytest.raises(InvalidInput, match="owner 61234"):
            read(file)


def test_a_file_that_changes(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    file = PolicyFile(path, must=False)
    assert file.policy == Policy()
    assert not file.refresh()
    path.write_text("[programs]\nallow = ['/bin/a']\n")
    assert file.refresh()
    assert file.policy.programs.allow == ["/bin/a"]
    path.write_text("[programs]\nallow = '/bin/b'\n")
    assert file.refresh()
    assert file.policy.programs.allow == ["/bin/a"]
    assert "is not in force, the one before is" in (file.trouble or "")
    path.unlink()
    file.refresh()
    assert file.policy.programs.allow == ["/bin/a"]  # moved away is not allowed
    assert "does not exist" in (file.trouble or "")
    path.write_text("[programs]\nallow = ['/bin/c']\n[secrets]\nA = {env = 'B'}\n")
    secrets = file.secrets
    file.refresh()
    assert (file.trouble, file.policy.programs.allow, list(secrets)) == (None, ["/bin/c"], ["A"])


# -- in an agent


def due(server: FakeServer, *command: str) -> Key:
    """Make a run of a command due."""
    key = server.add()
    work = Work(command=list(command))
    server.waiting[-1] = server.waiting[-1].model_copy(update={"work": work})
    return key


async def test_what_is_refused_ends_rejected_and_nothing_is_started(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text("[programs]\nallow = ['/usr/bin/false']\n")
    server, launcher = FakeServer(), FakeLauncher()
    async with life(server, tmp_path / "agents", launcher, policy=PolicyFile(path)):
        key = due(server, "/usr/bin/true")
        await server.ended(key)
        end = server.leases[key].end
        assert end is not None
        assert (end.state.value, end.cause) == ("Crashed", Cause.REJECTED)
        assert f"{path}, [programs] allow: /usr/bin/false" in (end.message or "")
        assert [call for call, _ in launcher.calls if call == "start"] == []


async def test_a_change_counts_for_the_next_run_and_a_broken_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text("[programs]\nallow = ['/usr/bin/true']\n")
    server = FakeServer()

    async def cause(command: list[str]) -> Cause | None:
        key = due(server, *command)
        await server.ended(key)
        end = server.leases[key].end
        assert end is not None
        return end.cause

    async with life(
        server, tmp_path / "agents", ProcessLauncher(), policy=PolicyFile(path), health_every=0.05
    ):
        assert await cause(["true"]) is None
        assert await cause(["false"]) is Cause.REJECTED
        path.write_text("[programs]\nallow = ['/usr/bin/false']\n")
        assert await cause(["true"]) is Cause.REJECTED
        path.write_text("[programs\n")
        await server.until(
            lambda: (
                any("is not in force" in one for one in server.syncs[-1].troubles)
                and not server.syncs[-1].taking
            )
        )
        path.write_text("")
        await server.until(lambda: server.syncs[-1].taking and not server.syncs[-1].troubles)
        assert await cause(["true"]) is None


Process = Callable[[], ProcessLauncher]


@pytest.fixture
def launched(tmp_path: Path) -> Callable[..., Any]:
    """Starts an attempt under a policy with a real launcher; its output."""

    async def run(text: str, command: list[str] | None = None, **work: Any) -> str:
        path = tmp_path / f"{uuid4().hex}.toml"
        path.write_text(text)
        given = assignment(command, **work)
        folder = tmp_path / f"{given.run}.1"
        folder.mkdir(mode=0o700)
        launcher = ProcessLauncher(environ={"PATH": "/usr/bin:/bin"})
        try:
            rules = admitted(PolicyFile(path), given, "process")
            from shunter_infrastructure.launcher import Prepared

            handle = await launcher.start(given, folder, "a1", prepared=Prepared(rules=rules))
            await launcher.wait(handle)
            return (folder / "output").read_text()
        finally:
            await launcher.close()

    return run


async def test_the_path_that_was_allowed_is_the_one_that_is_used(
    launched: Callable[..., Any], tmp_path: Path
) -> None:
    tools, source, outside = tmp_path / "tools", tmp_path / "source", tmp_path / "outside"
    for folder in (tools, source, outside):
        folder.mkdir()
    (tools / "tool").write_text("#!/bin/sh\necho $0; pwd\n")
    (outside / "tool").write_text("#!/bin/sh\necho outside\n")
    for path in (tools / "tool", outside / "tool"):
        path.chmod(0o755)
    (tmp_path / "named").symlink_to(tools)
    (source / "link").symlink_to(outside)
    (source / "tool").symlink_to(outside / "tool")
    (source / "flow.py").write_text("import sys\nprint(sys.prefix)\n")
    (outside / "flow.py").write_text("print('outside')\n")
    (source / "evil.py").symlink_to(outside / "flow.py")
    rules = f"[programs]\nallow = ['{tmp_path}/named/*', 'python']\n[folders]\nallow = ['{source}']\n"
    said = await launched(rules, [f"{tmp_path}/named/tool"], working_dir=str(source))
    assert said == f"{tools}/tool\n{source}\n"
    for command, work in (
        (["./tool"], {"source": str(source)}),
        (["sh", "-c", "echo outside"], {}),
        ([f"{tmp_path}/named/../outside/tool"], {}),
        ([f"{tmp_path}/named/tool"], {"source": str(source), "working_dir": "link"}),
        (None, {"entrypoint": "evil.py", "source": str(source)}),
        (None, {"entrypoint": "../outside/flow.py", "source": str(source)}),
        (None, {"entrypoint": "flow.py", "source": str(source), "python": "/usr/bin/env"}),
        (None, {"entrypoint": "flow.py", "source": str(source), "python": "env"}),
    ):
        with pytest.raises(LaunchFailed) as caught:
            await launched(rules, command, **work)
        assert caught.value.cause is Cause.REJECTED, (command, work)
    # The agent's own interpreter stays that of its environment, also by its name.
    assert await launched(rules, entrypoint="flow.py", source=str(source)) == f"{sys.prefix}\n"
    by_name = f"[programs]\nallow = ['{sys.executable}']\n"
    assert await launched(by_name, entrypoint="flow.py", source=str(source)) == f"{sys.prefix}\n"
