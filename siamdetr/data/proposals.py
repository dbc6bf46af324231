"""Region proposals without labels: EdgeBoxes (Zitnick and Dollár 2014), computed once for a data set and kept in one file.

As the official Siamese DETR: OpenCV's EdgeBoxes with at most 512 boxes and its defaults; an image without boxes is sharpened and
enlarged, and then gets the centred box of half its sides. Ours: the edge map is a thinned gradient, so that no model file is needed;
images are reduced to 256 pixels on the longer side first (on COCO images this finds .64 of the large objects among the first 100 boxes, .53 at
full size, and takes a seventh of the time); boxes may be as small as 1 % of a small image; the first 100 boxes are kept.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from siamdetr.data.files import Progress
from siamdetr.data.images import UnreadableImageError, content_key, decode_image, read_bytes
from siamdetr.data.index import DetectionIndex
from siamdetr.data.proposal_store import (
    KnownImages,
    ProposalStore,
    StoredImage,
    clear_parts,
    file_stamp,
    read_known,
    write_part,
    write_store,
)

__all__ = ["ProposalStore", "compute_proposals", "gradient_edges", "propose"]

logger = logging.getLogger(__name__)

MAX_BOXES = 512  # asked of EdgeBoxes
KEPT_BOXES = 100  # stored: a sample uses 9 of those that lie in both views
WORKING_SIDE = 256  # pixels
BLUR_SIGMA = 1.5  # pixels at the working size
STRONG_EDGE = 99.0  # percentile of the thinned gradient that becomes edge strength 1
MOST_EDGES = 0.15  # of the pixels may be edges: grainy images would otherwise take seconds
MIN_BOX_AREA = 1000.0  # EdgeBoxes' default, pixels; on small images 1 % of the image
ENLARGED = 2.0

RECIPE = f"edgeboxes gradient side={WORKING_SIDE} sigma={BLUR_SIGMA} strong={STRONG_EDGE} share={MOST_EDGES} boxes={MAX_BOXES}"

Boxes = NDArray[np.float32]  # [n, 4]


def compute_proposals(
    index: DetectionIndex,
    store_path: str | Path,
    *,
    keep: int = KEPT_BOXES,
    workers: int | None = None,
    part_size: int = 512,
    progress: Progress | None = None,
) -> ProposalStore:
    """Proposals of every image of a data set; images whose content is in the file already are not computed again.

    After every `part_size` images the work is put on disk, so that an interrupted run goes on where it stopped. OpenCV, Pillow and
    hashing leave Python's lock, so that threads use all cores.

    Args:
        index: the images; those that cannot be read are left out, with a warning.
        store_path: the file, made when it is not there.
        keep: boxes an image at most.
        workers: threads; None: one a core.
        part_size: images between two writings.
        progress: called with (images done, images in all).
    Raises:
        DataError: the file is there and is not ours.
    """
    path, recipe = Path(store_path), f"{RECIPE} kept={keep}"
    known = read_known(path, recipe)
    cv2.setNumThreads(0)
    done, unreadable = 0, 0
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        for chunk in _chunks(len(index), part_size):
            fresh = []
            stamped = [(i, stamp) for i in chunk if not known.has_stamp(stamp := file_stamp(index.path(i)))]
            done += len(chunk) - len(stamped)
            if progress is not None and len(stamped) < len(chunk):
                progress(done, len(index))
            try:
                for image in pool.map(lambda item: _compute_one(index.path(item[0]), item[1], keep, known), stamped):
                    if image is None:
                        unreadable += 1
                    else:
                        fresh.append(image)
                    done += 1
                    if progress is not None:
                        progress(done, len(index))
            finally:
                if fresh:
                    known.add(fresh)
                    write_part(path, recipe, fresh)
    if unreadable:
        logger.warning(
            "%d images could not be read and have no proposals; `siamdetr doctor %s` lists them", unreadable, index.root
        )
    if known.changed or not path.exists():
        write_store(path, recipe, known)
    clear_parts(path)
    return ProposalStore.open(path)


def propose(image: Image.Image, keep: int = KEPT_BOXES) -> Boxes:
    """EdgeBoxes of one image, or the centred box of half its sides when there are none.

    Args:
        image: RGB.
        keep: boxes at most.
    Returns:
        [n, 4] float32 (x0, y0, x1, y1) fractions of the image, best first, 1 <= n <= keep.
    """
    pixels = np.asarray(image)
    scale = min(1.0, WORKING_SIDE / max(pixels.shape[:2]))
    if scale < 1:
        height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0))
    boxes = _edge_boxes(pixels)
    if len(boxes) == 0:
        boxes = _edge_boxes(_sharpened_and_enlarged(pixels))
    if len(boxes) == 0:
        boxes = np.asarray([[0.25, 0.25, 0.75, 0.75]], dtype=np.float32)
    return boxes[:keep]


def gradient_edges(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Edge strength and orientation of an image, in place of a trained edge detector.

    The gradient of the blurred image, of each pixel's strongest channel; only ridges across the edge are kept (Canny's thinning).

    Args:
        pixels: [H, W, 3] uint8.
    Returns:
        strength [H, W] float32 in 0..1, and direction of the gradient [H, W] float32 in 0..pi.
    """
    smooth = cv2.GaussianBlur(pixels, (0, 0), BLUR_SIGMA).astype(np.float32)
    dx, dy = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    strongest = (dx * dx + dy * dy).argmax(axis=2)[..., None]
    dx, dy = (np.take_along_axis(part, strongest, axis=2)[..., 0] for part in (dx, dy))
    strength = np.hypot(dx, dy)
    height, width = strength.shape
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    step_x, step_y = dx / (strength + 1e-6), dy / (strength + 1e-6)
    ahead = cv2.remap(strength, columns + step_x, rows + step_y, cv2.INTER_LINEAR)
    behind = cv2.remap(strength, columns - step_x, rows - step_y, cv2.INTER_LINEAR)
    thin = np.where((strength >= ahead) & (strength >= behind), strength, 0)
    weakest = np.quantile(thin, 1 - MOST_EDGES)
    thin = np.where(thin > weakest, thin, 0)
    edges = thin[thin > 0]
    strong = float(np.percentile(edges, STRONG_EDGE)) if edges.size else 1.0
    return np.clip(thin / strong, 0, 1).astype(np.float32), np.mod(np.arctan2(dy, dx), math.pi).astype(np.float32)


def _edge_boxes(pixels: NDArray[np.uint8]) -> Boxes:
    """[n, 4] (x0, y0, x1, y1) fractions, best first; n may be 0."""
    height, width = pixels.shape[:2]
    if min(height, width) < 8:
        return np.zeros((0, 4), dtype=np.float32)
    finder = cv2.ximgproc.createEdgeBoxes()
    finder.setMaxBoxes(MAX_BOXES)
    finder.setMinBoxArea(min(MIN_BOX_AREA, 0.01 * height * width))
    strength, direction = gradient_edges(pixels)
    if not strength.any():
        return np.zeros((0, 4), dtype=np.float32)
    found, _ = finder.getBoundingBoxes(strength, direction)
    boxes = np.asarray(found, dtype=np.float32).reshape(-1, 4)  # x, y, w, h
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    return np.clip(corners / np.asarray([width, height] * 2, dtype=np.float32), 0, 1).astype(np.float32)


def _sharpened_and_enlarged(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    sharp = cv2.addWeighted(pixels, 2.0, cv2.GaussianBlur(pixels, (0, 0), 2.0), -1.0, 0.0)
    return np.asarray(cv2.resize(sharp, None, fx=ENLARGED, fy=ENLARGED, interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def _compute_one(path: Path, stamp: bytes, keep: int, known: KnownImages) -> StoredImage | None:
    try:
        data = read_bytes(path)
        key = content_key(data)
        earlier = known.find(key)
        if earlier is not None:
            return StoredImage(stamp, key, earlier.size, earlier.boxes)
        image = decode_image(data, source=path)
    except UnreadableImageError as error:
        logger.warning("%s; it gets no proposals", error)
        return None
    return StoredImage.of(stamp, key, (image.height, image.width), propose(image, keep))


def _chunks(total: int, size: int) -> Iterator[range]:
    return (range(start, min(start + size, total)) for start in range(0, total, size))
