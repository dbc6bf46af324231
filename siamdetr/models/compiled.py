"""torch.compile of a detector: four parts, each one graph for images of any size.

The parts are backbone, projection, encoder and decoder.

Queries, matching and losses are not compiled: they change with the number of objects, and matching waits for the host.
"""

from __future__ import annotations

import torch
from torch import nn

from siamdetr.errors import SettingsError
from siamdetr.models.detector import Detector


def compile_parts(detector: Detector, *, backend: str = "inductor") -> None:
    """Compile the parts of a detector in place, at their first call.

    The names of the weights do not change, and copies of the detector are not compiled. Batch, height and width are
    symbols in the graphs, so that another image size compiles nothing. A part is compiled once more for evaluation,
    for a batch of one image, for a batch without padding, and after a first batch whose sizes are equal by chance,
    such as square images. On a CPU so is the backbone at its first image below about 100 pixels: PyTorch computes the
    convolution of a map with at most 20,480 values in another way, and guards that choice.

    Args:
        detector: of any kind, on any device.
        backend: of torch.compile.
    """
    for part in (detector.backbone, detector.input_projection, detector.encoder, detector.decoder):
        compile_part(part, backend=backend)


def compile_part(part: nn.Module, *, backend: str = "inductor") -> None:
    """Compile one module in place, at its first call."""
    part.compile(dynamic=True, backend=backend)


def check_compiler(device: torch.device) -> None:
    """Compile a small function, which takes some seconds, to learn early whether this machine can.

    Raises:
        SettingsError: there is no compiler, or it lacks headers.
    """
    try:
        torch.compile(torch.nn.functional.softplus, dynamic=True)(torch.ones(2, device=device))
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise SettingsError(
            f"--compile: torch.compile does not work here ({reason}); install a C++ compiler and Python's headers "
            "(Debian: apt-get install g++ python3-dev), for a GPU also Triton, or leave --compile out"
        ) from None
