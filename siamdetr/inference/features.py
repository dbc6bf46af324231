"""Features of whole images: the mean of the encoder's output, by which images are compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from siamdetr.images.preprocessing import Prepared, batches
from siamdetr.inference.pytorch import PyTorchPredictor, evaluating
from siamdetr.system.progress import Progress


def image_features(predictor: PyTorchPredictor, batch: Prepared) -> NDArray[np.float32]:
    """[B, D] mean of the encoded image's tokens, padded ones left out."""
    with evaluating(predictor.detector), torch.inference_mode():
        memory, _ = predictor.encode_and_decode(batch)
        tokens = memory.tokens.float()
        if memory.padding is None:
            means = tokens.mean(1)
        else:
            seen = (~memory.padding).float()[..., None]
            means = (tokens * seen).sum(1) / seen.sum(1).clamp(min=1)
        return means.cpu().numpy()


def features_of_files(
    predictor: PyTorchPredictor, files: Sequence[Path], *, batch_size: int = 8, progress: Progress | None = None
) -> NDArray[np.float32]:
    """[N, D] features of image files, in their order.

    Raises:
        ImageError: a file cannot be used.
    """
    features = np.zeros((len(files), predictor.detector.settings.dim), dtype=np.float32)
    done = 0
    for positions, batch in batches(list(files), predictor.preprocessing, batch_size):
        features[list(positions)] = image_features(predictor, batch)
        done += len(positions)
        if progress is not None:
            progress(done, len(files))
    return features
