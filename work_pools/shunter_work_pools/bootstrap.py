"""The token and the secret key of a server in a cluster: a Secret that a pod makes once, before the server's own.

They come to be in the cluster and stay there: no values, templates or history of a release ever hold them. What is
there already is never changed, by whomever it was made: a second token would lock clients out, and without the key
that they were sealed with no secrets can be read again.
"""

from __future__ import annotations

import base64
import os
import re
import secrets
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential

from shunter_work_pools.contracts.errors import Forbidden, InvalidInput, Refused, Unavailable
from shunter_work_pools.contracts.identities import PREFIXES
from shunter_work_pools.contracts.settings import SETTINGS
from shunter_work_pools.in_cluster import OWN, own_api_server

#: Keys of the Secret.
TOKEN, SECRET_KEY = "token", "secret-key"  # nosec B105 # names
#: Its labels: https://kubernetes.io/docs/concepts/overview/working-with-objects/common-labels/
LABELS = {"app.kubernetes.io/name": "shunter-server", "app.kubernetes.io/managed-by": "shunter"}
#: Seconds for one answer of the API server.
PATIENCE = 10.0
#: Random bytes of a token, and of a key.
_BYTES = 32
#: What an API server says that may well take the same request later.
_PASSING = frozenset({429, 500, 502, 503, 504})
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_KIND_OF = {TOKEN: "token", SECRET_KEY: "server.secret_keys"}


@dataclass(frozen=True)
class Outcome:
    """What there is now.

    Attributes:
        made: it was not there before.
        checked: it has what the server needs; else nobody could look into it.
    """

    namespace: str
    name: str
    made: bool
    checked: bool


def bootstrap(
    name: str,
    namespace: str | None = None,
    *,
    wait: float = 60.0,
    environ: Mapping[str, str] = os.environ,
) -> Outcome:
    """See that there is a Secret with the server's token and secret key.

    Several may do so at the same time: one of them makes it, the others find it.

    Args:
        name: of the Secret.
        namespace: None: that of this pod.
        wait: so many seconds an API server that does not answer is asked again.
        environ: says where the API server is.

    Raises:
        InvalidInput: a name cannot be one, this is no pod of a cluster, or the Secret lacks something.
        Forbidden: the service account may not make it.
        Unavailable: no answer came in time.
        Refused: the API server takes it for no good.
    """
    _check_name("--secret", name, 253)
    url = own_api_server(environ)
    if url is None:
        raise InvalidInput(
            "this runs in no pod of a Kubernetes cluster: KUBERNETES_SERVICE_HOST is not set",
            "Elsewhere a server makes its token and key by itself, in its home. By hand, for one in a cluster:\n"
            f"kubectl create secret generic {name} "
            f'--from-literal={TOKEN}="$(openssl rand -hex 32)" --from-literal={SECRET_KEY}="$(openssl rand -hex 32)"',
        )
    namespace = namespace or _given(OWN / "namespace", "Name it: --namespace.")
    _check_name("--namespace", namespace, 63)
    with _client(url) as client:
        again = Retrying(
            stop=stop_after_delay(wait),
            wait=wait_exponential(multiplier=0.25, max=5),
            retry=retry_if_exception_type(Unavailable),
            reraise=True,
        )
        return again(_ensure, client, namespace, name)


def _ensure(client: httpx.Client, namespace: str, name: str) -> Outcome:
    """Look first: who may create only what is not there yet is not told of quotas that are used up."""
    place = f"/api/v1/namespaces/{namespace}/secrets"
    found = _ask(client, "GET", f"{place}/{name}")
    if found.status_code == 404 or found.status_code == 403:
        made = _ask(client, "POST", place, _secret(namespace, name))
        if made.status_code == 201:
            return Outcome(namespace, name, made=True, checked=True)
        if made.status_code != 409:
            raise _refusal(made, "create", namespace, name)
        if found.status_code == 403:
            return Outcome(namespace, name, made=False, checked=False)
        found = _ask(client, "GET", f"{place}/{name}")
        if found.status_code == 404:
            raise Unavailable(
                f"the Secret {namespace}/{name} comes and goes", "Who else makes and deletes it?"
            )
    if found.status_code != 200:
        raise _refusal(found, "get", namespace, name)
    _check(found, namespace, name)
    return Outcome(namespace, name, made=False, checked=True)


def _secret(namespace: str, name: str) -> dict[str, Any]:
    data = {key: base64.b64encode(secrets.token_hex(_BYTES).encode()).decode() for key in (TOKEN, SECRET_KEY)}
    metadata = {"name": name, "namespace": namespace, "labels": LABELS}
    return {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": metadata, "data": data}


def _check(found: httpx.Response, namespace: str, name: str) -> None:
    """Refuse a Secret that the server could not be started with.

    Raises:
        InvalidInput: a key is missing, or what it holds is of no use; what it holds is not told.
    """
    data = found.json().get("data") or {}
    for key, setting in _KIND_OF.items():
        if key not in data:
            wrong = f"has no key {key!r}"
        else:
            try:
                text = base64.b64decode(data[key]).decode()
                if not SETTINGS[setting].read(text):
                    raise ValueError("is empty")
                if key == TOKEN and text.startswith(tuple(PREFIXES.values())):
                    raise ValueError("is a key of somebody, and no server's own token")
                continue
            except UnicodeDecodeError:
                wrong = f"has a key {key!r} that is no text"
            except ValueError as exc:
                wrong = f"has a key {key!r} that {exc.args[0]}"
        which = (
            "the secret key that the server had so far, or it cannot read its secrets any more; a new one only if it had none"
            if key == SECRET_KEY
            else "a token of 32 characters or more"
        )
        raise InvalidInput(
            f"the Secret {namespace}/{name} {wrong}; nothing was changed",
            f"Put it there: {which} (openssl rand -hex 32).\n"
            f'kubectl --namespace {namespace} patch secret {name} --patch \'{{"stringData": {{"{key}": "..."}}}}\'',
        )


def _client(url: str) -> httpx.Client:
    token = _given(
        OWN / "token", "The pod needs its service account's token: automountServiceAccountToken: true."
    )
    try:
        context = ssl.create_default_context(cafile=str(OWN / "ca.crt"))
    except OSError as exc:
        raise InvalidInput(
            f"the cluster's authority {OWN / 'ca.crt'} cannot be used: {exc.strerror or exc}",
            "The pod needs what Kubernetes gives a service account: automountServiceAccountToken: true.",
        ) from exc
    headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
    # No proxy for the outside world reaches a cluster's inside.
    return httpx.Client(base_url=url, verify=context, headers=headers, timeout=PATIENCE, trust_env=False)


def _given(file: Path, remedy: str) -> str:
    try:
        return file.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidInput(f"{file} cannot be read, as in a pod it could: {exc}", remedy) from exc


def _check_name(option: str, text: str, most: int) -> None:
    if len(text) > most or not _NAME.fullmatch(text):
        raise InvalidInput(
            f"{option} {text!r} cannot be a name in Kubernetes",
            f"It has lower case letters, digits, '-' and '.', and at most {most} characters.",
        )


def _ask(client: httpx.Client, method: str, path: str, body: Any = None) -> httpx.Response:
    try:
        answer = client.request(method, path, json=body)
    except httpx.TransportError as exc:
        raise Unavailable(
            f"the API server {client.base_url} does not answer: {exc or type(exc).__name__}",
            "Does a NetworkPolicy or a proxy keep this pod from it?",
        ) from exc
    if answer.status_code in _PASSING:
        raise Unavailable(
            f"the API server {client.base_url} cannot do it now: {answer.status_code} {_message(answer)}",
            "Try again when it is well.",
        )
    return answer


def _refusal(answer: httpx.Response, verb: str, namespace: str, name: str) -> Refused:
    told = f"the API server refuses to {verb} the Secret {namespace}/{name}: {_message(answer)}"
    if answer.status_code == 403:
        return Forbidden(
            told,
            f"The service account needs a Role with the verb {verb} for secrets; a quota may be used up, too.",
        )
    return Refused(told, "See what it says; nothing was changed.")


def _message(answer: httpx.Response) -> str:
    """What a Status says: https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/status/"""
    try:
        message = answer.json()["message"]
    except (ValueError, KeyError, TypeError):
        return f"{answer.status_code} {answer.reason_phrase}"
    return str(message)
