"""Speed and error of an int8 graph beside float32, in every runtime that is installed on this machine."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from siamdetr.errors import ExportError
from siamdetr.export.gate.checks import TOLERANCES
from siamdetr.export.gate.difference import difference, worst
from siamdetr.export.gate.images import Samples
from siamdetr.export.runtime import OnnxDetector
from siamdetr.export.sessions import OnnxBackend
from siamdetr.export.timing.backend_choice import installed_backends, take_turns
from siamdetr.images.preprocessing import Prepared, preprocess
from siamdetr.inference.predictor import ScoredBoxes

FLOAT = "fp32"
_IMAGES = 4  # that the errors are taken from


@dataclass(frozen=True)
class RuntimeTime:
    """One graph in one runtime.

    Attributes:
        precision: "fp32", or that of the export.
        backend: what computes it.
        milliseconds: median of one image at the model's own size.
        score_error: greatest difference of the scores from float32's under ONNX Runtime; infinite where a box is
            missing.
        box_error: greatest difference of the boxes, as a fraction of the image.
    """

    precision: str
    backend: OnnxBackend
    milliseconds: float
    score_error: float
    box_error: float


def beside_float(float32: onnx.ModelProto, file: Path, samples: Samples) -> tuple[RuntimeTime, ...]:
    """Time an int8 file and the float32 graph that it was made from; see `time_runtimes`.

    Args:
        float32: gets the metadata of the file.
        file: the .onnx file.
        samples: images for the errors.
    """
    metadata = {entry.key: entry.value for entry in onnx.load(file, load_external_data=False).metadata_props}
    onnx.helper.set_model_props(float32, metadata)
    with tempfile.TemporaryDirectory(prefix="siamdetr-") as folder:
        single = Path(folder) / "fp32.onnx"
        onnx.save(float32, single)
        return tuple(time_runtimes({FLOAT: single, "int8": file}, samples))


def time_runtimes(graphs: Mapping[str, Path], samples: Samples) -> list[RuntimeTime]:
    """Time some graphs of one model in turns, in every installed runtime.

    Args:
        graphs: precision to .onnx file; with `FLOAT`.
        samples: images for the errors.
    Returns:
        A row for each graph and runtime that opens it, fastest first.
    """
    opened: dict[tuple[str, OnnxBackend], OnnxDetector] = {}
    for precision, file in graphs.items():
        for backend in installed_backends():
            try:
                opened[precision, backend] = OnnxDetector(file, backend=backend)
            except ExportError:  # an operation that this runtime lacks
                continue
    times = take_turns(opened)
    reference = opened[FLOAT, "onnxruntime"]
    batches = [preprocess([image], reference.preprocessing) for image in samples.images[:_IMAGES]]
    expected = [(batch, reference.predict_batch(batch)) for batch in batches]
    rows = [RuntimeTime(*key, times[key], *_errors(model, expected)) for key, model in opened.items()]
    return sorted(rows, key=lambda row: row.milliseconds)


def advice(rows: Sequence[RuntimeTime]) -> str:
    """What to deploy on this machine, in a sentence or two."""
    best = rows[0]
    text = f"Fastest here: {best.precision} under {best.backend} (--backend {best.backend})."
    floats = {row.backend: row.milliseconds for row in rows if row.precision == FLOAT}
    slower = [
        f"{row.precision} under {row.backend}"
        for row in rows
        if row.precision != FLOAT and row.milliseconds >= floats.get(row.backend, math.inf)
    ]
    return f"{text} Slower here than fp32, so not for deployment: {', '.join(slower)}." if slower else text


def _errors(model: OnnxDetector, expected: Sequence[tuple[Prepared, ScoredBoxes]]) -> tuple[float, float]:
    """The greatest differences of scores and boxes from what is expected of some images."""
    allowed, found = TOLERANCES["int8"], []
    for batch, wanted in expected:
        height, width = batch.original_sizes[0].tolist()
        own = model.predict_batch(batch)
        found.append(difference(wanted, own, 0, (height, width), scores=allowed.scores, boxes=allowed.boxes))
    largest = worst(found)
    return largest.score, largest.box
