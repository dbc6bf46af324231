"""The DETR criterion (arXiv:2005.12872, §3.1) over all decoder layers: class, L1 and GIoU losses.

`softmax`: cross entropy with a "no object" class of small weight (DETR). `focal`: sigmoid focal loss, no such class
(arXiv:1708.02002, as Deformable and Conditional DETR use it). Every layer has its own matching and its own losses.
Ours: the number of boxes and the classes' normaliser are averaged over processes and over the batches of a step
(gradient accumulation), and the number of boxes of ALL of them (not of each) is at least 1: two processes, or two
batches a step, train exactly what one batch of all their images trains. Denoising queries (DN-DETR) have the same
losses against the boxes they were made from, without matching.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siamdetr.boxes import cxcywh_to_xyxy, elementwise_giou, elementwise_iou
from siamdetr.models.criterion.focal import sigmoid_focal_loss, varifocal_loss
from siamdetr.models.criterion.layer_losses import layer_weights, name_layers
from siamdetr.models.criterion.matcher import Matches, match
from siamdetr.models.criterion.monitors import match_figures
from siamdetr.models.criterion.normalisers import mean_over_window
from siamdetr.models.denoising import denoising_slots
from siamdetr.settings.detector import Classifier, DetectorSettings, LossSettings
from siamdetr.structures.model import Outputs
from siamdetr.structures.targets import Targets

LOSSES = ("loss_class", "loss_bbox", "loss_giou")


class DetectionCriterion(nn.Module):
    """Unweighted losses of a detector's outputs against targets.

    Args:
        settings: costs, weights, and the class loss's constants.
        classifier: `softmax` (C + 1 logits, the last is "no object") or `focal` (C logits).
        num_classes: C.
        num_layers: decoder layers, i.e. how many auxiliary losses `weights` names.
        denoising: the detector has denoising queries; their losses have the same weights.
        contrastive: half of these are negatives, whose class loss is that of "no object" (DINO).
        proposals: the encoder's boxes have the same losses and, times `weight_proposals`, the same weights.
        proposal_classes: the proposals learn the classes of objects (DINO); else all objects are class 0 (Deformable
            DETR).
        box_parts: also report the parts of `loss_bbox`, centres and sizes, as the criteria of DAB-DETR and DN-DETR do.
    """

    def __init__(
        self,
        settings: LossSettings,
        classifier: Classifier,
        num_classes: int,
        *,
        num_layers: int = 6,
        denoising: bool = False,
        contrastive: bool = False,
        proposals: bool = False,
        proposal_classes: bool = False,
        box_parts: bool = False,
    ) -> None:
        super().__init__()
        self.settings, self.classifier = settings, classifier
        self.num_classes, self.num_layers = num_classes, num_layers
        self.denoising, self.contrastive, self.box_parts = denoising, contrastive, box_parts
        self.proposals, self.proposal_classes = proposals, proposal_classes

    @classmethod
    def of_detector(cls, shape: DetectorSettings, settings: LossSettings, *, supervised: bool) -> DetectionCriterion:
        """The criterion that a detector is trained with.

        Args:
            shape: of the detector; what varies between detectors is in its registry entry.
            settings: costs, weights, and the class loss's constants.
            supervised: its denoising queries take part, and the monitors of the official criterion are reported;
                False: pretraining, which has neither.
        """
        return cls(
            settings,
            shape.classifier,
            shape.num_classes,
            num_layers=shape.decoder_layers,
            denoising=supervised and shape.entry.denoises,
            contrastive=shape.entry.contrastive,
            proposals=shape.proposes,
            proposal_classes=shape.entry.proposes,
            box_parts=supervised and shape.entry.box_parts,
        )

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each loss: last layer without suffix, auxiliary layers `_0`, `_1`, ..."""
        own = dict(
            zip(LOSSES, (self.settings.weight_class, self.settings.weight_bbox, self.settings.weight_giou), strict=True)
        )
        if self.denoising:
            own |= {f"{name}_dn": weight for name, weight in own.items()}
        weights = layer_weights(own, self.num_layers)
        times = self.settings.weight_proposals
        return weights | ({f"{name}_enc": times * own[name] for name in LOSSES} if self.proposals else {})

    def forward(self, outputs: Outputs, targets: Targets, num_boxes: Tensor | float | None = None) -> dict[str, Tensor]:
        """Match every layer and compute its losses.

        Args:
            outputs: predictions of `num_layers` layers for B images.
            targets: their boxes; images, or all, may have none.
            num_boxes: divisor of box and focal losses; None: the boxes of the targets' window, averaged over its
                batches and over processes.
        Returns:
            Scalars: `loss_class`, `loss_bbox`, `loss_giou` of the last layer, the same with suffix `_0`, `_1`, ... of
            the earlier ones, and without weight or gradient `class_error` (percent of matched boxes, last layer) and
            `cardinality_error` (boxes an image, each layer). With `denoising` also `loss_class_dn`, `loss_bbox_dn`,
            `loss_giou_dn` and `class_error_dn` of each layer: 0 where no image has a box, or there were no such
            queries. With `contrastive` denoising there is `cardinality_error_dn` instead of `class_error_dn`. With
            `proposals` also `loss_class_enc`, `loss_bbox_enc`, `loss_giou_enc` and `cardinality_error_enc`. With
            `box_parts` also, without weight or gradient, `loss_xy` and `loss_hw` of each layer, which sum to
            `loss_bbox`.
        Raises:
            ValueError: the outputs have another number of layers or classes.
            FloatingPointError: a prediction is not finite.
        """
        losses, _ = self.losses_and_matches(outputs, targets, num_boxes)
        return losses

    def losses_and_matches(
        self,
        outputs: Outputs,
        targets: Targets,
        num_boxes: Tensor | float | None = None,
        allowed: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], Matches]:
        """Like `forward`, with the matches: what a pretext needs for losses of its own.

        `allowed` [M, Q] bool, True = the query may answer for the box (see `match`); a two-stage detector's proposals
        may for any.
        """
        self._check(outputs)
        losses, matches = self._of_layers(outputs, targets, num_boxes, denoising=self.denoising, allowed=allowed)
        if self.proposals:
            assert outputs.proposals is not None
            objects = (
                targets
                if self.proposal_classes
                else dataclasses.replace(targets, labels=torch.zeros_like(targets.labels))
            )
            of_encoder, _ = self._of_layers(outputs.proposals, objects, num_boxes, denoising=False)
            losses |= {f"{name}_enc": value for name, value in of_encoder.items() if name != "class_error"}
        return losses, matches

    def _of_layers(
        self,
        outputs: Outputs,
        targets: Targets,
        num_boxes: Tensor | float | None,
        *,
        denoising: bool,
        allowed: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], Matches]:
        logits, boxes = outputs.logits.float(), outputs.boxes.float()
        matches = match(logits, boxes, targets, self.settings, self.classifier, allowed=allowed)
        normalisers = self._normalisers(logits, targets, num_boxes)
        with torch.autocast(logits.device.type, enabled=False):
            values = {
                "loss_class": self._class_loss(logits, boxes, targets, matches, normalisers),
                **self._box_losses(boxes, targets, matches, normalisers[0]),
            }
            if denoising:
                of_copies = self._contrastive_losses if self.contrastive else self._denoising_losses
                values |= of_copies(outputs.denoised, targets, normalisers[0], logits)
            monitors = match_figures(logits.detach(), targets, matches)
        losses = name_layers(values) | name_layers({"cardinality_error": monitors["cardinality_error"]})
        return losses | {"class_error": monitors["class_error"][-1]}, matches

    def _class_loss(
        self,
        logits: Tensor,
        boxes: Tensor,
        targets: Targets,
        matches: Matches,
        normalisers: tuple[Tensor | float, Tensor | float],
    ) -> Tensor:
        """[L]."""
        num_boxes, class_weight = normalisers
        where = (matches.layer, matches.image, matches.query)
        labels = targets.labels[matches.target]
        if self.classifier == "focal":
            wanted = torch.zeros_like(logits).index_put((*where, labels), logits.new_ones(()))
            alpha, gamma = self.settings.focal_alpha, self.settings.focal_gamma
            if self.settings.iou_aware:
                found, there = boxes[where].detach(), targets.boxes.float()[matches.target]
                overlaps = elementwise_iou(cxcywh_to_xyxy(found), cxcywh_to_xyxy(there))
                scores = torch.zeros_like(logits).index_put((*where, labels), overlaps.to(logits.dtype))
                each = varifocal_loss(logits, scores, wanted, alpha=alpha, gamma=gamma)
            else:
                each = sigmoid_focal_loss(logits, wanted, alpha=alpha, gamma=gamma)
            return each.sum((1, 2, 3)) / num_boxes
        no_object = logits.shape[-1] - 1
        classes = torch.full(logits.shape[:3], no_object, device=logits.device).index_put(where, labels)
        nothing = self.settings.no_object_weight
        weight = torch.where(torch.arange(no_object + 1, device=logits.device) == no_object, nothing, 1.0)
        each = F.cross_entropy(logits.flatten(0, 2), classes.flatten(), weight=weight, reduction="none")
        return each.view(logits.shape[0], -1).sum(1) / class_weight

    def _box_losses(
        self, boxes: Tensor, targets: Targets, matches: Matches, num_boxes: Tensor | float
    ) -> dict[str, Tensor]:
        """[L] each: L1 distance of (cx, cy, w, h) and 1 - GIoU, summed over matches, per box.

        With `box_parts` also the parts of the distance.
        """
        predicted = boxes[matches.layer, matches.image, matches.query]  # [K, 4]
        wanted = targets.boxes.float()[matches.target]
        shape = (boxes.shape[0], len(wanted) // boxes.shape[0], 4)
        distance, giou = self._box_distances(predicted.view(shape), wanted.view(shape))
        losses = {"loss_bbox": distance / num_boxes, "loss_giou": giou / num_boxes}
        if self.box_parts:
            apart = (predicted.detach() - wanted).view(shape).abs().sum(1) / num_boxes  # [L, 4]
            losses |= {"loss_xy": apart[:, :2].sum(1), "loss_hw": apart[:, 2:].sum(1)}
        return losses

    def _box_distances(self, predicted: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """[L, N, 4] and [(L,) N, 4] (cx, cy, w, h) -> L1 distance and 1 - GIoU, summed: [L] each."""
        distance = (predicted - wanted).abs().sum((1, 2))
        giou = elementwise_giou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(wanted), eps=self.settings.giou_eps)
        return distance, (1 - giou).sum(1)

    def _denoising_losses(
        self, denoised: Outputs | None, targets: Targets, num_boxes: Tensor | float, logits: Tensor
    ) -> dict[str, Tensor]:
        """[L] each; divided by the number of noised boxes."""
        names = ("loss_class_dn", "loss_bbox_dn", "loss_giou_dn", "class_error_dn")
        if denoised is None:
            return dict.fromkeys(names, logits.new_zeros(logits.shape[0]))
        groups = denoised.logits.shape[2] // max(targets.counts)
        image, query = denoising_slots(targets.counts, groups, logits.device)
        found = denoised.logits.float()[:, image, query]  # [L, N, C]
        boxes = denoised.boxes.float()[:, image, query]  # [L, N, 4]
        labels = targets.labels.repeat(groups)
        right = found.detach().argmax(-1) == labels
        values = (
            self._known_class_loss(found, labels) / (groups * num_boxes),
            *(
                loss / (groups * num_boxes)
                for loss in self._box_distances(boxes, targets.boxes.float().repeat(groups, 1))
            ),
            100 - 100 * right.float().mean(1),
        )
        return dict(zip(names, values, strict=True))

    def _contrastive_losses(
        self, denoised: Outputs | None, targets: Targets, num_boxes: Tensor | float, logits: Tensor
    ) -> dict[str, Tensor]:
        """[L] each, divided by the number of positives.

        Positives are matched with their targets; every other slot should say "no object".
        """
        if denoised is None:
            parts = ("loss_xy", "loss_hw") if self.box_parts else ()
            names = (*LOSSES, *parts, "cardinality_error")
            return dict.fromkeys((f"{name}_dn" for name in names), logits.new_zeros(logits.shape[0]))
        found, boxes = denoised.logits.float(), denoised.boxes.float()
        matches, groups = _positives(targets, found)
        normalisers = self._normalisers(found, targets, num_boxes, groups=groups)
        values = {
            "loss_class": self._class_loss(found, boxes, targets, matches, normalisers),
            **self._box_losses(boxes, targets, matches, normalisers[0]),
            "cardinality_error": match_figures(found.detach(), targets, matches)["cardinality_error"],
        }
        return {f"{name}_dn": value for name, value in values.items()}

    def _known_class_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """[L, N, C] logits whose labels [N] are known -> [L], summed."""
        if self.classifier == "focal":
            wanted = F.one_hot(labels, logits.shape[-1]).to(logits.dtype).expand_as(logits)
            alpha, gamma = self.settings.focal_alpha, self.settings.focal_gamma
            return sigmoid_focal_loss(logits, wanted, alpha=alpha, gamma=gamma).sum((1, 2))
        each = F.cross_entropy(logits.flatten(0, 1), labels.repeat(logits.shape[0]), reduction="none")
        return each.view(logits.shape[0], -1).sum(1)

    def _normalisers(
        self, logits: Tensor, targets: Targets, num_boxes: Tensor | float | None, *, groups: int = 1
    ) -> tuple[Tensor | float, Tensor | float]:
        """Number of boxes, and summed class weights of all queries.

        They are known on the host, and averaged over the window and over processes.

        With `groups` every box counts that many times.
        """
        queries, class_weight = logits.shape[2], 0.0
        for counts in targets.window_counts:
            matched = groups * sum(min(queries, count) for count in counts)
            class_weight += matched + self.settings.no_object_weight * (len(counts) * queries - matched)
        boxes, weight = mean_over_window(targets, class_weight, logits.device)
        return (boxes if num_boxes is None else num_boxes) * groups, weight

    def _check(self, outputs: Outputs) -> None:
        layers, classes = outputs.logits.shape[0], outputs.logits.shape[-1]
        if self.proposals and outputs.proposals is None:
            raise ValueError(
                "DetectionCriterion: expected the encoder's proposals of a two-stage detector, got none; build the detector and "
                "the criterion from the same settings"
            )
        expected = self.num_classes + (self.classifier == "softmax")
        if layers != self.num_layers:
            raise ValueError(
                f"DetectionCriterion: expected outputs of {self.num_layers} decoder layers, got {layers}; "
                "give num_layers the detector's decoder_layers"
            )
        if classes != expected:
            raise ValueError(
                f"DetectionCriterion: {self.num_classes} classes and a {self.classifier} classifier make {expected} logits, "
                f"got {classes}; build the detector and the criterion from the same settings"
            )


def _positives(targets: Targets, logits: Tensor) -> tuple[Matches, int]:
    """The matches of contrastive denoising in every layer, slots with boxes; and the number of groups."""
    layers, device, group_size = logits.shape[0], logits.device, 2 * max(targets.counts)
    groups = logits.shape[2] // group_size
    image, query = denoising_slots(targets.counts, groups, device, group_size=group_size)
    target = torch.arange(len(targets.labels), device=device).repeat(groups)
    layer = torch.arange(layers, device=device).repeat_interleave(len(target))
    return Matches(layer, image.repeat(layers), query.repeat(layers), target.repeat(layers)), groups
