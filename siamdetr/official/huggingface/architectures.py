"""The detectors that transformers and siamdetr share, one entry of `ARCHITECTURES` each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from siamdetr.official.huggingface.config import (
    ConditionalDetrConfig,
    DabDetrConfig,
    DeformableDetrConfig,
    DetrConfig,
    HuggingFaceConfig,
    TableTransformerConfig,
)
from siamdetr.official.huggingface.heads import (
    no_heads_to_untie,
    untie_dab,
    untie_deformable,
    untie_rtdetr,
)
from siamdetr.official.huggingface.name_tables import (
    CONDITIONAL,
    DAB,
    DEFORMABLE,
    DETR,
    LAYER_HEADS,
    SHARED_HEADS,
    Pair,
    rtdetr_pairs,
)
from siamdetr.official.huggingface.rtdetr_config import RTDetrConfig, RTDetrV2Config
from siamdetr.settings.detector import DetectorSettings

Untie = Callable[[Mapping[str, Tensor], HuggingFaceConfig], dict[str, Tensor]]


@dataclass(frozen=True)
class Architecture:
    """The facts needed to read and write one detector."""

    config: type[HuggingFaceConfig]
    pairs: Callable[[DetectorSettings], tuple[Pair, ...]]
    class_head: str  # the tensor whose rows are the classes
    untie: Untie = (
        no_heads_to_untie  # one tensor for each head, of a file that may name it twice or once for all layers
    )


def _deformable_pairs(settings: DetectorSettings) -> tuple[Pair, ...]:
    return (*DEFORMABLE, *(LAYER_HEADS if settings.refine else SHARED_HEADS))


def _rtdetr_pairs(settings: DetectorSettings) -> tuple[Pair, ...]:
    return rtdetr_pairs(settings.decoder_layers)


ARCHITECTURES: Mapping[str, Architecture] = {
    "detr": Architecture(DetrConfig, lambda _: DETR, "class_labels_classifier.weight"),
    "table-transformer": Architecture(TableTransformerConfig, lambda _: DETR, "class_labels_classifier.weight"),
    "conditional_detr": Architecture(ConditionalDetrConfig, lambda _: CONDITIONAL, "class_labels_classifier.weight"),
    "dab-detr": Architecture(DabDetrConfig, lambda _: DAB, "class_embed.weight", untie_dab),
    "deformable_detr": Architecture(DeformableDetrConfig, _deformable_pairs, "class_embed.0.weight", untie_deformable),
    "rt_detr": Architecture(RTDetrConfig, _rtdetr_pairs, "class_embed.0.weight", untie_rtdetr),
    "rt_detr_v2": Architecture(RTDetrV2Config, _rtdetr_pairs, "class_embed.0.weight", untie_rtdetr),
}
