"""The Open Inference Protocol v2, so that clients of Triton and KServe work unchanged.

Inputs are `images` and `original_sizes` (and `valid_sizes`, if the model pads its images), outputs `boxes`, `scores`
and `labels`, as in the exported graph. Pre- and post-processing are the client's task, which finds all it needs in the
model's `config` (Triton's model configuration extension).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from fastapi import APIRouter, Depends, Request, Response, params
from numpy.typing import NDArray
from pydantic import BaseModel

import siamdetr
from siamdetr.export.protocol import OUTPUTS, PARAMETER, Tensor, client_card, input_tensors
from siamdetr.images.preprocessing import Prepared, PreprocessingSpec, padding_of, resized_size
from siamdetr.serve.engine import RETRY_AFTER, Engine
from siamdetr.serve.refusals import Refused, documented, not_ready
from siamdetr.serve.tensors import HEADER_LENGTH, VERSION, InferRequest, read_request, write_answer

EXTENSIONS = ["binary_tensor_data", "model_configuration"]
_REFUSALS = (400, 401, 404, 408, 413, 415, 429, 500, 503, 504)
_MEDIA_TYPES = ("application/json", "application/octet-stream")


class TensorDescription(BaseModel):
    """Name, type and shape; -1 is free."""

    name: str
    datatype: str
    shape: list[int]


class ServerDescription(BaseModel):
    """Name and version of the server."""

    name: str
    version: str
    extensions: list[str]


class ModelDescription(BaseModel):
    """Inputs and outputs of the model, and the backend that computes it (`platform`)."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorDescription]
    outputs: list[TensorDescription]


class ModelReady(BaseModel):
    """The model takes requests."""

    name: str
    ready: bool


class TensorData(TensorDescription):
    """A tensor with its values, row after row."""

    parameters: dict[str, Any] | None = None
    data: list[float] | list[int] | None = None


class InferAnswer(BaseModel):
    """The outputs."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[TensorData]


def open_inference_router(engine: Engine) -> APIRouter:
    """The routes of an engine; those of the model also exist under its version."""
    router = APIRouter(prefix="/v2")
    router.add_api_route(
        "",
        _server,
        name="server",
        summary="What the server is",
        response_model=ServerDescription,
        responses=documented(401),
    )
    routes = _ModelRoutes(engine)
    for place, known in (("/models/{name}", routes.of_model), ("/models/{name}/versions/{version}", routes.of_version)):
        # The description lists every address once: under a version they are the same.
        routes.add_to(router, place, [Depends(known)], in_schema=known == routes.of_model)
    return router


async def _server() -> ServerDescription:
    return ServerDescription(name="siamdetr", version=siamdetr.__version__, extensions=EXTENSIONS)


class _ModelRoutes:
    """The addresses of the one model that an engine serves."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._served = engine.settings.model_name
        self._spec = engine.model.preprocessing
        self._inputs = input_tensors(self._spec)

    def add_to(self, router: APIRouter, place: str, dependencies: list[params.Depends], *, in_schema: bool) -> None:
        add = functools.partial(router.add_api_route, dependencies=dependencies, include_in_schema=in_schema)
        refusals = documented(401, 404, 422)
        add(place, self.model, summary="What the model takes and gives", responses=refusals)
        add(
            f"{place}/config",
            self.config,
            summary="Classes, preprocessing and threshold, for clients",
            responses=refusals,
        )
        add(
            f"{place}/ready",
            self.ready,
            summary="Whether the model takes requests",
            responses=documented(401, 404, 422, 503),
        )
        add(
            f"{place}/infer",
            self.infer,
            methods=["POST"],
            summary="Boxes of prepared images",
            response_class=Response,
            responses={200: {"model": InferAnswer}, **documented(*_REFUSALS, 422)},
            openapi_extra=_infer_body(self._inputs, self._spec),
        )

    def of_model(self, name: str) -> None:
        if name != self._served:
            raise Refused(404, f"model: got '{name[:80]}', this server has '{self._served}'")

    def of_version(self, name: str, version: str) -> None:
        self.of_model(name)
        if version != VERSION:
            raise Refused(404, f"version: got '{version[:80]}', this server has '{VERSION}' of '{self._served}'")

    async def model(self) -> ModelDescription:
        takes, gives = _descriptions(self._inputs), _descriptions(OUTPUTS)
        platform = self._engine.settings.platform
        return ModelDescription(name=self._served, versions=[VERSION], platform=platform, inputs=takes, outputs=gives)

    async def config(self) -> dict[str, Any]:
        model = self._engine.model
        return {
            "name": self._served,
            "max_batch_size": self._engine.settings.limits.max_images,
            "parameters": {PARAMETER: {"string_value": client_card(model.class_names, self._spec, model.threshold)}},
        }

    async def ready(self) -> ModelReady:
        if not self._engine.ready:
            raise not_ready("the model", RETRY_AFTER)
        return ModelReady(name=self._served, ready=True)

    async def infer(self, request: Request) -> Response:
        if request.query_params:
            raise Refused(400, f"query: got {sorted(request.query_params)}, expected none; all goes into the body")
        _check_media_type(request.headers.get("content-type", _MEDIA_TYPES[0]))
        body, header_length = await request.body(), request.headers.get(HEADER_LENGTH)
        asked, batch = await self._engine.in_thread(functools.partial(self._read, body, header_length))
        scored = await self._engine.infer(batch)
        tensors: dict[str, NDArray[Any]] = {
            "boxes": scored.boxes,
            "scores": scored.scores,
            "labels": scored.labels.astype(np.int64),
        }
        answer, head = write_answer(asked, self._served, tensors)
        if head is None:
            return Response(answer, media_type=_MEDIA_TYPES[0])
        return Response(answer, media_type=_MEDIA_TYPES[1], headers={HEADER_LENGTH: str(head)})

    def _read(self, body: bytes, header_length: str | None) -> tuple[InferRequest, Prepared]:
        types = {one.name: one.datatype for one in self._inputs}
        asked = read_request(body, header_length, inputs=types, outputs=tuple(one.name for one in OUTPUTS))
        return asked, _batch(asked.inputs, self._inputs, self._spec, self._engine.settings.limits.max_images)


def _infer_body(inputs: tuple[Tensor, ...], spec: PreprocessingSpec) -> dict[str, Any]:
    """The request of `infer`, for the OpenAPI document."""
    return {
        "requestBody": {
            "required": True,
            "description": f"JSON; raw tensors may follow it, its length then goes into {HEADER_LENGTH}.",
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": ["inputs"],
                        "properties": {
                            "id": {"type": "string"},
                            "parameters": {"type": "object"},
                            "inputs": _list_of(
                                ["name", "datatype", "shape"],
                                {
                                    "name": {"enum": [one.name for one in inputs]},
                                    "datatype": {"enum": sorted({one.datatype for one in inputs})},
                                    "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}},
                                    "data": {"type": "array"},
                                    "parameters": {"type": "object"},
                                },
                            ),
                            "outputs": _list_of(["name"], {"name": {"enum": [one.name for one in OUTPUTS]}}),
                        },
                    },
                    "example": {"inputs": [_example(one, spec) for one in inputs]},
                }
            },
        }
    }


def _list_of(required: list[str], properties: dict[str, Any]) -> dict[str, Any]:
    """The schema of a list of objects."""
    return {"type": "array", "items": {"type": "object", "required": required, "properties": properties}}


def _example(tensor: Tensor, spec: PreprocessingSpec) -> dict[str, Any]:
    """An example of an input in a request.

    Images of a fixed size have too many numbers for a page: they follow as raw bytes.
    """
    picture = (480, 640)
    values: dict[str, Any] = {
        "original_sizes": {"shape": [1, 2], "data": list(picture)},
        "valid_sizes": {"shape": [1, 2], "data": list(resized_size(picture, spec))},
        "images": {"shape": [1, 3, 1, 2], "data": [0, 9, 0, 9, 0, 9]}
        if -1 in tensor.dims
        else {"shape": [1, *tensor.dims], "parameters": {"binary_data_size": math.prod(tensor.dims)}},
    }
    return {"name": tensor.name, "datatype": tensor.datatype, **values[tensor.name]}


def _descriptions(tensors: tuple[Tensor, ...]) -> list[TensorDescription]:
    return [TensorDescription(name=one.name, datatype=one.datatype, shape=[-1, *one.dims]) for one in tensors]


def _check_media_type(text: str) -> None:
    media_type = text.partition(";")[0].strip().lower()
    if media_type not in _MEDIA_TYPES:
        raise Refused(415, f"content-type: got '{media_type[:80]}', expected {' or '.join(_MEDIA_TYPES)}")


def _batch(
    tensors: dict[str, NDArray[Any]], inputs: tuple[Tensor, ...], spec: PreprocessingSpec, max_rows: int
) -> Prepared:
    """The tensors as a batch, no larger than our preprocessing makes it, since attention is quadratic."""
    _check_shapes(tensors, inputs)
    images, original_sizes = tensors["images"], tensors["original_sizes"]
    rows, _, height, width = images.shape
    if rows > max_rows:
        raise Refused(413, f"images: got {rows} rows, at most {max_rows} are taken")
    longest = spec.size if isinstance(spec.size, tuple) else (spec.size, spec.max_size or 2 * spec.size)
    if min(height, width) > min(longest) or max(height, width) > max(longest):
        raise Refused(
            413,
            f"images: got {height} × {width}, expected as preprocessed, at most {longest[0]} × {longest[1]}",
        )
    if original_sizes.min() < 1 or original_sizes.max() > 2**24:
        raise Refused(
            400,
            f"original_sizes: got {original_sizes.min()} to {original_sizes.max()}, expected (height, width) in pixels",
        )
    sizes = tensors.get("valid_sizes", np.tile(np.array([[height, width]], dtype=np.int64), (rows, 1)))
    outside = ((sizes < 1) | (sizes > (height, width))).any(axis=1)
    if outside.any():
        row = int(outside.argmax())
        raise Refused(
            400,
            f"valid_sizes: row {row} got {sizes[row, 0]} × {sizes[row, 1]}, expected height × width of the part of the image "
            f"that is picture, 1 × 1 to {height} × {width}",
        )
    return Prepared(images, padding_of(sizes, height, width), original_sizes, sizes)


def _check_shapes(tensors: dict[str, NDArray[Any]], expected: tuple[Tensor, ...]) -> None:
    rows = tensors["images"].shape[:1]
    if all(_fits(tensors[one.name].shape, (*rows, *one.dims)) for one in expected):
        return
    got = ", ".join(f"{one.name} {list(tensors[one.name].shape)}" for one in expected)
    wanted = ", ".join(f"{one.name} [N, {', '.join(map(str, one.dims))}]" for one in expected).replace("-1", "any")
    padded = "; smaller pictures are padded at the right and below" if "valid_sizes" in tensors else ""
    raise Refused(400, f"shapes: got {got}, expected {wanted}{padded}")


def _fits(shape: tuple[int, ...], dims: tuple[int, ...]) -> bool:
    return len(shape) == len(dims) and all(dim in (-1, n) for dim, n in zip(dims, shape, strict=True))
