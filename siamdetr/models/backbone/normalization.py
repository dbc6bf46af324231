"""The mean and standard deviation of the images that a backbone's pretrained weights were trained on.

Frozen batch norms keep the statistics of that training: images normalised with other figures reach them at another
scale (for `tf_efficientnet_lite0`, trained with .5 and .5, ImageNet's figures give several times the expected variance
at the first one).
"""

from __future__ import annotations

from timm.models import get_pretrained_cfg, is_model

from siamdetr.images.preprocessing import IMAGENET, PLAIN, Normalization
from siamdetr.models.backbone.body import RESNETS
from siamdetr.models.backbone.resnet_vd import RESNETS_VD


def backbone_normalization(name: str) -> Normalization:
    """The normalization that the weights of a backbone expect.

    Args:
        name: resnet18/34/50/101 (torchvision's weights: ImageNet's figures), those of RT-DETR ("vd": none), or a timm
            model (its pretrained configuration).
    Returns:
        Per channel (RGB), of values in 0..1; ImageNet's figures for a model of which timm knows no configuration.
    """
    if name in RESNETS_VD:
        return PLAIN
    if name in RESNETS or not is_model(name):
        return IMAGENET
    configuration = get_pretrained_cfg(name, allow_unregistered=True)
    if configuration is None:
        return IMAGENET
    return Normalization(_triple(configuration.mean), _triple(configuration.std))


def _triple(values: tuple[float, ...]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
