"""Golden cases of the official code."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from golden.golden_fill import fill, make_images
from golden.golden_io import load
from torch import Tensor

from helpers.paths import GOLDEN
from siamdetr.models.criterion.layer_losses import weighted_sum
from siamdetr.models.denoising import Draws, group_count
from siamdetr.models.detector import Detector
from siamdetr.models.query_selection import best_cells, propose
from siamdetr.official.convert import IMPORTERS, load_criterion, load_official
from siamdetr.official.rules import UNUSED_ROW, UNUSED_ROWS, translate
from siamdetr.settings.detector import DenoisingSettings
from siamdetr.structures.model import Memory, Outputs
from siamdetr.structures.targets import Targets

Case = tuple[dict[str, Any], dict[str, Tensor]]


def read(name: str) -> Case:
    meta, arrays = load(GOLDEN / f"{name}.npz")
    return meta, {key: torch.from_numpy(np.asarray(value)) for key, value in arrays.items()}


def detector_of(meta: dict[str, Any], family: str) -> Detector:
    weights = fill(dict(meta["state_dict"]), meta["aliases"])
    detector = load_official(weights, family=family, arguments=meta["spec"]["model"])
    assert isinstance(detector, Detector)
    return detector


def batch_of(meta: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Images [B, 3, H, W], zero padded right and below, and padding [B, H, W]."""
    images = [torch.from_numpy(image) for image in make_images(meta["spec"]["sizes"], meta["spec"]["seed"])]
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    batch, padding = torch.zeros(len(images), 3, height, width), torch.ones(len(images), height, width)
    for index, image in enumerate(images):
        batch[index, :, : image.shape[1], : image.shape[2]] = image
        padding[index, : image.shape[1], : image.shape[2]] = 0
    return batch, padding.bool()


def denoising_of(meta: dict[str, Any], stored: dict[str, Tensor]) -> tuple[Targets, DenoisingSettings, Draws]:
    """The official code draws new labels for the replaced ones only."""
    noise = meta["spec"]["dn"]
    settings = DenoisingSettings(
        groups=noise["scalar"], label_noise=noise["label_noise_scale"], box_noise=noise["box_noise_scale"]
    )
    chance = stored["draw/label_p"]
    new = torch.zeros(len(chance), dtype=torch.int64)
    new[chance < settings.label_noise] = stored["draw/label_new"]
    images = range(len(meta["spec"]["sizes"]))
    targets = Targets.from_lists(
        [stored[f"target_boxes_{i}"] for i in images], [stored[f"target_labels_{i}"] for i in images]
    )
    return targets, settings, Draws(chance, new, stored["draw/box_u"])


def near(ours: Tensor, stored: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours.detach(), stored, rtol=0, atol=tolerance)


def official_loss(name: str) -> str:
    name = name.replace("loss_class", "loss_ce")
    return "tgt_" + name.replace("_dn", "") if "_dn" in name else name


def train_like_the_official_one(case: Case, family: str) -> None:
    """One step with the official code's draws: outputs, losses, and the gradients that are not noise."""
    meta, stored = case
    detector = detector_of(meta, family).train()
    targets, settings, draws = denoising_of(meta, stored)
    outputs = detector(*batch_of(meta), detector.training_queries(targets, settings, draws))
    step_like_the_official_one(case, family, detector, outputs, targets, official_loss)


def step_like_the_official_one(
    case: Case,
    family: str,
    detector: Detector,
    outputs: Outputs,
    targets: Targets,
    official_name: Callable[[str], str],
) -> None:
    """Outputs, losses, their sum and its gradients equal those of a golden training step."""
    meta, stored = case
    near(outputs.logits, torch.cat([stored["aux_logits"], stored["pred_logits"][None]]), 1e-3)
    near(outputs.boxes, torch.cat([stored["aux_boxes"], stored["pred_boxes"][None]]), 2e-4)
    near(outputs.denoised.logits, stored["dn/out_logits"], 1e-3)
    near(outputs.denoised.boxes, stored["dn/out_boxes"], 2e-4)

    criterion = load_criterion(family, meta["spec"]["criterion"])
    losses = criterion(outputs, targets)
    assert {official_name(key): weight for key, weight in criterion.weights.items()} == meta["weight_dict"]
    ours = {official_name(key): value for key, value in losses.items()}
    assert {f"loss/{key}" for key in ours} == {key for key in stored if key.startswith("loss/")}
    for key, value in ours.items():
        torch.testing.assert_close(value.detach(), stored[f"loss/{key}"], rtol=1e-4, atol=1e-6, msg=key)
    total = weighted_sum(losses, criterion.weights)
    torch.testing.assert_close(total.detach(), stored["total"], rtol=1e-4, atol=0)
    total.backward()
    gradients_equal_the_official_ones(case, family, detector)


@torch.no_grad()
def two_stage_forward_like_the_official_one(case: Case, family: str, *, padded: bool) -> Memory:
    """Memory, predictions, proposals and the chosen cells equal the official ones; returns the memory."""
    meta, stored = case
    detector, (images, padding) = detector_of(meta, family).eval(), batch_of(meta)
    memory = detector.encode(images, padding if padded else None)
    outputs = detector.decode(detector.queries(len(images)), memory)
    near(memory.tokens[..., :: meta["channel_step"]["encoder_memory"]], stored["encoder_memory"], 5e-4)
    near(outputs.logits, torch.cat([stored["aux_logits"], stored["pred_logits"][None]]), 1e-3)
    near(outputs.boxes, torch.cat([stored["aux_boxes"], stored["pred_boxes"][None]]), 2e-4)
    assert outputs.proposals is not None
    near(outputs.proposals.logits[0], stored["enc_logits"], 1e-3)
    near(outputs.proposals.boxes[0], stored["enc_boxes"], 2e-4)

    proposer = detector.decoder.proposer
    proposed = propose(memory, detector.heads, lambda tokens: proposer.norm(proposer.project(tokens)))
    cells = best_cells(proposed.logits.amax(-1), stored["enc_index"].shape[1])
    assert cells.tolist() == stored["enc_index"].tolist()
    return memory


def contrastive_queries_like_the_official_ones(
    case: Case, family: str, denoising: tuple[Targets, DenoisingSettings, Draws]
) -> Tensor:
    """Number, contents and mask of the denoising queries equal the official ones; returns their anchors."""
    meta, stored = case
    targets, settings, draws = denoising
    queries = detector_of(meta, family).train().training_queries(targets, settings, draws)
    pad = int(stored["dn/pad_size"])
    assert group_count(settings, targets) == stored["dn/groups"]
    assert queries.num_denoising == pad
    assert queries.anchors is not None
    assert queries.attention_mask is not None
    near(queries.content[:, :pad, :: meta["channel_step"]["dn/label_query"]], stored["dn/label_query"], 1e-6)
    assert queries.attention_mask.tolist() == stored["dn/attn_mask"].tolist()
    return queries.anchors


def gradients_equal_the_official_ones(case: Case, family: str, detector: Detector) -> None:
    """Compare the norm of each parameter's gradient, except those that are noise."""
    meta, stored = case
    parameters, rules = dict(detector.named_parameters()), IMPORTERS[family].rules(detector)
    largest, compared = float(stored["grad_norms"].max()), 0
    for official, norm in zip(meta["grad_names"], stored["grad_norms"].tolist(), strict=True):
        name = re.sub(r"transformer\.decoder\.(class|bbox)_embed", r"\1_embed", official)
        places = translate(name, rules)
        assert isinstance(places, tuple), official
        own = [parameters[place].grad for place in places if place not in (UNUSED_ROW, UNUSED_ROWS)]
        found = torch.stack([gradient.norm() for gradient in own if gradient is not None]).norm()
        if norm >= 1e-3 * largest:
            assert float(found) == pytest.approx(norm, rel=1e-2), official
            compared += 1
    assert compared > 100
