"""The hybrid encoder of RT-DETR (Zhao et al. 2023, arXiv:2304.08069, §4.2).

Self-attention within the coarsest level alone ("AIFI"), then convolutions that fuse the levels from coarse to fine
and back ("CCFF").

Positions are sines and cosines of the cell number itself. The official code lays them out column by column over cells
that stand row by row: the same for squares, scrambled for other shapes. Ours: row by row, unless `column_positions`
asks for theirs.
Ours: images need not be multiples of 32, since what was doubled is cut to the finer level's size; padded cells are not
attended to.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from siamdetr.models.attention import padding_bias
from siamdetr.models.backbone.conv_norm import ConvNorm
from siamdetr.models.backbone.pyramid import Maps, as_levels
from siamdetr.models.encoder import EncoderLayer, resize_padding
from siamdetr.models.hybrid.blocks import CrossStagePartial
from siamdetr.settings.detector import DetectorSettings
from siamdetr.structures.model import Memory


class ConvProjections(nn.Module):
    """Maps to `levels` maps of one width, each a convolution and a batch norm.

    Levels beyond the given ones are strided convolutions, the first of them of the last given map, not of a projected
    one.

    Args:
        channels: of the given maps, finest first.
        dim: D.
        levels: how many maps come out.
    """

    def __init__(self, channels: tuple[int, ...], dim: int, levels: int) -> None:
        super().__init__()
        extra = levels - len(channels)
        sources = [channels[-1], *[dim] * (extra - 1)] if extra > 0 else []
        blocks = [ConvNorm(width, dim, 1) for width in channels] + [
            ConvNorm(width, dim, 3, stride=2) for width in sources
        ]
        self.levels = nn.ModuleList(blocks)

    def forward(self, maps: Maps) -> tuple[Tensor, ...]:
        """[B, C, h, w] of each given level -> [B, D, h, w] of each level."""
        given = as_levels(maps)
        projected: list[Tensor] = []
        for index, level in enumerate(self.levels):
            source = given[index] if index < len(given) else given[-1] if index == len(given) else projected[-1]
            projected.append(level(source))
        return tuple(projected)


class HybridEncoder(nn.Module):
    """Projected levels to the memory.

    Args:
        settings: `encoder_layers` of self-attention over the last of the backbone's levels.
        count: of the levels that come in; `settings.levels` go out.
    """

    def __init__(self, settings: DetectorSettings, count: int) -> None:
        super().__init__()
        width = settings.own_encoder_dim
        inner = settings.model_copy(
            update={"dim": width, "feedforward": settings.encoder_feedforward or settings.feedforward}
        )
        self.temperature, self.column_positions = settings.own_position_temperature, settings.column_positions
        self.layers = nn.ModuleList(EncoderLayer(inner, activation="gelu") for _ in range(settings.encoder_layers))

        def mixed() -> CrossStagePartial:
            return CrossStagePartial(
                2 * width, width, blocks=settings.fusion_blocks, expansion=settings.fusion_expansion
            )

        steps = range(count - 1)
        self.lateral = nn.ModuleList(ConvNorm(width, width, 1, activation=nn.SiLU()) for _ in steps)
        self.top_down = nn.ModuleList(mixed() for _ in steps)
        self.downsample = nn.ModuleList(ConvNorm(width, width, 3, stride=2, activation=nn.SiLU()) for _ in steps)
        self.bottom_up = nn.ModuleList(mixed() for _ in steps)
        self.projection = ConvProjections((width,) * count, settings.dim, settings.levels)

    def forward(self, levels: tuple[Tensor, ...], padding: Tensor | None) -> Memory:
        """Encode projected levels.

        Args:
            levels: [B, E, h, w] of each backbone level, finest first.
            padding: [B, H, W] bool of the images, True = padded; None = nothing is.
        """
        last = self._attend(levels[-1], padding)
        maps = self.projection(self._mix((*levels[:-1], last)))
        shapes = tuple((level.shape[2], level.shape[3]) for level in maps)
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)  # [B, N, D]
        cells = (
            None
            if padding is None
            else torch.cat([resize_padding(padding, shape).flatten(1) for shape in shapes], dim=1)  # [B, N]
        )
        nowhere = tokens.new_zeros(()).expand_as(tokens)  # the decoder knows boxes, not positions of cells
        return Memory(tokens=tokens, position=nowhere, padding=cells, shapes=shapes)

    def _attend(self, level: Tensor, padding: Tensor | None) -> Tensor:
        """[B, E, h, w] -> [B, E, h, w]: self-attention among the cells of the level."""
        height, width = level.shape[2:]
        cells = None if padding is None else resize_padding(padding, (height, width)).flatten(1)
        position = cell_number_positions(
            (height, width),
            level.shape[1],
            temperature=self.temperature,
            by_columns=self.column_positions,
            device=level.device,
        ).to(level.dtype)
        tokens = level.flatten(2).transpose(1, 2)
        bias = padding_bias(cells, tokens.dtype)
        for layer in self.layers:
            tokens = layer(tokens, position, bias)
        return tokens.transpose(1, 2).reshape(level.shape)

    def _mix(self, levels: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """From coarse to fine, each level joined with the coarser one, then back, joined with the finer one."""
        mixed = [levels[-1]]
        for lateral, join, finer in zip(self.lateral, self.top_down, reversed(levels[:-1]), strict=True):
            mixed[0] = lateral(mixed[0])
            mixed.insert(0, join(torch.cat([double(mixed[0], finer), finer], dim=1)))
        out = [mixed[0]]
        for downsample, join, coarser in zip(self.downsample, self.bottom_up, mixed[1:], strict=True):
            out.append(join(torch.cat([downsample(out[-1]), coarser], dim=1)))
        return tuple(out)


def double(coarse: Tensor, fine: Tensor) -> Tensor:
    """Nearest upsampling by 2, cropped to `fine`: [B, E, h, w] -> [B, E, H, W], H = 2 h or 2 h - 1."""
    doubled = nn.functional.interpolate(coarse, scale_factor=2.0, mode="nearest")
    return doubled[..., : fine.shape[2], : fine.shape[3]]


def cell_number_positions(
    shape: tuple[int, int], dim: int, *, temperature: float, by_columns: bool, device: torch.device
) -> Tensor:
    """Sines and cosines of row and column number at D/4 wavelengths: [1, h w, D] float32.

    First the sines, then the cosines of the row, then those of the column.

    `by_columns`: as the official code, for a map of w rows and h columns.
    """
    height, width = shape if not by_columns else (shape[1], shape[0])
    rows = torch.arange(height, device=device, dtype=torch.float32)
    columns = torch.arange(width, device=device, dtype=torch.float32)
    exponents = torch.arange(dim // 4, device=device, dtype=torch.float32) / (dim // 4)
    frequencies = 1.0 / temperature**exponents
    of_rows, of_columns = rows[:, None] * frequencies, columns[:, None] * frequencies
    parts = [
        of_rows.sin()[:, None].expand(-1, width, -1),
        of_rows.cos()[:, None].expand(-1, width, -1),
        of_columns.sin()[None].expand(height, -1, -1),
        of_columns.cos()[None].expand(height, -1, -1),
    ]
    return torch.cat(parts, dim=-1).flatten(0, 1)[None]
