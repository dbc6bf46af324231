"""Suspicions that columns have another meaning than the format says.

Corners in place of sizes, or keypoints that look like polygons.
"""

from __future__ import annotations

from collections.abc import Sequence


class CornerSuspicion:
    """Count the boxes that are valid as x y w h, and those that are valid as x1 y1 x2 y2."""

    LEAST_BOXES = 3
    SHARE_BEYOND = 0.2
    SHARE_CORNERS = 0.95

    def __init__(self) -> None:
        self.seen = self.beyond = self.corners = 0

    def look(self, x: float, y: float, width: float, height: float, size: tuple[int, int]) -> None:
        """Count one box, in pixels; `size` is the (height, width) of its image."""
        self.seen += 1
        self.beyond += x + width > size[1] + 1 or y + height > size[0] + 1
        self.corners += x < width <= size[1] + 1 and y < height <= size[0] + 1

    @property
    def justified(self) -> bool:
        """Whether many boxes leave the image as x y w h, and nearly all fit into it as x1 y1 x2 y2."""
        enough = self.seen >= self.LEAST_BOXES
        return (
            enough and self.beyond >= self.SHARE_BEYOND * self.seen and self.corners >= self.SHARE_CORNERS * self.seen
        )

    @property
    def figures(self) -> str:
        """The counts, in words."""
        return f"as x y w h {self.beyond} of {self.seen} boxes leave their image, as x1 y1 x2 y2 {self.corners} fit"


class KeypointSuspicion:
    """Count the rows that could be polygons, but also a box with its keypoints inside.

    Many of them suggest a pose data set whose kpt_shape is missing.
    """

    LEAST_ROWS = 3
    SHARE = 0.95
    SLACK = 0.1  # share of the box's sides by which a keypoint may lie outside

    def __init__(self) -> None:
        self.seen = self.fitting = 0
        self.lengths: set[int] = set()

    def look(self, values: Sequence[float]) -> None:
        """Count one row, given as its numbers after the class, fractions of the image."""
        self.seen += 1
        self.lengths.add(len(values))
        self.fitting += any(
            self._fits(values[:4], values[4:], step) for step in (2, 3) if (len(values) - 4) % step == 0
        )

    @property
    def justified(self) -> bool:
        """Whether all rows have the same length, and nearly all are boxes with their points inside."""
        return self.seen >= self.LEAST_ROWS and len(self.lengths) == 1 and self.fitting >= self.SHARE * self.seen

    def _fits(self, box: Sequence[float], points: Sequence[float], step: int) -> bool:
        cx, cy, w, h = box
        reach_x, reach_y = (0.5 + self.SLACK) * w, (0.5 + self.SLACK) * h
        inside = (
            w > 0 and h > 0 and cx - w / 2 > -0.01 and cy - h / 2 > -0.01 and cx + w / 2 < 1.01 and cy + h / 2 < 1.01
        )
        xs, ys = points[0::step], points[1::step]
        seen = step == 2 or all(flag in (0, 1, 2) for flag in points[2::3])
        return (
            inside
            and seen
            and all(
                (x == 0 and y == 0) or (abs(x - cx) <= reach_x and abs(y - cy) <= reach_y)
                for x, y in zip(xs, ys, strict=True)
            )
        )
