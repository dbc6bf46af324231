"""Files that matter are written through `system/atomic_file`: read off the syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from house.test_layers import modules

WRITING_METHODS = {"write_text", "write_bytes", "savefig", "save", "copyfile", "copytree", "imwrite", "to_csv", "dump"}
ATOMIC = {"atomic_write", "atomic_text", "atomic_bytes"}

# Calls that may stand elsewhere: (module, call) and why a half-written file harms nobody, or why there is no file.
EXCEPTIONS = {
    ("siamdetr.system.atomic_file", "temporary.open"): "this is the place",
    (
        "siamdetr.training.metrics_log",
        "self._path.open",
    ): "appends one row; a torn last row is dropped by the next session",
    ("siamdetr.training.callbacks.saver", "self.save"): "its own method",
    ("siamdetr.cli.attention", "figure.savefig"): "into memory: matplotlib insists on a real file or this",
    ("siamdetr.export.timing.benchmark", "figure.savefig"): "into memory",
    ("siamdetr.drawing.html_page", "figure.savefig"): "into memory",
    ("siamdetr.drawing.plot", "figure.savefig"): "into memory",
    ("siamdetr.training.pictures", "figure.savefig"): "into memory",
    ("siamdetr.training.pictures", "pair.convert('RGB').save"): "into memory",
    ("siamdetr.drawing.crops", "picture.save"): "into memory",
    ("siamdetr.serve.demo.answers", "shown.save"): "into memory, for the answer",
    ("siamdetr.export.client", "json.dump"): "to the terminal; the file stands alone",
    ("siamdetr.export.infer", "json.dump"): "to the terminal; the file stands alone",
    ("siamdetr.export.onnx", "onnx.save"): "a probe in the temporary folder of an export",
    ("siamdetr.export.onnx", "shutil.copyfile"): "into the temporary folder of an export; then moved into place",
    ("siamdetr.export.int8.quantize", "onnx.save"): "in the temporary folder of an export",
    ("siamdetr.export.timing.runtimes", "onnx.save"): "in the temporary folder of an export",
    ("siamdetr.cli.label", "contact_sheet(pictures).save"): "into memory; written whole after that",
    (
        "siamdetr.reports.prediction_pictures",
        "boxes.draw(result.image, result.detections).save",
    ): "into memory; written whole after that",
    ("siamdetr.system.file_lock", "file.write_text"): "the owner's name in a lock file, for other people to read",
    ("siamdetr.reports.annotated_video", "parts[1].open"): "a .part file, which takes its name when it is finished",
    ("siamdetr.inference.video", "av.open"): "a video grows frame by frame, and is whole once it is closed",
    (
        "siamdetr.labelling.folder",
        "shutil.copyfile",
    ): "copies of the user's images; the annotations that name them come after",
    ("siamdetr.training.checkpoints.checkpoint_file", "torch.save"): "into the file that atomic_write has given",
    ("siamdetr.cli.export", "shutil.copytree"): "a copy of a bundle, whose manifest vouches for each file",
}


def writing_calls(path: Path) -> Iterator[str]:
    """Calls that write a file and do not stand inside a call of `atomic_write`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    inside = {id(below) for call in calls if ast.unparse(call.func) in ATOMIC for below in ast.walk(call)}
    for call in calls:
        name = ast.unparse(call.func)
        method = call.func.attr if isinstance(call.func, ast.Attribute) else name
        if id(call) not in inside and (method in WRITING_METHODS or (method == "open" and _writes(call))):
            yield name


def _writes(call: ast.Call) -> bool:
    texts = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    modes = [node.value for node in texts if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return any(set(mode) <= set("rwaxbt+") and set(mode) & set("wax+") for mode in modes)


def test_every_file_is_written_atomically() -> None:
    found = {(module, call) for module, path in modules() for call in writing_calls(path)}
    strange = sorted(found - EXCEPTIONS.keys())
    assert not strange, f"{strange}: write through siamdetr.system.atomic_file, or say in EXCEPTIONS why not"
    assert not EXCEPTIONS.keys() - found, "exceptions that nothing needs any more"
