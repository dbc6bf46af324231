"""Products as on a GPU's tensor cores: factors rounded to 10 bits (TF32), sums in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_PRODUCTS = {"convolution", "convolution_overrideable", "mm", "addmm", "bmm", "baddbmm", "mkldnn_convolution"}


def to_ten_bits(x: Tensor) -> Tensor:
    """Float32 rounded to 10 bits of fraction; other types as they are."""
    if x.dtype != torch.float32 or x.is_mkldnn:
        return x
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


class TenBitProducts(TorchDispatchMode):
    """Inside it convolutions and matrix products round their factors as TF32 does."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split("::")[-1].split(".")[0]
        if name in _PRODUCTS:
            args = tuple(to_ten_bits(one) if isinstance(one, Tensor) else one for one in args)
        return func(*args, **(kwargs or {}))
