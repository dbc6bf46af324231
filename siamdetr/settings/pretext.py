"""Settings of the pretraining methods."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from siamdetr.settings.base import Settings
from siamdetr.settings.detector import Classifier, LossSettings

Proposals = Literal["edgeboxes", "selective-search", "merged", "random"]


Augmentation = Literal["none", "flip", "scale", "detr"]


class PretextSettings(Settings):
    """Settings of every pretraining method.

    They are about images, regions, and the weights of the matched box losses.
    """

    num_regions: int = Field(10, ge=1, description="regions of an image that are to be found")
    size: int | tuple[int, int] = Field(480, description="largest shortest side, pixels, or a fixed (height, width)")
    scales: Literal["imagenet", "coco"] = Field(
        "imagenet", description="shortest sides and longest side, as shares of `size`: 320..480/600 or 480..800/1333"
    )
    crop_size: int = Field(128, ge=16, description="side of the region crops, pixels")
    proposals: Proposals = Field(
        "edgeboxes", description="where regions come from, unless data.proposals names files of them"
    )
    losses: LossSettings = LossSettings(cost_class=1.0, weight_class=1.0)

    @property
    def class_loss(self) -> Classifier:
        """The class loss that the detector is pretrained with."""
        return "softmax"

    @property
    def cached_samples(self) -> int:
        """How many samples of each image are fixed and kept as frozen features; 0: samples are always new."""
        return 0


class PromptSettings(PretextSettings):
    """How queries are conditioned on regions, and which may be matched with one (Siamese DETR, UP-DETR).

    The defaults are the official ones.
    """

    conditioning: Literal["position", "content"] = Field(
        "position",
        description="where a query is told its region: position (official; content where a variant learns no position), or content "
        "in every variant",
    )
    matching: Literal["image", "group"] = Field(
        "image",
        description="image: any query of the image may answer for a region (official); group: only one that was told it, or nothing",
    )
    mask_ratio: float = Field(0.0, ge=0, lt=1, description="share of the queries that are not told their region")
    mask_by: Literal["query", "image"] = Field(
        "query",
        description="query: the share is drawn for each query (official UP-DETR); image: all queries of an image are told, or none",
    )
    start: Literal["learned", "similar"] = Field(
        "learned",
        description="where the first layer of a told query looks: at learned points (official), or where the frozen features of the "
        "image are similar to its region; variants with reference points that are not chosen by the encoder",
    )
    fold_mean: bool = Field(
        False,
        description="queries without a region are told the mean one, and model files have it in their learned content (where there is one)",
    )
    normalize_features: bool = Field(
        False, description="region features go through a layer norm before their projection"
    )


class SiameseSettings(PromptSettings):
    """Siamese DETR pretraining (arXiv:2303.18144).

    Weights: ImageNet 10 and 3 (Conditional 5), COCO .3 and 3, else 1 and 1.
    """

    num_regions: int = Field(10, ge=1, description="regions a view; the first is the intersection of the views")
    box_jitter: float = Field(0.1, ge=0, le=0.5, description="of width and height, on the boxes that are pooled")
    view_iou: float = Field(0.5, gt=0, lt=1, description="least IoU of the two views")
    inside: float = Field(
        0.0, ge=0, le=1, description="least share of a proposal inside both views; 0: all are clipped to it (official)"
    )
    distinct: float = Field(
        1.0, gt=0, le=1, description="greatest IoU of a region with a better one of its views; 1: any (official)"
    )
    least_area: float = Field(
        0.05, gt=0, lt=1, description="of the intersection of the views: smaller regions are dropped"
    )
    cache_views: int = Field(
        0,
        ge=0,
        description="fixed pairs of views an image, whose frozen features are computed once and kept on disk; 0: new views at every read",
    )
    weight_global: float = Field(1.0, ge=0, description="lambda of the encoder's global discrimination loss")
    weight_region: float = Field(1.0, ge=0, description="lambda of the decoder's region discrimination loss")

    @property
    def cached_samples(self) -> int:
        """See `PretextSettings`."""
        return self.cache_views


class UPDETRSettings(PromptSettings):
    """UP-DETR pretraining (Dai et al. 2021, arXiv:2011.09094): detect patches of an image in it.

    The defaults are the official ones.
    """

    proposals: Proposals = Field("random", description="official: random; edgeboxes: the same boxes as other methods")
    augment: Augmentation = Field(
        "scale", description="official: many scales, without flip, which would not flip crops"
    )
    mask_ratio: float = Field(0.1, ge=0, lt=1, description="share of the queries that are not told their patch")
    weight_feature: float = Field(1.0, ge=0, description="of the reconstruction of the patch's feature; 0: none")


class DETRegSettings(PretextSettings):
    """DETReg (Bar et al. 2022, arXiv:2106.04550): detect proposed regions and predict their embedding."""

    num_regions: int = Field(30, ge=1, description="proposals of an image at most, the first ones")
    augment: Augmentation = Field(
        "detr", description="of the images: none, flip, scale, or detr (flip, scales and crops)"
    )
    classifier: Classifier = Field(
        "softmax", description="softmax: as the other methods; focal: official over Deformable DETR"
    )
    embedding: Literal["c3", "last", "projection"] = Field(
        "c3",
        description="what a region looks like, mean over its crop: c3: the backbone's map of stride 8 (official); last: the "
        "maps that the detector looks at, as the other methods; projection: SwAV's unit vector of 128 numbers",
    )
    weight_embedding: float = Field(1.0, ge=0, description="of the embedding loss; 0: none")

    @property
    def class_loss(self) -> Classifier:
        """See `PretextSettings`."""
        return self.classifier
