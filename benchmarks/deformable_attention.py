"""Sampling of deformable attention, forward and backward: time and memory of each form.

The forms are reference, kernel and gather.

    python benchmarks/deformable_attention.py                       # the size of Deformable DETR's encoder, on CUDA
    python benchmarks/deformable_attention.py --height 320 --width 320 --device cpu

On CUDA the memory is what the device's allocator held at most beyond inputs and gradients; on the CPU it is not
measured, and the kernel does not run.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from typing import get_args

import torch
from torch import Tensor

from siamdetr.models.deformable.sampling import Sampling, Shapes, sample_points

HEADS, CHANNELS, POINTS, STRIDES = 8, 32, 4, (8, 16, 32, 64)


def make(batch: int, shapes: Shapes, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Values, points around each cell's own place, as in the encoder, and weights."""
    generator = torch.Generator().manual_seed(0)
    cells = sum(height * width for height, width in shapes)
    centres = [
        torch.stack(torch.meshgrid(_centres(h), _centres(w), indexing="ij")[::-1], dim=-1).flatten(0, 1)
        for h, w in shapes
    ]
    sizes = torch.tensor([[width, height] for height, width in shapes])
    offsets = torch.randn(batch, cells, HEADS, len(shapes), POINTS, 2, generator=generator) * 3 / sizes[:, None]
    points = torch.cat(centres)[:, None, None, None] + offsets
    weights = torch.rand(batch, cells, HEADS, len(shapes) * POINTS, generator=generator).softmax(-1)
    values = torch.randn(batch, cells, HEADS, CHANNELS, generator=generator)
    tensors = (values.to(dtype), points, weights.unflatten(-1, (len(shapes), POINTS)))
    values, points, weights = (tensor.to(device).requires_grad_() for tensor in tensors)
    return values, points, weights


def _centres(count: int) -> Tensor:
    return (torch.arange(count) + 0.5) / count


def measure(
    form: Sampling, tensors: tuple[Tensor, ...], shapes: Shapes, rounds: int
) -> tuple[float, float, float | None]:
    """Median seconds forward and backward, and peak bytes on CUDA."""
    values, points, weights = tensors
    cuda = values.is_cuda
    forward, backward = [], []
    peak: float | None = None
    for index in range(rounds + 2):
        values.grad = points.grad = weights.grad = None
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        start = time.perf_counter()
        out = sample_points(values, shapes, points, weights, form=form)
        _wait(cuda)
        middle = time.perf_counter()
        out.backward(torch.ones_like(out))
        _wait(cuda)
        end = time.perf_counter()
        if index >= 2:  # the first rounds compile and warm up
            forward.append(middle - start)
            backward.append(end - middle)
            if cuda:
                peak = torch.cuda.max_memory_allocated() - before
    return statistics.median(forward), statistics.median(backward), peak


def _wait(cuda: bool) -> None:
    if cuda:
        torch.cuda.synchronize()


def main() -> None:
    """Print one line a form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--height", type=int, default=800, help="of the image, pixels")
    parser.add_argument("--width", type=int, default=1066, help="of the image, pixels")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the values")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    shapes = tuple((math.ceil(arguments.height / s), math.ceil(arguments.width / s)) for s in STRIDES)
    tensors = make(arguments.batch, shapes, arguments.device, getattr(torch, arguments.dtype))
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{where}; batch {arguments.batch}, levels {list(shapes)}, {HEADS} heads, {POINTS} points, {arguments.dtype}")
    first: float | None = None
    for form in ("reference", *(name for name in get_args(Sampling) if name != "reference")):
        if form == "kernel" and arguments.device != "cuda":
            print("kernel     not run: it needs a CUDA device")
            continue
        forward, backward, peak = measure(form, tensors, shapes, arguments.rounds)
        first = first or forward + backward
        memory = "" if peak is None else f"  peak {peak / 2**20:8.1f} MiB"
        print(
            f"{form:10} forward {forward * 1e3:9.2f} ms  backward {backward * 1e3:9.2f} ms  "
            f"{first / (forward + backward):5.2f}x the reference's speed{memory}"
        )


if __name__ == "__main__":
    main()
