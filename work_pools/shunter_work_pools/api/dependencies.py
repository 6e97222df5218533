"""What routes are given."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request, Response
from pydantic import BaseModel

from shunter_work_pools.engine import Engine
from shunter_work_pools.identities import Identity


async def _engine(request: Request) -> Engine:
    engine: Engine = request.app.state.engine
    return engine


async def _identity(request: Request) -> Identity:
    identity: Identity = request.scope["admission"].identity
    return identity


#: Who asks.
TheIdentity = Annotated[Identity, Depends(_identity)]
#: The server's inside.
TheEngine = Annotated[Engine, Depends(_engine)]


def answer(message: BaseModel, status: int = 200) -> Response:
    """A contract as JSON, without validating again what the server made itself."""
    return Response(
        message.__pydantic_serializer__.to_json(message), status_code=status, media_type="application/json"
    )
