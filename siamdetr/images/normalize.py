"""Normalization of uint8 batches on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor


class PixelBatch(Protocol):
    """A batch that `normalize` takes: of labelled images, or of a pretext."""

    @property
    def images(self) -> Tensor:
        """[B, 3, H, W] uint8 RGB, 0..255."""

    @property
    def padding(self) -> Tensor:
        """[B, H, W] bool, True = padded, not image."""

    def with_pixels(self, images: Tensor, of_crops: Callable[[Tensor], Tensor]) -> Self:
        """The same batch with other images, and with its crops, if any, passed through `of_crops`."""


Batch = TypeVar("Batch", bound=PixelBatch)


def normalize(batch: Batch, mean: Sequence[float], std: Sequence[float]) -> Batch:
    """Normalise the images of a batch, (x/255 - mean) / std, on its device, without synchronisation.

    Args:
        batch: uint8 images, 0..255.
        mean: per channel, of values in 0..1.
        std: per channel, of values in 0..1.
    Returns:
        The batch with float32 images (and crops). Padding is 0 AFTER normalisation, as the official DETR family pads:
        a padded pixel is the mean colour, not black.
    """
    images = normalize_images(batch.images, mean, std).masked_fill_(batch.padding[:, None], 0.0)
    images = images.contiguous(memory_format=torch.channels_last)  # in which convolutions are fastest
    return batch.with_pixels(images, lambda crops: normalize_images(crops, mean, std))


def normalize_images(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x/255 - mean) / std as a new float32 tensor.

    Args:
        images: [..., 3, H, W] uint8.
        mean: per channel, of values in 0..1.
        std: per channel, of values in 0..1.
    Returns:
        [..., 3, H, W] float32.
    Raises:
        ValueError: the images are not uint8 (they may be normalised already).
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"normalize: expected uint8 images, got {images.dtype}; were they normalised before?")
    return images.float().div_(255).sub_(_per_channel(mean, images.device)).div_(_per_channel(std, images.device))


def _per_channel(values: Sequence[float], device: torch.device) -> Tensor:
    """[3, 1, 1]; filled on the device, because a copy from the host would wait for it."""
    return torch.stack([torch.full((1, 1), float(value), device=device) for value in values])
