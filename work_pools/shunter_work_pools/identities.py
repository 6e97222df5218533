"""Who asks: what a bearer token says, kept for as long as it holds.

A token is looked up once, by its hash; from then on it costs a look into a dictionary. What is kept is forgotten in
the commit that revokes it, and where several servers share a database, each looks twice a second for what the others
revoked. Requests that are held meanwhile end, see :class:`Admission`.

Tokens of attempts are not kept anywhere: they are reckoned, and hold as long as the attempt's lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from ipaddress import ip_address, ip_network
from typing import Any, Protocol
from uuid import UUID

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Row

from shunter_work_pools.attempt_tokens import AttemptTokens
from shunter_work_pools.contracts.base import Micros, Name, moment
from shunter_work_pools.contracts.errors import AttemptOver, TooManyRequests, Unauthenticated
from shunter_work_pools.contracts.identities import PREFIXES, Kind, Role, WhoAmI
from shunter_work_pools.queue import joining, keys
from shunter_work_pools.queue.progress import is_live
from shunter_work_pools.refusals import Refusals
from shunter_work_pools.secret_keys import SecretKeys
from shunter_work_pools.storage.store import Store, Tx, system_clock
from shunter_work_pools.throttle import Allowance, Throttle

#: The name of who has the token of the server's own home; no key can have it.
LOCAL = "local"
#: Seconds after which a server looks again whether others of its database revoked something.
LOOK_EVERY = 0.4
#: Seconds for which such a look is good.
GOOD_FOR = 0.9
#: Microseconds before the last look from which the next begins: revocations are committed after they are dated.
_OVERLAP: Micros = 60_000_000
#: Seconds after which the use of a token is written down again.
NOTE_EVERY = 60.0
#: Requests of an attempt: a part of those of others. Of all, what comes at once: of so many seconds.
ATTEMPTS_PART, BURST = 10, 2.0
#: Tokens that nobody has, from one address: so many at once, and so many a second after that.
WRONG, WRONG_EVERY = 20.0, 1.0
#: Tokens that are kept; beyond it, it begins anew.
MOST = 200_000
REMEDY = (
    "Set SHUNTER_TOKEN, or `shunter login URL`; on the server's own machine the token is in the file `token` of "
    "its home, and SHUNTER_HOME says where that is."
)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks.

    Attributes:
        name: of the key or agent; of an attempt ``RUN.NUMBER``.
        role: of a person.
        pools: of an agent or an enrolment token.
        manage_pools: an agent may make these pools, and set their templates and match tags.
        expires_at: by the wall clock.
        key_id: of its row, if it has one.
        account: the service account that an agent showed instead of a credential; its name is that of the account until
            it acts as an agent, see :meth:`Identities.admit`.
        run, attempt: of an attempt.
    """

    kind: Kind
    name: str
    role: Role | None = None
    pools: frozenset[str] = frozenset()
    manage_pools: bool = False
    expires_at: Micros | None = None
    key_id: int | None = None
    account: str | None = None
    run: UUID | None = None
    attempt: int | None = None

    @property
    def of_attempt(self) -> tuple[UUID, int]:
        """Run and number of an attempt."""
        assert self.run is not None
        assert self.attempt is not None
        return self.run, self.attempt

    def told(self) -> WhoAmI:
        """As it is told to itself."""
        return WhoAmI(
            kind=self.kind,
            name=self.name,
            role=self.role,
            pools=sorted(self.pools),
            manage_pools=self.manage_pools,
            expires_at=None if self.expires_at is None else moment(self.expires_at),
        )


@dataclass(eq=False, slots=True)
class Admission:
    """Somebody who was let in, until that ends.

    Attributes:
        ended: why it holds no more; None: it does. What is answered after that is a 401, whatever was asked.
        allowance: of requests.
        noted_at: when its use was last handed on to be written down, by the event loop's clock.
    """

    identity: Identity
    ended: str | None = None
    allowance: Allowance = field(default_factory=lambda: Allowance(math.inf, 0.0))
    noted_at: float = -math.inf
    _held: set[asyncio.Task[object]] = field(default_factory=set)

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Within this, the task is cancelled when the admission ends."""
        task = asyncio.current_task()
        assert task is not None
        self._held.add(task)
        try:
            if self.ended is not None:  # before anything was held
                task.cancel()
            yield
        finally:
            self._held.discard(task)

    def end(self, why: str) -> None:
        """From now on it holds no more."""
        self.ended = why
        for task in self._held:
            task.cancel()


class Verifier(Protocol):
    """Who can say whom a token of somebody else's names, e.g. of an OIDC provider."""

    async def identify(self, token: str) -> Identity | None:
        """Whom it names; None: it is for another verifier.

        Raises:
            Unauthenticated: it is for this one, and not valid.
        """


class Identities:
    """The tokens that a server has let in.

    Args:
        store: where keys are kept.
        secret_keys: by which tokens of attempts are reckoned.
        rate: requests a second that a key may send; None: as many as it likes.
        clock: the wall clock.

    Attributes:
        verifiers: asked in turn for tokens that look like JWTs.
        refusals: who was not let in, or not to what he asked for.
        alive_after: since when an agent must have been heard of to be alive, by the moment of a transaction.
    """

    def __init__(
        self,
        store: Store,
        secret_keys: SecretKeys,
        rate: float | None = None,
        clock: Callable[[], Micros] = system_clock,
    ) -> None:
        self._rate = rate
        self._wrong = Throttle(WRONG_EVERY, WRONG)
        self._in_turn = asyncio.Lock()
        self._store = store
        self._clock = clock
        self._now = asyncio.get_running_loop().time
        self.attempt_tokens = AttemptTokens(secret_keys)
        self.verifiers: Sequence[Verifier] = ()
        self.refusals = Refusals(store)
        self.alive_after: Callable[[Micros], Micros] = lambda now: now
        self._admitted: dict[bytes, Admission] = {}
        self._local: dict[bytes, Admission] = {}
        self._used: dict[int, tuple[Micros, str]] = {}
        self._forgotten = 0
        self._looked_at: Micros = 0
        self._good_until = math.inf if store.kind == "sqlite" else -math.inf

    def admit_local(self, token: str) -> None:
        """Let in who has a token of this server's own, as admin."""
        self._local[_hash(token.encode())] = Admission(Identity(Kind.PERSON, LOCAL, Role.ADMIN))

    async def admit(self, token: bytes, address: str, agent: str | None = None) -> Admission:
        """Who has a token.

        Args:
            token: as it came.
            address: from where.
            agent: whom the request is about, if it is about an agent. Who showed a service account is that agent if the
                name is free, or its own already.

        Raises:
            Unauthenticated: nobody is known to have it, or not any more.
            Conflict: the agent's name belongs to another one.
            TooManyRequests: this one, or who tries tokens from this address, sends too many.
            Unavailable: the store cannot be read.
        """
        digest = _hash(token)
        local = self._local.get(digest)
        if local is not None:
            return local
        if self._good_until < self._now():
            await self.look()
        admission = self._admitted.get(digest)
        if admission is None or self._is_over(admission):
            admission = await self._try(token, digest, address)
        elif admission.identity.kind is Kind.ATTEMPT:
            await self._check_live(admission, digest)
        if self._is_over(admission):
            raise _expired(admission.identity.expires_at or 0)
        if admission.identity.account is not None and agent is not None:
            admission = await self._bound(admission.identity, agent, digest)
        if self._rate is not None:
            self._count(admission, self._rate)
        key_id = admission.identity.key_id
        if key_id is not None and admission.noted_at < self._now() - NOTE_EVERY:
            admission.noted_at = self._now()
            self._used[key_id] = (self._clock(), address)
        return admission

    def _is_over(self, admission: Admission) -> bool:
        expires_at = admission.identity.expires_at
        return expires_at is not None and expires_at <= self._clock()

    async def _try(self, token: bytes, digest: bytes, address: str) -> Admission:
        """See :meth:`_tried`; from where too many were wrong, one after the other.

        They are looked up even so: a thousand others may be behind the same address, and a right token is no try.
        """
        network = _network(address)
        if not self._wrong.wait(network, self._now()):
            return await self._tried(token, digest, address, network)
        async with self._in_turn:
            try:
                return await self._tried(token, digest, address, network)
            except Unauthenticated as exc:
                wait = math.ceil(self._wrong.wait(network, self._now()))
                if not wait:
                    raise
                raise TooManyRequests(
                    f"too many tokens from {address} were wrong, and this one is, too",
                    f"Ask again in {wait} s.",
                    retry_after=wait,
                ) from exc

    async def _tried(self, token: bytes, digest: bytes, address: str, network: str) -> Admission:
        try:
            admission = self._keep(digest, await self._look_up(token.decode("latin-1"), digest, address))
        except Unauthenticated:
            self._wrong.take(network, self._now())
            raise
        if admission.identity.kind is Kind.ATTEMPT:  # one that has ended is no try
            await self._check_live(admission, digest)
        return admission

    def _count(self, admission: Admission, rate: float) -> None:
        if admission.identity.kind is Kind.ATTEMPT:
            rate /= ATTEMPTS_PART
        wait = admission.allowance.take(self._now(), rate, max(1.0, rate * BURST))
        if wait:
            raise TooManyRequests(
                f"{admission.identity.name!r} sends more than {rate:g} requests a second",
                "Send fewer, many things in one; or set server.rate_limit higher.",
                retry_after=math.ceil(wait),
            )

    async def _look_up(self, token: str, digest: bytes, address: str) -> Identity:
        if token.startswith(PREFIXES[Kind.ATTEMPT]):
            return self._attempt(token)
        while True:
            forgotten = self._forgotten
            identity = await (self._foreign(token) if _is_jwt(token) else self._own(digest, address))
            if forgotten == self._forgotten:  # else it may be this one that was revoked meanwhile
                return identity

    def _keep(self, digest: bytes, identity: Identity) -> Admission:
        if len(self._admitted) >= MOST:
            self._admitted.clear()
        admission = self._admitted[digest] = Admission(identity)
        return admission

    async def _own(self, digest: bytes, address: str) -> Identity:
        def find(tx: Tx) -> tuple[Identity, bool]:
            row = keys.find(tx, digest.hex())
            if row is None:
                raise Unauthenticated("the token is not one of this server's", REMEDY)
            if row.revoked_at is not None and joining.replaced(tx, row):
                raise Unauthenticated(
                    f"the token of agent {row.name!r} was replaced by a newer one",
                    "If not by that agent itself, somebody else has its credential: revoke it (`shunter key revoke`).",
                )
            if row.revoked_at is not None:
                raise Unauthenticated(f"the token of {row.name!r} was revoked", REMEDY)
            if row.expires_at is not None and row.expires_at <= tx.now:
                raise _expired(row.expires_at)
            return identity_of(row), row.kind == Kind.AGENT and row.last_used_at is None

        identity, new = await self._store.read(find)
        if new and identity.key_id is not None:
            key_id = identity.key_id
            await self._store.write(lambda tx: joining.first_use(tx, key_id, address))
        return identity

    async def _foreign(self, token: str) -> Identity:
        for verifier in self.verifiers:
            identity = await verifier.identify(token)
            if identity is not None:
                return identity
        raise Unauthenticated("the token is of nobody whom this server trusts", REMEDY)

    async def _bound(self, identity: Identity, agent: str, digest: bytes) -> Admission:
        """The agent that a service account acts as: once for each of its tokens, then from what is kept."""
        account, kept_at = identity.account, _hash(digest + agent.encode("utf-8", "surrogateescape"))
        known = self._admitted.get(kept_at)
        if known is not None and not self._is_over(known):
            return known
        if account is None or not is_name(agent):
            return Admission(identity)
        while True:
            forgotten = self._forgotten
            key_id = await self._store.write(
                lambda tx: joining.bind(
                    tx, agent, account, identity.pools, identity.manage_pools, self.alive_after(tx.now)
                )
            )
            if forgotten == self._forgotten:
                break
        return self._keep(kept_at, replace(identity, name=agent, key_id=key_id))

    def _attempt(self, token: str) -> Identity:
        named = self.attempt_tokens.read(token)
        if named is None:
            raise Unauthenticated(
                "the token is not one of this server's", "It is given to each attempt anew."
            )
        run, number = named
        return Identity(Kind.ATTEMPT, f"{run}.{number}", run=run, attempt=number)

    async def _check_live(self, admission: Admission, digest: bytes) -> None:
        run, number = admission.identity.of_attempt
        if not await self._store.read(lambda tx: is_live(tx, run, number)):
            self._admitted.pop(digest, None)
            raise attempt_over(run, number)

    # ---- what ends

    def forget(self, key_ids: set[int]) -> None:
        """These keys hold no more, or say something else now."""
        self._forgotten += 1
        gone = {digest: one for digest, one in self._admitted.items() if one.identity.key_id in key_ids}
        for digest, admission in gone.items():
            del self._admitted[digest]
            admission.end(f"the token of {admission.identity.name!r} was revoked")

    async def look(self) -> None:
        """Forget what other servers of the database revoked since the last look.

        Raises:
            Unavailable: the store cannot be read.
        """
        began, since = self._now(), self._looked_at - _OVERLAP
        now, revoked = await self._store.read(lambda tx: (tx.now, keys.revoked_since(tx, since)))
        if revoked:
            self.forget(revoked)
        self._looked_at = now
        self._good_until = max(self._good_until, began + GOOD_FOR)

    async def write_uses(self) -> None:
        """Write down which keys were used since this was last done.

        Raises:
            Unavailable: the store cannot be written.
        """
        if self._used:
            used, self._used = self._used, {}
            await self._store.write(lambda tx: keys.note_used(tx, used))


_NAME: TypeAdapter[str] = TypeAdapter(Name)


def is_name(text: str) -> bool:
    """Whether something can be called so."""
    try:
        return bool(_NAME.validate_python(text))
    except ValidationError:
        return False


def identity_of(row: Row[Any]) -> Identity:
    """Whom a row of ``keys`` names."""
    return Identity(
        Kind(row.kind),
        row.name,
        None if row.role is None else Role(row.role),
        frozenset(row.pools),
        row.manage_pools,
        row.expires_at,
        row.id,
    )


def attempt_over(run: UUID, number: int) -> AttemptOver:
    """The refusal of a token whose attempt has ended."""
    return AttemptOver(
        f"attempt {number} of run {run} is over, and with it its token", "Nothing more can be told of it."
    )


def _expired(at: Micros) -> Unauthenticated:
    return Unauthenticated(f"the token has expired at {moment(at):%Y-%m-%d %H:%M:%S} UTC", REMEDY)


def _hash(token: bytes) -> bytes:
    return sha256(token).digest()


def _network(address: str) -> str:
    """The address; of IPv6 its network of 64 bits, all of which one machine may have."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    return address if parsed.version == 4 else str(ip_network((parsed, 64), strict=False))


def _is_jwt(token: str) -> bool:
    """Whether it looks like one: base64url of ``{"``, and three parts (RFC 7519)."""
    return token.startswith("eyJ") and token.count(".") == 2
