"""The base of opened models in all runtimes; each runtime adds its `predict_batch`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from siamdetr.images.preprocessing import ImageLike, Prepared, PreprocessingSpec
from siamdetr.inference.predictor import Progress, ScoredBoxes, predict

if TYPE_CHECKING:
    import supervision as sv  # it needs a hundred megabytes, which a server can do without


class Facts(Protocol):
    """Classes and preprocessing of a model file."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in label order."""

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The data set's own ids in label order; empty when not known."""

    @property
    def preprocessing(self) -> PreprocessingSpec:
        """How images become the model's input."""

    @property
    def class_agnostic(self) -> bool:
        """Whether the one class is any object: the model was pretrained and not finetuned."""

    @property
    def threshold(self) -> float:
        """The score from which a box counts where nobody names one."""

    @property
    def threshold_from(self) -> str:
        """How the threshold was chosen; empty: nobody chose it."""


class OpenedModel:
    """A model that predicts, with the facts of its file.

    A subclass sets `_facts` and defines `predict_batch`.
    """

    _facts: Facts

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in label order."""
        return self._facts.class_names

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The data set's own ids in label order; empty when not known."""
        return self._facts.category_ids

    @property
    def preprocessing(self) -> PreprocessingSpec:
        """How images become the model's input."""
        return self._facts.preprocessing

    @property
    def class_agnostic(self) -> bool:
        """Whether the one class is any object: the model was pretrained and not finetuned."""
        return self._facts.class_agnostic

    @property
    def threshold(self) -> float:
        """The score from which a box counts where nobody names one, as the file says."""
        return self._facts.threshold

    @property
    def threshold_from(self) -> str:
        """How the threshold was chosen, for people; empty: nobody chose it."""
        return self._facts.threshold_from

    def predict_batch(self, batch: Prepared) -> ScoredBoxes:
        """All scored boxes of a batch of prepared images, before any threshold."""
        raise NotImplementedError

    def predict(
        self,
        images: ImageLike | Sequence[ImageLike],
        threshold: float | None = None,
        batch_size: int = 8,
        *,
        progress: Progress | None = None,
    ) -> sv.Detections | list[sv.Detections]:
        """Detections of one image, or a list of them for a sequence.

        See `siamdetr.inference.predictor.predict`.

        Args:
            images: one PIL image, uint8 RGB array [H, W, 3], path, content of a file as bytes, or open binary file; or
                a sequence of such.
            threshold: least score; None: the file's own.
            batch_size: images at a time.
            progress: called with (images done, images in all).
        Returns:
            `supervision.Detections`: xyxy in pixels of the image, confidence, class_id, data["class_name"]; best first.
        """
        return predict(self, images, threshold=threshold, batch_size=batch_size, progress=progress)
