"""Checkpoints of transformers in and out, of models that transformers makes: equal boxes and tensors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.huggingface import FORMS, batch, make, saved, theirs
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForObjectDetection
from typer.testing import CliRunner

from siamdetr.api import SiamDETR
from siamdetr.cli.__main__ import app
from siamdetr.errors import HubError, OfficialCheckpointError
from siamdetr.images.preprocessing import PreprocessingSpec
from siamdetr.model_file import ModelMetadata, load_model, save_model
from siamdetr.models.detector import Detector
from siamdetr.official.huggingface.preprocessor import read_preprocessing, write_preprocessing
from siamdetr.official.huggingface.read import class_names, import_huggingface
from siamdetr.official.huggingface.repository import is_huggingface, open_repository, send
from siamdetr.official.huggingface.write import export_huggingface
from siamdetr.settings.detector import DetectorSettings

BAR = 1e-5  # of logits and boxes, against transformers' own


def ours(detector: Detector) -> tuple[Tensor, Tensor]:
    images, padding = batch(padded=detector.settings.variant != "rtdetr")
    with torch.no_grad():
        outputs = detector(images, padding)
    return outputs.logits[-1], outputs.boxes[-1]


def same(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> None:
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=BAR)


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_answers_as_in_transformers_and_back(form: str, tmp_path: Path) -> None:
    model = make(form)
    expected = theirs(model)
    imported = import_huggingface(saved(model, tmp_path / "in"))
    same(ours(imported.detector), expected)
    assert imported.metadata.class_names == ("cat", "dog", "N/A")
    export_huggingface(imported.detector, imported.metadata, tmp_path / "out")
    loaded, report = AutoModelForObjectDetection.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    same(theirs(loaded.eval()), expected)
    again = import_huggingface(tmp_path / "out")
    assert again.metadata == imported.metadata
    assert again.detector.settings == imported.detector.settings
    for name, tensor in imported.detector.state_dict().items():
        assert torch.equal(again.detector.state_dict()[name], tensor), name


@pytest.mark.parametrize("form", ["detr", "conditional, own backbone", "deformable, two-stage", "dab", "rt-detr-v2"])
def test_the_newer_names_in_a_file_are_read(form: str, tmp_path: Path) -> None:
    model = make(form)
    saved(model, tmp_path)
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, tmp_path / "model.safetensors")
    same(ours(import_huggingface(tmp_path).detector), theirs(model))


def test_each_layer_keeps_its_class_head_although_transformers_ties_them(tmp_path: Path) -> None:
    settings = DetectorSettings(
        variant="deformable", backbone="resnet18", levels=3, refine=True, dim=32, heads=4, encoder_layers=1,
        decoder_layers=3, feedforward=32, num_queries=6, num_classes=2,
    )  # fmt: skip
    torch.manual_seed(0)
    detector = Detector(settings).eval()
    for parameter in [*detector.class_head.parameters(), *detector.box_head.parameters()]:
        torch.nn.init.normal_(parameter, std=0.2)
    metadata = ModelMetadata(class_names=("a", "b"), category_ids=(3, 7), preprocessing=PreprocessingSpec())
    export_huggingface(detector, metadata, tmp_path)
    model = AutoModelForObjectDetection.from_pretrained(tmp_path).eval()
    images, padding = batch()
    with torch.no_grad():
        assert padding is not None
        expected, got = detector(images, padding), model(images, pixel_mask=(~padding).long())
    for layer, head in enumerate(model.class_embed):
        logits = head(got.intermediate_hidden_states[:, layer])
        torch.testing.assert_close(logits, expected.logits[layer], rtol=0, atol=BAR)
    assert import_huggingface(tmp_path).metadata == metadata


def test_half_precision_and_several_files_are_read(tmp_path: Path) -> None:
    model = make("detr").half()
    saved(model, tmp_path, max_shard_size="10MB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    imported = import_huggingface(tmp_path)
    assert {tensor.dtype for tensor in imported.detector.parameters()} == {torch.float32}
    same(ours(imported.detector), theirs(model.float()))


def test_old_configurations_name_the_backbone_themselves(tmp_path: Path) -> None:
    model = make("detr")
    config = edited(saved(model, tmp_path), backbone="resnet18", use_timm_backbone=True, backbone_config=None)
    assert config["backbone_config"] is None
    same(ours(import_huggingface(tmp_path).detector), theirs(model))


def edited(folder: Path, **changes: Any) -> dict[str, Any]:
    """Change values of config.json; returns them all."""
    path = folder / "config.json"
    values: dict[str, Any] = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(values))
    return values


def test_a_repository_is_read_from_the_cache_and_its_commit_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "models--someone--detector"
    saved(make("detr"), cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    imported = import_huggingface("hf:someone/detector")
    assert imported.metadata.lineage == (f"Hugging Face: someone/detector at revision {commit}",)
    assert import_huggingface(f"hf:someone/detector@{commit}").metadata == imported.metadata


def test_what_cannot_be_fetched_is_said_with_the_files_to_bring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError) as caught:
        open_repository("hf:someone/detector")
    text = str(caught.value)
    assert "HF_HUB_OFFLINE is set, and it is not in the cache" in text
    assert (
        "config.json, preprocessor_config.json and model.safetensors from https://huggingface.co/someone/detector"
        in text
    )
    with pytest.raises(HubError, match="not a name of the hub, expected hf:ORG/NAME"):
        open_repository("hf:a/b/c")
    with pytest.raises(HubError, match="not sent, HF_HUB_OFFLINE is set; the files are in"):
        send(tmp_path, "someone/detector")


def test_pickles_are_refused_with_the_way_to_convert(tmp_path: Path) -> None:
    saved(make("detr"), tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(HubError) as caught:
        import_huggingface(tmp_path)
    assert "no model.safetensors in it, only pytorch_model.bin. PyTorch's pickles" in str(caught.value)
    assert "save_pretrained(FOLDER)" in str(caught.value)


@pytest.mark.parametrize(
    ("form", "changes", "words"),
    [
        ("detr", {"model_type": "yolos"}, "config.json is of 'yolos' (DetrForObjectDetection); expected one of Detr"),
        ("detr", {"architectures": ["DetrForSegmentation"]}, "is of 'detr' (DetrForSegmentation)"),
        ("detr", {"position_embedding_type": "learned"}, "position_embedding_type is 'learned', expected 'sine'"),
        ("detr", {"activation_function": "gelu"}, "activation_function is 'gelu', expected 'relu'"),
        ("detr", {"encoder_layers": "six"}, "encoder_layers"),
        ("detr", {"encoder_layers": 3}, "the checkpoint lacks 32 tensors"),
        ("detr", {"num_queries": 9}, "'model.query_position_embeddings.weight': got [6, 32], expected [9, 32]"),
        ("detr", {"id2label": {"7": "dog"}}, "names output 7 ('dog'), but the class head has 3 outputs"),
        (
            "detr",
            {"backbone_config": {"model_type": "timm_backbone", "backbone": "efficientnet_b0"}},
            "the backbone is 'efficientnet_b0', expected one of resnet18, resnet34, resnet50, resnet101",
        ),
        (
            "detr, own backbone",
            {"backbone_config": {"model_type": "resnet", "depths": [1, 1, 1, 1]}},
            "a ResNet of [1, 1, 1, 1] bottlenecks",
        ),
        ("dab", {"temperature_width": 10000}, "temperature_width beside temperature_height is 10000, expected 20"),
        ("deformable", {"with_box_refine": True, "tie_word_embeddings": False}, "lacks 'class_embed.1."),
    ],
)
def test_what_does_not_fit_is_named(form: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    edited(saved(make(form), tmp_path), **changes)
    with pytest.raises(OfficialCheckpointError) as caught:
        import_huggingface(tmp_path)
    assert words in str(caught.value)


def test_heads_trained_untied_are_refused(tmp_path: Path) -> None:
    folder = saved(make("deformable, refined"), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.startswith("model.decoder.bbox_embed.")]:
        tensors[name.removeprefix("model.decoder.")] = tensors[name] + 1
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(
        OfficialCheckpointError, match=r"'bbox_embed\.\d\..+' and 'model\.decoder\.bbox_embed.+' differ"
    ):
        import_huggingface(folder)


def test_a_model_without_heads_is_called_so(tmp_path: Path) -> None:
    model = make("detr")
    model.model.save_pretrained(tmp_path)
    edited(tmp_path, architectures=["DetrForObjectDetection"])
    with pytest.raises(
        OfficialCheckpointError, match=r"lacks the tensor 'class_labels_classifier.weight'.+'DetrModel'"
    ):
        import_huggingface(tmp_path)


def test_gaps_in_the_label_map_have_no_name() -> None:
    assert class_names({1: "person", 3: "car"}, 4, "x") == ("N/A", "person", "N/A", "car")
    assert class_names({}, 2, "x") == ("class 0", "class 1")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, PreprocessingSpec()),
        ({"size": 600, "max_size": 1000}, PreprocessingSpec(size=600, max_size=1000)),
        ({"size": {"shortest_edge": 480}}, PreprocessingSpec(size=480, max_size=None)),
        (
            {"size": {"height": 640, "width": 512}, "do_normalize": False},
            PreprocessingSpec(mode="fixed", size=(640, 512), max_size=None, mean=(0, 0, 0), std=(1, 1, 1)),
        ),
        (
            {"size": {"max_height": 300, "max_width": 400}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3},
            PreprocessingSpec(mode="letterbox", size=(300, 400), max_size=None, mean=(0.5,) * 3, std=(0.25,) * 3),
        ),
        (
            {"rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1], "image_std": [1, 1, 1]},
            PreprocessingSpec(mean=(0.5,) * 3, std=(0.5,) * 3),
        ),
    ],
)
def test_preprocessing_comes_from_its_file(values: dict[str, Any], expected: PreprocessingSpec) -> None:
    spec = read_preprocessing(values, "file")
    assert (*spec.mean, *spec.std) == pytest.approx((*expected.mean, *expected.std))
    assert spec.model_copy(update={"mean": expected.mean, "std": expected.std}) == expected
    assert read_preprocessing(write_preprocessing(expected, "DetrImageProcessor"), "file") == expected


def test_a_size_of_another_form_is_refused() -> None:
    with pytest.raises(OfficialCheckpointError, match="size has the keys area; expected shortest_edge"):
        read_preprocessing({"size": {"area": 3}}, "file")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"variant": "dn"}, "transformers has no 'dn'; it has vanilla, conditional, deformable, dab, rtdetr"),
        ({"classifier": "softmax"}, "'conditional' with focal only, got softmax"),
        ({"backbone": "tf_efficientnet_lite0"}, "got 'tf_efficientnet_lite0'"),
        ({"variant": "deformable", "cell_shift": False}, "cell_shift=False"),
    ],
)
def test_what_transformers_has_not_is_said(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    small = {"backbone": "resnet18", "dim": 32, "heads": 4, "decoder_layers": 1, "feedforward": 32, "num_classes": 1}
    detector = Detector(DetectorSettings.model_validate(small | changes))
    metadata = ModelMetadata(class_names=("a",), preprocessing=PreprocessingSpec())
    with pytest.raises(OfficialCheckpointError) as caught:
        export_huggingface(detector, metadata, tmp_path / "out")
    assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_command_converts_both_ways(tmp_path: Path) -> None:
    model = make("conditional")
    folder = saved(model, tmp_path / "in")
    assert is_huggingface(folder)
    run = CliRunner()
    assert run.invoke(app, ["convert", str(folder), "-o", str(tmp_path / "ours.safetensors")]).exit_code == 0
    detector, metadata = load_model(tmp_path / "ours.safetensors")
    assert metadata.preprocessing == PreprocessingSpec()
    same(ours(detector), theirs(model))
    out = tmp_path / "out"
    result = run.invoke(app, ["convert", str(tmp_path / "ours.safetensors"), "--to", "hf", "-o", str(out)])
    assert result.exit_code == 0, result.output
    same(theirs(AutoModelForObjectDetection.from_pretrained(out).eval()), theirs(model))
    assert SiamDETR.load(tmp_path / "ours.safetensors").metadata.class_names == ("cat", "dog", "N/A")


def test_the_command_says_which_options_belong_together(tmp_path: Path) -> None:
    run, file = CliRunner(), str(tmp_path / "x.safetensors")
    assert "needs --family" in run.invoke(app, ["convert", "detr.pth", "-o", file]).output
    assert "--push is for --to hf" in run.invoke(app, ["convert", "x", "-o", file, "--push", "a/b"]).output
    assert "expected hf" in run.invoke(app, ["convert", "x", "-o", file, "--to", "onnx"]).output


def test_a_run_folder_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    detector = Detector(DetectorSettings(backbone="resnet18", dim=32, heads=4, decoder_layers=1, num_classes=1))
    metadata = ModelMetadata(class_names=("a",), preprocessing=PreprocessingSpec())
    save_model(tmp_path / "best.safetensors", detector, metadata)
    with pytest.raises(HubError, match="a run folder; name another one"):
        export_huggingface(detector, metadata, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["best.safetensors", "config.yaml"]
