"""Every setting, declared once: its name, what it may be, its default and what it is for.

From this table come the variables, the keys of the configuration file, the flags of ``server start``,
``config show``, the checks and docs/settings.md. Where values come from is decided in
:mod:`~shunter_work_pools.contracts.configuration`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from shunter_work_pools.contracts.durations import LONGEST, LOOKS, exactly, parsed
from shunter_work_pools.contracts.sizes import LOOKS as SIZE_LOOKS
from shunter_work_pools.contracts.sizes import parsed as size_parsed
from shunter_work_pools.contracts.sizes import size

DEFAULT_PORT = 4400
PREFIX = "SHUNTER_"
#: The folder of everything, and the profile in use: they say where settings are, so they are none themselves.
HOME_VARIABLE, PROFILE_VARIABLE = "SHUNTER_HOME", "SHUNTER_PROFILE"
#: The token by which an agent joins: for that one command, so it is no setting either.
JOIN_VARIABLE = "SHUNTER_JOIN_TOKEN"
#: Read by tests only.
TEST_PREFIX = "SHUNTER_TEST_"
#: What an agent sets inside a run (see docs/environment.md); commands used there must not mind.
RUN_VARIABLES = frozenset(
    PREFIX + name
    for name in (
        *("RUN_ID", "ATTEMPT", "DEPLOYMENT", "REVISION", "POOL", "QUEUE", "AGENT", "SCHEDULED_AT", "TAGS"),
        *("PARAMETERS", "RESULT", "RESULT_LIMIT", "SOURCE", "DEVICES", "ENTRYPOINT", "FAILURE", "RUN_TOKEN"),
        "API_PROXY",
        *("JOURNAL", "BRING_JOURNAL", "CRASHED"),
    )
)

#: Makes the value of what was given; raises ValueError(what is wrong, what to do).
Reader = Callable[[object], Any]


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        name: dotted, as in the configuration file.
        read: makes and checks the value.
        doc: what it is for, one sentence.
        default: of the type that ``read`` makes; None: not set.
        otherwise: what no value means, in words.
        metavar: what one writes, in words of help.
        flag: the option that gives it; empty if there is none.
        many: the option may be repeated.
        switch: the option says yes by itself, and no with ``--no-`` before its name.
        mask: what of it may be shown; None: all.
        show: a value as one would write it.
    """

    name: str
    read: Reader
    doc: str
    default: Any = None
    otherwise: str = ""
    metavar: str = "TEXT"
    flag: str = ""
    many: bool = False
    switch: bool = False
    mask: Callable[[str], str] | None = None
    show: Callable[[Any], str] = str

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return PREFIX + self.name.upper().replace(".", "_")

    @property
    def usual(self) -> str:
        """The default in words."""
        return (self.written(self.default) if self.default is not None else "") or self.otherwise

    def written(self, value: Any, *, secrets: bool = False) -> str:
        """A value as one would write it; without its secrets unless they are asked for."""
        text = self.show(value)
        return text if secrets or self.mask is None else self.mask(text)


# -- what a value may be


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("is not a text", "Write it in quotes.")
    return value.strip()


def _token(value: object) -> str:
    text = _text(value)
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("is not a token", "It has visible ASCII characters only, without blanks.")
    return text


def _one_of(*words: str) -> Reader:
    def read(value: object) -> str:
        word = str(value).lower()
        if word not in words:
            rule = f"is neither {words[0]} nor {words[1]}" if len(words) == 2 else "is not one of its values"
            raise ValueError(rule, f"Use one of {', '.join(words)}.")
        return word

    return read


def _count(least: int, most: int) -> Reader:
    def read(value: object) -> int:
        if isinstance(value, str) and re.fullmatch(r"-?\d{1,18}", value.strip(), re.ASCII):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError("is not a whole number", f"Use a number from {least:,} to {most:,}.")
        if not least <= value <= most:
            raise ValueError("is out of range", f"Use a number from {least:,} to {most:,}.")
        return value

    return read


def _duration(least: float = 0.0, why: str = "", *, none: bool = False) -> Reader:
    """More than nothing (but for ``none``, by which nothing is one as well), at least ``least`` seconds."""

    def read(value: object) -> float:
        number: float | None = None
        if isinstance(value, str):
            number = parsed(value.strip())
        elif isinstance(value, int | float) and not isinstance(value, bool):
            number = float(value)
        if number is None:
            raise ValueError("is not a duration", LOOKS)
        if not 0 <= number <= LONGEST or not (number or none):
            much = "at most ten years" if none else "more than nothing and at most ten years"
            raise ValueError(f"must be {much}", LOOKS)
        if number < least:
            raise ValueError(f"is less than {exactly(least)}", why)
        return number

    return read


def _bytes(value: object) -> int:
    number: int | None = None
    if isinstance(value, str):
        number = size_parsed(value.strip())
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    if number is None:
        raise ValueError("is not a size", SIZE_LOOKS)
    if not 0 <= number <= 2**60:
        raise ValueError("is out of range", SIZE_LOOKS)
    return number


def _names(value: object) -> tuple[str, ...]:
    """Of a list, or of a text with commas."""
    given = value.split(",") if isinstance(value, str) else value
    if not isinstance(given, list | tuple) or not all(isinstance(one, str) for one in given):
        raise ValueError("is not a list of names", 'Write ["a", "b"] in the file, a,b elsewhere.')
    names = tuple(name.strip() for name in given if name.strip())
    if any(re.search(r"[\s/@]", name) for name in names):
        raise ValueError("holds what is not a name", "Give host names without scheme and port.")
    return names


def secret_keys(value: object) -> tuple[str, ...]:
    """Of a list, or of a text with commas.

    Raises:
        ValueError: what is wrong, what to do; the text of no key is told.
    """
    looks = "Make one with `openssl rand -base64 32`; several stand with the newest first."
    given = value.split(",") if isinstance(value, str) else value
    if not isinstance(given, list | tuple) or not all(isinstance(one, str) for one in given):
        raise ValueError("is not a list of keys", looks)
    keys = tuple(key.strip() for key in given if key.strip())
    if not all(re.fullmatch(r"[!-+\--~]{32,512}", key) for key in keys):
        raise ValueError("holds what is no key: 32 visible ASCII characters at least, without commas", looks)
    if len(set(keys)) < len(keys):
        raise ValueError("holds a key twice", looks)
    return keys


def _networks(value: object) -> tuple[str, ...]:
    """Addresses and networks (``10.0.0.0/8``), of a list or of a text with commas."""
    import ipaddress

    given = value.split(",") if isinstance(value, str) else value
    looks = 'Write ["10.0.0.5", "10.1.0.0/16"] in the file, 10.0.0.5,10.1.0.0/16 elsewhere.'
    if not isinstance(given, list | tuple) or not all(isinstance(one, str) for one in given):
        raise ValueError("is not a list of addresses", looks)
    found = tuple(one.strip() for one in given if one.strip())
    for one in found:
        try:
            ipaddress.ip_network(one)
        except ValueError as exc:
            raise ValueError(f"holds what is neither an address nor a network: {exc}", looks) from exc
    return found


def _file(value: object) -> str:
    """A path that means the same from every folder."""
    text = _text(value)
    path = os.path.expanduser(text)
    if not os.path.isabs(path):
        raise ValueError("is not a whole path", f"Write {os.path.abspath(path)} if that is meant.")
    return path


def _path_prefix(value: object) -> str:
    text = _text(value).rstrip("/")
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", text) or {".", ".."} & set(text.split("/")):
        raise ValueError("is not the beginning of a path", "Use something like /shunter.")
    return text


def _yes_or_no(value: object) -> bool:
    words = {
        "true": True,
        "yes": True,
        "on": True,
        "1": True,
        "false": False,
        "no": False,
        "off": False,
        "0": False,
    }
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or value.strip().lower() not in words:
        raise ValueError("is neither true nor false", "Use true or false.")
    return words[value.strip().lower()]


def _amounts(value: object) -> dict[str, float]:
    """Of a list, of a text with commas, or of what was read before: name -> amount."""
    from shunter_work_pools.contracts.capacity import DIVISIBLE, MOST_NAMES, parsed_amount

    if isinstance(value, dict):
        value = [
            f"{name}={amount!r}" if name != "memory" else f"{name}={int(amount)}"
            for name, amount in value.items()
        ]
    given = value.split(",") if isinstance(value, str) else value
    if not isinstance(given, list | tuple) or not all(isinstance(one, str) for one in given):
        raise ValueError(
            "is not a list of amounts",
            'Write ["gpu=2", "memory=8GiB"] in the file, gpu=2,memory=8GiB elsewhere.',
        )
    found: dict[str, float] = {}
    for word in filter(str.strip, given):
        try:
            name, amount = parsed_amount(word.strip())
        except ValueError as exc:
            wrong, remedy = exc.args
            raise ValueError(f"cannot be: {wrong}", remedy) from exc
        if name in found:
            raise ValueError(f"says twice how much {name} there is", "Say it once.")
        found[name] = amount
    if len(DIVISIBLE.union(found)) > MOST_NAMES:
        raise ValueError("has too many names", f"There can be {MOST_NAMES}, cpu and memory among them.")
    return found


def _trust(value: object) -> tuple[Any, ...]:
    """Of tables, or of the JSON of a list of them."""
    import json

    from shunter_work_pools.contracts.trust import parsed as trust_parsed

    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else []
        except (ValueError, RecursionError) as exc:
            raise ValueError(
                f"is not JSON: {exc}", 'Write [{"serviceAccount": "NAMESPACE/NAME", "pools": ["POOL"]}].'
            ) from exc
    return trust_parsed(value)


def _oidc_roles(value: object) -> tuple[str, ...]:
    """Of a list, or of a text with commas: what a claim has to say for a role."""
    from shunter_work_pools.contracts.sign_in import role_of

    given = value.split(",") if isinstance(value, str) else value
    if not isinstance(given, list | tuple) or not all(isinstance(one, str) for one in given):
        raise ValueError(
            "is not a list of roles",
            'Write ["groups=admins:admin"] in the file, groups=admins:admin elsewhere.',
        )
    rules = tuple(one.strip() for one in given if one.strip())
    for rule in rules:
        role_of(rule)
    return rules


def _https_url(value: object) -> str:
    """As it is, for an issuer is compared letter by letter."""
    url = _api_url(value)
    if not re.match(r"https://|http://(127\.0\.0\.1|localhost|\[::1\])[:/]", f"{url}/"):
        raise ValueError("is not https: anybody on the way could answer in its place", "Use https://...")
    return _text(value)


def _api_url(value: object) -> str:
    from urllib.parse import urlsplit

    looks = "Use something like http://127.0.0.1:4400/api."
    text = _text(value)
    try:
        parts = urlsplit(text)
        wrong = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
    except ValueError as exc:
        raise ValueError(f"is not the address of a server: {exc}", looks) from exc
    if wrong:
        raise ValueError(
            "is not the address of a server: it must begin with http:// or https:// and a host", looks
        )
    return text.rstrip("/")


def _database_url(value: object) -> str:
    text = _text(value)
    known = ("sqlite:///", "postgresql://", "postgresql+asyncpg://", "postgres://")
    if not text.startswith(known) or text == "sqlite:///":
        looks = "Use sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME."
        raise ValueError("is not the address of a database of a kind that is known", looks)
    return text


# -- how a value is shown


def _hidden(text: str) -> str:
    return "***"


def _hidden_if_any(text: str) -> str:
    return "***" if text else ""


def _without_password(text: str) -> str:
    text = re.sub(r"://([^:@/]*):.*@", r"://\1:***@", text)
    return re.sub(r"(?i)\b(password|passfile)=[^&]*", r"\1=***", text)


def _with_commas(names: tuple[str, ...]) -> str:
    return ",".join(names)


def _as_amounts(amounts: Mapping[str, float]) -> str:
    if not amounts:
        return ""
    from shunter_work_pools.contracts.capacity import shown

    return shown(amounts).replace(" ", ",")


def _as_json(rules: tuple[Any, ...]) -> str:
    if not rules:
        return ""
    import json

    from shunter_work_pools.contracts.trust import written as trust_written

    return json.dumps(trust_written(rules))


def _as_yes_or_no(value: bool) -> str:
    return "true" if value else "false"


#: As in ``contracts.agents``, which would load pydantic.
LEASE_FOR = 240.0
_SILENT = "An agent that is well may say nothing for ten seconds: give it more."
_PATIENCE: dict[str, Any] = {"metavar": "DURATION", "show": exactly}
_SWITCH: dict[str, Any] = {"metavar": "true|false", "switch": True, "show": _as_yes_or_no}
_KEPT: dict[str, Any] = {"metavar": "N", "otherwise": "all"}
_KEPT_FOR: dict[str, Any] = {"metavar": "DURATION", "show": exactly, "otherwise": "for ever"}

_DECLARED = (
    Setting(
        "api_url",
        _api_url,
        "The address of the server's API; clients append /v1.",
        default=f"http://127.0.0.1:{DEFAULT_PORT}/api",
        metavar="URL",
        mask=_without_password,
    ),
    Setting(
        "token",
        _token,
        "The server's token.",
        otherwise="the file `token` in the home, made by the server's first start",
        mask=_hidden,
    ),
    Setting(
        "tls_ca",
        _file,
        "A file with authorities (PEM) that clients and agents believe beside the system's, or the server's certificate "
        "itself if it is self-signed.",
        metavar="FILE",
        otherwise="the system's only",
    ),
    Setting(
        "tls_cert",
        _file,
        "The certificate (PEM) that clients and agents show a server that wants one.",
        metavar="FILE",
        otherwise="none",
    ),
    Setting(
        "tls_key",
        _file,
        "The key of `tls_cert`.",
        metavar="FILE",
        otherwise="in the file `tls_cert`",
    ),
    Setting(
        "token_file",
        _text,
        "A file that holds the token, for one that changes: it is read anew when it has.",
        otherwise="none",
        metavar="FILE",
    ),
    Setting(
        "cli.output",
        _one_of("table", "json", "yaml"),
        "What commands that read print unless they are told otherwise.",
        default="table",
        metavar="table|json|yaml",
        flag="--output",
    ),
    Setting(
        "log.format",
        _one_of("console", "json"),
        "The log of server and agent, on stderr.",
        otherwise="`console` on a terminal, else `json`",
        metavar="console|json",
    ),
    Setting(
        "log.level",
        _one_of("debug", "info", "warning", "error"),
        "How much server and agent log.",
        default="info",
        metavar="debug|info|warning|error",
    ),
    Setting(
        "agent.limit",
        _count(1, 100_000),
        "Runs that an agent has at once.",
        default=8,
        metavar="N",
        flag="--limit",
    ),
    Setting(
        "agent.capacity",
        _amounts,
        "What an agent has that runs may need (cpu=CORES, memory=SIZE, any other name: so many devices of that name); "
        "what is not named of cpu and memory is what its machine has.",
        default={},
        otherwise="cpu and memory of its machine, no devices",
        metavar="NAME=AMOUNT",
        flag="--capacity",
        many=True,
        show=_as_amounts,
    ),
    Setting(
        "agent.find_tags",
        _yes_or_no,
        "Whether an agent finds tags by itself: os, arch, cpus, memory, gpu.",
        default=True,
        flag="--find-tags",
        **_SWITCH,
    ),
    Setting(
        "agent.cloud_tags",
        _yes_or_no,
        "Whether it asks the cloud that it runs in, too: cloud, region, zone, instance-type.",
        default=False,
        flag="--cloud-tags",
        **_SWITCH,
    ),
    Setting(
        "agent.metrics_port",
        _count(1, 65_535),
        "The port on which an agent serves /metrics, for Prometheus, and /healthz and /readyz.",
        metavar="N",
        otherwise="none",
        flag="--metrics-port",
    ),
    Setting(
        "agent.metrics_host",
        _text,
        "The address of that port; 0.0.0.0 or :: for all of its machine's. Whoever reaches it may read, without a token.",
        default="127.0.0.1",
        metavar="ADDRESS",
        flag="--metrics-host",
    ),
    Setting(
        "agent.drain_grace",
        _duration(none=True),
        "How long an agent that was told to stop waits for its runs (0s: not at all); then `agent.drain_end` decides.",
        metavar="DURATION",
        otherwise="until they have ended",
        flag="--drain-grace",
        show=exactly,
    ),
    Setting(
        "agent.drain_end",
        _one_of("leave", "stop"),
        "What becomes of runs at the end of the grace: `leave` lets them go on for other agents that reach them "
        "(Kubernetes), else for the agent's next start; `stop` ends them as Crashed with the cause evicted.",
        default="leave",
        metavar="leave|stop",
        flag="--drain-end",
    ),
    Setting(
        "agent.min_disk",
        _bytes,
        "An agent takes nothing new while less is free where its state folder is.",
        default=256 * 2**20,
        metavar="SIZE",
        flag="--min-disk",
        show=size,
    ),
    Setting(
        "agent.min_memory",
        _bytes,
        "An agent takes nothing new while less memory is available on its machine.",
        default=64 * 2**20,
        metavar="SIZE",
        flag="--min-memory",
        show=size,
    ),
    Setting(
        "agent.health_check",
        _text,
        "A command that is run every `agent.health_every`; while it fails, the agent takes nothing new.",
        metavar="COMMAND",
        otherwise="none",
        flag="--health-check",
    ),
    Setting(
        "agent.health_every",
        _duration(1.0, "Checks take time of their own."),
        "How often an agent looks after its health.",
        default=15.0,
        flag="--health-every",
        **_PATIENCE,
    ),
    Setting(
        "agent.spool_limit",
        _bytes,
        "Output that waits for the server may take so much of the agent's disk; then the oldest of it makes room, "
        "and the log shows a mark in its place.",
        default=10 * 2**30,
        metavar="SIZE",
        flag="--spool-limit",
        show=size,
    ),
    Setting(
        "agent.policy",
        _file,
        "The file of the agent's own policy: what it runs, whatever its server says.",
        metavar="FILE",
        otherwise="agent.toml in its state folder, if there is one",
        flag="--policy",
    ),
    Setting(
        "agent.cache",
        _text,
        "The folder of code that an agent fetches for runs and of environments that it builds for them; agents may "
        "share it. Runs as other users (`run_as`) need one that these may enter.",
        otherwise="the folder cache of SHUNTER_HOME, or shunter in $XDG_CACHE_HOME",
        metavar="DIR",
        flag="--cache",
    ),
    Setting(
        "agent.cache_keep",
        _duration(),
        "Code that was fetched for runs, and environments that were built for them, are removed so long after their "
        "last use.",
        default=14 * 86_400.0,
        metavar="DURATION",
        flag="--cache-keep",
        show=exactly,
    ),
    Setting(
        "agent.cache_limit",
        _bytes,
        "Code that was fetched may take so much of the agent's disk, and environments again so much; over that, what "
        "was used longest ago and is not in use is removed.",
        default=20 * 2**30,
        metavar="SIZE",
        flag="--cache-limit",
        show=size,
    ),
    Setting(
        "server.host",
        _text,
        "The address that the server listens on.",
        default="127.0.0.1",
        metavar="ADDRESS",
        flag="--host",
    ),
    Setting(
        "server.port",
        _count(0, 65_535),
        "The port that the server listens on; 0 takes a free one.",
        otherwise=f"that of `api_url` if it is on this machine, else {DEFAULT_PORT}",
        metavar="N",
        flag="--port",
    ),
    Setting(
        "server.database_url",
        _database_url,
        "The database: postgresql://... or sqlite:///FILE.",
        otherwise="the file `shunter.db` in the home",
        metavar="URL",
        flag="--database-url",
        mask=_without_password,
    ),
    Setting(
        "server.secret_keys",
        secret_keys,
        "What the server encrypts secrets and signs the tokens of attempts with; several: the newest first, those that "
        "follow open what they made. Servers of one database have the same.",
        default=(),
        otherwise="the file `secret_key` in the home, made by the server's first start",
        metavar="KEY",
        mask=_hidden_if_any,
        show=_with_commas,
    ),
    Setting(
        "server.allowed_hosts",
        _names,
        "Further names that clients may call the server by (Host header); * for any.",
        default=(),
        otherwise="none",
        metavar="NAME",
        flag="--allowed-host",
        many=True,
        show=_with_commas,
    ),
    Setting(
        "server.tls_cert",
        _file,
        "The server's certificate (PEM, with those between it and its authority): it speaks TLS. A file that changes is "
        "read anew.",
        metavar="FILE",
        otherwise="none: plain HTTP",
        flag="--tls-cert",
    ),
    Setting(
        "server.tls_key",
        _file,
        "The key of `server.tls_cert`.",
        metavar="FILE",
        otherwise="in the file `server.tls_cert`",
        flag="--tls-key",
    ),
    Setting(
        "server.tls_client_ca",
        _file,
        "Authorities (PEM) of clients' certificates: who connects must show one.",
        metavar="FILE",
        otherwise="none: no certificate is asked for",
        flag="--tls-client-ca",
    ),
    Setting(
        "server.tls_client_required",
        _yes_or_no,
        "Whether clients without a certificate are refused; else only those with a wrong one are.",
        default=True,
        flag="--tls-client-required",
        **_SWITCH,
    ),
    Setting(
        "server.allow_plaintext",
        _yes_or_no,
        "Whether it may listen beyond this machine without TLS: for one behind a proxy that speaks TLS in its place.",
        default=False,
        flag="--allow-plaintext",
        **_SWITCH,
    ),
    Setting(
        "server.path_prefix",
        _path_prefix,
        "What requests' paths begin with, for a proxy that does not take it off: /shunter.",
        metavar="PATH",
        otherwise="none",
        flag="--path-prefix",
    ),
    Setting(
        "server.trusted_proxies",
        _networks,
        "Proxies whose word the server takes for where a request came from (X-Forwarded-For, X-Forwarded-Proto).",
        default=(),
        otherwise="none",
        metavar="ADDRESS",
        flag="--trusted-proxy",
        many=True,
        show=_with_commas,
    ),
    Setting(
        "server.trust",
        _trust,
        "Service accounts of Kubernetes clusters that are agents without any secret, see docs/joining.md; JSON in the variable.",
        default=(),
        otherwise="none",
        metavar="JSON",
        show=_as_json,
    ),
    Setting(
        "server.credential_for",
        _duration(60.0, "An agent that cannot reach the server for a while would have to join anew."),
        "How long the credential of an agent that joined holds. It has a new one in time by itself; one that is away for longer has to join anew.",
        default=30 * 86_400.0,
        **_PATIENCE,
    ),
    Setting(
        "server.oidc_issuer",
        _https_url,
        "The OpenID Connect provider by which people sign in with `shunter login`.",
        metavar="URL",
        otherwise="people have keys only",
        flag="--oidc-issuer",
    ),
    Setting(
        "server.oidc_client_id",
        _text,
        "What that provider knows this server's command line as: a public client that may use the device flow.",
        metavar="ID",
        otherwise="none",
        flag="--oidc-client-id",
    ),
    Setting(
        "server.oidc_scopes",
        _text,
        "What the provider is asked for; some want `groups` named to tell them.",
        default="openid email profile",
        metavar="SCOPES",
        flag="--oidc-scopes",
    ),
    Setting(
        "server.oidc_roles",
        _oidc_roles,
        "Who may do what: CLAIM=VALUE:ROLE of the ID token; the highest role counts, and who has none is refused.",
        default=(),
        otherwise="nobody may sign in so",
        metavar="CLAIM=VALUE:ROLE",
        flag="--oidc-role",
        many=True,
        show=_with_commas,
    ),
    Setting(
        "server.rate_limit",
        _count(1, 1_000_000),
        "Requests a second that a key, or an agent, may send; twice as many at once; an attempt a tenth of that.",
        default=500,
        metavar="N",
        flag="--rate-limit",
    ),
    Setting(
        "server.log_limit",
        _bytes,
        "So much of the output of an attempt is kept; the log ends with a line that says so.",
        default=10 * 2**30,
        metavar="SIZE",
        flag="--log-limit",
        show=size,
    ),
    Setting(
        "server.results_limit",
        _bytes,
        "So much the large results of a run's tasks may take; a task whose result goes beyond is executed again with its run.",
        default=10 * 2**30,
        metavar="SIZE",
        flag="--results-limit",
        show=size,
    ),
    Setting(
        "server.late_after",
        _duration(),
        "A run that still waits so long after it was due is late.",
        default=15.0,
        flag="--late-after",
        **_PATIENCE,
    ),
    Setting(
        "server.lost_after",
        _duration(15.0, _SILENT),
        "An agent that is silent for so long is lost, and so are its runs.",
        default=30.0,
        flag="--lost-after",
        **_PATIENCE,
    ),
    Setting(
        "server.lease_for",
        _duration(),
        "The lease of an exclusive run: its agent ends it itself so long after it last reached the server. "
        "To make it less, first change it alone and keep `server.give_up_after` above the old one until that has passed.",
        default=LEASE_FOR,
        flag="--lease-for",
        **_PATIENCE,
    ),
    Setting(
        "server.give_up_after",
        _duration(),
        "After so long a silence of the agent, `on_lost` of a run's deployment acts.",
        default=300.0,
        flag="--give-up-after",
        **_PATIENCE,
    ),
    Setting(
        "server.retain_every",
        _duration(1.0, "Looking for what need not be kept takes time of its own."),
        "How often the server looks for what need not be kept.",
        default=60.0,
        flag="--retain-every",
        **_PATIENCE,
    ),
    *(
        setting
        for noun, how_many, how_long in (
            ("runs", "How many runs are kept", "How long runs are"),
            ("logs", "Of how many runs the output is kept", "How long the output of runs is"),
            ("events", "Of how many runs the events are kept", "How long the events of runs are"),
        )
        for setting in (
            Setting(
                f"keep.{noun}",
                _count(0, 100_000_000),
                f"{how_many} after their end, the newest of each deployment.",
                flag=f"--keep-{noun}",
                **_KEPT,
            ),
            Setting(
                f"keep.{noun}_for",
                _duration(),
                f"{how_long} kept after their end.",
                flag=f"--keep-{noun}-for",
                **_KEPT_FOR,
            ),
        )
    ),
    Setting(
        "keep.audit_for",
        _duration(),
        "How long it is kept who did what (`shunter audit list`), and which keys there were.",
        default=90 * 86_400.0,
        flag="--keep-audit-for",
        **_PATIENCE,
    ),
)

#: Name -> setting, in the order in which they are shown.
SETTINGS: Mapping[str, Setting] = {setting.name: setting for setting in _DECLARED}
#: Variable -> setting.
BY_VARIABLE: Mapping[str, Setting] = {setting.variable: setting for setting in _DECLARED}


# -- what fits together


@dataclass(frozen=True)
class Relation:
    """Two settings that have to fit; where one is not set, they do.

    Attributes:
        small, large: their names.
        equal: whether they may be the same.
        why: what it would mean if they did not fit.
    """

    small: str
    large: str
    equal: bool
    why: str

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether the values fit."""
        small, large = values[self.small], values[self.large]
        return small is None or large is None or small < large or (self.equal and small == large)

    def __str__(self) -> str:
        return f"`{self.small}` is {'at most' if self.equal else 'less than'} `{self.large}`: {self.why}."


_WITH_THEIR_RUN = "what belongs to a run goes with it"
RELATIONS = (
    Relation(
        "server.lost_after", "server.give_up_after", False, "an agent is given up only after it was lost"
    ),
    Relation(
        "server.lost_after",
        "server.lease_for",
        False,
        "a silence that is not even told of must not end an exclusive run",
    ),
    Relation(
        "server.lease_for",
        "server.give_up_after",
        False,
        "an exclusive run must have ended before another attempt of it may begin",
    ),
    *(
        Relation(f"keep.{noun}{ending}", f"keep.runs{ending}", True, _WITH_THEIR_RUN)
        for noun in ("logs", "events")
        for ending in ("", "_for")
    ),
)
