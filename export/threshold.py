"""Store the threshold that was chosen on labelled images, in any file of ours.

Every program that reads the file then uses it.
"""

from __future__ import annotations

import json
from pathlib import Path

from siamdetr.errors import ExportError
from siamdetr.export.bundle import (
    METADATA_KEY,
    digest_file,
    find_onnx,
    read_card,
    read_manifest,
    workplace,
    write_manifest,
)
from siamdetr.files import MANIFEST_FILE, ONNX_FILE, kind_of
from siamdetr.model_file import store_threshold as store_in_model_file
from siamdetr.system.atomic_file import atomic_bytes, move_into_place


def store_threshold(path: str | Path, threshold: float, source: str) -> Path:
    """Write a threshold into a model file, an .onnx file, or the graph and manifest of a bundle.

    Weights and the gate's measurements stay: they do not depend on the threshold.

    Args:
        path: as for `siamdetr.load`.
        threshold: the score from which a box counts, in [0, 1].
        source: how it was chosen, for people.
    Returns:
        The file or bundle that was changed.
    Raises:
        CheckpointError: a model file that cannot be read or written.
        ExportError: the same for an exported file, or a bundle whose graph has another digest than the manifest's.
    """
    path = Path(path)
    kind = kind_of(path)
    if kind == "engine":
        return _store_in_bundle(path.parent, threshold, source)
    if kind == "bundle" and (path / MANIFEST_FILE).is_file():
        return _store_in_bundle(path, threshold, source)
    if kind not in ("onnx", "bundle"):
        return store_in_model_file(path, threshold, source)
    file = find_onnx(path)
    if file.name == ONNX_FILE and (file.parent / MANIFEST_FILE).is_file():
        return _store_in_bundle(file.parent, threshold, source)
    atomic_bytes(file, _graph_with(file, threshold, source))
    return file


def _store_in_bundle(folder: Path, threshold: float, source: str) -> Path:
    """Store the threshold in graph and manifest; both are written before either is replaced."""
    _, manifest = read_manifest(folder)
    with workplace(folder) as work:
        atomic_bytes(work / ONNX_FILE, _graph_with(folder / ONNX_FILE, threshold, source))
        manifest |= {"threshold": threshold, "threshold_from": source}
        manifest["sha256"][ONNX_FILE] = digest_file(work / ONNX_FILE)
        if "reading_detections" in manifest:  # bundles of siamdetr 0.1.0 have none
            manifest["reading_detections"]["threshold"] = threshold
        write_manifest(work / MANIFEST_FILE, manifest)
        move_into_place(work / ONNX_FILE, folder / ONNX_FILE)
        move_into_place(work / MANIFEST_FILE, folder / MANIFEST_FILE)
    return folder


def _graph_with(file: Path, threshold: float, source: str) -> bytes:
    """The bytes of a graph whose metadata names the threshold."""
    import onnx  # a model file's threshold is stored without

    try:
        graph = onnx.load(file)
    except Exception as error:  # protobuf's exceptions share no base but this
        raise ExportError(f"{file}: not a whole ONNX file ({error}); export it again") from error
    texts = {entry.key: entry.value for entry in graph.metadata_props}
    read_card(texts.get(METADATA_KEY), file)
    card = {**json.loads(texts[METADATA_KEY]), "threshold": threshold, "threshold_from": source}
    onnx.helper.set_model_props(graph, {**texts, METADATA_KEY: json.dumps(card)})
    data: bytes = graph.SerializeToString()
    return data
