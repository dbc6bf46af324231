"""`POST /v1/detect`: pictures in, boxes out."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Form, Request, Response, UploadFile
from pydantic import BaseModel, ConfigDict, Field

from siamdetr.serve.engine import Engine
from siamdetr.serve.guard import DETECT_PATH
from siamdetr.serve.image_gate import FORMATS
from siamdetr.serve.refusals import Refused, documented, plain_json


class DetectForm(BaseModel):
    """The fields of the form."""

    model_config = ConfigDict(extra="forbid")

    images: list[UploadFile] = Field(min_length=1, description=f"Image files ({', '.join(FORMATS)}); repeat the field.")
    threshold: float = Field(0.5, ge=0, le=1, allow_inf_nan=False, description="Least score of a box.")
    max_detections: int = Field(100, ge=1, le=1000, description="Of one image; the best are kept.")


class Detection(BaseModel):
    """One object."""

    box: tuple[float, float, float, float] = Field(description="x0, y0, x1, y1 in pixels of the upright image")
    score: float
    label: int = Field(description="0..C-1")
    name: str


class DetectedImage(BaseModel):
    """What was found in one image, best first."""

    width: int
    height: int
    detections: list[Detection]


class DetectAnswer(BaseModel):
    """One entry an image, in the order they were sent."""

    model: str
    images: list[DetectedImage]


_EXAMPLE = {
    "model": "siamdetr",
    "images": [
        {
            "width": 640,
            "height": 480,
            "detections": [{"box": [12.5, 40.0, 230.25, 400.75], "score": 0.93, "label": 0, "name": "cat"}],
        }
    ],
}


def detect_router(engine: Engine) -> APIRouter:
    """The route, over an engine."""
    router = APIRouter()
    max_images = engine.settings.limits.max_images

    @router.post(
        DETECT_PATH,
        summary="Find objects in images",
        responses={
            200: {"model": DetectAnswer, "content": {"application/json": {"example": _EXAMPLE}}},
            **documented(400, 401, 408, 413, 415, 422, 429, 500, 503, 504),
        },
    )
    async def detect(request: Request, form: Annotated[DetectForm, Form(media_type="multipart/form-data")]) -> Response:
        if request.query_params:
            raise Refused(422, f"query: got {sorted(request.query_params)}, expected none; all goes into the form")
        if len(form.images) > max_images:
            raise Refused(413, f"images: got {len(form.images)}, at most {max_images} a request are taken")
        images: list[dict[str, Any]] = await engine.detect(
            form.images, threshold=form.threshold, max_detections=form.max_detections
        )
        answer = {"model": engine.settings.model_name, "images": images}
        return Response(plain_json(answer), media_type="application/json")

    return router
