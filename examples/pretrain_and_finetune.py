"""Pretrain on images without labels, finetune on labelled ones, and print the detections.

    python examples/pretrain_and_finetune.py                 # a minute or two; the detector is still a poor one
    python examples/pretrain_and_finetune.py --steps 300     # as long as `siamdetr quickstart`

The data set is drawn: shapes on varied backgrounds. To use your own, set `data.paths` to your folders.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import siamdetr
from siamdetr.data.synthetic.shapes import write_synthetic
from siamdetr.pretext.run_settings import PretrainSettings
from siamdetr.settings.resolve import resolve
from siamdetr.settings.training import FinetuneSettings
from siamdetr.training.finetune import finetune
from siamdetr.training.pretrain import pretrain


def main() -> None:
    """Draw, pretrain, finetune, predict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of each stage")
    parser.add_argument("--output", type=Path, default=Path("runs/example"), help="a folder that does not exist yet")
    asked = parser.parse_args()

    data = write_synthetic(asked.output / "data", num_unlabelled=64, num_train=32, num_val=8)
    common = {"steps": asked.steps, "batch_size": 4}

    flags = {"data.paths": [str(data / "unlabelled")], "output": str(asked.output / "pretrained"), **common}
    pretrained = pretrain(resolve(PretrainSettings, preset="quickstart", flags=flags))

    flags = {"data.paths": [str(data)], "output": str(asked.output / "finetuned"), **common}
    flags["init"] = str(pretrained.folder)
    finetuned = finetune(resolve(FinetuneSettings, preset="quickstart", flags=flags))
    print(f"AP50 on the validation images: {finetuned.metrics.ap50:.3f}" if finetuned.metrics else "not scored")

    model = siamdetr.load(finetuned.folder)
    image = sorted((data / "val").iterdir())[0]
    detections = model.predict(image, threshold=0.1)
    print(f"{image.name}: {len(detections)} detections; see {finetuned.folder / 'report.html'}")


if __name__ == "__main__":
    main()
