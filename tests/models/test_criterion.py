"""Matcher, criterion and post-processing beyond the golden cases.

Empty targets, bad values, several processes, one transfer.
"""

from __future__ import annotations

import tempfile
from typing import Any

import pytest
import torch
import torch.multiprocessing
from helpers.loss_cases import CLASSIFIERS, criterion, outputs, share, targets, train_share
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from siamdetr.models.criterion.focal import sigmoid_focal_loss
from siamdetr.models.criterion.layer_losses import layer_weights, weighted_sum
from siamdetr.models.criterion.matcher import match
from siamdetr.models.detector import Outputs
from siamdetr.models.postprocess import postprocess
from siamdetr.official.losses import load_criterion, siamese_settings
from siamdetr.settings.detector import LossSettings
from siamdetr.structures.targets import Targets


@pytest.mark.parametrize("classifier", CLASSIFIERS)
@pytest.mark.parametrize("counts", [[0, 0], [0, 3], [9, 2]])
def test_losses_and_gradients_are_finite_without_boxes_and_with_more_boxes_than_queries(
    classifier: str, counts: list[int]
) -> None:
    found = outputs(2, classifier)
    rule = criterion(classifier)
    total = weighted_sum(rule(found, targets(counts)), rule.weights)
    total.backward()
    for tensor in (found.logits, found.boxes):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
    assert torch.isfinite(total)


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_layers_matched_together_equal_layers_matched_alone(classifier: Any) -> None:
    found, wanted = outputs(3, classifier), targets([2, 0, 4])
    together = criterion(classifier)(found, wanted)
    for layer in range(3):
        alone = Outputs(found.logits[layer : layer + 1], found.boxes[layer : layer + 1], found.hidden[:1])
        suffix = "" if layer == 2 else f"_{layer}"
        for name, value in criterion(classifier, layers=1)(alone, wanted).items():
            if name != "class_error" or layer == 2:
                torch.testing.assert_close(together[name + suffix], value)


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_permuting_the_batch_changes_no_loss(classifier: Any) -> None:
    found, order = outputs(3, classifier), [2, 0, 1]
    boxes, labels = targets([2, 0, 4]).boxes.split([2, 0, 4]), targets([2, 0, 4]).labels.split([2, 0, 4])
    permuted = Outputs(found.logits[:, order], found.boxes[:, order], found.hidden)
    before = criterion(classifier)(found, Targets.from_lists(boxes, labels))
    after = criterion(classifier)(permuted, Targets.from_lists([boxes[i] for i in order], [labels[i] for i in order]))
    for name, value in before.items():
        torch.testing.assert_close(after[name], value)


class SynchronisingCalls(TorchDispatchMode):
    """Counts operators whose result's shape or value the host must wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        boolean = (
            any(isinstance(i, Tensor) and i.dtype == torch.bool for i in args[1]) if "aten.index" in name else False
        )
        if boolean or any(part in name for part in ("_local_scalar_dense", "nonzero", "masked_select", "unique")):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_a_step_of_the_criterion_makes_one_transfer_to_the_host(
    classifier: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfers: list[tuple[int, ...]] = []
    to_host = Tensor.cpu

    def counted(tensor: Tensor) -> Tensor:
        transfers.append(tuple(tensor.shape))
        return to_host(tensor)

    monkeypatch.setattr(Tensor, "cpu", counted)
    found, rule = outputs(2, classifier), criterion(classifier)
    with SynchronisingCalls() as calls:
        weighted_sum(rule(found, targets([2, 4])), rule.weights).backward()
    assert transfers == [(3, 6, 7)]  # layers, boxes of the batch, queries of the own image
    assert calls.seen == []


def test_the_parts_of_the_box_loss_sum_to_it_and_carry_no_gradient() -> None:
    rule = load_criterion("dab-detr", {"num_classes": 5, "dec_layers": 3})
    losses = rule(outputs(2, "focal"), targets([2, 3]))
    for layer in ("", "_0", "_1"):
        whole, parts = losses[f"loss_bbox{layer}"], [losses[f"loss_xy{layer}"], losses[f"loss_hw{layer}"]]
        torch.testing.assert_close(sum(parts), whole.detach())
        assert not any(part.requires_grad for part in parts)
    assert not any("xy" in name or "hw" in name for name in rule.weights)
    assert "loss_xy" not in load_criterion("dab-deformable-detr", {"num_classes": 5, "dec_layers": 3})(
        outputs(2, "focal"), targets([2, 3])
    )


def test_a_cost_that_is_not_finite_names_layer_and_image() -> None:
    found = outputs(2, "focal")
    logits = found.logits.detach().clone()
    logits[1, 1, 3] = float("nan")
    with pytest.raises(
        FloatingPointError, match=r"decoder layer 1 \(of 3\) are not finite: image 1 .* query 3; .* fp32"
    ):
        match(logits, found.boxes, targets([2, 4]), LossSettings(), "focal")


def test_targets_of_another_batch_are_refused() -> None:
    found = outputs(2, "focal")
    with pytest.raises(ValueError, match="2 images were predicted, targets have 3; give one count an image"):
        match(found.logits, found.boxes, targets([1, 1, 1]), LossSettings(), "focal")


def test_other_layers_or_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="expected outputs of 6 decoder layers, got 3; give num_layers"):
        criterion("focal", layers=6)(outputs(2, "focal"), targets([1, 1]))
    with pytest.raises(ValueError, match="5 classes and a focal classifier make 5 logits, got 6; build the detector"):
        criterion("focal")(outputs(2, "softmax"), targets([1, 1]))


def test_losses_without_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=r"none of the losses \['a'\] has a weight; weights are for \['b'\]"):
        weighted_sum({"a": torch.zeros(())}, {"b": 1.0})


def test_weights_are_named_for_every_layer() -> None:
    assert layer_weights({"a": 1.0}, 3) == {"a": 1.0, "a_0": 1.0, "a_1": 1.0}


def test_focal_loss_without_focus_is_half_the_cross_entropy() -> None:
    logits, wanted = torch.randn(4, 3), torch.eye(4)[:, :3]
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    torch.testing.assert_close(sigmoid_focal_loss(logits, wanted, alpha=0.5, gamma=0.0), entropy / 2)


@pytest.mark.parametrize("classifier", CLASSIFIERS)
@pytest.mark.parametrize("counts", [[[3, 1], [2, 0]], [[1, 0], [0, 0]]])
def test_two_processes_train_what_one_with_twice_the_batch_trains(classifier: str, counts: list[list[int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(train_share, (f"{folder}/meet", classifier, counts, folder), nprocs=2)
        shares = [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in range(2)]
    first, second = (share(rank, classifier, counts) for rank in range(2))
    logits = torch.cat([first[0].logits, second[0].logits], 1).detach().requires_grad_()
    boxes = torch.cat([first[0].boxes, second[0].boxes], 1).detach().requires_grad_()
    wanted = Targets(
        torch.cat([first[1].boxes, second[1].boxes]),
        torch.cat([first[1].labels, second[1].labels]),
        first[1].counts + second[1].counts,
    )
    rule = criterion(classifier)
    total = weighted_sum(rule(Outputs(logits, boxes, torch.zeros(3, 4, 7, 1)), wanted), rule.weights)
    total.backward()
    torch.testing.assert_close((shares[0][0] + shares[1][0]) / 2, total.detach(), rtol=1e-5, atol=1e-6)
    for index, tensor in ((1, logits), (2, boxes)):
        joined = torch.cat([share[index] for share in shares], 1) / 2
        torch.testing.assert_close(joined, tensor.grad, rtol=1e-5, atol=1e-6)


def test_criteria_are_built_from_official_options() -> None:
    rule = load_criterion("detr", {"num_classes": 20, "set_cost_bbox": 4, "giou_loss_coef": 3, "eos_coef": 0.2})
    assert (rule.classifier, rule.num_classes, rule.num_layers) == ("softmax", 20, 6)
    kept = rule.settings
    assert (kept.cost_class, kept.cost_bbox, kept.weight_class, kept.weight_giou, kept.no_object_weight) == (
        1,
        4,
        1,
        3,
        0.2,
    )
    assert load_criterion("conditional-detr", {"num_classes": 20, "cls_loss_coef": 3}).settings.weight_class == 3
    assert siamese_settings({"encoder_head": False, "weights": {"loss_feature": 5}}).weight_global == 0


def test_an_unknown_family_or_missing_classes_are_named() -> None:
    with pytest.raises(
        ValueError,
        match=r"no family 'dter'; there are: detr, conditional-detr, .*, dab-deformable-detr, dn-deformable-detr, .*up-detr, detreg",
    ):
        load_criterion("dter", {})
    with pytest.raises(ValueError, match="detr needs 'num_classes' in its arguments"):
        load_criterion("detr", {})


def test_focal_postprocessing_gives_fewer_than_asked_when_there_are_fewer() -> None:
    found = postprocess(torch.randn(2, 3, 4), torch.rand(2, 3, 4), torch.tensor([[10, 20]] * 2), classifier="focal")
    assert found.scores.shape == found.labels.shape == (2, 12)
    assert (found.scores[:, :-1] >= found.scores[:, 1:]).all()


def test_pixels_follow_the_size_of_each_image() -> None:
    boxes = torch.tensor([[[0.5, 0.5, 1.0, 0.5]]]).repeat(2, 1, 1)
    found = postprocess(torch.zeros(2, 1, 3), boxes, torch.tensor([[10, 20], [40, 80]]), classifier="softmax")
    assert found.boxes[:, 0].tolist() == [[0, 2.5, 20, 7.5], [0, 10, 80, 30]]


def test_sizes_of_another_batch_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sizes \[1, 2\] are of different numbers of images; give one size"):
        postprocess(torch.zeros(2, 1, 3), torch.zeros(2, 1, 4), torch.zeros(1, 2), classifier="softmax")
