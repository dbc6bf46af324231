"""Draw where the decoder looked for its best detections, and measure how spread out that is.

python examples/where_it_looked.py runs/mine photo.jpg
python examples/where_it_looked.py                          # random weights and a drawn image
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

import siamdetr
from siamdetr.data.synthetic.shapes import write_synthetic
from siamdetr.drawing.attention import FigureOptions, attention_figure


def main() -> None:
    """Open a model, inspect an image, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help="a run folder or a .safetensors file")
    parser.add_argument("image", nargs="?", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/where-it-looked"))
    asked = parser.parse_args()

    model = siamdetr.SiamDETR("conditional", backbone="resnet18", num_classes=2)
    if asked.model is not None:
        model = siamdetr.SiamDETR.load(asked.model)
    path = asked.image
    if path is None:
        data = write_synthetic(asked.output / "data", num_unlabelled=1, num_train=0, num_val=0)
        path = next((data / "unlabelled").iterdir())
    image = Image.open(path).convert("RGB")

    inspection = model.inspect(image)
    best = int(inspection.scored.scores[0].argmax())
    attention = inspection.decoder_attention(best)  # attention maps [layers, heads, h, w]
    last = attention.maps[-1].mean(axis=0)  # the last layer, mean of its heads
    entropy = -(last * np.log(last.clip(1e-12))).sum() / np.log(last.size)
    print(f"best score {inspection.scored.scores[0, best]:.3f}; entropy of its attention {entropy:.2f} (1 is uniform)")

    figure = attention_figure(image, inspection, model.class_names, FigureOptions(boxes=3))
    asked.output.mkdir(parents=True, exist_ok=True)
    figure.savefig(asked.output / "attention.png", dpi=150)
    print(f"figure: {asked.output / 'attention.png'}")


if __name__ == "__main__":
    main()
