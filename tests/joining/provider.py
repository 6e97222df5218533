"""A small OpenID Connect provider with the device flow, as a process of its own: authlib's server on Flask.

``python -m tests.joining.provider PORT``. People are those of ``PEOPLE``; who opens the page says who he is, and needs no
password: ``POST /device user_code=... user=... answer=yes|no``.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.patience import SOON

CLIENT_ID = "shunter-cli"
PEOPLE: dict[str, dict[str, Any]] = {
    "ada": {"sub": "u-1", "email": "ada@example.com", "email_verified": True, "groups": ["platform", "all"]},
    "bob": {"sub": "u-2", "email": "bob@example.com", "email_verified": True, "groups": ["all"]},
    "eve": {"sub": "u-3", "email": "root@example.com", "email_verified": False, "groups": []},
    "kim": {"sub": "u-4", "email": "kim@example.com", "email_verified": True},
}


def serve(port: int) -> None:
    """Serve until the process is ended."""
    from authlib.integrations.flask_oauth2 import AuthorizationServer
    from authlib.oauth2.rfc6749 import ClientMixin
    from authlib.oauth2.rfc8628 import (
        DeviceAuthorizationEndpoint,
        DeviceCodeGrant,
        DeviceCredentialDict,
    )
    from flask import Flask, jsonify, request
    from joserfc import jwt
    from joserfc.jwk import RSAKey

    os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"
    issuer = f"http://127.0.0.1:{port}"
    key = RSAKey.generate_key(2048, parameters={"kid": "p1", "use": "sig", "alg": "RS256"})
    codes: dict[str, dict[str, Any]] = {}
    answers: dict[str, tuple[dict[str, Any], bool]] = {}

    class Client(ClientMixin):  # type: ignore[misc]
        def get_client_id(self) -> str:
            return CLIENT_ID

        def get_default_redirect_uri(self) -> str:
            return ""

        def get_allowed_scope(self, scope: str) -> str:
            return scope

        def check_redirect_uri(self, redirect_uri: str) -> bool:
            return False

        def check_client_secret(self, client_secret: str) -> bool:
            return False

        def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
            return method == "none"

        def check_response_type(self, response_type: str) -> bool:
            return False

        def check_grant_type(self, grant_type: str) -> bool:
            return grant_type == DeviceCodeGrant.GRANT_TYPE

    class Device(DeviceAuthorizationEndpoint):  # type: ignore[misc]
        CLIENT_AUTH_METHODS = ["none"]
        INTERVAL = 1

        def get_verification_uri(self) -> str:
            return f"{issuer}/device"

        def save_device_credential(self, client_id: str, scope: str, data: dict[str, Any]) -> None:
            codes[data["device_code"]] = {
                **data,
                "client_id": client_id,
                "scope": scope,
                "expires_at": time.time() + data["expires_in"],
            }

    class Grant(DeviceCodeGrant):  # type: ignore[misc]
        TOKEN_ENDPOINT_AUTH_METHODS = ["none"]

        def query_device_credential(self, device_code: str) -> Any:
            found = codes.get(device_code)
            return DeviceCredentialDict(found) if found is not None else None

        def query_user_grant(self, user_code: str) -> Any:
            return answers.get(user_code)

        def should_slow_down(self, credential: Any) -> bool:
            entry = codes[credential["device_code"]]
            first, entry["asked"] = "asked" not in entry, True
            return first and "slow" in entry["scope"]  # who asks for it is told once to take it easier

    def generate(
        grant_type: str, client: Any, user: Any = None, scope: str = "", **more: Any
    ) -> dict[str, Any]:
        claims = {
            "iss": issuer,
            "aud": CLIENT_ID,
            "iat": int(time.time()),
            "exp": int(time.time()) + 300,
            **user,
        }
        token = jwt.encode({"alg": "RS256", "kid": "p1"}, claims, key)
        return {
            "token_type": "Bearer",
            "access_token": os.urandom(16).hex(),
            "expires_in": 300,
            "id_token": token,
        }

    app = Flask(__name__)
    server = AuthorizationServer(
        app, query_client=lambda name: Client() if name == CLIENT_ID else None, save_token=lambda *_: None
    )
    server.register_token_generator("default", generate)
    server.register_endpoint(Device)
    server.register_grant(Grant)

    @app.get("/.well-known/openid-configuration")
    def discovery() -> Any:
        return jsonify(
            issuer=issuer,
            jwks_uri=f"{issuer}/jwks",
            token_endpoint=f"{issuer}/token",
            device_authorization_endpoint=f"{issuer}/device_authorization",
        )

    @app.get("/jwks")
    def jwks() -> Any:
        return jsonify(keys=[key.as_dict(private=False)])

    @app.post("/device_authorization")
    def device_authorization() -> Any:
        return server.create_endpoint_response("device_authorization")

    @app.post("/token")
    def token() -> Any:
        return server.create_token_response()

    @app.post("/device")
    def device() -> Any:
        answers[request.form["user_code"]] = (PEOPLE[request.form["user"]], request.form["answer"] == "yes")
        return ""

    app.run("127.0.0.1", port, threaded=True)


@dataclass
class Provider:
    """One that runs."""

    url: str

    def answer(self, user_code: str, user: str, answer: str = "yes") -> None:
        """What somebody does in his browser."""
        form = {"user_code": user_code, "user": user, "answer": answer}
        httpx.post(f"{self.url}/device", data=form, trust_env=False, timeout=SOON).raise_for_status()


@contextlib.contextmanager
def provider(port: int, log: Path) -> Iterator[Provider]:
    """A provider of its own process, until the block ends."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.joining.provider", str(port)], stdout=file, stderr=file
        )
    one = Provider(f"http://127.0.0.1:{port}")
    try:
        deadline = time.monotonic() + SOON
        while True:
            try:
                httpx.get(f"{one.url}/jwks", trust_env=False).raise_for_status()
                break
            except httpx.HTTPError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
        yield one
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
