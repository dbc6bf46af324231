"""Write a detector as a folder for `AutoModelForObjectDetection.from_pretrained` of transformers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import torch as safetensors_torch
from torch import Tensor

from siamdetr.errors import HubError
from siamdetr.model_file import ModelMetadata
from siamdetr.models.detector import Detector
from siamdetr.official.huggingface.architectures import ARCHITECTURES
from siamdetr.official.huggingface.config import HuggingFaceConfig
from siamdetr.official.huggingface.name_tables import Pair
from siamdetr.official.huggingface.names import backbone_name, export_rules
from siamdetr.official.huggingface.preprocessor import write_preprocessing
from siamdetr.official.huggingface.read import OURS
from siamdetr.official.huggingface.repository import CONFIG, PREPROCESSOR, WEIGHTS
from siamdetr.official.huggingface.rtdetr_config import require_square, rtdetr_forms
from siamdetr.official.huggingface.write_config import write_config
from siamdetr.official.rules import translate
from siamdetr.settings.base import to_json
from siamdetr.settings.detector import DetectorSettings
from siamdetr.system.atomic_file import atomic_write

_BODY = "backbone.body."


def export_huggingface(detector: Detector, metadata: ModelMetadata, folder: Path) -> list[Path]:
    """Write config.json, model.safetensors and preprocessor_config.json; returns their paths.

    The data set's ids, lineage and metrics, for which transformers has no field, are kept in config.json under
    "siamdetr", which transformers ignores. So importing the folder restores the same model.

    Raises:
        HubError: the folder is one of our runs.
        OfficialCheckpointError: transformers has no such detector; the text says which part of it. Nothing is written.
    """
    if (folder / "config.yaml").is_file():
        raise HubError(f"{folder}: a run folder; name another one for the files of transformers")
    config, values = write_config(detector.settings, metadata.class_names)
    kept = to_json(metadata)
    values[OURS] = {name: kept[name] for name in ("category_ids", "lineage", "metrics")}
    if detector.settings.column_positions:
        require_square(metadata.preprocessing)
        values[OURS]["column_positions"] = True
    tensors = huggingface_tensors(detector, config)
    folder.mkdir(parents=True, exist_ok=True)
    processor = write_preprocessing(metadata.preprocessing, config.processor)
    atomic_write(folder / WEIGHTS, lambda file: file.write(safetensors_torch.save(tensors, {"format": "pt"})))
    atomic_write(folder / PREPROCESSOR, lambda file: file.write(_json(processor)))
    atomic_write(folder / CONFIG, lambda file: file.write(_json(values)))  # last: with it the folder is one
    return [folder / name for name in (WEIGHTS, PREPROCESSOR, CONFIG)]


def huggingface_tensors(detector: Detector, config: HuggingFaceConfig) -> dict[str, Tensor]:
    """The detector's tensors under transformers' names; shared heads under each of their names."""
    pairs = ARCHITECTURES[config.model_type].pairs(detector.settings)
    own_names = (config.backbone_config or {}).get("model_type") != "timm_backbone"
    state = {name: tensor.detach().cpu() for name, tensor in detector.state_dict().items()}
    tensors = {
        backbone_name(name.removeprefix(_BODY), config.model_type, own_names=own_names): tensor
        for name, tensor in state.items()
        if name.startswith(_BODY)
    }
    tensors |= _renamed({name: tensor for name, tensor in state.items() if not name.startswith(_BODY)}, pairs)
    if detector.settings.variant == "rtdetr":
        tensors = rtdetr_forms(tensors, config.model_type, detector.settings)
    tensors |= _aliases(tensors, detector.settings)
    return {name: tensor.clone().contiguous() for name, tensor in tensors.items()}


def _renamed(state: dict[str, Tensor], pairs: tuple[Pair, ...]) -> dict[str, Tensor]:
    """The tensors, without the backbone's, under transformers' names.

    Tensors that share one of theirs are concatenated along the last axis.
    """
    rules = export_rules(pairs)
    order = {ours: place for pair in pairs for place, ours in enumerate(pair.ours)}
    parts: dict[str, list[tuple[int, Tensor]]] = {}
    for name, tensor in state.items():
        place = translate(name, rules)
        assert isinstance(place, tuple), f"'{name}' is in no pair"
        parts.setdefault(place[0], []).append((order.get(name, 0), tensor))
    return {
        name: torch.cat([tensor for _, tensor in sorted(found, key=lambda part: part[0])], dim=-1)
        if len(found) > 1
        else found[0][1]
        for name, found in parts.items()
    }


def _aliases(tensors: dict[str, Tensor], settings: DetectorSettings) -> dict[str, Tensor]:
    """Shared heads under the further names that transformers has for them."""
    aliases: dict[str, Tensor] = {}
    if settings.variant == "dab":
        for name, tensor in tensors.items():
            if name.startswith("bbox_predictor."):
                aliases["model.decoder.bbox_embed." + name.removeprefix("bbox_predictor.")] = tensor
    if settings.variant == "deformable":
        for name, tensor in tensors.items():
            match = re.fullmatch(r"(bbox|class)_embed\.\d+\..+", name)
            if match and not settings.refine:
                for layer in range(1, settings.decoder_layers):
                    aliases[name.replace(".0.", f".{layer}.", 1)] = tensor
            elif match and (match[1] == "bbox" or settings.two_stage):
                aliases[f"model.decoder.{name}"] = tensor
    return aliases


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
