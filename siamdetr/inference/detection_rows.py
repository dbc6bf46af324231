"""Detections as plain values, as in the JSON of `siamdetr predict`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import supervision as sv


def detection_rows(detections: sv.Detections) -> list[dict[str, Any]]:
    """One dictionary per detection: box (x0, y0, x1, y1 in pixels), score, label and name."""
    assert detections.confidence is not None
    assert detections.class_id is not None
    return [
        {
            "box": [round(float(x), 2) for x in box],
            "score": round(float(score), 5),
            "label": int(label),
            "name": str(name),
        }
        for box, score, label, name in zip(
            detections.xyxy, detections.confidence, detections.class_id, detections.data["class_name"], strict=True
        )
    ]
