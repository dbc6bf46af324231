"""ResNet-vd (He et al. 2019, arXiv:1812.01187, fig. 2) in the form and with the names of RT-DETR.

The stem is three 3x3 convolutions; a strided shortcut is a 2x2 average pool and a 1x1 convolution. As in the official
code, the first block of every stage has a projection, also in the 18-layer network, whose shapes need none.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from siamdetr.models.backbone.conv_norm import ConvNorm

# Blocks of each stage, and whether they are bottlenecks.
RESNETS_VD: Mapping[str, tuple[tuple[int, int, int, int], bool]] = {
    "resnet18vd": ((2, 2, 2, 2), False),
    "resnet34vd": ((3, 4, 6, 3), False),
    "resnet50vd": ((3, 4, 6, 3), True),
    "resnet101vd": ((3, 4, 23, 3), True),
}
_WIDTHS = (64, 128, 256, 512)
_STRIDES = (4, 8, 16, 32)  # of the stages' maps

MakeBlock = Callable[..., nn.Module]


class _Block(nn.Module):
    """A residual block; `branches` is filled by its kinds."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, projects: bool, frozen: bool) -> None:
        super().__init__()
        self.short: nn.Module = nn.Identity()
        if projects and stride == 2:
            pool = nn.AvgPool2d(2, 2, ceil_mode=True)
            conv = ConvNorm(in_channels, out_channels, 1, frozen=frozen)
            self.short = nn.Sequential(OrderedDict(pool=pool, conv=conv))
        elif projects:
            self.short = ConvNorm(in_channels, out_channels, 1, stride=stride, frozen=frozen)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H / stride, W / stride]."""
        return F.relu(self.branch(x) + self.short(x))

    def branch(self, x: Tensor) -> Tensor:
        """The branch that is added to the shortcut."""
        raise NotImplementedError


class _BasicBlock(_Block):
    """Two 3x3 convolutions."""

    def __init__(self, in_channels: int, width: int, *, stride: int, projects: bool, frozen: bool) -> None:
        super().__init__(in_channels, width, stride=stride, projects=projects, frozen=frozen)
        self.branch2a = ConvNorm(in_channels, width, 3, stride=stride, activation=nn.ReLU(), frozen=frozen)
        self.branch2b = ConvNorm(width, width, 3, frozen=frozen)

    def branch(self, x: Tensor) -> Tensor:
        """See `_Block`."""
        out: Tensor = self.branch2b(self.branch2a(x))
        return out


class _Bottleneck(_Block):
    """1x1, strided 3x3, and 1x1 to four times the width."""

    def __init__(self, in_channels: int, width: int, *, stride: int, projects: bool, frozen: bool) -> None:
        super().__init__(in_channels, 4 * width, stride=stride, projects=projects, frozen=frozen)
        self.branch2a = ConvNorm(in_channels, width, 1, activation=nn.ReLU(), frozen=frozen)
        self.branch2b = ConvNorm(width, width, 3, stride=stride, activation=nn.ReLU(), frozen=frozen)
        self.branch2c = ConvNorm(width, 4 * width, 1, frozen=frozen)

    def branch(self, x: Tensor) -> Tensor:
        """See `_Block`."""
        out: Tensor = self.branch2c(self.branch2b(self.branch2a(x)))
        return out


class _Stage(nn.Module):
    """Blocks of one width; the first has the stride and the projection."""

    def __init__(
        self, block: MakeBlock, in_channels: int, width: int, count: int, *, stride: int, frozen: bool
    ) -> None:
        super().__init__()
        out_channels = width * (4 if block is _Bottleneck else 1)
        self.blocks = nn.ModuleList(
            block(
                in_channels if index == 0 else out_channels,
                width,
                stride=stride if index == 0 else 1,
                projects=index == 0,
                frozen=frozen,
            )
            for index in range(count)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H / stride, W / stride]."""
        for block in self.blocks:
            x = block(x)
        return x


class ResNetVd(nn.Module):
    """Images [B, 3, H, W] to the maps of some strides.

    Args:
        name: a key of `RESNETS_VD`.
        strides: of the maps that come out, some of the last of 4, 8, 16, 32.
        frozen: batch norms never change, and the stem does not train, as in the recipes for 50 and 101 layers; else
            everything trains, as in those for 18 and 34.
    Raises:
        ValueError: there is no map of one of the strides.
    """

    def __init__(self, name: str, strides: tuple[int, ...], *, frozen: bool) -> None:
        super().__init__()
        if strides != _STRIDES[-len(strides) :]:
            raise ValueError(
                f"backbone: expected '{name}' to have a feature map of each of the strides {', '.join(map(str, strides))}, got "
                f"{', '.join(map(str, _STRIDES))}; take stride 32"
            )
        counts, bottlenecks = RESNETS_VD[name]
        self.num_maps = len(strides)
        widths = ((3, 32, 2), (32, 32, 1), (32, 64, 1))
        self.conv1 = nn.Sequential(
            OrderedDict(
                (f"conv1_{i}", ConvNorm(a, b, 3, stride=stride, activation=nn.ReLU(), frozen=frozen))
                for i, (a, b, stride) in enumerate(widths, start=1)
            )
        )
        expansion = 4 if bottlenecks else 1
        self.channels = tuple(width * expansion for width in _WIDTHS)
        sources = (_WIDTHS[0], *self.channels[:-1])
        self.res_layers = nn.ModuleList(
            _Stage(
                _Bottleneck if bottlenecks else _BasicBlock,
                sources[index],
                width,
                counts[index],
                stride=1 if index == 0 else 2,
                frozen=frozen,
            )
            for index, width in enumerate(_WIDTHS)
        )
        self.conv1.requires_grad_(not frozen)

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> the maps, finest first."""
        x = F.max_pool2d(self.conv1(images), kernel_size=3, stride=2, padding=1)
        maps = []
        for stage in self.res_layers:
            x = stage(x)
            maps.append(x)
        return maps[-self.num_maps :]


def vd_channels(name: str, count: int) -> tuple[int, ...]:
    """Channels of the last `count` maps."""
    _, bottlenecks = RESNETS_VD[name]
    return tuple(width * (4 if bottlenecks else 1) for width in _WIDTHS)[-count:]
