"""DAB-DETR and DN-DETR equal the official implementations, read through the importer.

Forward, denoising, losses and gradients.
"""

from __future__ import annotations

import pytest
import torch
from helpers.golden import batch_of, denoising_of, detector_of, near, read, train_like_the_official_one


@pytest.mark.parametrize(("name", "family"), [("A_dab", "dab-detr"), ("A_dn", "dn-detr")])
def test_forward_equals_the_official_one(name: str, family: str) -> None:
    meta, stored = read(name)
    detector, (images, padding) = detector_of(meta, family).eval(), batch_of(meta)
    with torch.no_grad():
        memory = detector.encode(images, padding)
        outputs = detector.decode(detector.queries(len(images)), memory)
    near(memory.tokens.transpose(0, 1), stored["encoder_memory"], 5e-4)
    near(outputs.logits, torch.cat([stored["aux_logits"], stored["pred_logits"][None]]), 1e-3)
    near(outputs.boxes, torch.cat([stored["aux_boxes"], stored["pred_boxes"][None]]), 2e-4)
    assert outputs.denoised is None


@pytest.mark.parametrize("name", ["C_dn", "C_dn_emptyimage"])
def test_denoising_queries_equal_the_official_ones(name: str) -> None:
    meta, stored = read(name)
    queries = detector_of(meta, "dn-detr").training_queries(*denoising_of(meta, stored))
    assert queries.anchors is not None
    assert queries.attention_mask is not None
    near(queries.content.transpose(0, 1), stored["dn/label_query"], 1e-6)
    near(queries.anchors.logit().transpose(0, 1), stored["dn/box_query"], 1e-4)
    assert queries.attention_mask.tolist() == stored["dn/attn_mask"].tolist()
    assert queries.num_denoising == stored["dn/pad_size"]


@pytest.mark.parametrize("name", ["C_dn", "C_dn_emptyimage"])
def test_denoising_training_step_equals_the_official_one(name: str) -> None:
    train_like_the_official_one(read(name), "dn-detr")
