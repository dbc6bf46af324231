"""A CUDA device that computes nothing, but has the shapes, types and devices of a GPU.

It records every operation that would make the host wait.

PyTorch's fake tensors name a device that need not exist. Most operations that mix tensors of host and device raise by
themselves; others that a GPU would refuse are recorded, too.
"""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helpers.paths import ROOT

DEVICE = "cuda"
# Operations whose output's shape or value the host has to know.
_READS = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_consecutive", "unique_dim", "equal", "bincount", "item",
    "is_nonzero",
}  # fmt: skip
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


@dataclass
class Device(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The recorded waits and mixed operations, each with the line of our code that caused it."""

    waits: list[str] = field(default_factory=list)
    mixtures: list[str] = field(default_factory=list)
    operations: int = 0
    products: set[torch.dtype] = field(default_factory=set)  # types of the matrix products

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __hash__(self) -> int:
        return id(self)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.operations += 1
        name = func.name().split("::")[-1].split(".")[0]
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = any(tensor.device.type == DEVICE for tensor in tensors)
        if name in ("mm", "addmm", "bmm"):
            self.products.update(tensor.dtype for tensor in tensors)
        if name in ("_to_copy", "copy_"):
            self._note_copy(name, args, kwargs)
        elif here:
            self._note_reads(name, func, args, kwargs)
            if any(tensor.device.type == "cpu" and tensor.dim() > 0 for tensor in tensors):
                self.mixtures.append(f"{name}: {_line()}")
        if name == "_local_scalar_dense":  # a fake has no value: zero will do
            return torch.zeros((), dtype=args[0].dtype).numpy().item()
        return func(*args, **kwargs)

    def _note_copy(self, name: str, args: Any, kwargs: Any) -> None:
        if name == "copy_":
            source, target = args[1].device, args[0].device
            waits = not (args[2] if len(args) > 2 else kwargs.get("non_blocking"))
        else:
            source, target = args[0].device, torch.device(kwargs.get("device") or args[0].device)
            waits = not kwargs.get("non_blocking")
        if source.type != target.type and waits:
            self.waits.append(f"copy {source.type} to {target.type}: {_line()}")

    def _note_reads(self, name: str, func: Any, args: Any, kwargs: Any) -> None:
        counted = name == "repeat_interleave" and func._overloadname == "Tensor" and kwargs.get("output_size") is None
        masks = name in _INDEXING and any(
            isinstance(one, Tensor) and one.dtype in (torch.bool, torch.uint8) for one in args[1]
        )
        if name in _READS or counted or masks:
            self.waits.append(f"{name}: {_line()}")


class Event:
    """A CUDA event that is still pending; waiting for it within a step is an error."""

    def record(self) -> None:
        """Nothing."""

    def query(self) -> bool:
        """Not yet."""
        return False


def in_a_child(work: Callable[[], None]) -> None:
    """Run in a forked process that exits without cleaning up.

    Freeing tensors of a device that is not there crashes Python.
    """
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        gc.disable()
        text = ""
        try:
            work()
        except BaseException:
            text = traceback.format_exc()
        os.write(send, text[-20_000:].encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive, encoding="utf-8") as stream:
        text = stream.read()
    _, status = os.waitpid(child, 0)
    assert not text, text
    assert status == 0


def _line() -> str:
    """The line of our code that an operation comes from."""
    ours = [frame for frame in traceback.extract_stack() if frame.filename.startswith(str(ROOT / "siamdetr"))]
    return f"{ours[-1].filename.removeprefix(str(ROOT) + '/')}:{ours[-1].lineno}" if ours else "outside"


@contextmanager
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """Make tensors fake inside the block, so that `module.to("cuda")` works."""
    patch = monkeypatch.setattr
    numpy = Tensor.numpy

    def numpy_of_fake(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(tensor, FakeTensor):
            return numpy(tensor, *args, **kwargs)
        assert tensor.device.type == "cpu", "numpy() of a tensor on the device"
        return np.zeros(tuple(tensor.shape), dtype=str(tensor.dtype).split(".")[1])

    empty = torch.empty
    patch(Tensor, "numpy", numpy_of_fake)
    patch(Tensor, "pin_memory", lambda tensor, *_: tensor)
    patch(torch, "empty", lambda *size, pin_memory=False, **options: empty(*size, **options))
    patch(torch.cuda, "Event", Event)
    patch(torch.cuda, "manual_seed_all", lambda seed: None)
    patch(torch.cuda, "is_bf16_supported", lambda *_: True)
    patch(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    patch(nn.Module, "_apply", _apply)
    with FakeTensorMode(allow_non_fake_inputs=True), Device() as device:
        yield device


def _apply(module: nn.Module, function: Any, recurse: bool = True) -> nn.Module:
    """`nn.Module._apply` without the swap of data, which fakes do not allow between devices."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                with torch.no_grad():
                    moved = function(parameter)
                part._parameters[name] = nn.Parameter(moved, parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = function(buffer)
    return module
