"""Health and metrics, for orchestrators and Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Response

from siamdetr.serve.engine import RETRY_AFTER, Engine
from siamdetr.serve.metrics import CONTENT_TYPE, Metrics
from siamdetr.serve.refusals import Refused, documented


def health_router(engine: Engine, metrics: Metrics) -> APIRouter:
    """The routes, over an engine."""
    router = APIRouter()

    @router.get("/v2/health/live", summary="Whether the process runs", response_class=Response)
    async def live() -> Response:
        return Response(status_code=200)

    @router.get(
        "/v2/health/ready",
        summary="Whether requests are taken: after warming up, until it stops",
        response_class=Response,
        responses=documented(503),
    )
    async def ready() -> Response:
        if not engine.ready:
            raise Refused(503, "the server is warming up or about to stop", retry_after=RETRY_AFTER)
        return Response(status_code=200)

    @router.get(
        "/metrics",
        summary="Figures for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}, **documented(401)},
    )
    async def show_metrics() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    return router
