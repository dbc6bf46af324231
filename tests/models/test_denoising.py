"""Denoising queries: made from targets, hidden from all others, with own losses, only in training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.anchor_detectors import close, detector, images
from helpers.loss_cases import targets as random_targets

from siamdetr.models.criterion.layer_losses import weighted_sum
from siamdetr.models.criterion.losses import DetectionCriterion
from siamdetr.models.denoising import Draws, add_noise, denoising_slots, group_mask, prepend_denoising
from siamdetr.models.detector import Detector
from siamdetr.settings.detector import DenoisingSettings, LossSettings
from siamdetr.structures.model import Outputs, Queries
from siamdetr.structures.targets import Targets

TWO_GROUPS = DenoisingSettings(groups=2, label_noise=0.5, box_noise=0.4)
CPU = torch.device("cpu")
VARIANTS = ["dn", "dn_deformable"]


def targets(counts: list[int]) -> Targets:
    found = random_targets(counts)
    return Targets(found.boxes, found.labels % 3, found.counts)


def criterion(model: Detector) -> DetectionCriterion:
    shape = model.settings
    return DetectionCriterion(LossSettings(), shape.classifier, 3, num_layers=3, denoising=model.denoises)


def test_groups_see_themselves_and_the_matching_queries() -> None:
    mask = group_mask(2, 2, 1, CPU)  # a a b b m
    open_to = [[j for j in range(5) if not mask[i, j]] for i in range(5)]
    assert open_to == [[0, 1, 4], [0, 1, 4], [2, 3, 4], [2, 3, 4], [4]]


def test_slots_follow_group_image_and_box() -> None:
    image, slot = denoising_slots((1, 0, 2), 2, CPU)
    assert image.tolist() == [0, 2, 2, 0, 2, 2]
    assert slot.tolist() == [0, 0, 1, 2, 2, 3]


def test_noise_moves_by_the_drawn_share_and_replaces_the_drawn_labels() -> None:
    one = Targets(torch.tensor([[0.5, 0.5, 0.2, 0.4]]), torch.tensor([1]), (1,))
    draws = Draws(torch.tensor([0.4, 0.6]), torch.tensor([2, 2]), torch.tensor([[1.0, 0.5, 0.0, 0.5], [0.5] * 4]))
    labels, boxes = add_noise(one, TWO_GROUPS, draws)
    assert labels.tolist() == [2, 1]
    close(boxes, torch.tensor([[0.5 + 0.4 * 0.1, 0.5, 0.2 - 0.4 * 0.2, 0.4], [0.5, 0.5, 0.2, 0.4]]))


def test_draws_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"2 groups of 3 boxes need draws for 6, got 5; draw with Draws.sample\(6"):
        add_noise(targets([3]), TWO_GROUPS, Draws.sample(5, 3, device=CPU))


def test_queries_without_anchors_are_refused() -> None:
    plain = Queries(content=torch.zeros(1, 4, 8), position=None)
    with pytest.raises(ValueError, match=r"expected queries with anchors .* got None; denoising needs a DAB variant"):
        prepend_denoising(
            plain, targets([1]), label_content=torch.zeros(1, 7), noised_boxes=torch.zeros(1, 4), groups=1
        )


def test_same_generator_same_draws() -> None:
    first, second = (Draws.sample(4, 3, device=CPU, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first.new_label, second.new_label)
    assert torch.equal(first.box_shift, second.box_shift)


@pytest.mark.parametrize("patterns", [0, 2])
@pytest.mark.parametrize("variant", VARIANTS)
def test_matching_queries_answer_as_if_there_were_no_denoising(variant: str, patterns: int) -> None:
    model = detector(variant, num_patterns=patterns).train()
    found = model(images(), None, model.training_queries(targets([3, 1]), TWO_GROUPS))
    alone = model(images())
    close(found.boxes, alone.boxes)
    close(found.logits, alone.logits)
    assert found.denoised.boxes.shape == (3, 2, 6, 4)
    assert alone.denoised is None


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_group_answers_alike_whatever_the_other_group_holds(variant: str) -> None:
    model, wanted = detector(variant).eval(), targets([2, 2])
    draws = Draws.sample(8, 3, device=CPU)
    other = replace(draws, box_shift=torch.cat([draws.box_shift[:4], draws.box_shift[4:].flip(0)]))
    first, second = (model(images(), None, model.training_queries(wanted, TWO_GROUPS, one)) for one in (draws, other))
    close(first.denoised.boxes[:, :, :2], second.denoised.boxes[:, :, :2])
    assert not torch.allclose(first.denoised.boxes[:, :, 2:], second.denoised.boxes[:, :, 2:])


@pytest.mark.parametrize("counts", [[3, 0], [0, 0]])
@pytest.mark.parametrize("classifier", ["focal", "softmax"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_images_without_objects_train(variant: str, counts: list[int], classifier: str) -> None:
    model = detector(variant, classifier=classifier).train()
    rule = criterion(model)
    losses = rule(model(images(), None, model.training_queries(targets(counts), TWO_GROUPS)), targets(counts))
    total = weighted_sum(losses, rule.weights)
    total.backward()
    assert total.isfinite()
    assert (losses["loss_bbox_dn_0"] > 0) == (sum(counts) > 0)
    assert {f"{name}{layer}" for name in ("loss_class_dn", "class_error_dn") for layer in ("", "_0", "_1")} <= set(
        losses
    )


def test_denoising_losses_of_perfect_answers_vanish() -> None:
    wanted = targets([2, 1])
    image, slot = denoising_slots(wanted.counts, 2, CPU)
    logits, boxes = torch.full((3, 2, 4, 3), -30.0), torch.full((3, 2, 4, 4), 0.5)
    logits[:, image, slot, wanted.labels.repeat(2)] = 30.0
    boxes[:, image, slot] = wanted.boxes.repeat(2, 1)
    model = detector("dn")
    hidden = torch.zeros(3, 2, 4, 1)
    losses = criterion(model)(replace(model(images()), denoised=Outputs(logits, boxes, hidden)), wanted)
    for name in ("loss_class_dn", "loss_bbox_dn", "loss_giou_dn_1", "class_error_dn"):
        assert float(losses[name].detach()) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_groups_and_other_variants_mean_the_learned_queries(variant: str) -> None:
    nothing: Any = DenoisingSettings(groups=0)
    assert detector(variant).training_queries(targets([2, 1]), nothing).num_denoising == 0
    dab = detector("dab")
    assert not dab.denoises
    assert dab.training_queries(targets([2, 1]), TWO_GROUPS).content.shape == (2, 6, 32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU to see that it is never waited for")
def test_denoising_never_waits_for_the_device() -> None:
    model, wanted = detector("dn").cuda(), targets([3, 1]).to("cuda")
    rule, pixels = criterion(model), images().cuda()
    for mode in ("default", "error"):  # the first pass may load kernels
        torch.cuda.set_sync_debug_mode(mode)
        try:
            outputs = model(pixels, None, model.training_queries(wanted, TWO_GROUPS))
            losses = rule._denoising_losses(outputs.denoised, wanted, 4.0, outputs.logits)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert losses["loss_bbox_dn"].isfinite().all()
