"""Checkpoints of Deformable DETR of other sizes."""

from __future__ import annotations

from golden.golden_fill import fill
from golden.golden_io import load
from torch import Tensor

from helpers.golden import GOLDEN


def other_checkpoint(case: str, *, levels: int, layers: int, points: int, queries: int) -> dict[str, Tensor]:
    """Random weights under official names, of other sizes than the golden ones."""
    meta, _ = load(GOLDEN / f"A_{case}.npz")
    shapes, aliases = dict(meta["state_dict"]), dict(meta["aliases"])
    for name, shape in dict(shapes).items():
        size = list(shape)
        if "level_embed" in name:
            size[0] = levels
        if "sampling_offsets" in name:
            size[0] = 8 * levels * points * 2
        if "attention_weights" in name:
            size[0] = 8 * levels * points
        if name in ("query_embed.weight", "tgt_embed.weight", "refpoint_embed.weight"):
            size[0] = queries
        shapes[name] = size
        if name.startswith("input_proj.") and int(name.split(".")[1]) >= levels:
            del shapes[name]
    for table in (shapes, aliases):  # a third decoder layer, and its heads
        for name, value in dict(table).items():
            if ".decoder.layers.1." in name and layers == 3:
                table[name.replace("layers.1", "layers.2")] = value
            if "_embed.1." in name and layers == 3:
                table.setdefault(name.replace("_embed.1.", "_embed.2."), value)
                if case.endswith("twostage"):
                    table[name.replace("_embed.1.", "_embed.3.")] = value
    return fill(shapes, aliases)
