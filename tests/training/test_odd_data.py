"""Warnings before finetuning: crowded images, and a pretrained start with a class "object"."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.data_sets import coco_document, write_coco

from siamdetr.data.readers.recognise import open_dataset
from siamdetr.images.preprocessing import PreprocessingSpec
from siamdetr.model_file import ModelMetadata, save_model
from siamdetr.models.detector import Detector
from siamdetr.settings.detector import DetectorSettings
from siamdetr.settings.training import FinetuneSettings
from siamdetr.training.finetune_setup import warn_of_many_objects
from siamdetr.training.initial_weights import load_start
from siamdetr.training.open_datasets import FinetuneData

TINY = {"backbone": "resnet18", "dim": 32, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "feedforward": 32}


def test_more_objects_than_queries_or_counted_detections_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    document = coco_document(2)
    document["annotations"] += [
        {"id": 100 + k, "image_id": 1, "category_id": 1, "bbox": [k % 50, k // 50, 5, 5]} for k in range(148)
    ]
    write_coco(tmp_path, document)
    data = FinetuneData(open_dataset(tmp_path), open_dataset(tmp_path))
    values = {"data": {"paths": [str(tmp_path)]}, "epochs": 1, "detector": {"num_queries": 30}}
    warn_of_many_objects(data, FinetuneSettings.model_validate(values))
    assert "1 images have more objects than the detector has queries (the most: 150 objects, 30 queries)" in caplog.text
    assert "have more than 100 objects (the most: 150)" in caplog.text
    caplog.clear()
    values |= {"detector": {"num_queries": 150}, "val_max_detections": 150}
    warn_of_many_objects(data, FinetuneSettings.model_validate(values))
    assert caplog.text == ""


@pytest.mark.parametrize("pretrained", [True, False])
def test_the_head_of_a_pretrained_model_is_no_class_called_object(pretrained: bool, tmp_path: Path) -> None:
    shape = DetectorSettings.model_validate(TINY | {"num_classes": 1, "num_queries": 5})
    spec = PreprocessingSpec.from_size(64)
    metadata = ModelMetadata(class_names=("object",), preprocessing=spec, class_agnostic=pretrained)
    save_model(tmp_path / "p.safetensors", Detector(shape), metadata)
    begun = load_start(Detector(shape), ("object",), tmp_path / "p.safetensors")
    assert begun.fresh == (("class_head",) if pretrained else ())
