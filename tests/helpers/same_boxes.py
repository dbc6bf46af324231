"""Comparison of a client's boxes with the checkpoint's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import supervision as sv


def assert_same_boxes(found: Sequence[dict[str, Any]], expected: sv.Detections, class_names: Sequence[str]) -> None:
    """A client found the checkpoint's boxes, best first: scores within 0.01, boxes within a pixel.

    `found`: {"name", "score", "box"} of each. Boxes may change places, because scores may lie close together.
    """
    assert len(found) == len(expected) > 0
    assert [one["score"] for one in found] == sorted((one["score"] for one in found), reverse=True)
    for box, score, label in zip(expected.xyxy, expected.confidence, expected.class_id, strict=True):
        near = [
            one
            for one in found
            if one["name"] == class_names[label]
            and abs(one["score"] - score) < 0.01
            and np.abs(np.array(one["box"]) - box).max() < 1.0
        ]
        assert near, (box, score, label)
