"""The two rules of every message: requests refuse unknown fields, clients ignore them in answers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, StringConstraints


def _to_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError as exc:  # the first or last day of the calendar, in a zone
        raise ValueError("the moment is outside of the calendar") from exc


#: A moment, aware, always in UTC; RFC 3339 on the wire.
Instant = Annotated[AwareDatetime, AfterValidator(_to_utc)]

#: Name of a deployment, pool, queue, agent or schedule: 1 to 100 characters that are safe in paths,
#: URLs and labels.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9])?$")]

#: A label, bare (``gpu``) or with a value (``region=eu``).
Tag = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:-]*(=[A-Za-z0-9._/:-]*)?$", max_length=128)
]

#: Any value of JSON.
Json = Any

#: Microseconds since 1970-01-01 UTC: the resolution in which the stores keep time.
Micros = int


def micros(moment: datetime) -> Micros:
    """Microseconds since the epoch of an aware moment, exact."""
    delta = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def moment(value: Micros) -> datetime:
    """The aware UTC moment of microseconds since the epoch."""
    seconds, rest = divmod(value, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest)


class Contract(BaseModel):
    """Base of all messages.

    Validation refuses unknown fields, as the server wants it for requests. Clients read answers by
    :meth:`from_answer`, which ignores them: a newer server may say more.
    """

    model_config = ConfigDict(extra="forbid")

    @classmethod
    def from_answer(cls, body: bytes | str) -> Self:
        """Parse an answer of the server.

        Raises:
            pydantic.ValidationError: the body is not this message.
        """
        return cls.model_validate_json(body, extra="ignore")
