"""What the accounts of the charts may do: each verb of the agent's Role is needed, and there is nothing beside the listed ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import pytest
from ruamel.yaml import YAML

from shunter_infrastructure.kubernetes.rights import NEEDED
from shunter_work_pools.contracts.deployments import DeploymentSpec, Work
from shunter_work_pools.contracts.pools import PoolPatch, PoolSpec
from shunter_work_pools.contracts.runs import RunRequest
from tests.cli.console import until
from tests.engines.docker import IMAGE
from tests.helm.conftest import NewPlace
from tests.helm.releases import AGENT, SERVER, Place, Reached
from tests.helm.runs import ended, output

pytestmark = pytest.mark.timeout(400)

#: Sends a signal to all processes of a container but its first, and the one that says so.
SIGNAL = (
    "import os, sys; [os.kill(int(one), int(sys.argv[1])) for one in os.listdir('/proc')"
    " if one.isdigit() and int(one) not in (1, os.getpid())]"
)
#: Agents that are tried at the same time: each takes two seconds of a core to begin.
BESIDE = 5
WAIT = "for n in $(seq 600); do sleep 0.2; done"


@dataclass
class Lacking:
    """A namespace whose agent may all that the chart's Role says, but for one verb.

    Attributes:
        group, resource, verb: the one that it lacks.
        server: of all these namespaces.
        role: the chart's, whole.
    """

    group: str
    resource: str
    verb: str
    place: Place
    server: Reached
    role: dict[str, Any]

    @property
    def name(self) -> str:
        """Of namespace and pool."""
        return self.place.namespace

    def set_up(self) -> None:
        """Pool, account, Role and agent."""
        template = {"namespace": self.name, "image": IMAGE}
        self.server.client.create_pool(PoolSpec(name=self.name, type="kubernetes", template=template))
        self._apply(self._without())
        values = {
            "api": {"url": self.server.inside},
            "pools": [self.name],
            "createPools": False,
            "rbac": {"create": False},
            "limit": 4,
        }
        self.place.install("agents", AGENT, values, wait=False)

    def give(self) -> None:
        """The verb, too."""
        self._apply(self.role["rules"])

    def _without(self) -> list[dict[str, Any]]:
        """The Role's rules, one for each verb of a resource, but for that one."""
        every = [
            {**rule, "resources": [resource], "verbs": [verb]}
            for rule in self.role["rules"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
        ]
        left = [
            one
            for one in every
            if (one["apiGroups"], one["resources"], one["verbs"])
            != ([self.group], [self.resource], [self.verb])
        ]
        assert len(left) == len(every) - 1, f"the chart does not give {self.verb} {self.resource}"
        return left

    def _apply(self, rules: list[dict[str, Any]]) -> None:
        rules = [
            {**one, "resourceNames": [self.name]} if "namespaces" in one["resources"] else one
            for one in rules
        ]
        metadata = {"name": "agents", "namespace": self.name}
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "agents"}
        subject = {"kind": "ServiceAccount", "name": "agents-shunter-agent", "namespace": self.name}
        api = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": metadata}
        self.place.terminal.cluster.apply(
            {**api, "kind": "Role", "rules": rules},
            {**api, "kind": "RoleBinding", "roleRef": reference, "subjects": [subject]},
        )

    def run(self, script: str = "echo hi", **more: Any) -> str:
        """A run of this pool."""
        work = more.pop("work", None) or Work(command=["sh", "-c", script], **more.pop("spec", {}))
        self.server.client.deploy(self.name, DeploymentSpec(work=work, pool=self.name, **more))
        return str(self.server.client.create_run(RunRequest(deployment=self.name)).id)

    def running(self, run: str) -> None:
        until(lambda: self.server.client.get_run(run).state == "Running", 90)

    def told(self, *words: str) -> None:
        """Wait until the agent has said so, in one line of its log or as its trouble."""
        until(lambda: any(all(word in line for word in words) for line in self.said()), 90)

    def said(self) -> list[str]:
        """The lines of its agent's log, and the agent's troubles."""
        lines = []
        with suppress(RuntimeError):  # a pod goes just now, or comes
            label = "app.kubernetes.io/instance=agents"
            lines = self.place.kubectl("logs", "-l", label, "--tail=-1", "--ignore-errors").splitlines()
        agents = self.server.client.list_agents().agents
        return lines + [each for one in agents if one.pools == [self.name] for each in one.troubles]

    def explained(self, run: str, words: str) -> None:
        """Wait until people are told so of a run."""
        until(lambda: words in self.server.client.explain_run(run).model_dump_json(), 90)
        assert self.server.client.get_run(run).ended_at is None

    def jobs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.place.get("jobs")["items"]
        return found


# -- what cannot be done without a verb


def _starts(lacking: Lacking) -> None:
    """It does not start, people are told why, and it goes on by itself with the verb."""
    _goes_on(lacking, lacking.run())


def _is_given_secrets(lacking: Lacking) -> None:
    _goes_on(lacking, lacking.run("echo $S", variables={"secret_env": {"S": "hi"}}))


def _has_an_entrypoint(lacking: Lacking) -> None:
    _goes_on(lacking, lacking.run(work=Work(entrypoint="platform:machine")))


def _goes_on(lacking: Lacking, run: str) -> None:
    lacking.explained(run, f"{lacking.verb} {lacking.resource}")
    lacking.give()
    assert ended(lacking.server, run).state == "Completed"


def _finds_a_job_of_somebody_else(lacking: Lacking) -> None:
    """Its name is taken: whose it is has to be read."""
    client = lacking.server.client
    client.update_pool(lacking.name, PoolPatch(paused=True))
    run = lacking.run()
    spec = {"containers": [{"name": "x", "image": IMAGE, "command": ["true"]}], "restartPolicy": "Never"}
    lacking.place.terminal.cluster.apply(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": f"shunter-{run}-1", "namespace": lacking.name},
            "spec": {"suspend": True, "template": {"spec": spec}},
        }
    )
    client.update_pool(lacking.name, PoolPatch(paused=False))
    lacking.told(f"Job shunter-{run}-1 cannot be read")
    assert client.get_run(run).ended_at is None
    lacking.give()
    found = ended(lacking.server, run)
    assert "not this run's" in (found.message or "")


def _is_cancelled(lacking: Lacking) -> None:
    run = lacking.run(WAIT, spec={"grace": 1})
    lacking.running(run)
    lacking.server.client.cancel_run(run)
    lacking.told("cannot be stopped yet", run)
    assert lacking.server.client.get_run(run).ended_at is None
    lacking.give()
    assert ended(lacking.server, run).state == "Cancelled"


def _writes(lacking: Lacking) -> None:
    run = lacking.run()
    lacking.told("does not give the log of a pod", "pods/log")
    assert lacking.server.client.get_run(run).ended_at is None
    lacking.give()
    assert ended(lacking.server, run).state == "Completed"
    assert output(lacking.server, run) == b"hi\n"


def _is_cleared_away(lacking: Lacking) -> None:
    run = lacking.run()
    assert ended(lacking.server, run).state == "Completed"
    lacking.told(f"Job shunter-{run}-1 cannot be deleted")
    assert [one["metadata"]["name"] for one in lacking.jobs()] == [f"shunter-{run}-1"]
    lacking.give()
    until(lambda: not lacking.jobs(), 60)


def _hears_why_no_pod_comes(lacking: Lacking) -> None:
    """The controller of Jobs says so in events alone: without them nobody knows but that it took too long."""
    variables = {"service_account": "nobody"}
    run = lacking.run(variables=variables, spec={"start_timeout": 16})
    found = ended(lacking.server, run)
    assert "nobody" not in (found.message or "")
    lacking.give()
    again = lacking.run(variables=variables, spec={"start_timeout": 60})
    found = ended(lacking.server, again)
    assert found.cause == "rejected"
    assert 'serviceaccount "nobody" not found' in (found.message or "")


def _is_handed_over(lacking: Lacking) -> None:
    """The next agent takes it, but may not write down that it has it; then it may."""
    run = _held_by_the_next_agent(lacking)
    lacking.told(f"Job shunter-{run}-1 cannot be taken over")
    lacking.give()
    lacking.server.client.cancel_run(run)
    assert ended(lacking.server, run).state == "Cancelled"


def _is_known_to_be_reached(lacking: Lacking) -> None:
    """Nobody knows that the next agent reaches the same Jobs: it has other runs, and is not given that one."""
    lacking.told("the right to get its namespace")
    run, old = _left_by_its_agent(lacking)
    lacking.place.kubectl(
        "wait", "--for=delete", f"pod/{old}", "--timeout=90s"
    )  # it takes nothing new any more
    other = lacking.run("true")
    assert ended(lacking.server, other).attempts[0].agent != old
    assert lacking.server.client.get_run(run).attempts[-1].agent == old


def _held_by_the_next_agent(lacking: Lacking) -> str:
    run, old = _left_by_its_agent(lacking)
    until(lambda: lacking.server.client.get_run(run).attempts[-1].agent != old, 90)
    return run


def _left_by_its_agent(lacking: Lacking) -> tuple[str, str]:
    """A run whose agent is told to go, and that agent."""
    run = lacking.run(WAIT, spec={"grace": 1})
    lacking.running(run)
    (old,) = [str(one["metadata"]["name"]) for one in lacking.place.pods("agents")]
    lacking.place.kubectl("delete", "pod", old, "--wait=false")
    return run, old


def _is_not_the_agents_any_more(lacking: Lacking) -> None:
    """It was frozen until it was given up; what it has must be gone within a second, so a deadline will not do."""
    run = lacking.run("trap '' TERM; " + WAIT, spec={"grace": 60})
    lacking.running(run)
    (pod,) = [str(one["metadata"]["name"]) for one in lacking.place.pods("agents")]
    client = lacking.server.client
    lacking.place.kubectl("exec", pod, "--", "python3", "-c", SIGNAL, "19")
    until(lambda: client.get_run(run).lost, 60)
    client.remove_agent(pod, give_up=True)
    assert client.get_run(run).cause == "agent_lost"
    lacking.place.kubectl("exec", pod, "--", "python3", "-c", SIGNAL, "18")
    lacking.told("cannot be stopped yet", run)
    lacking.give()
    until(lambda: not lacking.place.get("pods", "-l", f"shunter.dev/run={run}")["items"], 60)


NEEDS: dict[tuple[str, str, str], Callable[[Lacking], None]] = {
    ("batch", "jobs", "create"): _starts,
    ("batch", "jobs", "get"): _finds_a_job_of_somebody_else,
    ("batch", "jobs", "list"): _starts,
    ("batch", "jobs", "watch"): _starts,
    ("batch", "jobs", "patch"): _is_handed_over,
    ("batch", "jobs", "delete"): _is_cleared_away,
    ("", "pods", "list"): _starts,
    ("", "pods", "watch"): _starts,
    ("", "pods", "patch"): _is_cancelled,
    ("", "pods", "delete"): _is_not_the_agents_any_more,
    ("", "pods/log", "get"): _writes,
    ("", "secrets", "create"): _is_given_secrets,
    ("", "configmaps", "create"): _has_an_entrypoint,
    ("", "events", "list"): _hears_why_no_pod_comes,
    ("", "namespaces", "get"): _is_known_to_be_reached,
}


@pytest.fixture(scope="module")
def server(new_place: NewPlace, prefix: str) -> Iterator[Reached]:
    """A server that trusts the agents of all these namespaces, and finds one lost as soon as it may."""
    trust = [
        {"serviceAccount": f"{name}/agents-shunter-agent", "pools": [name]} for name in names(prefix).values()
    ]
    with new_place(f"{prefix}-rights", helm=3) as place:
        values = {"trust": trust, "settings": {"server": {"lost_after": "15s"}}}
        place.install("server", SERVER, values)
        with place.reached() as one:
            yield one
        place.helm("uninstall", "server", "--wait")


def names(prefix: str) -> dict[tuple[str, str, str], str]:
    """The namespace for each verb."""
    return {
        (group, resource, verb): f"{prefix}-{resource.replace('/', '-')}-{verb}"
        for group, resource, verb in NEEDS
    }


def test_each_verb_of_the_role_is_needed(server: Reached, new_place: NewPlace, prefix: str) -> None:
    """Without any one of them something of the life of runs does not happen; with it, it does, by itself."""
    with ExitStack() as places:
        made = {each: places.enter_context(new_place(name, helm=3)) for each, name in names(prefix).items()}
        role = _rendered(next(iter(made.values())))
        given = {
            (group, resource, verb)
            for rule in role["rules"]
            for group in rule["apiGroups"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
        }
        assert given == set(NEEDS)
        assert given == {(group, resource, verb) for group, resource, verbs in NEEDED for verb in verbs}
        lacking = [Lacking(*each, place, server, role) for each, place in made.items()]
        with ThreadPoolExecutor(BESIDE) as beside:
            tried = {one.name: beside.submit(_try, one) for one in lacking}
        failed = [f"{name}: {done.exception()!r}" for name, done in tried.items() if done.exception()]
        assert not failed, "\n".join(failed)


def _try(lacking: Lacking) -> None:
    lacking.set_up()
    try:
        NEEDS[lacking.group, lacking.resource, lacking.verb](lacking)
    except Exception:
        print(f"--- {lacking.name}", *lacking.said()[-40:], sep="\n")
        raise
    lacking.place.helm("uninstall", "agents")


# -- nothing beside it

#: What an account may, by ``kubectl auth can-i --list``: resource, names of objects, and verbs. An agent may get its
#: namespace, too, by its name.
AGENT_MAY = {
    ("jobs.batch", ""): "create delete get list patch watch",
    ("pods", ""): "delete list patch watch",
    ("pods/log", ""): "get",
    ("secrets", ""): "create",
    ("configmaps", ""): "create",
    ("events", ""): "list",
}
BOOTSTRAP_MAY = {("secrets", ""): "create", ("secrets", "server-shunter-server"): "get"}


def test_accounts_may_what_is_listed_and_nothing_else(new_place: NewPlace, prefix: str) -> None:
    """Those of agent (and its test), server (and its test) and bootstrap; elsewhere none of them may anything."""
    with new_place(f"{prefix}-accounts") as place, new_place(f"{prefix}-more") as more:
        trust = [{"serviceAccount": "agents-shunter-agent", "pools": ["x"], "managePools": True}]
        values = {"persistence": {"enabled": False}}
        place.install("server", SERVER, {"trust": trust, **values}, wait=False)
        agents = {
            "api": {"url": "http://server-shunter-server:4400/api"},
            "pools": ["x"],
            "namespaces": [place.namespace, more.namespace],
        }
        place.install("agents", AGENT, agents, wait=False)
        for one in (place, more):
            wanted = {**AGENT_MAY, ("namespaces", one.namespace): "get"}
            assert _may(one, f"{place.namespace}:agents-shunter-agent") == wanted
        assert _may(place, f"{place.namespace}:server-shunter-server") == {}
        accounts = {one["metadata"]["name"] for one in place.get("serviceaccounts")["items"]}
        assert accounts == {"default", "agents-shunter-agent", "server-shunter-server"}
        hooks = [
            one for one in _documents(place.helm("get", "hooks", "server")) if "rbac" in one["apiVersion"]
        ]
        place.terminal.cluster.apply(*hooks)
        (bootstrap,) = {one["subjects"][0]["name"] for one in hooks if one["kind"] == "RoleBinding"}
        assert _may(place, f"{place.namespace}:{bootstrap}") == BOOTSTRAP_MAY
        elsewhere = Place(place.terminal, "kube-system")
        for account in ("agents-shunter-agent", "server-shunter-server", bootstrap):
            assert _may(elsewhere, f"{place.namespace}:{account}") == {}
        users = {one["spec"]["serviceAccountName"] for one in _pods_of_hooks(place)}
        assert users == {"agents-shunter-agent", "server-shunter-server", bootstrap}
        for release in ("agents", "server"):
            place.helm("uninstall", release)


def _may(place: Place, account: str) -> dict[tuple[str, str], str]:
    """What an account may in a namespace beyond what every account may."""
    return {
        key: verbs
        for key, verbs in _listed(place, account).items()
        if (key, verbs) not in _listed(place, "nowhere:nobody").items()
    }


def _listed(place: Place, account: str) -> dict[tuple[str, str], str]:
    said = place.kubectl("auth", "can-i", "--list", "--no-headers", f"--as=system:serviceaccount:{account}")
    found: dict[tuple[str, str], list[str]] = {}
    for line in said.splitlines():
        row = re.fullmatch(r"(\S*)\s+\[(.*?)\]\s+\[(.*?)\]\s+\[(.*?)\]", line)
        assert row, line
        found.setdefault((row[1] or row[2], row[3]), []).extend(row[4].split())
    return {key: " ".join(sorted(verbs)) for key, verbs in found.items()}


def _pods_of_hooks(place: Place) -> list[dict[str, Any]]:
    """Pods and templates of pods in the hooks of both releases."""
    documents = [one for name in ("server", "agents") for one in _documents(place.helm("get", "hooks", name))]
    jobs = [one["spec"]["template"] for one in documents if one["kind"] == "Job"]
    return jobs + [one for one in documents if one["kind"] == "Pod"]


def _documents(text: str) -> list[dict[str, Any]]:
    return [dict(one) for one in YAML(typ="safe").load_all(text) if one]


def _rendered(place: Place) -> dict[str, Any]:
    """The Role of the chart."""
    values = {"api": {"url": "http://server"}, "pools": ["any"]}
    (role,) = [one for one in place.rendered("agents", AGENT, values) if one["kind"] == "Role"]
    return role
