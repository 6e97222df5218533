"""The route of the metrics: for Prometheus, with the token like everything else."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from shunter_work_pools.api.dependencies import TheEngine
from shunter_work_pools.api.permissions import GuardedRoute

router = APIRouter(route_class=GuardedRoute, tags=["server"])


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}, "application/openmetrics-text": {}}}},
)
async def metrics(request: Request, engine: TheEngine) -> Response:
    """What the server counts, in Prometheus' text format, or as OpenMetrics if that is asked for."""
    page, content_type = await engine.metrics_page(request.headers.get("accept", ""))
    return Response(page, headers={"content-type": content_type})
