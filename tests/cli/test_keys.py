"""``shunter key``, ``login``, ``whoami`` and ``audit``, on a real server."""

from __future__ import annotations

import stat
from pathlib import Path

from tests.cli.console import Console, Live
from tests.cli.test_bad_input import refused


def _elsewhere(live: Live, tmp_path: Path) -> Console:
    """A terminal of somebody who has neither the server's home nor its address."""
    home = tmp_path / "ann"
    home.mkdir(mode=0o700)
    return live.shunter.having(SHUNTER_HOME=str(home), SHUNTER_API_URL="", SHUNTER_TOKEN="")


def test_a_key_is_made_used_seen_and_revoked(live: Live, tmp_path: Path) -> None:
    shunter, ann = live.shunter, _elsewhere(live, tmp_path)
    url = f"http://127.0.0.1:{live.port}"
    token = shunter.ok("key", "create", "ann", "--role", "operator", "--expires", "1d", "-q").text.strip()
    assert token.startswith("shk_")

    logged_in = ann("login", url, "--token-file", "-", input=f"{token}\n".encode())
    assert logged_in.code == 0, logged_in.err
    assert f"logged in to {url}/api as ann (operator)" in logged_in.text
    config = tmp_path / "ann" / "config.toml"
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert token not in logged_in.text + logged_in.err
    me = ann.ok("whoami", "-o", "json").json
    assert (me["name"], me["role"], me["kind"]) == ("ann", "operator", "person")
    assert ann.ok("run", "list").code == 0

    refused(ann("pool", "create", "x", "--type", "process"), "takes the role admin", "another key")
    refused(ann("key", "list"), "takes the role admin")

    (key,) = [one for one in shunter.ok("key", "list", "-o", "json").json if one["name"] == "ann"]
    assert key["created_by"] == "local"
    assert "ann" in shunter.ok("key", "list").text
    assert token not in shunter.ok("key", "list", "-o", "json", "--ended").text
    refused(shunter("key", "create", "ann", "--role", "viewer"), "there is a key", "Revoke it first")

    assert shunter.ok("key", "revoke", "ann").text == "key of person ann revoked\n"
    refused(ann("run", "list"), "was revoked", "shunter login")
    refused(shunter("key", "revoke", "ann"), "there is no key of 'ann'")
    told = shunter.having(COLUMNS="200").ok("audit", "list", "--limit", "20").text
    for word in ("create_key", "revoke_key", "keys/person/ann", "local", "127.0.0.1"):
        assert word in told
    assert all(one["who"] == "ann" for one in shunter.ok("audit", "list", "--who", "ann", "-o", "json").json)


def test_a_login_that_fails_keeps_nothing(live: Live, tmp_path: Path) -> None:
    ann = _elsewhere(live, tmp_path)
    url = f"http://127.0.0.1:{live.port}"
    wrong = tmp_path / "key"
    wrong.write_text("shk_wrong\n")
    refused(ann("login", url, "--token-file", str(wrong)), "not one of this server's")
    refused(ann("login", url, "--token-file", "-", input=b"\n"), "there is no key")
    refused(ann("login", url, "--token-file", str(tmp_path / "none")), "cannot be read")
    refused(ann("login", "ftp://x", "--token-file", str(wrong)), "not the address of a server")
    refused(ann("login", "http://127.0.0.1:1", "--token-file", str(wrong)), "")
    assert not (tmp_path / "ann" / "config.toml").exists()


def test_a_profile_of_its_own_keeps_what_is_there(live: Live, tmp_path: Path) -> None:
    ann = _elsewhere(live, tmp_path)
    config = tmp_path / "ann" / "config.toml"
    config.write_text('# mine\n[profiles.default]\ntoken = "other"\napi_url = "http://127.0.0.1:1/api"\n')
    token = live.shunter.ok("key", "create", "bob", "--role", "viewer", "-q").text
    url = f"http://127.0.0.1:{live.port}/api"
    assert ann("login", url, "--profile", "work", "--token-file", "-", input=token.encode()).code == 0
    text = config.read_text()
    assert '# mine\n[profiles.default]\ntoken = "other"' in text
    assert "bob" in ann.ok("--profile", "work", "whoami").text
    live.shunter.ok("key", "revoke", "bob")
