"""Properties of every detector in the registry: an image is independent of others and of its padding."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from helpers.detectors import padded_batch
from torch import Tensor, nn

from siamdetr.models.deformable.attention import DeformableAttention
from siamdetr.models.detector import Detector
from siamdetr.models.heads import each_head
from siamdetr.settings.detector import DetectorSettings
from siamdetr.settings.registry import DETECTORS
from siamdetr.structures.model import Outputs, Queries

# Every detector; of those with several levels with three, and the forms of Deformable DETR.
FORMS: dict[str, dict[str, Any]] = {
    variant: {"variant": variant} | ({"levels": 3} if entry.multi_scale else {}) for variant, entry in DETECTORS.items()
}
DEFORMABLE: dict[str, Any] = {"variant": "deformable", "levels": 4}
FORMS |= {
    "deformable, one level": {"variant": "deformable"},
    "deformable, refine": {**DEFORMABLE, "refine": True},
    "deformable, two-stage": {**DEFORMABLE, "refine": True, "two_stage": True},
}
PADDING_INVARIANT = [
    form
    for form, values in FORMS.items()
    if DETECTORS[values["variant"]].padding_invariant and not values.get("two_stage")
]


def build(form: str) -> Detector:
    """A small one whose outputs depend on everything."""
    torch.manual_seed(0)
    values = {
        "backbone": "test_resnet.r160_in1k", "num_classes": 3, "num_queries": 6, "dim": 32, "heads": 4,
        "encoder_layers": 1, "decoder_layers": 2, "feedforward": 32, "dropout": 0.0,
    }  # fmt: skip
    detector = Detector(DetectorSettings.model_validate(values | FORMS[form])).eval()
    for head in each_head(detector.box_head):
        for parameter in head.parameters():
            nn.init.normal_(parameter, std=0.2)
    for module in detector.modules():
        if isinstance(module, DeformableAttention):
            nn.init.normal_(module.offsets.weight, std=0.1)
            nn.init.normal_(module.weights.weight, std=0.3)
    return detector


def own_queries(detector: Detector) -> Queries:
    """Queries that differ from image to image, as a pretext makes them."""
    queries, generator = detector.queries(3), torch.Generator().manual_seed(2)

    def moved(values: Tensor | None, channels: int) -> Tensor | None:
        if values is None:
            return None
        noise = torch.randn(*values.shape[:2], channels, generator=generator)
        return values + nn.functional.pad(noise, (0, values.shape[-1] - channels))

    width = detector.region_width
    content, position = moved(queries.content, width), moved(queries.position, width)
    assert content is not None
    factors = torch.tensor([1.0, 0.7, 0.4])[:, None, None]
    anchors = None if queries.anchors is None else queries.anchors * factors
    return dataclasses.replace(queries, content=content, position=position, anchors=anchors)


def of_images(queries: Queries, images: list[int]) -> Queries:
    """The queries of some of the images."""
    parts = {name: getattr(queries, name) for name in ("content", "position", "anchors")}
    return dataclasses.replace(queries, **{name: part[images] for name, part in parts.items() if part is not None})


def same(found: Outputs, expected: Outputs, images: list[int] | None = None) -> None:
    for name in ("logits", "boxes", "hidden"):
        wanted = getattr(expected, name)
        wanted = wanted if images is None else wanted[:, images]
        torch.testing.assert_close(getattr(found, name), wanted, rtol=0, atol=3e-5)


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_permuting_the_batch_permutes_the_outputs(form: str) -> None:
    detector, (images, padding), order = build(form), padded_batch(), [2, 0, 1]
    queries = own_queries(detector)
    plain = detector(images, padding, queries)
    same(detector(images[order], padding[order], of_images(queries, order)), plain, order)
    assert (plain.boxes[:, 0] - plain.boxes[:, 1]).abs().max() > 1e-3


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_batched_equals_single(form: str) -> None:
    """Of the same padded size: a convolution sees the zeros beyond the image in either case."""
    detector, (images, padding) = build(form), padded_batch()
    queries = own_queries(detector)
    together = detector(images, padding, queries)
    for index in range(3):
        alone = detector(images[[index]], padding[[index]], of_images(queries, [index]))
        same(alone, together, [index])


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_no_mask_equals_a_mask_without_padding(form: str) -> None:
    detector, (images, padding) = build(form), padded_batch()
    same(detector(images), detector(images, torch.zeros_like(padding)))


@pytest.mark.parametrize("form", PADDING_INVARIANT)
@torch.no_grad()
def test_more_padding_changes_nothing(form: str) -> None:
    """Of the projected maps.

    What convolutions see beyond the image (zeros, or features of zeros) does change.
    """
    detector = build(form)
    image = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(3))
    projected = detector.input_projection(detector.backbone(image))
    wide, padding = [], torch.ones(1, 256, 192).bool()
    padding[:, :128, :128] = False
    for level in projected:
        cells = level.shape[-1]
        larger = torch.randn(1, level.shape[1], 2 * cells, cells * 3 // 2 + cells % 2)
        larger[:, :, :cells, :cells] = level
        wide.append(larger)
    memory, padded = detector.encoder(projected, None), detector.encoder(tuple(wide), padding)
    same(detector.decode(detector.queries(1), padded), detector.decode(detector.queries(1), memory))
