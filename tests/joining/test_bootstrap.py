"""``shunter server bootstrap``: a Secret with the server's token and key, made once, whoever else makes it."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest

from shunter_cli.main import main
from shunter_work_pools import bootstrap as module
from shunter_work_pools.bootstrap import Outcome, bootstrap
from shunter_work_pools.contracts.errors import Forbidden, InvalidInput, Refused, ShunterError, Unavailable
from shunter_work_pools.contracts.settings import SETTINGS
from tests.cluster.cluster import Cluster
from tests.joining.api_server import NAMESPACE, ApiServer, api_server

LONG = "k" * 32


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    """As a pod has it."""
    with api_server(tmp_path) as one:
        monkeypatch.setattr(module, "OWN", one.own)
        for name, value in one.environ.items():
            monkeypatch.setenv(name, value)
        yield one


def text(data: dict[str, str], key: str) -> str:
    return base64.b64decode(data[key]).decode()


def held(**keys: str) -> dict[str, dict[str, str]]:
    """A Secret with these, ``_`` for ``-``."""
    data = {key.replace("_", "-"): base64.b64encode(value.encode()).decode() for key, value in keys.items()}
    return {"data": data}


def test_it_is_made_once_and_never_told(api: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["server", "bootstrap", "--secret", "s"]) == 0
    first = capsys.readouterr()
    made = json.loads(json.dumps(api.secrets["s"]))
    assert main(["server", "bootstrap", "--secret", "s", "--namespace", NAMESPACE]) == 0
    second = capsys.readouterr()
    assert api.secrets["s"] == made, "left as it is"
    assert (made["type"], made["metadata"]["labels"]) == ("Opaque", module.LABELS)
    token, key = text(made["data"], "token"), text(made["data"], "secret-key")
    assert SETTINGS["token"].read(token) == token
    assert SETTINGS["server.secret_keys"].read(key) == (key,)
    assert len({token, key}) == 2
    assert f"the Secret {NAMESPACE}/s is made" in first.out
    assert f"kubectl --namespace {NAMESPACE} get secret s " in first.out
    assert "is there already" in second.out
    for said in (first, second):
        assert not any(word in said.out + said.err for word in (token, key, *made["data"].values()))


def test_many_at_once_make_one(api: ApiServer) -> None:
    api.together = threading.Barrier(8)  # all have seen that there is none before one is made
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda _: bootstrap("s"), range(8)))
    assert sorted(one.made for one in outcomes) == [False] * 7 + [True]
    assert all(one.checked for one in outcomes)


def test_who_may_create_only_cannot_look(api: ApiServer) -> None:
    api.forbidden = {"get"}
    assert bootstrap("s") == Outcome(NAMESPACE, "s", made=True, checked=True)
    assert bootstrap("s") == Outcome(NAMESPACE, "s", made=False, checked=False)


def test_what_may_not_be_created_but_is_there_is_enough(api: ApiServer) -> None:
    api.secrets["s"] = held(token="mine", secret_key=LONG)
    api.forbidden = {"create"}
    assert bootstrap("s") == Outcome(NAMESPACE, "s", made=False, checked=True)


@pytest.mark.parametrize("verbs", [{"create"}, {"create", "get"}])
def test_forbidden_names_the_verb(api: ApiServer, verbs: set[str]) -> None:
    api.forbidden = verbs
    with pytest.raises(Forbidden) as why:
        bootstrap("s")
    assert "refuses to create the Secret there/s" in why.value.detail
    assert 'cannot create resource "secrets"' in why.value.detail
    assert "the verb create" in why.value.remedy
    assert not api.secrets


def test_an_api_server_that_is_away_for_a_while(api: ApiServer) -> None:
    api.faults = [503, "lost", 429]
    assert bootstrap("s").made
    assert api.asked == ["get", "get", "create"], "the lost one was a look"


def test_an_answer_that_is_lost_does_not_make_two(api: ApiServer) -> None:
    api.forbidden = {"get"}
    api.faults = ["", "lost"]
    assert not bootstrap("s").made, "it was made by the request of which nothing was heard"
    assert api.asked == ["get", "create", "get", "create"]


@pytest.mark.parametrize("away", ["shut", "stranger"])
def test_it_is_waited_for_no_longer_than_told(
    api: ApiServer, monkeypatch: pytest.MonkeyPatch, away: str, tmp_path: Path
) -> None:
    if away == "shut":
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "1")
    else:
        import trustme

        trustme.CA().cert_pem.write_to_path(tmp_path / "ca.crt")
    with pytest.raises(Unavailable, match=r"the API server https://127\.0\.0\.1:\d+ does not answer: .+"):
        bootstrap("s", wait=0.3)
    assert not api.secrets


@pytest.mark.parametrize(
    ("there", "told"),
    [
        (held(secret_key=LONG), "has no key 'token'"),
        (held(token="mine"), "has no key 'secret-key'"),
        ({"data": {}}, "has no key 'token'"),
        (held(token="mine", secret_key=""), "has a key 'secret-key' that is empty"),
        (held(token="", secret_key=LONG), "has a key 'token' that is not a text"),
        (held(token="shk_" + LONG, secret_key=LONG), "that is a key of somebody"),
        (held(token="mine", secret_key="short"), "has a key 'secret-key' that holds what is no key"),
        ({"data": {"token": "/w=="}}, "has a key 'token' that is no text"),
    ],
)
def test_what_a_server_could_not_start_with(
    api: ApiServer, there: dict[str, dict[str, str]], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    api.secrets["s"] = before = json.loads(json.dumps(there))
    assert main(["server", "bootstrap", "--secret", "s"]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert "nothing was changed" in said
    assert "kubectl --namespace there patch secret s --patch" in said
    assert "short" not in said
    assert api.secrets["s"] == before


@pytest.mark.parametrize(
    ("lacks", "told"),
    [
        ("KUBERNETES_SERVICE_HOST", "in no pod of a Kubernetes cluster"),
        ("token", "automountServiceAccountToken"),
        ("ca.crt", "automountServiceAccountToken"),
        ("namespace", "--namespace"),
    ],
)
def test_not_as_in_a_pod(api: ApiServer, monkeypatch: pytest.MonkeyPatch, lacks: str, told: str) -> None:
    if lacks.isupper():
        monkeypatch.delenv(lacks)
    else:
        (api.own / lacks).unlink()
    with pytest.raises(InvalidInput) as why:
        bootstrap("s")
    assert told in why.value.told
    assert not api.asked


@pytest.mark.parametrize("words", [("A_b",), ("s", "a.b/c"), ("-",), ("s" * 254,)])
def test_what_can_be_no_name(api: ApiServer, words: tuple[str, ...]) -> None:
    with pytest.raises(InvalidInput, match="cannot be a name in Kubernetes"):
        bootstrap(*words)
    assert not api.asked


def test_a_namespace_that_is_not_there(api: ApiServer) -> None:
    with pytest.raises(Refused, match="refuses to create the Secret elsewhere/s: namespaces not found"):
        bootstrap("s", "elsewhere")


def test_on_a_real_cluster(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the tokens of service accounts that have both verbs, one, and none."""
    namespace = f"bootstrap-{uuid4().hex[:8]}"
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    its = json.loads(cluster.kubectl("config", "view", "--raw", "--flatten", "--minify", "-o", "json"))
    found = its["clusters"][0]["cluster"]
    host, _, port = found["server"].removeprefix("https://").rpartition(":")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
    monkeypatch.setattr(module, "OWN", tmp_path)
    (tmp_path / "ca.crt").write_bytes(base64.b64decode(found["certificate-authority-data"]))
    (tmp_path / "namespace").write_text(namespace)

    def become(account: str, *verbs: str) -> None:
        rule = {"apiGroups": [""], "resources": ["secrets"], "verbs": list(verbs)}
        cluster.account(tmp_path / "kubeconfig", account, [rule] if verbs else [], namespace=namespace)
        (tmp_path / "token").write_text(cluster.kubectl("create", "token", account, "-n", namespace))

    try:
        become("none")
        with pytest.raises(Forbidden, match='cannot create resource "secrets"'):
            bootstrap("s")
        become("both", "create", "get")
        with ThreadPoolExecutor(6) as pool:
            outcomes = list(pool.map(lambda _: bootstrap("s"), range(6)))
        assert sorted(one.made for one in outcomes) == [False] * 5 + [True]
        secret = cluster.get("secret", "s", "-n", namespace)
        assert set(secret["data"]) == {"token", "secret-key"}
        become("only", "create")
        assert bootstrap("s") == Outcome(namespace, "s", made=False, checked=False)
        assert cluster.get("secret", "s", "-n", namespace) == secret
        cluster.kubectl("patch", "secret", "s", "-n", namespace, "--patch", '{"data": {"token": null}}')
        become("both", "create", "get")
        with pytest.raises(ShunterError, match="has no key 'token'"):
            bootstrap("s")
    finally:
        cluster.kubectl("delete", "namespace", namespace, "--wait=false")
