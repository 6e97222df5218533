"""People sign in with a real provider: the device flow, the ID token, the role, and what is refused."""

from __future__ import annotations

import asyncio
import re
import stat
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shunter_cli.signing_in import sign_in
from shunter_work_pools.contracts.errors import Forbidden, ShunterError
from shunter_work_pools.contracts.identities import NewKey, Role
from shunter_work_pools.contracts.sign_in import called, granted_role
from shunter_work_pools.sign_in import SignIn
from tests.api.serving import Served
from tests.api.test_identities import bearing
from tests.cli.console import console, free_port
from tests.joining.provider import CLIENT_ID, Provider, provider
from tests.joining.signing import ISSUER, NOW, RSA_KEY, public, token
from tests.patience import SOON

ROLES = ("groups=platform:admin", "groups=all:viewer", "email=root@example.com:admin")


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    """The provider."""
    with provider(free_port(), tmp_path_factory.mktemp("provider") / "log") as one:
        yield one


@pytest.fixture
async def site(plain: Served, there: Provider) -> AsyncIterator[Served]:
    """A server whose people sign in there."""
    plain.engine.sign_in = SignIn(there.url, CLIENT_ID, "openid groups slow", ROLES)
    yield plain
    await plain.engine.sign_in.close()


def person(
    there: Provider, capsys: pytest.CaptureFixture[str], name: str, answer: str = "yes"
) -> Callable[[float], None]:
    """Somebody who waits for the code to be shown, and answers in his browser after the second question."""
    told, asked = [""], [0]

    def sleep(seconds: float) -> None:
        told[0] += capsys.readouterr().err
        asked[0] += 1
        if asked[0] == 2:
            (code,) = re.findall(r"^  (\w{4}-\w{4})$", told[0], re.MULTILINE)
            there.answer(code, name, answer)
        time.sleep(min(seconds, 0.05))

    return sleep


async def signed_in(
    site: Served, there: Provider, capsys: pytest.CaptureFixture[str], name: str, answer: str = "yes"
) -> NewKey:
    url = f"http://127.0.0.1:{site.port}/api"
    made = await asyncio.to_thread(sign_in, url, person(there, capsys, name, answer))
    assert made is not None
    return made


async def test_a_person_signs_in_and_has_the_role_that_the_claims_give(
    site: Served, there: Provider, capsys: pytest.CaptureFixture[str]
) -> None:
    made = await signed_in(site, there, capsys, "ada")
    assert (made.key.name, made.key.role) == ("oidc:ada@example.com", Role.ADMIN)
    assert made.key.expires_at is not None
    assert (made.key.expires_at - made.key.created_at).total_seconds() == 12 * 3600
    async with bearing(site, made.token) as http:
        me = (await http.get("/whoami")).json()
        assert (me["kind"], me["name"], me["role"]) == ("person", "oidc:ada@example.com", "admin")
    second = await signed_in(site, there, capsys, "ada")
    assert second.token != made.token, "each machine of hers has a key"
    assert (await signed_in(site, there, capsys, "bob")).key.role is Role.VIEWER
    await site.engine.refusals.write()
    entries = (await site.get("/audit"))["entries"]
    who = [(entry["who"], entry["status"]) for entry in entries if entry["action"] == "sign_in"]
    assert who == [("oidc:bob@example.com", 201), *[("oidc:ada@example.com", 201)] * 2]


async def test_the_command_signs_in_and_keeps_the_key(
    site: Served, there: Provider, tmp_path: Path, module_cache: Path
) -> None:
    assert site.engine.sign_in is not None
    site.engine.sign_in.info = site.engine.sign_in.info.model_copy(update={"scopes": "openid"})
    ann = console(tmp_path / "home", tmp_path / "folder", 1, module_cache).having(SHUNTER_API_URL="")

    def log_in() -> str:
        words = ("login", f"http://127.0.0.1:{site.port}", "--sign-in")
        command = ann.spawn(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert command.stderr is not None
        told = ""
        while not (code := re.search(r"^  (\w{4}-\w{4})$", told, re.MULTILINE)):
            told += command.stderr.readline().decode()
        there.answer(code[1], "ada")
        out, err = command.communicate(timeout=SOON)
        assert command.returncode == 0, err.decode()
        return out.decode()

    assert "as oidc:ada@example.com (admin)" in await asyncio.to_thread(log_in)
    me = await asyncio.to_thread(ann.ok, "whoami", "-o", "json")
    assert me.json["name"] == "oidc:ada@example.com"
    assert stat.S_IMODE((tmp_path / "home" / "config.toml").stat().st_mode) == 0o600
    revoked = await site.http.delete("/keys/person/oidc:ada@example.com")
    assert revoked.status_code == 204
    assert (await asyncio.to_thread(ann, "run", "list")).code == 1


async def test_who_has_no_role_or_does_not_want_to_is_refused(
    site: Served, there: Provider, capsys: pytest.CaptureFixture[str]
) -> None:
    # eve says that she has root's address, and the provider does not say that it is verified.
    for name in ("eve", "kim"):
        with pytest.raises(Forbidden, match="gives a role here"):
            await signed_in(site, there, capsys, name)
    with pytest.raises(ShunterError, match="refuses to sign you in"):
        await signed_in(site, there, capsys, "ada", answer="no")
    await site.engine.refusals.write()
    entries = (await site.get("/audit"))["entries"]
    refused = [entry for entry in entries if entry["action"] == "sign_in"]
    assert [(entry["status"], entry["detail"].get("times", 1)) for entry in refused] == [(403, 2)]


async def test_a_server_without_provider_says_so(plain: Served) -> None:
    url = f"http://127.0.0.1:{plain.port}/api"
    assert await asyncio.to_thread(sign_in, url) is None
    answer = await plain.http.post("/sign-in", json={"id_token": token()})
    assert answer.status_code == 404


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"aud": "another-client"}, "audience"),
        ({"aud": [CLIENT_ID, "another-client"]}, "azp"),
        ({"aud": CLIENT_ID, "azp": "another-client"}, "azp"),
        ({"iss": "https://elsewhere.example"}, "another issuer"),
        ({"iat": NOW - 700}, "old"),
        ({"iat": None}, "old"),
        ({"exp": NOW - 100}, "expired"),
        ({"sub": None}, "sub"),
    ],
)
async def test_id_tokens_that_are_refused(
    plain: Served, tmp_path: Path, more: dict[str, Any], reason: str
) -> None:
    site = fixed(plain, tmp_path)
    assert (await ask(site, {"aud": CLIENT_ID})).status_code == 201
    answer = await ask(site, {"aud": CLIENT_ID} | more)
    assert answer.status_code == 401, answer.text
    assert reason in answer.json()["detail"]


async def test_an_id_token_is_no_bearer_and_a_service_accounts_is_no_id_token(
    plain: Served, tmp_path: Path
) -> None:
    site = fixed(plain, tmp_path)
    async with bearing(site, token(aud=CLIENT_ID, groups=["all"])) as http:
        assert (await http.get("/runs")).status_code == 401
    assert (await ask(site, {"aud": "shunter"})).status_code == 401


def fixed(server: Served, folder: Path) -> Served:
    """The server, with a provider whose keys are in a file, at a fixed time."""
    import json

    from shunter_work_pools.issuer_keys import Issuer, Place

    file = folder / "keys"
    file.write_text(json.dumps({"keys": [public(RSA_KEY)]}))
    one = SignIn(ISSUER, CLIENT_ID, "openid", ROLES, clock=lambda: NOW)
    one._issuer = Issuer(Place(ISSUER, jwks=str(file)))
    server.engine.sign_in = one
    return server


async def ask(server: Served, more: dict[str, Any]) -> Any:
    return await server.http.post("/sign-in", json={"id_token": token(**{"groups": ["all"], **more})})


def test_roles_of_claims() -> None:
    assert granted_role(ROLES, {"groups": ["all", "platform"]}) is Role.ADMIN
    assert granted_role(ROLES, {"groups": "all"}) is Role.VIEWER
    assert granted_role(ROLES, {"groups": "platform,all"}) is None
    assert granted_role(ROLES, {"groups": ["PLATFORM"]}) is None
    assert granted_role(ROLES, {"email": "root@example.com"}) is None
    assert granted_role(ROLES, {"email": "root@example.com", "email_verified": "true"}) is None
    assert granted_role(ROLES, {"email": "root@example.com", "email_verified": True}) is Role.ADMIN
    assert granted_role(ROLES, {}) is None
    assert granted_role(("a=b:c:viewer",), {"a": "b:c"}) is Role.VIEWER


def test_what_people_are_called() -> None:
    verified = {"sub": "1", "email": "ada@example.com", "email_verified": True}
    assert called(verified) == "oidc:ada@example.com"
    assert called(verified | {"email_verified": False}) == "oidc:1"
    odd = [called({"sub": sub}) for sub in ("a/b", "a_b", "a\n\x1b[2Jb", "x" * 500, "x" * 499)]
    assert len(set(odd)) == 5
    assert all(re.fullmatch(r"oidc:[\w@.+-]{1,80}", name) for name in odd)
