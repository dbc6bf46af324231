"""Frozen batch norms: fixed in training, folded into convolutions where nothing trains."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from siamdetr.models.backbone.same_padding import SamePadConv2d

Convolution = nn.Conv2d | SamePadConv2d
Network = TypeVar("Network", bound=nn.Module)


class FrozenBatchNorm2d(nn.Module):
    """A batch norm with fixed statistics and fixed affine.

    A scale and a shift per channel, then an optional activation.

    Detectors train on batches too small for statistics of their own (DETR §A.4). Weight, bias, mean and variance are
    buffers under the names of `nn.BatchNorm2d`, so that its state dicts load; `num_batches_tracked` in them is ignored.
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
            setattr(module, name, frozen.to(child.weight.device, child.weight.dtype).train(child.training))
        else:
            freeze_batchnorm(child)
    return module


def fold_batchnorm(network: Network) -> Network:
    """A frozen copy of a network, its batch norms folded into the convolutions, channels last.

    Faster where nothing trains, since a layer passes over its output once less. Folding is exact algebra as long as
    nothing but the norm reads the convolution's output. That is checked on the graph of operations, not on numbers,
    because a GPU rounds the factors of a convolution to 10 bits (TF32) and would differ by more than any useful
    tolerance.

    Args:
        network: maps [B, 3, H, W] to a tensor, or to a tuple of them. Unchanged.
    Raises:
        ValueError: a convolution or a norm is used more than once.
    """
    folded = copy.deepcopy(network).eval().requires_grad_(False)
    freeze_batchnorm(folded)  # those that would train elsewhere
    modules = dict(folded.named_modules())
    pairs = _pairs(folded)
    with torch.no_grad():
        for convolution, norm in pairs.items():
            _fold(modules[convolution], modules[norm])
    _replace(folded, {modules[norm] for norm in pairs.values()})
    return folded.to(memory_format=torch.channels_last)


class _Uses(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts how many operations read each watched tensor."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.watched: dict[int, Tensor] = {}  # holding the tensor keeps its id from being used again
        self.counts: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        self.counts.update(id(tensor) for tensor in read if id(tensor) in self.watched)
        return func(*args, **(kwargs or {}))


def _pairs(network: nn.Module) -> dict[str, str]:
    """Pairs of names: a convolution and the frozen batch norm that is the only reader of its output.

    They are observed in one pass of a copy on the meta device, which has shapes but no values.

    Raises:
        ValueError: a convolution whose output goes into a norm, or that norm, is used more than once.
    """
    probe = copy.deepcopy(network).eval().requires_grad_(False).to("meta")
    names = {module: name for name, module in probe.named_modules()}
    uses = _Uses()
    makers: dict[int, str] = {}
    calls: Counter[str] = Counter()
    found: list[tuple[str, str, int]] = []  # convolution, norm, id of the tensor between them

    def after_convolution(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        calls[names[module]] += 1
        uses.watched[id(output)], makers[id(output)] = output, names[module]

    def before_norm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[names[module]] += 1
        if id(inputs[0]) in makers:
            found.append((makers[id(inputs[0])], names[module], id(inputs[0])))

    for module in probe.modules():
        if isinstance(module, Convolution):
            module.register_forward_hook(after_convolution)
        elif isinstance(module, FrozenBatchNorm2d):
            module.register_forward_pre_hook(before_norm)
    dtype = next(probe.parameters()).dtype
    with torch.no_grad(), uses:
        probe(torch.empty(1, 3, 96, 96, device="meta", dtype=dtype))
    for convolution, norm, between in found:
        if calls[convolution] > 1 or calls[norm] > 1 or uses.counts[between] > 1:
            raise ValueError(
                f"fold_batchnorm: expected '{norm}' alone to read the output of '{convolution}', once, got "
                f"{uses.counts[between]} readers, {calls[convolution]} calls of the convolution and {calls[norm]} of the norm: "
                "use the network unfolded"
            )
    return {convolution: norm for convolution, norm, _ in found}


def _fold(convolution: nn.Module, norm: nn.Module) -> None:
    assert isinstance(convolution, nn.Conv2d | SamePadConv2d)
    assert isinstance(norm, FrozenBatchNorm2d)
    scale, shift = norm.scale_and_shift()
    bias = shift if convolution.bias is None else shift + convolution.bias * scale
    convolution.weight.mul_(scale[:, None, None, None])
    convolution.bias = nn.Parameter(bias, requires_grad=False)


def _replace(module: nn.Module, norms: set[nn.Module]) -> None:
    """Replace a batch norm by its activation."""
    for name, child in module.named_children():
        if isinstance(child, FrozenBatchNorm2d) and child in norms:
            setattr(module, name, child.act)
        else:
            _replace(child, norms)
