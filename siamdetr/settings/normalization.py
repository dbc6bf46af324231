"""How pixel values are normalised: as they were where the weights were trained."""

from __future__ import annotations

from pydantic import Field, model_validator

from siamdetr.settings.base import Settings

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB, of values in 0..1
IMAGENET_STD = (0.229, 0.224, 0.225)


class NormalizationSettings(Settings):
    """(value - mean) / std of pixel values in 0..1; with `init`, what is not said is as in that model."""

    mean: tuple[float, float, float] = Field(IMAGENET_MEAN, description="RGB, of values in 0..1")
    std: tuple[float, float, float] = Field(IMAGENET_STD, description="RGB, of values in 0..1; 1: not divided")

    @model_validator(mode="after")
    def _std_above_zero(self) -> NormalizationSettings:
        if min(self.std) <= 0:
            raise ValueError(f"normalization: std must be above 0, got {self.std}")
        return self
