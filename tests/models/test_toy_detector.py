"""A detector is one file and one registry entry.

This file is that file; the test adds the entry and does all else.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.training_data import DETECTOR, finetune_settings, pretrain_settings, write_data
from PIL import Image
from torch import nn

import siamdetr
from siamdetr.api import SiamDETR
from siamdetr.export.onnx import export_onnx
from siamdetr.models.attention import MultiHeadAttention, padding_bias
from siamdetr.models.backbone.pyramid import LastMapProjection
from siamdetr.models.encoder import Encoder
from siamdetr.models.heads import Heads, place_boxes, shared_heads
from siamdetr.models.parts import VariantParts, initialize_transformer
from siamdetr.models.queries import LearnedQueries
from siamdetr.settings.detector import DetectorSettings
from siamdetr.settings.registry import DETECTORS, DetectorEntry
from siamdetr.structures.model import Decoded, Memory, Queries
from siamdetr.training.finetune import finetune
from siamdetr.training.pretrain import pretrain

ENTRY = DetectorEntry("Toy DETR", f"{__name__}:build_toy", "queries attend to the image and never to each other")


class ToyDecoder(nn.Module):
    """Cross-attention alone, layer after layer."""

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__()
        dim, heads = settings.dim, settings.heads
        self.layers = nn.ModuleList(
            MultiHeadAttention(dim, heads, settings.dropout, observable=True) for _ in range(settings.decoder_layers)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, queries: Queries, memory: Memory, heads: Heads) -> Decoded:
        """Decode queries with a position; boxes start from nothing."""
        assert queries.position is not None
        content, hidden = queries.content, []
        keys, bias = memory.tokens + memory.position, padding_bias(memory.padding, memory.tokens.dtype)
        for layer in self.layers:
            seen = layer(content + queries.position, keys, memory.tokens, bias=bias, grid=memory.shapes[0])
            content = content + seen
            hidden.append(self.norm(content))
        stack = torch.stack(hidden)
        return Decoded(stack, place_boxes(heads.box_head(stack), None), references=None)


def build_toy(settings: DetectorSettings, channels: tuple[int, ...]) -> VariantParts:
    parts = VariantParts(
        input_projection=LastMapProjection(channels, settings.dim),
        encoder=Encoder(settings),
        queries=LearnedQueries(settings.num_queries, settings.dim),
        decoder=ToyDecoder(settings),
        heads=shared_heads(settings, starts_at_reference=False),
    )
    initialize_transformer(parts.encoder, parts.decoder)
    return parts


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one entry."""
    monkeypatch.setitem(DETECTORS, "toy", ENTRY)


def test_a_toy_detector_is_trained_reported_exported_and_asked(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    shape = {**DETECTOR, "variant": "toy"}
    first = pretrain(pretrain_settings(data, tmp_path / "pretrained", detector=shape, steps=2)).folder
    run = finetune(finetune_settings(data, tmp_path / "run", detector=shape, init=str(first), steps=3)).folder
    assert "Finetuning of Toy DETR on test_resnet" in (run / "report.html").read_text(encoding="utf-8")

    model = siamdetr.load(run)
    assert isinstance(model, SiamDETR)
    gate = export_onnx(model, tmp_path / "bundle").gate
    assert gate is not None
    assert gate.passed
    picture = Image.new("RGB", (96, 64), "orange")
    assert model.attention(picture).shape[:3] == (2, DETECTOR["heads"], DETECTOR["num_queries"])
    assert model.inspect(picture).decoder_attention(0).maps.shape[0] == 2
    ours, exported = model.predict(picture, 0.0), siamdetr.load(tmp_path / "bundle").predict(picture, 0.0)
    assert len(ours) == len(exported) > 0


def test_a_toy_detector_takes_no_setting_that_its_entry_does_not_name() -> None:
    with pytest.raises(ValueError, match=r"two_stage: only the variant 'deformable' has such a setting, not 'toy'"):
        DetectorSettings(variant="toy", two_stage=True)


def test_a_detector_without_entry_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="no such detector 'condtional'; did you mean 'conditional'"):
        DetectorSettings(variant="condtional")
