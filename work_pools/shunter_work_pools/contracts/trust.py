"""Which service accounts of Kubernetes clusters are agents: the setting ``server.trust``."""

from __future__ import annotations

import re
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel

from shunter_work_pools.contracts.base import Name

#: What a token must have been made for, unless said otherwise.
AUDIENCE = "shunter"
_DNS_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_Text = Annotated[str, StringConstraints(min_length=1, max_length=2000, strip_whitespace=True)]
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class Trust(BaseModel):
    """A service account that is believed to be agents of some pools. Written in camelCase, as Kubernetes does.

    Attributes:
        service_account: ``NAMESPACE/NAME``.
        pools: that its agents may serve.
        manage_pools: they may make these pools, and set their templates and match tags.
        audience: that its tokens are made for.
        issuer: of its tokens; default: that of the cluster.
        jwks: URL or file of the issuer's keys; default: where the issuer says.
        api_server: of the cluster, which is asked for issuer and keys; default, without ``issuer``: that of the
            cluster that the server runs in.
        ca_file: of the authority that signed the certificates of ``api_server``, ``issuer`` or ``jwks``.
        token_file: a token for ``api_server``.
        review: ask the API server about each token, too (TokenReview): one whose pod is gone is refused then.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel)

    service_account: str
    pools: Annotated[tuple[Name, ...], Field(min_length=1, max_length=100)]
    manage_pools: bool = False
    audience: _Text = AUDIENCE
    issuer: _Text | None = None
    jwks: _Text | None = None
    api_server: _Text | None = None
    ca_file: _Text | None = None
    token_file: _Text | None = None
    review: bool = False

    @field_validator("service_account")
    @classmethod
    def _is_one(cls, text: str) -> str:
        if (
            not re.fullmatch(rf"{_DNS_LABEL}/{_DNS_LABEL}(\.{_DNS_LABEL})*", text, re.ASCII)
            or len(text) > 317
        ):
            raise ValueError(f"{text!r} is not NAMESPACE/NAME of a service account")
        return text

    @model_validator(mode="after")
    def _fits(self) -> Trust:
        if self.jwks is not None and self.issuer is None:
            raise ValueError("jwks needs issuer: whose keys they are")
        if self.jwks is not None and self.api_server is not None:
            raise ValueError("jwks and apiServer contradict each other: keys come from one place")
        if self.token_file is not None and self.api_server is None:
            raise ValueError("tokenFile needs apiServer: it is shown to that alone")
        if self.review and self.api_server is None and self.issuer is not None:
            raise ValueError(
                "review needs apiServer: the server is in no cluster of that issuer that it knows of"
            )
        for name in ("issuer", "api_server", "jwks"):
            _check_url(name, getattr(self, name))
        return self

    @property
    def subject(self) -> str:
        """As tokens name it (``sub``)."""
        return "system:serviceaccount:" + self.service_account.replace("/", ":")


def _check_url(name: str, url: str | None) -> None:
    if url is None or (name == "jwks" and "://" not in url):
        return
    parts = urlsplit(url)
    if not parts.hostname or parts.query or parts.fragment or parts.username is not None:
        raise ValueError(f"{url} is no address ({name})")
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise ValueError(f"{url} is not https ({name})")


def parsed(given: object) -> tuple[Trust, ...]:
    """Of a list of tables.

    Raises:
        ValueError: what is wrong, what to do.
    """
    looks = (
        "docs/joining.md tells what each may have: serviceAccount, pools, managePools, audience, issuer, ..."
    )
    if not isinstance(given, list | tuple) or not all(isinstance(one, dict | Trust) for one in given):
        raise ValueError("is not a list of tables", looks)
    try:
        found = tuple(one if isinstance(one, Trust) else Trust.model_validate(one) for one in given)
    except ValidationError as exc:
        fault = exc.errors(include_url=False)[0]
        place = ".".join(str(step) for step in fault["loc"])
        message = str(fault["msg"]).removeprefix("Value error, ")
        raise ValueError(f"is wrong{f' at {place}' if place else ''}: {message}", looks) from exc
    seen = [(one.service_account, one.issuer, one.api_server) for one in found]
    twice = next((one[0] for one in seen if seen.count(one) > 1), None)
    if twice is not None:
        raise ValueError(f"names {twice} twice", "Put its pools into one entry.")
    return found


def written(found: tuple[Trust, ...]) -> list[dict[str, Any]]:
    """As it is written, without what is not said."""
    return [one.model_dump(mode="json", by_alias=True, exclude_defaults=True) for one in found]
