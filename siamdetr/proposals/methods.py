"""Compute region proposals of one image without labels.

Methods: EdgeBoxes, Selective Search, both merged, or random boxes.

EdgeBoxes (Zitnick and Dollár 2014) and Selective Search (Uijlings et al. 2013, "fast") are OpenCV's. As in the official
Siamese DETR, an image without boxes is sharpened and enlarged; if it still has none, it gets the centred box of half
its sides. Ours:
- without a model of structured forests EdgeBoxes uses a thinned gradient (`edge_map.py`);
- EdgeBoxes works at 256 pixels with a coarser step and a looser suppression (alpha .55, beta .5) than OpenCV's .65 and
  .75. On the train part of a small COCO subset the first ten and the first hundred boxes cover more objects, in a third
  of the time; docs/results.md has the figures of the val part;
- Selective Search's random ranks (position in the hierarchy times a random number) are drawn again from a fixed seed,
  since OpenCV draws them from a global state: equal images have equal boxes. Near-duplicates are suppressed;
- "merged" scores each box by its reciprocal rank in its own list plus that of the best match in the other, so that
  regions of both methods come first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from siamdetr.images import opencv as cv2
from siamdetr.images.open import content_key
from siamdetr.proposals.edge_map import GRADIENT, forest_edges, gradient_edges
from siamdetr.proposals.opencv_contrib import require_contrib
from siamdetr.proposals.random_boxes import random_boxes

Method = Literal["edgeboxes", "selective-search", "merged", "random", "objectness-file"]
METHODS: tuple[Method, ...] = get_args(Method)
Fallback = Literal[0, 1, 2]  # none; boxes after sharpening and enlarging; the centred box

Boxes = NDArray[np.float32]  # [n, 4]

KEPT_BOXES = 100  # a sample uses 9 of the boxes that lie in both views
WORKING_SIDE = 256  # pixels, longer side: EdgeBoxes
MAX_BOXES = 512  # requested from EdgeBoxes
ALPHA, BETA = 0.55, 0.5  # step of its search, and overlap above which a box is suppressed
MIN_BOX_AREA = 1000.0  # its default, pixels; on small images 1 % of the image
ENLARGED = 2.0
SEARCH_SIDE = 128  # pixels: Selective Search runs on a square, as in the official DETReg
SEARCH_OVERLAP = 0.8  # IoU above which the later of two of its boxes is suppressed
MERGED_SEARCH_SIDE = 96  # pixels: the square of "merged" is smaller
MERGED_DEPTH = 200  # boxes of each method that are merged
MERGED_RANK = 100.0  # added to a rank before its reciprocal is taken
MERGED_OVERLAP = 0.7  # IoU above which the worse of two boxes is suppressed
CENTRED = (0.25, 0.25, 0.75, 0.75)


@dataclass(frozen=True)
class Recipe:
    """How proposals are computed.

    Attributes:
        method: see above; "objectness-file" takes boxes scored by another program.
        keep: most boxes of an image.
        edge_model: file of structured forests for EdgeBoxes' edge map (OpenCV's model.yml.gz); None: our gradient.
        boxes_file: name and content of the file, for `text`, with "objectness-file".
    """

    method: Method = "edgeboxes"
    keep: int = KEPT_BOXES
    edge_model: Path | None = None
    boxes_file: Path | None = None

    @property
    def text(self) -> str:
        """All parameters in words, which are stored with the boxes and compared before boxes are added."""
        if self.method == "random":
            return f"random draws=100 kept={self.keep}"
        if self.method == "objectness-file":
            return f"objectness-file {_file_name(self.boxes_file)} kept={self.keep}"
        edges = GRADIENT if self.edge_model is None else f"forests {_file_name(self.edge_model)}"
        boxes = f"edgeboxes {edges} side={WORKING_SIDE} alpha={ALPHA} beta={BETA} boxes={MAX_BOXES}"
        search = (
            f"selective-search fast side={SEARCH_SIDE} overlap={SEARCH_OVERLAP}"
            if self.method == "selective-search"
            else f"selective-search fast side={MERGED_SEARCH_SIDE}"
        )
        what = {"edgeboxes": boxes, "selective-search": search}.get(
            self.method, f"merged rank={MERGED_RANK} overlap={MERGED_OVERLAP}: {boxes}; {search}"
        )
        return f"{what} kept={self.keep}"


@dataclass(frozen=True)
class Proposed:
    """Boxes of one image: [n, 4] float32 (x0, y0, x1, y1) fractions of it, best first, n >= 1.

    `fallback`: how far the method fell back.
    """

    boxes: Boxes
    fallback: Fallback


def propose(image: Image.Image, recipe: Recipe | None = None, *, seed: int = 0) -> Proposed:
    """Proposals of one image.

    Args:
        image: RGB.
        recipe: None: EdgeBoxes.
        seed: of the random method; the other methods give the same boxes for the same image.
    Raises:
        DataError: the edge model cannot be read, or OpenCV lacks its extra modules.
        ValueError: the method computes no boxes ("objectness-file").
    """
    recipe = recipe or Recipe()
    if recipe.method == "random":
        return Proposed(random_boxes(np.random.default_rng(seed))[: recipe.keep], 0)
    if recipe.method == "objectness-file":
        raise ValueError("propose: the boxes of 'objectness-file' come from the file; there is nothing to compute")
    require_contrib()
    pixels = _reduced(image, WORKING_SIDE)
    boxes = _found(image, pixels, recipe)
    if len(boxes):
        return Proposed(boxes[: recipe.keep], 0)
    sharp = _sharpened_and_enlarged(pixels)
    boxes = _found(Image.fromarray(sharp), sharp, recipe)
    if len(boxes):
        return Proposed(boxes[: recipe.keep], 1)
    return Proposed(np.asarray([CENTRED], dtype=np.float32), 2)


def _found(image: Image.Image, pixels: NDArray[np.uint8], recipe: Recipe) -> Boxes:
    if recipe.method == "edgeboxes":
        return edge_boxes(pixels, recipe.edge_model)
    if recipe.method == "selective-search":
        found = selective_search(image, SEARCH_SIDE)
        return _suppressed(found, (1 / np.arange(1, len(found) + 1)).astype(np.float32), SEARCH_OVERLAP)
    return merge_proposals(edge_boxes(pixels, recipe.edge_model), selective_search(image, MERGED_SEARCH_SIDE))


def edge_boxes(pixels: NDArray[np.uint8], edge_model: Path | None = None) -> Boxes:
    """EdgeBoxes of an image at its working size.

    Args:
        pixels: [H, W, 3] uint8 RGB.
        edge_model: see `Recipe`.
    Returns:
        [n, 4] (x0, y0, x1, y1) fractions, best first; n may be 0.
    """
    height, width = pixels.shape[:2]
    if min(height, width) < 8:
        return np.zeros((0, 4), dtype=np.float32)
    strength, direction = gradient_edges(pixels) if edge_model is None else forest_edges(pixels, edge_model)
    if not strength.any():
        return np.zeros((0, 4), dtype=np.float32)
    finder = cv2.ximgproc.createEdgeBoxes()
    finder.setMaxBoxes(MAX_BOXES)
    finder.setAlpha(ALPHA)
    finder.setBeta(BETA)
    finder.setMinBoxArea(min(MIN_BOX_AREA, 0.01 * height * width))
    found, _ = finder.getBoundingBoxes(strength, direction)
    return _as_fractions(found, (height, width))


def selective_search(image: Image.Image, side: int) -> Boxes:
    """Selective Search, "fast", on the image resized to a square.

    Args:
        image: RGB.
        side: of the square, pixels.
    Returns:
        [n, 4] (x0, y0, x1, y1) fractions in the order of random ranks from a fixed seed.
    """
    pixels = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0))
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(pixels[..., ::-1]))
    search.switchToSelectiveSearchFast()
    found = np.asarray(search.process(), dtype=np.int64).reshape(-1, 4)  # x, y, w, h
    order = np.lexsort((*found.T, -found[:, 2] * found[:, 3]))  # from the top of the hierarchy
    ranks = np.arange(1, len(found) + 1) * np.random.default_rng(0).random(len(found))
    return _as_fractions(found[order[np.argsort(ranks, kind="stable")]], (side, side))


def merge_proposals(a: Boxes, b: Boxes) -> Boxes:
    """Merge two lists of boxes: those that both rank high come first, overlapping ones are suppressed.

    Args:
        a: [n, 4] (x0, y0, x1, y1) fractions, best first.
        b: [m, 4] likewise.
    Returns:
        [k, 4], best first, k <= n + m.
    """
    parts = [part[:MERGED_DEPTH] for part in (a, b) if len(part)]
    if not parts:
        return np.zeros((0, 4), dtype=np.float32)
    boxes = np.concatenate(parts)
    agreement = pairwise_overlap(boxes, boxes) ** 2
    score = np.zeros(len(boxes), dtype=np.float32)
    start = 0
    for part in parts:
        rank = 1 / (MERGED_RANK + np.arange(len(part), dtype=np.float32))
        score += (agreement[:, start : start + len(part)] * rank).max(axis=1)
        start += len(part)
    return _suppressed(boxes, score, MERGED_OVERLAP)


def pairwise_overlap(a: Boxes, b: Boxes) -> NDArray[np.float32]:
    """[n, m] IoU of (x0, y0, x1, y1) boxes [n, 4] and [m, 4] in one unit; 0 where both have no area."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    sides = (high - low).clip(min=0)
    common = sides[..., 0] * sides[..., 1]
    area_a, area_b = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) for boxes in (a, b))
    union = area_a[:, None] + area_b[None] - common
    overlap: NDArray[np.float32] = common / np.maximum(union, np.finfo(np.float32).tiny)
    return overlap


def _suppressed(boxes: Boxes, scores: NDArray[np.float32], most: float) -> Boxes:
    """[k, 4] boxes whose IoU with every better box is at most `most`, best first; scores are above 0."""
    sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float64)
    kept = cv2.dnn.NMSBoxes(sides, scores, 0.0, most)
    return boxes[np.asarray(kept, dtype=np.int64).reshape(-1)]


def _reduced(image: Image.Image, side: int) -> NDArray[np.uint8]:
    scale = side / max(image.size)
    if scale >= 1:
        return np.asarray(image)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))


def _sharpened_and_enlarged(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    sharp = cv2.addWeighted(pixels, 2.0, cv2.GaussianBlur(pixels, (0, 0), 2.0), -1.0, 0.0)
    return np.asarray(cv2.resize(sharp, None, fx=ENLARGED, fy=ENLARGED, interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def _as_fractions(found: object, size: tuple[int, int]) -> Boxes:
    """[n, 4] (x0, y0, x1, y1) fractions of (x, y, w, h) pixels in an image of (height, width)."""
    boxes = np.asarray(found, dtype=np.float32).reshape(-1, 4)
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    return np.clip(corners / np.asarray([size[1], size[0]] * 2, dtype=np.float32), 0, 1).astype(np.float32)


def _file_name(path: Path | None) -> str:
    assert path is not None
    return f"{path.name}:{content_key(path.read_bytes()).hex()[:12]}"
