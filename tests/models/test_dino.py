"""DINO: the encoder chooses where queries start, and denoising has positives and negatives."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers.anchor_detectors import close, detector, images
from helpers.loss_cases import targets as random_targets
from torch.nn import Parameter

from siamdetr.boxes import cxcywh_to_xyxy
from siamdetr.models.contrastive_denoising import add_contrastive_noise
from siamdetr.models.criterion.layer_losses import weighted_sum
from siamdetr.models.criterion.losses import DetectionCriterion
from siamdetr.models.denoising import Draws, denoising_slots, group_count
from siamdetr.models.detector import Detector
from siamdetr.settings.detector import DenoisingSettings, LossSettings
from siamdetr.structures.model import Outputs
from siamdetr.structures.targets import Targets
from siamdetr.training.pretrain_module import class_agnostic

TWO_GROUPS = DenoisingSettings(groups=2, label_noise=0.5, box_noise=0.4)
CPU = torch.device("cpu")


def model(**changes: object) -> Detector:
    return detector("dino", **{"levels": 3, **changes})


def targets(counts: list[int]) -> Targets:
    found = random_targets(counts)
    return Targets(found.boxes, found.labels % 3, found.counts)


def criterion(made: Detector) -> DetectionCriterion:
    return DetectionCriterion.of_detector(made.settings, LossSettings(), supervised=True)


def test_queries_start_from_the_best_proposals_and_not_from_their_gradient() -> None:
    made = model().eval()
    memory = made.encode(images())
    decoded = made.decoder(made.queries(2), memory, made.heads)
    assert decoded.proposals is not None
    torch.testing.assert_close(decoded.references[0], decoded.proposals.boxes[0])
    of_layers, of_proposals = (list(head.parameters()) for head in made.box_head.heads)

    def gradient(layer: int, parameters: list[Parameter]) -> float:
        found = torch.autograd.grad(decoded.references[layer].sum(), parameters, retain_graph=True, allow_unused=True)
        return sum(float(one.abs().sum()) for one in found if one is not None)

    assert gradient(0, of_proposals) == 0
    assert gradient(1, of_layers) > 0  # look forward twice
    scores = decoded.proposals.logits[0].amax(-1)
    assert (scores.diff(dim=1) <= 0).all()


def test_of_an_image_with_fewer_cells_than_queries_every_cell_is_a_query() -> None:
    made = model(num_queries=500)
    outputs = made(images(1))
    assert outputs.logits.shape[2] == outputs.boxes.shape[2] == 126
    queries = dataclasses.replace(made.queries(1), attention_mask=torch.zeros(500, 500, dtype=torch.bool))
    with pytest.raises(ValueError, match="500 queries are chosen from the feature cells, got 126 cells; take larger"):
        made.decode(queries, made.encode(images(1)))


def test_a_score_leaves_no_object_out_of_a_softmax_head() -> None:
    made = model(classifier="softmax").eval()
    memory = made.encode(images())
    first = made.decode(made.queries(2), memory).proposals
    with torch.no_grad():
        made.class_head.heads[-1].bias[-1] += 100
    second = made.decode(made.queries(2), memory).proposals
    close(first.boxes, second.boxes)


def test_groups_are_counted_by_queries_or_as_they_are() -> None:
    wanted = targets([3, 5])
    assert group_count(DenoisingSettings(queries=100), wanted) == 20
    assert group_count(DenoisingSettings(queries=4), wanted) == 1
    assert group_count(DenoisingSettings(groups=7), wanted) == 7
    assert group_count(DenoisingSettings(queries=100), targets([0, 0])) == 0


def test_positives_move_less_than_half_a_size_and_negatives_further() -> None:
    box = torch.tensor([[0.5, 0.5, 0.2, 0.2]])
    one = Targets(box, torch.tensor([1]), (1,))
    shift = torch.rand(2000, 4, generator=torch.Generator().manual_seed(0))
    draws = Draws(torch.ones(2000), torch.zeros(2000, dtype=torch.int64), shift)
    labels, boxes = add_contrastive_noise(one, TWO_GROUPS, 1000, draws)
    assert labels.unique().tolist() == [1]
    moved = ((cxcywh_to_xyxy(boxes) - cxcywh_to_xyxy(box)) / 0.1).abs()  # in halves of the size
    assert moved[0::2].max() <= 0.4 + 1e-5
    assert moved[1::2].min() >= 0.4 - 1e-5
    assert moved[1::2].max() <= 0.8 + 1e-5


def test_draws_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"4 half groups of 3 boxes need draws for 12, got 6; draw with"):
        add_contrastive_noise(targets([3]), TWO_GROUPS, 2, Draws.sample(6, 3, device=CPU))


def test_matching_queries_answer_as_if_there_were_no_denoising() -> None:
    made = model().train()
    found = made(images(), None, made.training_queries(targets([3, 1]), TWO_GROUPS))
    alone = made(images())
    close(found.boxes, alone.boxes)
    close(found.logits, alone.logits)
    assert found.denoised.boxes.shape == (3, 2, 12, 4)
    assert alone.denoised is None
    assert found.proposals is not None


@pytest.mark.parametrize("counts", [[3, 0], [0, 0]])
@pytest.mark.parametrize("classifier", ["focal", "softmax"])
def test_images_without_objects_train_every_parameter(counts: list[int], classifier: str) -> None:
    made = model(classifier=classifier).train()
    rule = criterion(made)
    losses = rule(made(images(), None, made.training_queries(targets(counts), TWO_GROUPS)), targets(counts))
    total = weighted_sum(losses, rule.weights)
    total.backward()
    assert total.isfinite()
    assert (losses["loss_bbox_dn_0"] > 0) == (sum(counts) > 0)
    assert {"loss_class_enc", "loss_xy_dn", "cardinality_error_dn_1"} <= set(losses)
    assert [name for name, one in made.named_parameters() if one.requires_grad and one.grad is None] == []


@pytest.mark.parametrize("classifier", ["focal", "softmax"])
def test_denoising_losses_of_perfect_answers_vanish(classifier: str) -> None:
    made, wanted = model(classifier=classifier), targets([2, 1])
    image, slot = denoising_slots(wanted.counts, 2, CPU, group_size=4)
    logits, boxes = torch.full((3, 2, 8, 3 + (classifier == "softmax")), -30.0), torch.full((3, 2, 8, 4), 0.5)
    if classifier == "softmax":
        logits[..., -1] = 30.0
        logits[:, image, slot, -1] = -30.0
    logits[:, image, slot, wanted.labels.repeat(2)] = 30.0
    boxes[:, image, slot] = wanted.boxes.repeat(2, 1)
    outputs = made(images())
    denoised = Outputs(logits, boxes, torch.zeros(3, 2, 8, 1))
    losses = criterion(made)(dataclasses.replace(outputs, denoised=denoised), wanted)
    for name in ("loss_class_dn", "loss_bbox_dn", "loss_giou_dn_1", "loss_class_dn_0"):
        assert float(losses[name].detach()) == pytest.approx(0, abs=1e-5), name
    wrong = logits.clone()
    wrong[:, 0, 2, 1] = 30.0  # a negative of the first group that is taken for an object
    losses = criterion(made)(dataclasses.replace(outputs, denoised=Outputs(wrong, boxes, denoised.hidden)), wanted)
    assert losses["loss_class_dn"] > 1e-3


def test_proposals_are_weighed_apart() -> None:
    made = model()
    rule = DetectionCriterion.of_detector(made.settings, LossSettings(weight_proposals=0.5), supervised=True)
    assert rule.weights["loss_bbox_enc"] == 2.5
    assert rule.weights["loss_bbox"] == rule.weights["loss_bbox_dn_0"] == 5


def test_a_pretrained_one_becomes_class_agnostic() -> None:
    made = class_agnostic(model(num_classes=2, classifier="softmax")).eval()
    outputs = made(images())
    assert outputs.logits.shape[-1] == outputs.proposals.logits.shape[-1] == 2
    reloaded = Detector(made.settings).eval()
    reloaded.load_state_dict(made.state_dict())
    close(reloaded(images()).boxes, outputs.boxes)
