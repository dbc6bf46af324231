"""Siamese pretraining of detectors whose queries are boxes.

Regions are in the content, there is no denoising, and finetuning takes the weights over.
"""

from __future__ import annotations

import pytest
import torch
from helpers.anchor_detectors import VARIANTS as DENSE
from helpers.anchor_detectors import close, detector
from helpers.view_batches import chosen

from siamdetr.boxes import xyxy_to_cxcywh
from siamdetr.models.criterion.layer_losses import weighted_sum
from siamdetr.pretext.batches import ViewBatch
from siamdetr.pretext.siamese import SiameseDETR
from siamdetr.settings.pretext import SiameseSettings

REGIONS = 3
VARIANTS = [*DENSE, "dab_deformable", "dn_deformable"]


def pretext(variant: str) -> SiameseDETR:
    model = detector(variant, num_classes=2, classifier="softmax")
    return SiameseDETR(model, SiameseSettings(num_regions=REGIONS, crop_size=16))


def views(count: int) -> ViewBatch:
    """View 1 of all samples, then view 2 of all."""
    make = torch.Generator().manual_seed(3)
    low = torch.rand(2 * count, REGIONS, 2, generator=make) * 0.5
    boxes = xyxy_to_cxcywh(torch.cat([low, low + 0.2 + 0.3 * torch.rand(low.shape, generator=make)], dim=-1))
    return ViewBatch(
        images=torch.randn(2 * count, 3, 64, 96, generator=make),
        padding=torch.zeros(2 * count, 64, 96, dtype=torch.bool),
        boxes=boxes,
        sizes=torch.tensor([[64, 96]]).expand(2 * count, 2),
        crops=torch.randn(2 * count, REGIONS, 3, 16, 16, generator=make),
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_image_has_its_own_queries_whatever_the_batch(variant: str) -> None:
    model, batch = pretext(variant).eval(), views(3)
    together, _ = model.predict(batch)
    permuted, _ = model.predict(chosen(batch, [2, 0, 1]))
    close(permuted.boxes, together.boxes[:, [2, 0, 1, 5, 3, 4]])
    single, _ = model.predict(chosen(batch, [1]))
    close(single.boxes, together.boxes[:, [1, 4]])
    close(single.logits, together.logits[:, [1, 4]])
    assert not torch.allclose(together.logits[:, 0], together.logits[:, 1], atol=1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_pretraining_trains_all_but_the_frozen_backbone(variant: str) -> None:
    model = pretext(variant).train()
    losses = model(views(2))
    assert not any("_dn" in name for name in losses)
    weighted_sum(losses, model.loss_weights).backward()
    assert {name for name, one in model.named_parameters() if one.requires_grad and one.grad is None} == set()


@pytest.mark.parametrize("variant", ["dn", "dn_deformable"])
def test_the_channel_that_marks_denoising_stays_zero(variant: str) -> None:
    model = pretext(variant)
    assert model.region_projection.out_features == 31
    seen = []
    model.detector.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].content))
    model(views(2))
    assert seen[0][..., -1].abs().max() == 0
    assert seen[0][..., :-1].abs().max() > 0
