"""`POST /v1/detect`: from images to detections."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from siamdetr.serve.engine import Engine
from siamdetr.serve.image_gate import FORMATS
from siamdetr.serve.multipart_form import parse_form
from siamdetr.serve.refusals import Refused, documented, explained, plain_json
from siamdetr.serve.request_guard import DETECT_PATH


class DetectFields(BaseModel):
    """The fields of the form, besides its `images`."""

    model_config = ConfigDict(extra="forbid")

    threshold: float | None = Field(
        None, ge=0, le=1, allow_inf_nan=False, description="Least score of a box; without it the model's own."
    )
    max_detections: int = Field(100, ge=1, le=1000, description="Of one image; the best are kept.")


class Detection(BaseModel):
    """One object."""

    box: tuple[float, float, float, float] = Field(description="x0, y0, x1, y1 in pixels of the upright image")
    score: float
    label: int = Field(description="0..C-1")
    name: str


class DetectedImage(BaseModel):
    """The detections of one image, best first."""

    width: int
    height: int
    detections: list[Detection]


class DetectAnswer(BaseModel):
    """One entry per image, in the order of the request."""

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
        response_class=Response,
        responses={
            200: {"model": DetectAnswer, "content": {"application/json": {"example": _EXAMPLE}}},
            **documented(400, 401, 408, 413, 415, 422, 429, 500, 503, 504),
        },
        openapi_extra=_request_body(max_images, engine.model.threshold),
    )
    async def detect(request: Request) -> Response:
        if request.query_params:
            raise Refused(422, f"query: got {sorted(request.query_params)}, expected none; all goes into the form")
        images, texts = parse_form(
            await request.body(), request.headers["content-type"], files_field="images", max_files=max_images
        )
        if not images:
            raise Refused(422, "images: expected at least one file; curl -F images=@FILE sends it")
        if len(images) > max_images:
            raise Refused(413, f"images: got {len(images)}, at most {max_images} a request are taken")
        try:
            fields = DetectFields.model_validate(texts)
        except ValidationError as error:
            raise Refused(422, explained(error.errors())) from None
        threshold = engine.model.threshold if fields.threshold is None else fields.threshold
        found = await engine.detect(images, threshold=threshold, max_detections=fields.max_detections)
        answer = {"model": engine.settings.model_name, "images": found}
        return Response(plain_json(answer), media_type="application/json")

    return router


def _request_body(max_images: int, threshold: float) -> dict[str, Any]:
    """The form in OpenAPI, which FastAPI would only write for forms that it parses itself."""
    schema = DetectFields.model_json_schema()
    schema["required"] = ["images"]
    asked = schema["properties"]["threshold"]
    schema["properties"]["threshold"] = {
        **asked.pop("anyOf")[0],
        **asked,
        "default": threshold,
    }  # a form has no null
    schema["properties"]["images"] = {
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "minItems": 1,
        "maxItems": max_images,
        "description": f"Image files ({', '.join(FORMATS)}); the field is repeated.",
    }
    form = {"schema": schema, "encoding": {"images": {"contentType": "image/png, image/jpeg, image/webp, image/bmp"}}}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": form}}}
