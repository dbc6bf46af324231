"""Export a detector to ONNX, measured against PyTorch, and run the exported file.

python examples/export_and_compare.py runs/mine
python examples/export_and_compare.py                       # a detector with random weights
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import siamdetr
from siamdetr.export.onnx import export_onnx
from siamdetr.images.preprocessing import PreprocessingSpec
from siamdetr.models.detector import Detector
from siamdetr.settings.detector import DetectorSettings


def random_detector() -> siamdetr.SiamDETR:
    """A small detector of two classes, to see the path without training."""
    settings = DetectorSettings(
        variant="conditional",
        backbone="resnet18",
        num_classes=2,
        num_queries=20,
        dim=64,
        heads=4,
        encoder_layers=1,
        decoder_layers=2,
        feedforward=128,
    )
    preprocessing = PreprocessingSpec(size=128, max_size=192)
    detector = Detector(settings).eval()
    return siamdetr.SiamDETR.from_parts(detector, class_names=("disc", "square"), preprocessing=preprocessing)


def main() -> None:
    """Export, print what the comparison measured, and predict with both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help="a run folder or a .safetensors file")
    parser.add_argument("--output", type=Path, default=Path("runs/exported"))
    asked = parser.parse_args()

    model = random_detector() if asked.model is None else siamdetr.SiamDETR.load(asked.model)

    result = export_onnx(model, asked.output)  # raises ExportError if the file does not compute what PyTorch does
    print(f"{result.onnx_file}: {result.num_bytes / 1e6:.1f} MB")
    if result.gate is not None:
        print(f"gate: {'PASS' if result.gate.passed else 'FAIL'}, largest error {result.gate.largest_error:.1e}")

    exported = siamdetr.load(asked.output)  # ONNX Runtime
    image = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    counts = [len(detector.predict(image, threshold=0.01)) for detector in (model, exported)]
    print(f"detections: {counts[0]} by PyTorch, {counts[1]} by ONNX Runtime")


if __name__ == "__main__":
    main()
