"""From a model to a bundle: export, proof that sizes stayed free, comparison with PyTorch, and only then the files.

The exporter may silently make a dimension constant that was asked to be free, so the saved graph is read back. Opset 18:
17 brought LayerNormalization; from 20 on, TensorRT has misread operators.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import logging
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxslim
import torch

from siamdetr.checkpoint import to_json
from siamdetr.detector import SiamDETR
from siamdetr.export import infer
from siamdetr.export.bundle import (
    INFER_FILE,
    LABELS_FILE,
    MANIFEST_FILE,
    METADATA_KEY,
    ONNX_FILE,
    ExportError,
    ModelCard,
)
from siamdetr.export.graph import EndToEnd, end_to_end
from siamdetr.export.parity import TOLERANCE, ParityReport, check_parity, example_images
from siamdetr.preprocessing import ImageLike

logger = logging.getLogger(__name__)

OPSET = 18
INPUTS = {"images": ("batch", "3", "height", "width"), "original_sizes": ("batch", "2")}
OUTPUTS = ("boxes", "scores", "labels")
_STAGES = 4
_LARGEST = 2**31 - 2**20  # bytes; a protobuf file ends at 2 GiB


@dataclass(frozen=True)
class ExportResult:
    """What an export made."""

    folder: Path
    onnx_file: Path
    parity: ParityReport
    num_nodes: int
    num_bytes: int
    seconds: float


def export_onnx(
    model: SiamDETR,
    folder: str | Path,
    *,
    images: Sequence[ImageLike] = (),
    progress: Callable[[int, int], None] | None = None,
) -> ExportResult:
    """Export a model into a bundle, checked against PyTorch. Nothing is left half-written; an older bundle stays until then.

    Args:
        model: any variant; it is not changed.
        folder: where the bundle goes; it is made.
        images: pictures to compare on; none: patterns drawn by a fixed seed.
        progress: called with (stages done, stages in all).
    Raises:
        ExportError: letterbox preprocessing, a model over 2 GiB, a folder that cannot be written, a dimension that became
            constant, or a graph that does not compute what PyTorch does (it is then left as model.onnx.rejected).
    """
    started = time.perf_counter()
    tell = progress or (lambda done, total: None)
    _check_exportable(model)
    folder = Path(folder)
    with _workplace(folder) as work:
        tell(0, _STAGES)
        module = end_to_end(model)
        file = work / ONNX_FILE
        _export_graph(module, file)
        tell(1, _STAGES)
        graph = _slim(onnx.load(file), module)
        card = _card(model)
        onnx.helper.set_model_props(graph, {METADATA_KEY: json.dumps(card.to_json())})
        check_free_dimensions(graph, file)
        onnx.save(graph, file)
        tell(2, _STAGES)
        parity = check_parity(model, file, images=images)
        if not parity.passed:
            rejected = folder / f"{ONNX_FILE}.rejected"
            os.replace(file, rejected)
            raise ExportError(f"{rejected}: {parity.failure()}; the graph is kept for a look, and must not be used")
        tell(3, _STAGES)
        _write_companions(work, card, parity)
        num_bytes = file.stat().st_size
        for name in (ONNX_FILE, LABELS_FILE, INFER_FILE, MANIFEST_FILE):  # the manifest last: it vouches for the rest
            os.replace(work / name, folder / name)
    (folder / f"{ONNX_FILE}.rejected").unlink(missing_ok=True)
    tell(_STAGES, _STAGES)
    return ExportResult(
        folder=folder,
        onnx_file=folder / ONNX_FILE,
        parity=parity,
        num_nodes=len(graph.graph.node),
        num_bytes=num_bytes,
        seconds=time.perf_counter() - started,
    )


def check_free_dimensions(graph: onnx.ModelProto, file: Path) -> None:
    """That batch, height and width are free in a graph.

    Raises:
        ExportError: the exporter made one of them constant; the text names it.
    """
    for value in graph.graph.input:
        for dimension, name in zip(value.type.tensor_type.shape.dim, INPUTS[value.name], strict=True):
            if not name.isdigit() and not dimension.dim_param:
                raise ExportError(
                    f"{file}: the exporter made '{name}' of input '{value.name}' constant ({dimension.dim_value}), expected "
                    "it free; some module of the detector computes with that size as a plain number"
                )


def _check_exportable(model: SiamDETR) -> None:
    if model.preprocessing.mode == "letterbox":
        raise ExportError(
            "export: preprocessing 'letterbox' pads images, and the exported graph takes none that are padded; "
            "use 'fixed' or 'shortest-edge'"
        )
    size = sum(p.numel() * p.element_size() for p in (*model.detector.parameters(), *model.detector.buffers()))
    if size > _LARGEST:
        raise ExportError(f"export: the weights take {size / 2**30:.1f} GiB, and one ONNX file holds at most 2")


@contextlib.contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    """A temporary folder inside `folder`, so that finished files move into place without copying."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".export-", dir=folder))
    except OSError as error:
        raise ExportError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _export_graph(module: EndToEnd, file: Path) -> None:
    # A map of one cell is a special case to the exporter, which would start again.
    least = module.settings.coarsest_stride + 1
    batch = torch.export.Dim("batch")
    height, width = torch.export.Dim("height", min=least), torch.export.Dim("width", min=least)
    images = torch.from_numpy(example_images(2, 224, 288))  # batch 1 would become constant
    sizes = torch.tensor([[480, 640], [300, 200]])
    with _quiet():
        torch.onnx.export(
            module,
            (images, sizes),
            str(file),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            dynamic_shapes={"images": {0: batch, 2: height, 3: width}, "original_sizes": {0: batch}},
            external_data=False,
            verbose=False,
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter speaks of its own internals on every channel; what matters is checked on the saved graph."""
    exporters = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [exporter.level for exporter in exporters]
    for exporter in exporters:
        exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for exporter, level in zip(exporters, levels, strict=True):
            exporter.setLevel(level)


def _slim(graph: onnx.ModelProto, module: EndToEnd) -> onnx.ModelProto:
    """The graph simplified, if that changes not one bit of its answers; else as it was."""
    try:
        with _quiet():
            slimmed = onnxslim.slim(onnx.ModelProto.FromString(graph.SerializeToString()))
        same = all(np.array_equal(a, b) for a, b in zip(_answers(graph), _answers(slimmed), strict=True))
    except Exception as error:  # a tool that only makes files smaller must not cost the export
        logger.info("The graph stays as it is: onnxslim failed (%s).", error)
        return graph
    if not same:
        logger.info("The graph stays as it is: onnxslim would change its answers.")
    return slimmed if same else graph


def _answers(graph: onnx.ModelProto) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {"images": example_images(2, 96, 131), "original_sizes": np.array([[480, 640], [300, 200]])}
    return list(session.run(list(OUTPUTS), feed))


def _card(model: SiamDETR) -> ModelCard:
    packages = ("siamdetr", "torch", "onnx", "onnxscript", "onnxslim")
    return ModelCard(
        class_names=model.class_names,
        category_ids=model.category_ids,
        preprocessing=model.preprocessing,
        detector=to_json(model.detector.settings),
        lineage=model.metadata.lineage,
        metrics=model.metadata.metrics,
        versions={name: importlib.metadata.version(name) for name in packages},
    )


def _write_companions(work: Path, card: ModelCard, parity: ParityReport) -> None:
    manifest = {
        **card.to_json(),
        "files": {"model": ONNX_FILE, "labels": LABELS_FILE, "infer": INFER_FILE},
        "opset": OPSET,
        "precision": "fp32",
        "inputs": {
            "images": {
                "type": "uint8",
                "shape": ["batch", 3, "height", "width"],
                "what": "RGB, resized, one size a batch",
            },
            "original_sizes": {"type": "int64", "shape": ["batch", 2], "what": "height, width before resizing"},
        },
        "outputs": {
            "boxes": {"type": "float32", "shape": ["batch", "k", 4], "what": "x0, y0, x1, y1 in original pixels"},
            "scores": {"type": "float32", "shape": ["batch", "k"], "what": "0..1, in no order"},
            "labels": {"type": "int64", "shape": ["batch", "k"], "what": "0..C-1"},
        },
        "parity": {"verdict": "PASS", "tolerance": TOLERANCE, "checks": [asdict(check) for check in parity.checks]},
    }
    (work / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (work / LABELS_FILE).write_text("".join(f"{name}\n" for name in card.class_names), encoding="utf-8")
    shutil.copyfile(infer.__file__, work / INFER_FILE)
