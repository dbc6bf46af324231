"""Health and metrics, for orchestrators and Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Response
from pydantic import BaseModel

from siamdetr.serve.engine import RETRY_AFTER, Engine
from siamdetr.serve.metrics import CONTENT_TYPE, Metrics
from siamdetr.serve.refusals import documented, not_ready


class Live(BaseModel):
    """The process runs."""

    live: bool


class Ready(BaseModel):
    """Requests are accepted."""

    ready: bool


def health_router(engine: Engine, metrics: Metrics) -> APIRouter:
    """The routes, over an engine."""
    router = APIRouter()

    @router.get("/v2/health/live", summary="Whether the process runs")
    async def live() -> Live:
        return Live(live=True)

    @router.get(
        "/v2/health/ready",
        summary="Whether requests are taken: after warming up, until it stops",
        responses=documented(503),
    )
    async def ready() -> Ready:
        if not engine.ready:
            raise not_ready("the server", RETRY_AFTER)
        return Ready(ready=True)

    @router.get(
        "/metrics",
        summary="Figures for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}, **documented(401)},
    )
    async def show_metrics() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    return router
