"""Batch norms that never change: frozen while training, folded into the convolutions when nothing trains."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from siamdetr.models.backbone.same_padding import SamePadConv2d

Convolution = nn.Conv2d | SamePadConv2d
Network = TypeVar("Network", bound=nn.Module)


class FrozenBatchNorm2d(nn.Module):
    """A batch norm with fixed statistics and fixed affine: a scale and a shift per channel, then an optional activation.

    Detectors train on batches too small for statistics of their own (DETR §A.4). Weight, bias, mean and variance are buffers
    under the names of `nn.BatchNorm2d`, so that its state dicts load; `num_batches_tracked` in them is ignored.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.act = nn.Identity() if activation is None else activation

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        scale, shift = self.scale_and_shift()
        scale, shift = scale.to(x.dtype)[:, None, None], shift.to(x.dtype)[:, None, None]
        out: Tensor = self.act(torch.addcmul(shift, x, scale))
        return out

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """[C] and [C]: the layer is x * scale + shift."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def freeze_batchnorm(module: nn.Module) -> nn.Module:
    """Replace every `nn.BatchNorm2d` below `module` by a frozen one, in place; returns the module.

    Batch norms of timm apply an activation of their own, which the frozen one takes over.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, child.eps, getattr(child, "act", None))
            frozen.load_state_dict(child.state_dict())
            setattr(module, name, frozen)
        else:
            freeze_batchnorm(child)
    return module


def fold_batchnorm(network: Network, *, tolerance: float = 1e-4) -> Network:
    """A frozen copy of a network with every frozen batch norm folded into the convolution before it, in channels-last layout.

    Faster where nothing trains, since a layer passes over its output once less. Which convolution stands before
    which batch norm is seen by running the copy once on a small image; the result is then compared with the original.

    Args:
        network: maps [B, 3, H, W] to a tensor, or to a tuple of them. Unchanged.
        tolerance: greatest allowed difference of the outputs, relative to the largest output.
    Raises:
        ValueError: the folded network computes something else.
    """
    folded = copy.deepcopy(network).eval().requires_grad_(False)
    freeze_batchnorm(folded)  # those that would train elsewhere
    if not any(isinstance(m, FrozenBatchNorm2d) for m in folded.modules()):
        return folded.to(memory_format=torch.channels_last)
    parameter = next(folded.parameters())
    image = torch.linspace(-2, 2, 3 * 96 * 96, device=parameter.device, dtype=parameter.dtype).reshape(1, 3, 96, 96)
    image = image.sin()
    with torch.no_grad():
        expected = _in_one(folded(image))
        pairs = _observe_pairs(folded, image)
        for convolution, norm in pairs.items():
            _fold(convolution, norm)
        _replace(folded, set(pairs.values()))
        folded = folded.to(memory_format=torch.channels_last)
        difference = float((_in_one(folded(image)) - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    if not difference <= tolerance:
        raise ValueError(
            f"fold_batchnorm: expected the folded network to differ by at most {tolerance:g}, got {difference:.3g}; "
            "a convolution's output is used elsewhere too: use the network unfolded"
        )
    return folded


def _in_one(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output if isinstance(output, Tensor) else torch.cat([part.flatten() for part in output])


def _observe_pairs(network: nn.Module, image: Tensor) -> dict[Convolution, FrozenBatchNorm2d]:
    """Which convolution's output goes into which frozen batch norm, seen in one pass."""
    made_by: dict[int, tuple[Convolution, Tensor]] = {}  # holding the tensor keeps its id from being used again
    pairs: dict[Convolution, FrozenBatchNorm2d] = {}

    def after_convolution(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, Convolution)
        made_by[id(output)] = (module, output)

    def before_norm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, FrozenBatchNorm2d)
        if id(inputs[0]) in made_by:
            pairs[made_by[id(inputs[0])][0]] = module

    handles = [m.register_forward_hook(after_convolution) for m in network.modules() if isinstance(m, Convolution)]
    handles += [m.register_forward_pre_hook(before_norm) for m in network.modules() if isinstance(m, FrozenBatchNorm2d)]
    try:
        network(image)
    finally:
        for handle in handles:
            handle.remove()
    return pairs


def _fold(convolution: Convolution, norm: FrozenBatchNorm2d) -> None:
    scale, shift = norm.scale_and_shift()
    bias = shift if convolution.bias is None else shift + convolution.bias * scale
    convolution.weight.mul_(scale[:, None, None, None])
    convolution.bias = nn.Parameter(bias, requires_grad=False)


def _replace(module: nn.Module, norms: set[FrozenBatchNorm2d]) -> None:
    """Put a batch norm's activation in its place."""
    for name, child in module.named_children():
        if isinstance(child, FrozenBatchNorm2d) and child in norms:
            setattr(module, name, child.act)
        else:
            _replace(child, norms)
