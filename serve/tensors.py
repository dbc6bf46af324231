"""Tensors of the Open Inference Protocol v2: as JSON, or as bytes (binary tensor extension)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from siamdetr.serve.refusals import Refused, plain_json

HEADER_LENGTH = "Inference-Header-Content-Length"  # bytes of JSON at the head of a binary body
VERSION = "1"  # of the model: the one that there is
DATATYPES: dict[str, DTypeLike] = {"UINT8": np.uint8, "INT64": np.dtype("<i8"), "FP32": np.dtype("<f4")}


@dataclass(frozen=True)
class InferRequest:
    """A parsed request.

    Attributes:
        id: to be repeated in the answer, or None.
        inputs: tensors by name, in the shapes of the request.
        binary: for each requested output, in order, whether it is sent as raw bytes.
    """

    id: str | None
    inputs: dict[str, NDArray[Any]]
    binary: dict[str, bool]


def read_request(
    body: bytes, header_length: str | None, *, inputs: dict[str, str], outputs: tuple[str, ...]
) -> InferRequest:
    """Read and check a request.

    Args:
        body: JSON, with raw tensors after it if `header_length` is given.
        header_length: the header `HEADER_LENGTH`.
        inputs: datatype of every required input.
        outputs: names of existing outputs.
    Raises:
        Refused: 400; the text says what was expected.
    """
    head, raw = _split(body, header_length)
    tensors: dict[str, NDArray[Any]] = {}
    for entry in _dicts(head.get("inputs"), "inputs"):
        name = entry.get("name")
        if not isinstance(name, str) or name not in inputs or name in tensors:
            raise Refused(400, f"inputs: got {str(name)[:40]!r}, expected each of {', '.join(inputs)} once")
        tensors[name], raw = _tensor(entry, raw, name, inputs[name])
    missing = inputs.keys() - tensors.keys()
    if missing:
        raise Refused(400, f"inputs: {', '.join(sorted(missing))} missing")
    if len(raw):
        raise Refused(400, f"body: {len(raw)} bytes more than the tensors that the JSON announces")
    identity = head.get("id")
    if identity is not None and not isinstance(identity, str):
        raise Refused(400, f"id: got {type(identity).__name__}, expected text")
    return InferRequest(identity, tensors, _wanted(head, outputs))


def write_answer(request: InferRequest, model: str, tensors: dict[str, NDArray[Any]]) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON head if raw tensors follow."""
    entries: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for name, binary in request.binary.items():
        tensor = tensors[name]
        datatype = next(key for key, kind in DATATYPES.items() if np.dtype(kind) == tensor.dtype)
        entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(tensor.shape)}
        if binary:
            raw.append(np.ascontiguousarray(tensor).tobytes())
            entry["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            entry["data"] = tensor.reshape(-1).tolist()
        entries.append(entry)
    answer: dict[str, Any] = {"model_name": model, "model_version": VERSION, "outputs": entries}
    if request.id is not None:
        answer["id"] = request.id
    head = plain_json(answer)
    return head + b"".join(raw), len(head) if raw else None


def _split(body: bytes, header_length: str | None) -> tuple[dict[str, Any], memoryview]:
    length = len(body)
    if header_length is not None:
        plain = header_length.isascii() and header_length.isdigit() and len(header_length) < 20
        if not (plain and int(header_length) <= len(body)):
            raise Refused(400, f"{HEADER_LENGTH}: got {header_length[:40]!r}, expected the bytes of JSON in the body")
        length = int(header_length)
    try:
        head = json.loads(body[:length])
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"body: not JSON ({str(error)[:100]})") from None
    if not isinstance(head, dict):
        raise Refused(400, f"body: got {type(head).__name__}, expected an object with 'inputs'")
    return head, memoryview(body)[length:]


def _dicts(value: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise Refused(400, f"{name}: got {type(value).__name__}, expected a list of objects")
    return value


def _tensor(entry: dict[str, Any], raw: memoryview, name: str, datatype: str) -> tuple[NDArray[Any], memoryview]:
    """Read one input; returns it with the remaining raw bytes."""
    shape = entry.get("shape")
    if entry.get("datatype") != datatype:
        raise Refused(400, f"{name}: datatype got {str(entry.get('datatype'))[:40]!r}, expected {datatype}")
    if (
        not isinstance(shape, list)
        or not all(type(n) is int and 0 < n < 2**31 for n in shape)
        or not 0 < len(shape) <= 8
    ):
        raise Refused(400, f"{name}: shape got {str(shape)[:80]}, expected a list of 1 to 8 positive whole numbers")
    count = int(np.prod(shape, dtype=object))
    size = _parameters(entry, name, "binary_data_size").get("binary_data_size")
    if size is not None:
        expected = count * np.dtype(DATATYPES[datatype]).itemsize
        if type(size) is not int or size != expected or size > len(raw):
            raise Refused(
                400, f"{name}: binary_data_size got {str(size)[:40]}, expected {expected} bytes behind the JSON"
            )
        values = np.frombuffer(raw[:size], DATATYPES[datatype]).copy()  # PyTorch takes no memory that cannot be written
        return values.reshape(shape), raw[size:]
    return _listed(entry.get("data"), name, datatype, count).reshape(shape), raw


def _listed(data: Any, name: str, datatype: str, count: int) -> NDArray[Any]:
    """[count] values of a list, nested or flat. No value is rounded or wrapped."""
    try:
        values = np.array(data)
    except (ValueError, OverflowError, RecursionError):
        values = np.array(None)
    if values.dtype.kind != "i" or values.size != count:
        raise Refused(400, f"{name}: data got {values.size} values, expected {count} whole numbers, as the shape says")
    bounds = np.iinfo(np.dtype(DATATYPES[datatype]))
    if values.min() < bounds.min or values.max() > bounds.max:
        raise Refused(
            400, f"{name}: data reaches from {values.min()} to {values.max()}, expected {bounds.min} to {bounds.max}"
        )
    return values.reshape(-1).astype(DATATYPES[datatype])


def _wanted(head: dict[str, Any], outputs: tuple[str, ...]) -> dict[str, bool]:
    default = _flag(_parameters(head, "body", "binary_data_output"), "binary_data_output", default=False)
    if not head.get("outputs"):
        return dict.fromkeys(outputs, default)
    wanted: dict[str, bool] = {}
    for entry in _dicts(head["outputs"], "outputs"):
        name = entry.get("name")
        if not isinstance(name, str) or name not in outputs:
            raise Refused(400, f"outputs: got {str(name)[:40]!r}, expected some of {', '.join(outputs)}")
        wanted[name] = _flag(_parameters(entry, name, "binary_data"), "binary_data", default=default)
    return wanted


def _parameters(entry: dict[str, Any], name: str, known: str) -> dict[str, Any]:
    """The parameters of a request, an input or an output.

    An unknown parameter is refused, not ignored.
    """
    parameters = entry.get("parameters", {})
    if not isinstance(parameters, dict):
        raise Refused(400, f"{name}: parameters got {type(parameters).__name__}, expected an object")
    strange = next((key for key in parameters if key != known), None)
    if strange is not None:
        raise Refused(
            400, f"{name}: parameters got {strange[:40]!r}, which this server does not know; it takes '{known}'"
        )
    return parameters


def _flag(parameters: dict[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise Refused(400, f"{name}: got {str(value)[:40]!r}, expected true or false")
    return value
