"""A checkpoint that does not fit is refused with a reason; common wrappings are understood."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
import torch
from golden.golden_io import load
from helpers.golden import GOLDEN
from helpers.official_checkpoints import Bomb
from torch import Tensor

from siamdetr.errors import WeightFileError
from siamdetr.official.convert import IMPORTERS, OfficialCheckpointError, convert_file, import_official
from siamdetr.pretext.siamese import SiameseDETR

# A golden case of each family: its tensors' names and shapes.
CASES = {
    "detr": "A_detr",
    "conditional-detr": "A_conditional",
    "deformable-detr": "A_deformable_ms",
    "dab-detr": "A_dab",
    "dn-detr": "A_dn",
    "dab-deformable-detr": "A_dab_deformable",
    "dn-deformable-detr": "A_dn_deformable",
    "dino": "A_dino",
    "rtdetr": "A_rtdetrv2",
    "siamese-detr": "D_siamese_deformable",
    "up-detr": "E_updetr_recon_mask0",
    "detreg": "E_detreg_intermediate",
}
SHAPES = {family: dict(load(GOLDEN / f"{CASES[family]}.npz")[0]["state_dict"]) for family in IMPORTERS}
OPTIONS = {family: load(GOLDEN / f"{CASES[family]}.npz")[0]["spec"]["model"] for family in IMPORTERS}


def checkpoint(family: str, *, dtype: torch.dtype = torch.float32, prefix: str = "") -> dict[str, Tensor]:
    return {f"{prefix}{name}": torch.zeros(shape, dtype=dtype) for name, shape in SHAPES[family].items()}


# A finetuned file of these methods has the tensors of the detector that was pretrained.
ALSO_READS = {"up-detr": ("detr",), "detreg": ("detr", "deformable-detr")}


@pytest.mark.parametrize("family", IMPORTERS)
def test_a_file_of_each_other_family_is_recognised(family: str) -> None:
    tensors = checkpoint(family)
    for other in IMPORTERS:
        if other != family and family not in ALSO_READS.get(other, ()):
            text = f"expected a checkpoint of '{other}', got tensors that look like '{family}'; pass family='{family}'"
            with pytest.raises(OfficialCheckpointError, match=re.escape(text)):
                import_official(tensors, family=other, arguments={})


@pytest.mark.parametrize("family", [family for family, one in IMPORTERS.items() if "dec_layers" in one.options])
def test_arguments_that_contradict_a_tensor_name_both(family: str) -> None:
    layers = sum(
        re.fullmatch(r"transformer\.decoder\.layers\.\d\.linear1\.weight", name) is not None for name in SHAPES[family]
    )
    last = rf"'transformer\.decoder\.layers\.{layers - 1}\.linear1\.weight' \[.*\]"
    text = rf"argument dec_layers=9 contradicts tensor {last}: expected dec_layers={layers}; corr"
    with pytest.raises(OfficialCheckpointError, match=text):
        import_official(checkpoint(family), family=family, arguments=OPTIONS[family] | {"dec_layers": 9})


@pytest.mark.parametrize("family", IMPORTERS)
def test_a_tensor_without_place_is_named(family: str) -> None:
    tensors = checkpoint(family) | {"transformer.decoder.extra.weight": torch.zeros(3)}
    with pytest.raises(
        OfficialCheckpointError, match=r"1 tensors have no place .* arguments: transformer\.decoder\.extra\.weight;"
    ):
        import_official(tensors, family=family, arguments=OPTIONS[family])


@pytest.mark.parametrize("family", IMPORTERS)
def test_half_precision_of_data_parallel_training_is_read_whole(family: str) -> None:
    tensors = checkpoint(family, dtype=torch.float16, prefix="module.")
    imported = import_official(tensors, family=family, arguments=OPTIONS[family])
    assert {one.dtype for one in imported.module.parameters()} == {torch.float32}
    assert imported.coverage.missing == {}
    known = {*imported.coverage.used, *imported.coverage.left_aside}
    assert {f"module.{name}" for name in known if not name.endswith("]")} == set(tensors)  # "[-1]": rows without use


@pytest.mark.parametrize("family", IMPORTERS)
def test_a_file_with_code_is_refused_and_nothing_runs(family: str, tmp_path: Path) -> None:
    content = {"model": {"a": torch.zeros(1)}, "args": argparse.Namespace(lr=Bomb(tmp_path / "boom"))}
    torch.save(content, tmp_path / "bomb.pth")
    with pytest.raises(WeightFileError, match=r"bomb\.pth: refused, because loading it would run code from the file"):
        convert_file(tmp_path / "bomb.pth", family=family, output=tmp_path / "ours.safetensors")
    assert {path.name for path in tmp_path.iterdir()} == {"bomb.pth"}


def test_deformable_pretraining_is_read_as_released_and_as_converted() -> None:
    """The released form has one head and `tgt_embed`; the official converter copies the head per layer."""
    released = {name: torch.randn(shape) for name, shape in SHAPES["siamese-detr"].items()}
    converted = {}
    for name, value in released.items():
        if name.startswith("pred_head.") and "_embed" in name:
            kind, rest = name.removeprefix("pred_head.").split(".", 1)
            converted |= {f"{kind}.{layer}.{rest}": value for layer in range(2)}
        elif name.startswith("backbone."):
            converted["backbone.0.body." + name.removeprefix("backbone.")] = value
        elif not name.startswith(("pred_head.", "enc_head.")):
            converted[name] = value
    modules = []
    for state in (released, converted):
        imported = import_official(state, family="siamese-detr", arguments={"num_patches": 5})
        assert isinstance(imported.module, SiameseDETR)
        modules.append(imported.module)
    assert set(imported.coverage.used) | set(imported.coverage.left_aside) == set(converted)
    assert {name.split(".")[0] for name in imported.coverage.missing} == {"feature_head", "global_head"}
    first, second = (module.detector.state_dict() for module in modules)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(second["learned_queries.content.weight"], released["transformer.tgt_embed.weight"])
