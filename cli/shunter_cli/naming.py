"""Names may be shortened where that is unique; a mistyped one gets the nearest.

A name is asked for as it stands; only if nothing has it, the names there are are looked at. So a whole
name costs nothing, and nothing can be taken for a longer name than it is. What deletes wants the whole
name.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from shunter_cli.connection import deployment_names, pool_names
from shunter_cli.faults import either, nearest
from shunter_work_pools.contracts.errors import InvalidInput, NotFound, ShunterError

if TYPE_CHECKING:
    from shunter_work_pools.client import Client
    from shunter_work_pools.contracts.pools import Pool, Queue

T = TypeVar("T")

_PAGE = 200


@dataclass(frozen=True)
class Kind:
    """Things of one sort.

    Attributes:
        noun: what one of them is called.
        known: the names worth comparing a mistyped one with.
        beginning: those that begin with some letters.
        listing: how to see them.
    """

    noun: str
    known: Callable[[Client], list[str]]
    beginning: Callable[[Client, str], list[str]]
    listing: str


def found(client: Client, kind: Kind, word: str, ask: Callable[[str], T]) -> T:
    """What ``ask`` answers for the thing named ``word``, or the only one whose name begins so.

    Raises:
        NotFound: there is none; the remedy names the nearest.
        InvalidInput: several begin so.
        ShunterError: whatever else ``ask`` raises.
    """
    try:
        return ask(word)
    except NotFound as exc:
        if not _about(exc, word):
            raise
        begun = _begun(client, kind, word)
        if word in begun:  # it is something else that is not there
            raise
        if len(begun) > 1:
            raise InvalidInput(f"{kind.noun} {word!r} may be {either(begun)}", "Type more of it.") from exc
        if not begun:
            raise _told(client, kind, word, exc) from exc
        return ask(begun[0])


def whole(client: Client, kind: Kind, word: str, ask: Callable[[str], T]) -> T:
    """What ``ask`` answers for the thing named ``word``, letter by letter.

    Raises:
        NotFound: there is none; the remedy names those that may be meant.
        ShunterError: whatever else ``ask`` raises.
    """
    try:
        return ask(word)
    except NotFound as exc:
        if not _about(exc, word):
            raise
        begun = _begun(client, kind, word)
        if word in begun:
            raise
        if begun:
            raise NotFound(exc.detail, f"This needs the whole name: {either(begun)}.") from exc
        raise _told(client, kind, word, exc) from exc


def _about(error: NotFound, word: str) -> bool:
    return bool(word) and f"'{word}'" in error.detail.replace('"', "'")


def _begun(client: Client, kind: Kind, word: str) -> list[str]:
    return kind.beginning(client, word) if word.isascii() else []


def _told(client: Client, kind: Kind, word: str, error: NotFound) -> NotFound:
    try:
        question = nearest(word, kind.known(client))
    except NotFound:
        raise
    except ShunterError:
        question = ""
    return NotFound(error.detail, question or kind.listing)


def _of(noun: str, known: Callable[[Client], list[str]], listing: str) -> Kind:
    """A sort of which there are few: all are looked at."""

    def beginning(client: Client, word: str) -> list[str]:
        return [name for name in known(client) if name.startswith(word)]

    return Kind(noun, known, beginning, listing)


def _deployments_beginning(client: Client, word: str) -> list[str]:
    """Of what may be ten thousand: a page's cursor is its last name, so these follow the word itself."""
    names: list[str] = []
    with suppress(NotFound):
        names.append(client.get_deployment(word).name)
    cursor: str | None = word
    while cursor is not None and cursor.startswith(word):
        page = client.list_deployments(cursor=cursor, limit=_PAGE)
        names += [one.name for one in page.deployments if one.name.startswith(word)]
        cursor = page.next
    return names


def _limit_names(client: Client) -> list[str]:
    return [limit.name for limit in client.list_limits().limits]


def _secret_names(client: Client) -> list[str]:
    return [secret.name for secret in client.list_secrets().secrets]


def _agent_names(client: Client) -> list[str]:
    return [agent.name for agent in client.list_agents().agents]


DEPLOYMENT = Kind(
    "deployment",
    deployment_names,
    _deployments_beginning,
    "`shunter deployment list` shows the deployments there are.",
)
POOL = _of("pool", pool_names, "`shunter pool list` shows the pools there are.")
LIMIT = _of("limit", _limit_names, "`shunter limit list` shows the limits there are.")
SECRET = _of("secret", _secret_names, "`shunter secret list` shows the secrets there are.")
AGENT = _of("agent", _agent_names, "`shunter agent list` shows the agents there are.")


def queues_of(pool: str) -> Kind:
    """The queues of a pool."""
    return _of(
        "queue",
        lambda client: [queue.name for queue in client.get_pool(pool).queues],
        f"`shunter queue list {pool}` shows the queues there are.",
    )


def schedules_of(deployment: str) -> Kind:
    """The schedules of a deployment."""
    return _of(
        "schedule",
        lambda client: [one.name for one in client.get_deployment(deployment).schedules],
        f"`shunter schedule list {deployment}` shows the schedules there are.",
    )


def queue(client: Client, pool: str, name: str, ask: Callable[[str, str], T]) -> T:
    """What ``ask`` answers for a pool and one of its queues; errors as :func:`found`."""

    def of_pool(whole_pool: str) -> T:
        return found(client, queues_of(whole_pool), name, lambda whole_name: ask(whole_pool, whole_name))

    return found(client, POOL, pool, of_pool)


def queue_in(pool: Pool, name: str) -> Queue:
    """The queue of a pool.

    Raises:
        NotFound: it has none of this name.
    """
    for queue in pool.queues:
        if queue.name == name:
            return queue
    raise NotFound(f"pool '{pool.name}' has no queue '{name}'")


def schedule(client: Client, deployment: str, name: str | None, ask: Callable[[str, str], T]) -> T:
    """What ``ask`` answers for a deployment and one of its schedules; None: the only one.

    Raises:
        InvalidInput: none is named, and there is not exactly one.
        ShunterError: as :func:`found`.
    """

    def of_deployment(whole_deployment: str) -> T:
        chosen = name if name is not None else _only(client, whole_deployment)
        return found(client, schedules_of(whole_deployment), chosen, lambda one: ask(whole_deployment, one))

    return found(client, DEPLOYMENT, deployment, of_deployment)


def _only(client: Client, deployment: str) -> str:
    names = [one.name for one in client.get_deployment(deployment).schedules]
    if not names:
        raise InvalidInput(f"deployment {deployment!r} has no schedule", "A deploy gives it one.")
    if len(names) > 1:
        raise InvalidInput(f"deployment {deployment!r} has several schedules", f"Name one: {either(names)}.")
    return names[0]
