"""Predict batch by batch; an image on which the model fails is named and skipped."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

from siamdetr.data.index import DetectionIndex
from siamdetr.errors import DataError
from siamdetr.images.preprocessing import Prepared
from siamdetr.inference.predictor import Predictor, ScoredBoxes

logger = logging.getLogger(__name__)

SHARE = 0.01  # of the images, that a model may fail on; more of them are no accident
AT_LEAST = 3  # so that one odd image does not end an evaluation of 50


def predict_or_skip(
    predictor: Predictor, batches: Iterable[tuple[list[int], Prepared]], index: DetectionIndex
) -> Iterator[tuple[list[int], ScoredBoxes]]:
    """Predict batch by batch; a batch that fails is tried again image by image. Yields (positions, boxes).

    Args:
        predictor: the model.
        batches: positions in `index`, and those images prepared.
        index: the images; it gives the names of skipped ones, and its length limits their number.
    Raises:
        DataError: the model fails on more than 1 % of the images (and on 3 at least), or on all.
    """
    allowed, failed, succeeded = max(AT_LEAST, int(SHARE * len(index))), 0, 0
    last: Exception | None = None
    for positions, batch in batches:
        scored = _attempt(predictor, batch)
        if isinstance(scored, ScoredBoxes):
            yield positions, scored
            succeeded += len(positions)
            continue
        for position, image in zip(positions, _one_by_one(batch), strict=True):
            scored = _attempt(predictor, image)
            if isinstance(scored, ScoredBoxes):
                yield [position], scored
                succeeded += 1
                continue
            failed, last = failed + 1, scored
            logger.warning("%s: skipped, no detections could be made of it (%s)", index.path(position), scored)
            if failed > allowed:
                raise _too_many(index, failed, allowed, scored) from scored
    if failed and not succeeded and last is not None:
        raise _too_many(index, failed, allowed, last) from last


def _attempt(predictor: Predictor, batch: Prepared) -> ScoredBoxes | Exception:
    try:
        return predictor.predict_batch(batch)
    except (ValueError, RuntimeError) as error:
        return error


def _one_by_one(batch: Prepared) -> Iterator[Prepared]:
    for i in range(len(batch)):
        padding = None if batch.padding is None else batch.padding[i : i + 1]
        yield Prepared(batch.images[i : i + 1], padding, batch.original_sizes[i : i + 1], batch.sizes[i : i + 1])


def _too_many(index: DetectionIndex, failed: int, allowed: int, error: Exception) -> DataError:
    return DataError(
        f"{index.root}: the model failed on {failed} of {len(index)} images, at most {allowed} are skipped; the last error: {error}"
    )
