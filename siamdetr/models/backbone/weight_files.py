"""Read weight files of other programs, PyTorch or safetensors. Nothing in a file is ever executed."""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from siamdetr.errors import WeightFileError

_REFUSAL = "Weights only load failed"  # PyTorch's own words when it met something that only code can rebuild


def read_weight_file(path: str | Path) -> dict[str, Any]:
    """Read a .safetensors or PyTorch file on the CPU.

    Returns:
        The file's dictionary: of tensors, or a checkpoint that holds one.
    Raises:
        WeightFileError: there is no such file, it is truncated, it is no weight file, or it contains objects that only
            code can rebuild (refused; the code does not run).
    """
    path = Path(path)
    if not path.is_file():
        raise WeightFileError(f"{path}: there is no such file; give the path of a .pth, .pt or .safetensors file")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if not isinstance(content, Mapping):
        raise WeightFileError(
            f"{path}: expected a dictionary of tensors, got {type(content).__name__}; save the model's state_dict()"
        )
    return dict(content)


def unwrap_state_dict(content: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """The state dict inside a checkpoint.

    It is under `ema.module`, `model`, `state_dict`, `teacher` or `student`, or it is the whole checkpoint.

    Raises:
        WeightFileError: there are no tensors.
    """
    average = content.get("ema")  # RT-DETR keeps its averaged weights in "ema.module"
    if isinstance(average, Mapping) and isinstance(average.get("module"), Mapping):
        content = {"model": average["module"]}
    for key in ("model", "state_dict", "teacher", "student"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightFileError(
            f"{where}: expected tensors by name, or a checkpoint with them under 'model' or 'state_dict', "
            f"got the keys {list(content)[:5]}"
        )
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise WeightFileError(f"{path}: damaged or no safetensors file ({error}); fetch it again") from error


def _read_torch(path: Path) -> object:
    try:
        # Besides tensors and plain containers the official checkpoints hold the options of their run.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # about the pickle protocol: what counts is whether it loads
            content: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds, among them its own pickle's
        text = str(error)
        if _REFUSAL in text:
            reasons = re.findall(r"^.*unsupported.*$", text, flags=re.IGNORECASE | re.MULTILINE)
            raise WeightFileError(
                f"{path}: refused, because loading it would run code from the file; nothing was run. Save its tensors alone "
                f"(torch.save(model.state_dict(), ...)) or as .safetensors. PyTorch says: {' '.join(reasons)[:200]}"
            ) from error
        reason = f"{type(error).__name__}: {' '.join(text.split())[:200]}"
        raise WeightFileError(f"{path}: truncated, damaged or no PyTorch file ({reason}); fetch it again") from error
    return content
