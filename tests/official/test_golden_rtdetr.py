"""RT-DETR and RT-DETRv2 equal the official code, read through the importer.

The importer also reads files without options.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from golden.golden_fill import fill
from golden.golden_io import load
from helpers.golden import (
    Case,
    batch_of,
    contrastive_queries_like_the_official_ones,
    detector_of,
    gradients_equal_the_official_ones,
    near,
    read,
    two_stage_forward_like_the_official_one,
)
from helpers.official_losses import (
    proposals_of,
    scenario,
    two_stage_gradients_like_the_official_ones,
    two_stage_outputs,
)
from helpers.paths import GOLDEN
from torch import Tensor

from siamdetr.models.criterion.layer_losses import weighted_sum
from siamdetr.models.criterion.matcher import match
from siamdetr.models.denoising import Draws, denoising_slots, group_count
from siamdetr.models.detector import Detector
from siamdetr.models.heads import each_head
from siamdetr.models.postprocess import postprocess
from siamdetr.official.convert import (
    OfficialCheckpointError,
    import_official,
    load_criterion,
    load_official,
    read_official_file,
)
from siamdetr.settings.detector import DenoisingSettings
from siamdetr.structures.targets import Targets

FORWARD = ["A_rtdetr", "A_rtdetrv2", "A_rtdetrv2_r50"]
TRAINING = ["C_rtdetrv2", "C_rtdetrv2_emptyimage"]


def official_name(name: str) -> str:
    """`loss_class_dn` of the last of three layers is `loss_vfl_dn_2`, `loss_bbox_0` is `loss_bbox_aux_0`."""
    name = name.replace("loss_class", "loss_vfl")
    if name.endswith("_enc"):
        return f"{name}_0"
    if "_dn" in name:
        return name if name[-1].isdigit() else f"{name}_2"
    return name[:-2] + "_aux" + name[-2:] if name[-1].isdigit() else name


def weights_of(meta: dict[str, Any]) -> dict[str, Tensor]:
    """The filled state dict, with the entries that follow from options."""
    weights = fill(dict(meta["state_dict"]), meta["aliases"])
    for name, values in (meta.get("constants") or {}).items():
        weights[name] = torch.as_tensor(values, dtype=weights[name].dtype).reshape(weights[name].shape)
    return weights


@pytest.mark.parametrize("name", FORWARD)
def test_forward_equals_the_official_one(name: str) -> None:
    two_stage_forward_like_the_official_one(read(name), "rtdetr", padded=False)


@pytest.mark.parametrize("name", FORWARD)
def test_a_file_without_options_gives_the_same_detector(name: str) -> None:
    meta, stored = read(name)
    told = load_official(weights_of(meta), family="rtdetr", arguments=meta["spec"]["model"])
    seen = load_official(
        weights_of(meta),
        family="rtdetr",
        arguments={"RTDETRTransformer": {"num_queries": stored["enc_index"].shape[1]}},
    )
    assert isinstance(told, Detector)
    assert isinstance(seen, Detector)
    assert told.settings.model_copy(update={"position_temperature": None}) == seen.settings


def denoising_of(case: Case) -> tuple[Targets, DenoisingSettings, Draws]:
    """The official code draws for every slot, those of padding included, and uses half of the label noise."""
    meta, stored = case
    noise, images = meta["spec"]["dn"], range(len(meta["spec"]["sizes"]))
    settings = DenoisingSettings(
        queries=noise["num_denoising"],
        label_noise=noise["label_noise_ratio"] / 2,
        box_noise=noise["box_noise_scale"],
    )
    targets = Targets.from_lists(
        [stored[f"target_boxes_{i}"] for i in images], [stored[f"target_labels_{i}"] for i in images]
    )
    slots = denoising_slots(targets.counts, 2 * group_count(settings, targets), torch.device("cpu"))
    moves = (stored["draw/box_sign"] * 2 - 1) * stored["draw/box_u"]
    draws = Draws(stored["draw/label_p"][slots], stored["draw/label_new"][slots], ((moves + 1) / 2)[slots])
    return targets, settings, draws


@pytest.mark.parametrize("name", TRAINING)
def test_denoising_queries_equal_the_official_ones(name: str) -> None:
    case = read(name)
    anchors = contrastive_queries_like_the_official_ones(case, "rtdetr", denoising_of(case))
    near(anchors, case[1]["dn/box_query"].sigmoid(), 1e-6)


@pytest.mark.parametrize("name", TRAINING)
def test_a_training_step_equals_the_official_one(name: str) -> None:
    """With batch statistics in every batch norm; look forward twice shows in the gradients alone."""
    meta, stored = case = read(name)
    detector = detector_of(meta, "rtdetr").train()
    targets, settings, draws = denoising_of(case)
    outputs = detector(batch_of(meta)[0], None, detector.training_queries(targets, settings, draws))
    near(outputs.proposals.logits[0], stored["enc_logits"], 2e-3)
    near(outputs.logits, torch.cat([stored["aux_logits"], stored["pred_logits"][None]]), 2e-3)
    near(outputs.boxes, torch.cat([stored["aux_boxes"], stored["pred_boxes"][None]]), 2e-4)
    near(outputs.denoised.logits, stored["dn/out_logits"], 2e-3)
    near(outputs.denoised.boxes, stored["dn/out_boxes"], 2e-4)
    criterion = load_criterion("rtdetr", meta["spec"]["criterion"] | meta["spec"]["model"])
    losses = {key: value for key, value in criterion(outputs, targets).items() if key in criterion.weights}
    assert {official_name(key): weight for key, weight in criterion.weights.items()} == meta["weight_dict"]
    assert {f"loss/{official_name(key)}" for key in losses} == {key for key in stored if key.startswith("loss/")}
    for key, value in losses.items():
        official = official_name(key)
        torch.testing.assert_close(value.detach(), stored[f"loss/{official}"], rtol=3e-4, atol=1e-6, msg=official)
    total = weighted_sum(losses, criterion.weights)
    torch.testing.assert_close(total.detach(), stored["total"], rtol=1e-4, atol=0)
    total.backward()
    gradients_equal_the_official_ones(case, "rtdetr", detector)
    statistics = detector.state_dict()
    near(
        statistics["backbone.body.conv1.conv1_1.norm.running_mean"],
        stored["after/backbone.conv1.conv1_1.norm.running_mean"],
        1e-5,
    )
    near(
        statistics["encoder.bottom_up.1.conv3.norm.running_mean"],
        stored["after/encoder.pan_blocks.1.conv3.norm.running_mean"],
        1e-4,
    )


@pytest.mark.parametrize("name", ["s0", "s1", "s2"])
def test_losses_matches_and_gradients_equal_the_official_ones(name: str) -> None:
    meta, arrays = load(GOLDEN / "B_rtdetrv2.npz")
    criterion = load_criterion("rtdetr", meta["spec"]["criterion"])
    logits, boxes, targets = scenario(arrays, name)
    outputs = two_stage_outputs(logits, boxes, proposals_of(arrays, name))
    losses = criterion(outputs, targets)
    own = {key: value for key, value in losses.items() if key in criterion.weights and "_dn" not in key}
    assert {official_name(key) for key in own} == {
        key.removeprefix(f"{name}/loss/") for key in arrays if key.startswith(f"{name}/loss/")
    }
    for key, value in own.items():
        wanted = torch.tensor(arrays[f"{name}/loss/{official_name(key)}"])
        torch.testing.assert_close(value.detach(), wanted, rtol=1e-6, atol=1e-6, msg=key)
    total = weighted_sum(own, criterion.weights)
    torch.testing.assert_close(total.detach(), torch.tensor(arrays[f"{name}/total"]), rtol=1e-6, atol=1e-6)
    total.backward()
    two_stage_gradients_like_the_official_ones(outputs, arrays, name)
    matches = match(logits, boxes, targets, criterion.settings, criterion.classifier)
    for image, count in enumerate(targets.counts):
        here = (matches.layer == len(logits) - 1) & (matches.image == image)
        pairs = torch.stack([matches.query[here], matches.target[here] - sum(targets.counts[:image])])
        assert pairs.tolist() == arrays[f"{name}/match/last/{image}"].tolist(), count


def test_postprocessing_equals_the_official_one() -> None:
    """Its sizes are (W, H)."""
    meta, arrays = load(GOLDEN / "F_rtdetrv2.npz")
    logits, boxes, sizes = (torch.from_numpy(arrays[key]) for key in ("pred_logits", "pred_boxes", "target_sizes"))
    found = postprocess(logits, boxes, sizes.flip(-1), classifier="focal", top_k=meta["spec"]["num_top_queries"])
    near(found.scores, torch.from_numpy(arrays["scores"]), 1e-6)
    assert found.labels.tolist() == arrays["labels"].tolist()
    near(found.boxes, torch.from_numpy(arrays["boxes"]), 1e-3)


def test_layers_after_the_evaluated_one_are_left_aside() -> None:
    meta, stored = read("A_rtdetrv2")
    model = meta["spec"]["model"]
    fewer = model | {"RTDETRTransformerv2": model["RTDETRTransformerv2"] | {"eval_idx": 1}}
    imported = import_official(weights_of(meta), family="rtdetr", arguments=fewer)
    assert imported.module.settings.decoder_layers == 2  # type: ignore[union-attr]
    assert any("after eval_idx" in reason for reason in imported.coverage.left_aside.values())
    with torch.no_grad():
        outputs = imported.module.eval()(batch_of(meta)[0])
    near(outputs.logits[-1], stored["aux_logits"][1], 1e-3)


def test_the_averaged_weights_of_a_file_are_preferred(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1)}, "ema": {"module": {"a": torch.ones(1)}}}, tmp_path / "x.pth")
    assert read_official_file(tmp_path / "x.pth").state_dict["a"] == 1


@pytest.mark.parametrize(
    ("section", "option", "value"),
    [
        ("RTDETRTransformerv2", "cross_attn_method", "discrete"),
        ("RTDETRTransformerv2", "query_select_method", "agnostic"),
        ("HybridEncoder", "act", "relu"),
        ("PResNet", "variant", "b"),
        ("PResNet", "depth", 50),
        ("RTDETRTransformerv2", "num_points", [1, 1, 1]),
        ("RTDETRTransformerv2", "num_layers", 6),
    ],
)
def test_other_forms_are_refused(section: str, option: str, value: object) -> None:
    meta, _ = read("A_rtdetrv2")
    model = meta["spec"]["model"]
    with pytest.raises(OfficialCheckpointError, match=option.partition("_")[0]):
        import_official(
            weights_of(meta), family="rtdetr", arguments=model | {section: model[section] | {option: value}}
        )


def test_the_heads_of_the_proposals_are_the_last() -> None:
    meta, _ = read("A_rtdetrv2")
    detector = detector_of(meta, "rtdetr")
    weights = weights_of(meta)
    assert torch.equal(each_head(detector.class_head)[-1].weight, weights["decoder.enc_score_head.weight"])
