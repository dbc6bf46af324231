"""Post-processing of the last layer to boxes in pixels, as in the official DETR and Conditional DETR."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from siamdetr.boxes import cxcywh_to_xyxy
from siamdetr.settings.detector import Classifier


@dataclass(frozen=True)
class Predictions:
    """Scored boxes of B images, K each; no threshold and no non-maximum suppression.

    Attributes:
        scores: [B, K] probabilities in [0, 1].
        labels: [B, K] int64, 0..C-1.
        boxes: [B, K, 4] (x0, y0, x1, y1) pixels of the given sizes; may reach outside the image.
        queries: [B, K] int64, the query of each box; several boxes may share one.
    """

    scores: Tensor
    labels: Tensor
    boxes: Tensor
    queries: Tensor


def postprocess(
    logits: Tensor, boxes: Tensor, sizes: Tensor, *, classifier: Classifier, top_k: int = 100
) -> Predictions:
    """Scores, labels and pixel boxes.

    Args:
        logits: [B, Q, C] of the last decoder layer.
        boxes: [B, Q, 4] (cx, cy, w, h) fractions of the unpadded image.
        sizes: [B, 2] (H, W) of the images that the pixels shall refer to.
        classifier: `softmax`: the best class but the last ("no object") of every query, in query order, K = Q; if Q is
            above `top_k`, the best `top_k` of them, best first. `focal`: the best pairs of query and class, best first,
            K = min(top_k, Q * C).
        top_k: boxes at most; official: 100.
    Returns:
        Predictions on the device of `logits`.
    Raises:
        ValueError: the batch sizes differ.
    """
    if not logits.shape[0] == boxes.shape[0] == sizes.shape[0]:
        raise ValueError(
            f"postprocess: logits {list(logits.shape)}, boxes {list(boxes.shape)} and sizes {list(sizes.shape)} are of "
            "different numbers of images; give one size (H, W) an image"
        )
    logits = logits.float()
    scale = sizes.to(boxes.device).flip(-1).repeat(1, 2)[:, None]  # [B, 1, 4] = W, H, W, H
    corners = cxcywh_to_xyxy(boxes.float())
    if classifier == "softmax":
        scores, labels = logits.softmax(-1)[..., :-1].max(-1)
        queries = torch.arange(logits.shape[1], device=logits.device).expand_as(labels)
        if logits.shape[1] <= top_k:
            return Predictions(scores, labels, corners * scale, queries)
        scores, queries = scores.topk(top_k, dim=1)
        chosen = corners.gather(1, queries[..., None].expand(-1, -1, 4))
        return Predictions(scores, labels.gather(1, queries), chosen * scale, queries)
    num_queries, classes = logits.shape[1:]
    scores, pairs = logits.sigmoid().flatten(1).topk(min(top_k, num_queries * classes), dim=1)
    query = torch.div(pairs, classes, rounding_mode="floor")
    chosen = corners.gather(1, query[..., None].expand(-1, -1, 4))
    return Predictions(scores, pairs % classes, chosen * scale, query)
