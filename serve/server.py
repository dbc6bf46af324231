"""The application: routes over an engine, behind the guard."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

import siamdetr
from siamdetr.inference.predictor import Predictor
from siamdetr.serve.detect import detect_router
from siamdetr.serve.engine import Engine
from siamdetr.serve.health import health_router
from siamdetr.serve.metrics import Metrics
from siamdetr.serve.open_inference import open_inference_router
from siamdetr.serve.refusals import on_http_error, on_invalid
from siamdetr.serve.request_guard import Guard
from siamdetr.serve.settings import ServeSettings
from siamdetr.serve.tensors import HEADER_LENGTH


def create_app(model: Predictor, settings: ServeSettings) -> FastAPI:
    """An ASGI application that serves a model.

    It is live as soon as it runs, and ready once it has warmed up. No documentation pages: theirs would load scripts
    from elsewhere; /openapi.json describes everything.
    """
    metrics = Metrics()
    engine = Engine(model, settings, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await engine.start()
        yield
        await engine.stop()

    app = FastAPI(
        title="siamdetr", version=siamdetr.__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        redirect_slashes=False,
        description="Object detection. Errors are {\"error\": text}.",
    )  # fmt: skip
    app.add_middleware(Guard, engine=engine, metrics=metrics)
    if settings.cors_origins:  # outermost: a browser asks beforehand without a token
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("Authorization", "Content-Type", HEADER_LENGTH),
            expose_headers=("Retry-After", HEADER_LENGTH),
        )
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.include_router(detect_router(engine))
    app.include_router(open_inference_router(engine))
    app.include_router(health_router(engine, metrics))

    return app
