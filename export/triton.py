"""A model repository for NVIDIA Triton, and the client that its users need.

Nothing here imports Triton.

NAME/config.pbtxt    inputs, outputs, batching with a bounded queue, warm-up; classes and preprocessing as a parameter
NAME/labels.txt      one class name per line, in label order
NAME/1/model.onnx    or model.plan, for TensorRT
NAME/warmup/         if the model pads its images: the unpadded size of those of the warm-up
client.py            pictures in, boxes out, with numpy and Pillow only
"""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from siamdetr.errors import ExportError
from siamdetr.export import client
from siamdetr.export.bundle import find_onnx, labels_text
from siamdetr.export.protocol import OUTPUTS, PARAMETER, Tensor, client_card, input_tensors
from siamdetr.export.runtime import OnnxDetector
from siamdetr.files import ENGINE_FILE, LABELS_FILE, ONNX_FILE
from siamdetr.images.preprocessing import PreprocessingSpec, Size, resized_size
from siamdetr.inference.predictor import DEFAULT_THRESHOLD
from siamdetr.system.atomic_file import atomic_write, sync_folder

CLIENT_FILE = "client.py"
CONFIG_FILE = "config.pbtxt"
_WARM_UP_PICTURE = (480, 640)  # (height, width)
_BACKENDS = {ONNX_FILE: "onnxruntime", "model.plan": "tensorrt"}


@dataclass(frozen=True)
class TritonSettings:
    """The settings of a model in Triton.

    Attributes:
        name: of the model and of its folder.
        max_batch: rows of one model call; for an engine, at most its profile's.
        max_delay: longest wait for other requests of the same shape, in microseconds.
        queue_size: largest number of waiting requests; further ones are refused.
        timeout: microseconds after which a waiting request is refused.
    """

    name: str = "siamdetr"
    max_batch: int = 8
    max_delay: int = 2_000
    queue_size: int = 64
    timeout: int = 10_000_000


def write_model_repository(
    bundle: str | Path, folder: str | Path, settings: TritonSettings = TritonSettings()
) -> list[str]:
    """Write a model repository from a bundle.

    The ONNX model and, where the bundle has an engine, that too.

    Args:
        bundle: what `siamdetr export` made.
        folder: the repository; other models in it stay.
        settings: how Triton runs them.
    Returns:
        The names of the models: `settings.name` and, with an engine, that name with `_tensorrt`.
    Raises:
        ExportError: no bundle, one that the server cannot open, a name that is no folder's, or a folder that cannot be
            written.
    """
    if (
        not settings.name
        or not settings.name.replace("_", "").replace("-", "").isalnum()
        or not settings.name.isascii()
    ):
        raise ExportError(f"triton: got the name '{settings.name}', expected letters, digits, '-' and '_'")
    model = find_onnx(bundle)
    opened = OnnxDetector(model, threads=1)
    engine = model.with_name(ENGINE_FILE)
    files = {settings.name: (model, ONNX_FILE)}
    if engine.is_file():
        files[f"{settings.name}_tensorrt"] = (engine, "model.plan")
    folder, spec = Path(folder), opened.preprocessing
    beside = {LABELS_FILE: labels_text(opened.class_names).encode(), **_warm_up_files(spec)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, (source, file) in files.items():
            config = config_text(name, _BACKENDS[file], opened.class_names, spec, settings, threshold=opened.threshold)
            _write_model(folder / name, source, file, {CONFIG_FILE: config.encode(), **beside})
        _write(folder / CLIENT_FILE, Path(client.__file__).read_bytes())
    except OSError as error:
        raise ExportError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error
    return list(files)


def config_text(
    name: str,
    backend: str,
    class_names: Sequence[str],
    preprocessing: PreprocessingSpec,
    settings: TritonSettings,
    *,
    threshold: float = DEFAULT_THRESHOLD,
) -> str:
    """`config.pbtxt`: a ModelConfig of Triton in protobuf's text format.

    `threshold` is the default threshold of clients.
    """
    inputs = input_tensors(preprocessing)
    free = resized_size(_WARM_UP_PICTURE, preprocessing)
    warm_ups = ",\n".join(_warm_up(rows, inputs, free) for rows in sorted({1, settings.max_batch}))
    return f"""\
name: {_quoted(name)}
backend: {_quoted(backend)}
max_batch_size: {settings.max_batch}
{_tensors("input", inputs)}
{_tensors("output", OUTPUTS)}
dynamic_batching {{
  max_queue_delay_microseconds: {settings.max_delay}
  default_queue_policy {{
    timeout_action: REJECT
    default_timeout_microseconds: {settings.timeout}
    max_queue_size: {settings.queue_size}
  }}
}}
instance_group [ {{ kind: KIND_AUTO, count: 1 }} ]
model_warmup [
{warm_ups}
]
parameters {{
  key: {_quoted(PARAMETER)}
  value {{ string_value: {_quoted(client_card(class_names, preprocessing, threshold))} }}
}}
"""


def _tensors(kind: str, tensors: Sequence[Tensor]) -> str:
    rows = ",\n".join(
        f"  {{ name: {_quoted(one.name)}, data_type: TYPE_{one.datatype}, dims: {list(one.dims)} }}" for one in tensors
    )
    return f"{kind} [\n{rows}\n]"


def _warm_up(rows: int, inputs: Sequence[Tensor], free: Size) -> str:
    """A warm-up batch of equal rows: zeros, except inputs that a file gives.

    `free` is (height, width) where the model leaves them free.
    """
    dims = {one.name: [3, *free] if -1 in one.dims else list(one.dims) for one in inputs}
    files = {"valid_sizes": 'input_data_file: "valid_sizes"'}  # zeros would be an image that is nothing but padding
    values = "\n".join(
        f"    inputs {{ key: {_quoted(one.name)}, value {{ data_type: TYPE_{one.datatype}, dims: {dims[one.name]}, "
        f"{files.get(one.name, 'zero_data: true')} }} }}"
        for one in inputs
    )
    height, width = dims["images"][1:]
    return f'  {{\n    name: "{rows} of {height} x {width}"\n    batch_size: {rows}\n{values}\n  }}'


def _warm_up_files(preprocessing: PreprocessingSpec) -> dict[str, bytes]:
    """The files of the warm-up by path in the model's folder: one row, which Triton repeats."""
    if all(one.name != "valid_sizes" for one in input_tensors(preprocessing)):
        return {}
    return {"warmup/valid_sizes": struct.pack("<2q", *resized_size(_WARM_UP_PICTURE, preprocessing))}


def _quoted(text: str) -> str:
    """A string of protobuf's text format."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'


def _write_model(folder: Path, source: Path, file: str, beside: Mapping[str, bytes]) -> None:
    """Write one model's folder, and move it into place when it is complete.

    So a Triton that polls the repository never sees half-written files.
    """
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        new = work / "new"
        with source.open("rb") as model:
            atomic_write(new / "1" / file, lambda target: shutil.copyfileobj(model, target))
        for name, content in beside.items():
            _write(new / name, content)
        if folder.exists():
            os.replace(folder, work / "old")
        os.replace(new, folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write(path: Path, content: bytes) -> None:
    atomic_write(path, lambda file: file.write(content))
