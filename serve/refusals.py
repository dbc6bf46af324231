"""Refusals: a status and {"error": text}, the form of the Open Inference Protocol."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

_TEXTS = {404: "no such address; GET /openapi.json lists them", 405: "this address does not take that method"}


class ErrorBody(BaseModel):
    """The body of every refusal."""

    error: str = Field(examples=["image 1 ('cat.jpg'): truncated or damaged (image file is truncated)"])


class Refused(HTTPException):
    """A refused request.

    Args:
        status: 4xx or 5xx.
        text: for people: what was received, and what was expected.
        retry_after: seconds after which a retry makes sense.
        close: end the connection too, since the rest of the body is not worth reading.
        beside: further entries of the body, for clients that read them.
    """

    def __init__(
        self,
        status: int,
        text: str,
        *,
        retry_after: int | None = None,
        close: bool = False,
        beside: Mapping[str, Any] | None = None,
    ) -> None:
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        if close:
            headers["Connection"] = "close"
        super().__init__(status, text, headers)
        self.beside = dict(beside or {})


def refusal(error: HTTPException) -> Response:
    """The response of a refusal."""
    detail = error.detail if isinstance(error, Refused) else _TEXTS.get(error.status_code, error.detail)
    content = plain_json({"error": str(detail), **(error.beside if isinstance(error, Refused) else {})})
    return Response(content, error.status_code, dict(error.headers or {}), media_type="application/json")


def not_ready(what: str, retry_after: int) -> Refused:
    """The refusal of a server or model that does not accept requests yet, or any more.

    Clients of the protocol read `ready`.
    """
    text = f"{what} is warming up or about to stop"
    return Refused(503, text, retry_after=retry_after, beside={"ready": False})


async def on_http_error(request: Request, error: Exception) -> Response:
    """Handle our refusals and the framework's, for FastAPI."""
    assert isinstance(error, HTTPException)
    return refusal(error)


async def on_invalid(request: Request, error: Exception) -> Response:
    """Handle parameters that are missing, unknown or out of range, for FastAPI."""
    assert isinstance(error, RequestValidationError)
    return refusal(Refused(422, explained(error.errors())))


def explained(problems: Sequence[Any]) -> str:
    """The errors of pydantic, in one line."""
    lines = [f"{'.'.join(str(part)[:80] for part in problem['loc'])}: {problem['msg']}" for problem in problems]
    return "; ".join(lines[:5])


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The refusals of an operation, for its OpenAPI description."""
    texts = {
        400: "Cannot be parsed",
        401: "The token is missing or wrong",
        404: "No such model",
        405: "This address does not take that method",
        408: "The body took too long to arrive",
        413: "Too many bytes, pixels or images",
        415: "Not a media type or image format that is taken",
        422: "Understood, but not usable: damaged images, missing, unknown or impossible fields",
        429: "The queue is full; Retry-After says when to come again",
        500: "A fault of the server",
        503: "Not ready, or too many requests at a time; Retry-After says when to come again",
        504: "No answer before the deadline",
    }
    return {status: {"model": ErrorBody, "description": texts[status]} for status in statuses}


def plain_json(value: Any) -> bytes:
    """Compact JSON; NaN and infinity, which JSON does not know, are an error here.

    A client's text may hold half a surrogate pair, which UTF-8 cannot encode; it is returned as an escape such as
    \\ud800.
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return text.encode(errors="backslashreplace")
