"""`SiamDETR`: a PyTorch detector with its classes and its preprocessing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from siamdetr.images.preprocessing import ImageLike, Prepared, PreprocessingSpec, preprocess
from siamdetr.inference.detector_attention import TracedInspection, inspect
from siamdetr.inference.opened_model import OpenedModel
from siamdetr.inference.predictor import ScoredBoxes
from siamdetr.inference.pytorch import PyTorchPredictor, evaluating, normalize_prepared
from siamdetr.model_file import ModelMetadata, find_model_file, load_model, save_model
from siamdetr.models.attention import record_attention
from siamdetr.models.backbone.normalization import backbone_normalization
from siamdetr.models.backbone.weights import load_backbone_weights
from siamdetr.models.compiled import check_compiler
from siamdetr.models.detector import Detector
from siamdetr.settings.detector import Classifier, DetectorSettings
from siamdetr.settings.registry import detector_entry


class SiamDETR(OpenedModel):
    """A DETR detector, from images to detections.

    The weights are random; `siamdetr.load` opens trained ones.

    Args:
        variant: a detector of `siamdetr.settings.registry.DETECTORS`, such as "conditional" or "dn"; docs/detectors.md
            tells what each is. Those of several feature levels have one here; `from_parts` takes a detector of other
            settings.
        backbone: resnet18/34/50/101 or any timm model with feature maps.
        num_classes: number of classes, named class_0, class_1, … ; or give `class_names`.
        class_names: names in label order.
        num_queries: boxes that the detector proposes for an image.
        stride: of the feature map, 32 or 16 pixels.
        classifier: "softmax" or "focal"; None: as the variant's paper.
        backbone_weights: "imagenet" or a file; None: random.
        preprocessing: how images become the input; None: shorter side 800, longer at most 1333, as DETR, normalised as
            the backbone's pretrained weights expect.
    Raises:
        ValueError: neither or contradicting numbers of classes, or a setting that does not exist.

    Example:
        >>> from siamdetr import SiamDETR
        >>> model = SiamDETR("deformable", backbone="resnet18", class_names=["cat", "dog"], num_queries=20)
        >>> detections = model.predict("photo.jpg", threshold=0.5)  # boxes xyxy, pixels of the image
        >>> len(detections)  # the weights are random: no score reaches one half
        0
    """

    def __init__(
        self,
        variant: str = "conditional",
        *,
        backbone: str = "resnet50",
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        num_queries: int = 100,
        stride: int = 32,
        classifier: Classifier | None = None,
        backbone_weights: str | None = None,
        preprocessing: PreprocessingSpec | None = None,
    ) -> None:
        names = _class_names(num_classes, class_names)
        settings = DetectorSettings.model_validate(
            {
                "variant": variant,
                "backbone": backbone,
                "num_classes": len(names),
                "num_queries": num_queries,
                "stride": stride,
                "classifier": classifier or detector_entry(variant).classifier,
            }
        )
        detector = Detector(settings)
        if backbone_weights is not None:
            load_backbone_weights(detector.backbone, backbone_weights)
        own = preprocessing or PreprocessingSpec().normalized_by(backbone_normalization(backbone))
        metadata = ModelMetadata(class_names=names, preprocessing=own)
        self._set(detector.eval(), metadata, None)

    def _set(self, detector: Detector, metadata: ModelMetadata, path: Path | None) -> None:
        self._predictor = PyTorchPredictor(
            detector, metadata.class_names, metadata.preprocessing, threshold=metadata.threshold
        )
        self._metadata = self._facts = metadata
        self._path = path

    @classmethod
    def from_parts(
        cls,
        detector: Detector,
        *,
        class_names: Sequence[str],
        preprocessing: PreprocessingSpec,
        category_ids: Sequence[int] = (),
        lineage: Sequence[str] = (),
        metrics: Mapping[str, float] | None = None,
        class_agnostic: bool = False,
    ) -> SiamDETR:
        """A model of an existing detector, which is held, not copied.

        `class_agnostic`: it was pretrained and not finetuned; its one class is any object.
        """
        metadata = ModelMetadata(
            class_names=tuple(class_names),
            category_ids=tuple(category_ids),
            preprocessing=preprocessing,
            lineage=tuple(lineage),
            metrics=dict(metrics or {}),
            class_agnostic=class_agnostic,
        )
        model = cls.__new__(cls)
        model._set(detector, metadata, None)
        return model

    @classmethod
    def load(cls, path: str | Path, *, device: str | torch.device = "cpu") -> SiamDETR:
        """Open a model file, or the best one of a run folder. `siamdetr.load` opens exported files too.

        Raises:
            CheckpointError: not there, not ours, or damaged.
            ValueError: an Apple GPU is asked for where there is none.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if torch.device(device).type == "mps" and not torch.backends.mps.is_available():
            raise ValueError("device mps: PyTorch sees no Apple GPU here; take cpu")
        file = find_model_file(path)
        detector, metadata = load_model(file)
        model = cls.__new__(cls)
        model._set(detector.to(device), metadata, file)
        return model

    @property
    def detector(self) -> Detector:
        """The module: float normalised images [B, 3, H, W] and padding in, `Outputs` out."""
        return self._predictor.detector

    @property
    def predictor(self) -> PyTorchPredictor:
        """The runtime: detector, classes and preprocessing."""
        return self._predictor

    @property
    def metadata(self) -> ModelMetadata:
        """The metadata of the model file, besides the detector's settings."""
        return self._metadata

    @property
    def device(self) -> torch.device:
        """The device of the detector."""
        return self._predictor.device

    def to(self, device: str | torch.device) -> SiamDETR:
        """Move the detector; returns this model."""
        self.detector.to(device)
        return self

    def compile(self) -> SiamDETR:
        """Compile the detector with torch.compile, at its first batch; returns this model.

        That takes a minute or more, once for all image sizes.

        Raises:
            SettingsError: torch.compile does not work here: no C++ compiler, or no Triton for a GPU.
        """
        check_compiler(self.device)
        self._predictor.compile()
        return self

    @property
    def info(self) -> dict[str, Any]:
        """The facts of the model, in plain values."""
        return {
            "kind": "PyTorch model",
            "file": None if self._path is None else str(self._path),
            **self.detector.settings.model_dump(),
            "parameters": sum(parameter.numel() for parameter in self.detector.parameters()),
            **self._metadata.model_dump(),
        }

    def predict_batch(self, batch: Prepared) -> ScoredBoxes:
        """All scored boxes of a batch of prepared images, before any threshold."""
        return self._predictor.predict_batch(batch)

    def attention(self, image: ImageLike) -> NDArray[np.float32]:
        """The cross-attention of every query, in every decoder layer.

        Returns:
            [L, heads, Q, h, w]: over h and w (cells of the feature map) every map sums to 1.

        Example:
            >>> SiamDETR.load("detector.safetensors").attention("photo.jpg").shape
            (6, 8, 100, 25, 34)
        """
        batch = preprocess([image], self.preprocessing)
        images, padding = normalize_prepared(batch, self.preprocessing, self.device)
        with evaluating(self.detector), torch.inference_mode(), record_attention(self.detector) as maps:
            self.detector(images, padding)
        return torch.stack([one[0] for one in maps]).float().cpu().numpy()

    def inspect(self, image: ImageLike) -> TracedInspection:
        """Detections of one image, and on demand the attention of encoder and decoder, as arrays.

        Raises:
            ImageError: the image cannot be used.

        Example:
            >>> inspection = SiamDETR.load("detector.safetensors").inspect("photo.jpg")
            >>> best = int(inspection.scored.scores[0].argmax())
            >>> attention = inspection.decoder_attention(best)
            >>> attention.maps.shape  # [layers, heads, h, w], cells of the feature map
            (6, 8, 25, 34)
            >>> inspection.encoder_attention(0.5, 0.5).maps.shape  # self-attention of the cell in the middle
            (6, 8, 25, 34)
        """
        return inspect(self._predictor, image)

    def save(self, path: str | Path) -> None:
        """Write a model file (.safetensors), atomically.

        Raises:
            CheckpointError: the name does not end in .safetensors, or the disk is full; an old file stays.
        """
        save_model(path, self.detector, self._metadata)


def _class_names(number: int | None, names: Sequence[str] | None) -> tuple[str, ...]:
    if names is None and number is None:
        raise ValueError("SiamDETR: got no classes; give num_classes=20, or class_names=[...]")
    if names is None:
        return tuple(f"class_{label}" for label in range(number or 0))
    if number is not None and number != len(names):
        raise ValueError(f"SiamDETR: got num_classes={number} and {len(names)} class names; give one of the two")
    return tuple(names)
