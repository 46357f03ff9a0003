"""The set loss: match predictions with objects, then compare the pairs (paper, section 3.1).

Shapes: L decoder layers, K groups of queries, B batch, Q queries, C classes, N matched pairs, n objects of an
image.

To add a loss: a method, its entry in METHODS, and its name and weight in models.detr.build; or a subclass,
see docs/forking.md. Longer than 300 lines: each loss stands here twice, for all layers at once and, as forks
override it, for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from util import box_ops
from util.amp import at_least_float32
from util.distributed import get_world_size
from util.metrics import accuracy
from util.originals import is_original, original

from .losses import MatchedPairs, Matches, cardinality_error, classification_loss, flat_index

if TYPE_CHECKING:
    from .selection import MatchedQueries, Select

Outputs = dict[str, Any]
Targets = list[dict[str, Tensor]]
Losses = dict[str, Tensor]

FIRST_GROUP_ONLY = ("cardinality", "masks")
"""Losses that are not averaged over groups of queries; nor is class_error."""

METHODS = {
    "labels": "loss_labels",
    "cardinality": "loss_cardinality",
    "boxes": "loss_boxes",
    "masks": "loss_masks",
}


class Normalizers(NamedTuple):
    """What losses are divided by.

    Attributes:
        num_boxes: objects of the step, averaged over ranks in training, at least 1; divides the losses of
            boxes and masks.
        class_weight: the sum of class weights that divides the classification loss; None: the batch's own.
    """

    num_boxes: Tensor | float
    class_weight: Tensor | None = None


class SetCriterion(nn.Module):
    """Matches each image's predictions with its objects and computes the losses of the pairs.

    All decoder layers are matched and compared in one pass. Where the matcher or a method below is
    user-defined, it is called for each layer instead, as published.

    Where a model trains with K groups of queries (models/query_groups.py), each group's layers are further
    layers, matched with the same objects, and a loss is the mean over groups.

    Args:
        num_classes: C; class C is "no object".
        matcher: gives for outputs and targets the matched pairs of each image.
        weight_dict: factor of each loss, by its name; whoever sums the losses applies it.
        eos_coef: weight of "no object" in the classification loss.
        losses: which of labels, cardinality, boxes, masks to compute.
        sync_ce: normalise the classification loss over all ranks, not over each rank's own batch as
            published.
    """

    empty_weight: Tensor
    """The weight of each class, [C + 1]."""

    class_weight: Tensor | None = None
    """What loss_labels divides by, during a step that accumulates batches or shares them over ranks."""

    def __init__(
        self,
        num_classes: int,
        matcher: nn.Module,
        weight_dict: dict[str, float],
        eos_coef: float,
        losses: Sequence[str],
        sync_ce: bool = False,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.matcher = matcher
        self.weight_dict = weight_dict
        self.eos_coef = eos_coef
        self.losses = losses
        self.sync_ce = sync_ce
        weight = torch.ones(num_classes + 1)
        weight[-1] = eos_coef
        self.register_buffer("empty_weight", weight)

    @original
    def forward(
        self,
        outputs: Outputs,
        targets: Targets,
        matches: list[Matches] | None = None,
        normalizers: Normalizers | None = None,
    ) -> Losses:
        """Compute every loss of every layer.

        Args:
            outputs: `pred_logits` [B, Q, C + 1], `pred_boxes` [B, Q, 4], perhaps `pred_masks`, and perhaps
                `aux_outputs`, a list of such dicts, one for each earlier layer, and perhaps `group_outputs`,
                a list of such dicts with all of these, one for each further group of queries.
            targets: for each image `labels` [n] and `boxes` [n, 4] (cxcywh in [0, 1]), perhaps `masks`.
            matches: what `match` gave for these outputs, if it has been called already.
            normalizers: of a step that accumulates several batches; left out, this batch's.

        Returns:
            Scalars by name, each a tensor of its own. The last layer's have plain names; an earlier layer's
            end in _0, _1, ...
        """
        layers = _layers(outputs)
        groups = 1 + len(outputs.get("group_outputs", []))
        depth = len(layers) // groups
        suffixes = ["", *(f"_{i}" for i in range(depth - 1))]
        matches = self.match(outputs, targets) if matches is None else matches
        normalizers = self.normalizers([targets], outputs) if normalizers is None else normalizers
        num_boxes = normalizers.num_boxes
        losses: Losses = {}
        self.class_weight = normalizers.class_weight
        try:
            at_once = [loss for loss in self.losses if self._in_one_pass(loss)]
            of_all = self._of_all_layers(at_once, layers, targets, matches, num_boxes, groups)
            for i, suffix in enumerate(suffixes):
                for loss in self.losses:
                    if loss in of_all:  # cloned: callers may scale a loss in place
                        found = {name: x[i].clone() for name, x in of_all[loss].items() if i < len(x)}
                    elif loss == "masks" and suffix:
                        continue  # masks are predicted by the last layer alone
                    else:
                        same = slice(i, depth if loss in FIRST_GROUP_ONLY else None, depth)  # of each group
                        found = self._layer_by_layer(loss, layers[same], targets, matches[same], num_boxes, i)
                    losses.update({name + suffix: value for name, value in found.items()})
        finally:
            self.class_weight = None
        return losses

    def _layer_by_layer(
        self,
        loss: str,
        of_groups: list[Outputs],
        targets: Targets,
        matches: list[Matches],
        num_boxes: Tensor | float,
        layer: int,
    ) -> Losses:
        """One loss of a layer (0 is the last) by `get_loss`, as the mean over the groups that have it."""
        found = []
        for group, (outputs, matched) in enumerate(zip(of_groups, matches, strict=True)):
            options = {"log": False} if loss == "labels" and (layer > 0 or group > 0) else {}
            found.append(self.get_loss(loss, outputs, targets, matched, num_boxes, **options))
        if len(found) == 1:
            return found[0]
        values = {name: [losses[name] for losses in found if name in losses] for name in found[0]}
        return {name: sum(each[1:], start=each[0]) / len(each) for name, each in values.items()}

    def match(self, outputs: Outputs, targets: Targets) -> list[Matches]:
        """The matches of every layer: the last one's, then those of `aux_outputs`; then the next group's."""
        layers = _layers(outputs)
        if is_original(self.matcher, "forward"):
            return self.matcher.match_layers(layers, targets)  # type: ignore[operator]
        return [self.matcher(layer, targets) for layer in layers]

    def matched_queries(self, targets: Targets, also: Select | None = None) -> MatchedQueries | None:
        """A selection of the queries whose masks this criterion compares, for a model that takes one.

        None where a user-defined loss may read the masks of all queries, or takes no matches.

        Args:
            targets: of the batch that the model is about to see.
            also: a further selection to add.
        """
        from .selection import MatchedQueries

        reads = ("forward", "get_loss", "loss_masks", "_get_src_permutation_idx")
        return MatchedQueries(self.match, targets, also) if _all_original(self, *reads) else None

    def normalizers(self, batches: Sequence[Targets], outputs: Outputs) -> Normalizers:
        """What the losses of one optimizer step are divided by, known before its batches are matched.

        Evaluation looks at no other rank: ranks hold different numbers of batches there.

        Args:
            batches: the targets of every batch that the step accumulates on this rank.
            outputs: of any of them, for the number of queries and the device.
        """
        logits = outputs["pred_logits"]
        objects = sum(len(target["labels"]) for targets in batches for target in targets)
        shared = self.training and get_world_size() > 1
        weighs_classes = len(batches) > 1 or (shared and self.sync_ce)
        if not shared and not weighs_classes:
            return Normalizers(float(max(objects, 1)))
        sums = [logits.new_tensor(float(objects), dtype=torch.float32)]
        if weighs_classes:
            sums.append(self._summed_class_weight(batches, logits.shape[1]).to(sums[0]))
        own = torch.stack(sums)
        mean = own.clone()
        if shared:
            torch.distributed.all_reduce(mean)
            mean /= get_world_size()
        class_weight = (mean if self.sync_ce else own)[1] if weighs_classes else None
        return Normalizers(mean[0].clamp(min=1), class_weight)

    def _summed_class_weight(self, batches: Sequence[Targets], queries: int) -> Tensor:
        """The summed class weights of all queries: an image has min(queries, objects) matches."""
        weight = self.empty_weight
        total = weight.new_zeros(())
        for target in (target for targets in batches for target in targets):
            labels = target["labels"].to(weight.device, non_blocking=True)
            matched = min(queries, len(labels))
            # With more objects than queries it is not known which are matched: their mean weight stands in.
            of_objects = weight[labels].mean() * matched if matched else 0
            total = total + of_objects + weight[-1] * (queries - matched)
        return total

    # All layers at once.

    def _in_one_pass(self, loss: str) -> bool:
        """Whether a loss is computed for all layers at once: nobody has put another in its place."""
        if loss not in ("labels", "cardinality", "boxes"):
            return False
        same_pairs = is_original(self.matcher, "forward") and is_original(self, "_get_src_permutation_idx")
        same_boxes = loss != "boxes" or is_original(box_ops, "generalized_box_iou")
        return same_pairs and same_boxes and _all_original(self, "get_loss", METHODS[loss])

    def _of_all_layers(
        self,
        names: list[str],
        layers: list[Outputs],
        targets: Targets,
        matches: list[Matches],
        num_boxes: Tensor | float,
        groups: int,
    ) -> dict[str, Losses]:
        """Some of `losses`, each with its values by name, [L]; class_error is the last layer's alone, [1].

        Layers and matches are those of all K groups, K * L.
        """
        if not names:
            return {}
        logits = torch.stack([layer["pred_logits"] for layer in layers])  # [K * L, B, Q, C + 1]
        counts = [len(target["labels"]) for target in targets]
        pairs = MatchedPairs.from_matches(matches, counts, logits.device)
        values: dict[str, Losses] = {}
        if "labels" in names:
            labels = torch.cat([target["labels"] for target in targets])[pairs.object]  # [K * L, N]
            loss_ce = self._cross_entropy(logits, pairs.index, labels).view(groups, -1).mean(0)
            of_last = logits[0, pairs.image[0], pairs.query[0]]  # [N, C + 1]
            class_error = 100 - accuracy(of_last, labels[0])[0]
            values["labels"] = {"loss_ce": loss_ce, "class_error": class_error[None]}
        if "cardinality" in names:
            of_first = logits[: len(layers) // groups]
            values["cardinality"] = {"cardinality_error": self._cardinality(of_first, targets)}
        if "boxes" in names:
            boxes = torch.stack([layer["pred_boxes"] for layer in layers])  # [K * L, B, Q, 4]
            wanted = torch.cat([target["boxes"] for target in targets])[pairs.object]  # [K * L, N, 4]
            of_boxes = self._l1_and_giou(boxes[pairs.index], wanted, num_boxes)
            values["boxes"] = {name: x.view(groups, -1).mean(0) for name, x in of_boxes.items()}
        return values

    # One layer at a time, under the names and signatures that forks override.

    @original
    def loss_labels(
        self,
        outputs: Outputs,
        targets: Targets,
        indices: Matches,
        num_boxes: Tensor | float,
        log: bool = True,
    ) -> Losses:
        """`loss_ce`, and with `log` also `class_error`: the percentage of matched queries that err."""
        logits = outputs["pred_logits"]
        index = self._get_src_permutation_idx(indices)
        labels = torch.cat([t["labels"][objects] for t, (_, objects) in zip(targets, indices, strict=True)])
        losses = {"loss_ce": self._cross_entropy(logits, index, labels)}
        if log:
            losses["class_error"] = 100 - accuracy(logits[index], labels)[0]
        return losses

    @original
    def loss_cardinality(
        self, outputs: Outputs, targets: Targets, indices: Matches, num_boxes: Tensor | float
    ) -> Losses:
        """`cardinality_error`, for logging only: it has no gradient."""
        return {"cardinality_error": self._cardinality(outputs["pred_logits"], targets)}

    @original
    def loss_boxes(
        self, outputs: Outputs, targets: Targets, indices: Matches, num_boxes: Tensor | float
    ) -> Losses:
        """`loss_bbox` (L1) and `loss_giou`, both over `num_boxes`."""
        boxes = outputs["pred_boxes"][self._get_src_permutation_idx(indices)]  # [N, 4]
        wanted = torch.cat([t["boxes"][objects] for t, (_, objects) in zip(targets, indices, strict=True)])
        return self._l1_and_giou(boxes, wanted, num_boxes)

    @original
    def loss_masks(
        self, outputs: Outputs, targets: Targets, indices: Matches, num_boxes: Tensor | float
    ) -> Losses:
        """`loss_mask` (focal) and `loss_dice` over the padded batch, both over `num_boxes`.

        `pred_masks` are [B, Q, h, w], or [N, h, w] of the queries under `selected`.
        """
        # Here, so that who trains boxes loads no code of masks, and what is replaced in segmentation counts.
        from .mask_losses import at_one_size, mask_losses
        from .mask_sampling import covered
        from .segmentation import dice_loss, sigmoid_focal_loss
        from .selection import masks_of

        if "selected" in outputs:
            masks = masks_of(outputs, [queries for queries, _ in indices])  # [N, h, w]
        else:
            masks = outputs["pred_masks"][self._get_src_permutation_idx(indices)]
        image, obj = (index.tolist() for index in self._get_tgt_permutation_idx(indices))
        wanted = [targets[i]["masks"][j] for i, j in zip(image, obj, strict=True)]  # N times [H, W]
        height, width = (max(target["masks"].shape[axis] for target in targets) for axis in (-2, -1))
        canvas = covered(masks.shape[-2], height), covered(masks.shape[-1], width)
        if is_original(sigmoid_focal_loss, "sigmoid_focal_loss") and is_original(dice_loss, "dice_loss"):
            focal, dice = mask_losses(masks, wanted, (height, width), canvas, num_boxes)
        else:
            logits, true = at_one_size(masks, wanted, (height, width), canvas)  # [N, P]
            focal = sigmoid_focal_loss(logits, true, num_boxes)
            dice = dice_loss(logits, true, num_boxes)
        return {"loss_mask": focal, "loss_dice": dice}

    @original
    def get_loss(
        self,
        loss: str,
        outputs: Outputs,
        targets: Targets,
        indices: Matches,
        num_boxes: Tensor | float,
        **kwargs: Any,
    ) -> Losses:
        """The losses that go by one name, for one layer.

        Raises:
            ValueError: an unknown name.
        """
        if loss not in METHODS:
            raise ValueError(f"loss {loss!r}: not one of {', '.join(METHODS)}")
        return getattr(self, METHODS[loss])(outputs, targets, indices, num_boxes, **kwargs)

    @original
    def _get_src_permutation_idx(self, indices: Matches) -> tuple[Tensor, Tensor]:
        """(image, query) of all matched pairs, to index predictions [B, Q, ...] with."""
        return flat_index([query for query, _ in indices])

    @original
    def _get_tgt_permutation_idx(self, indices: Matches) -> tuple[Tensor, Tensor]:
        """(image, object) of all matched pairs, to index padded targets [B, n, ...] with."""
        return flat_index([obj for _, obj in indices])

    # What both ways compute; `...` is L or nothing.

    def _cross_entropy(self, logits: Tensor, index: tuple[Tensor, ...], labels: Tensor) -> Tensor:
        """Logits [..., B, Q, C + 1], and the labels of those that `index` picks -> loss_ce [...]."""
        classes = torch.full(logits.shape[:-1], self.num_classes, dtype=torch.int64, device=logits.device)
        classes[index] = labels  # all others are "no object"
        return classification_loss(at_least_float32(logits), classes, self.empty_weight, self.class_weight)

    def _cardinality(self, logits: Tensor, targets: Targets) -> Tensor:
        """Logits [..., B, Q, C + 1] -> cardinality_error [...]."""
        counts = torch.tensor([float(len(target["labels"])) for target in targets])
        return cardinality_error(logits, counts.to(logits.device, non_blocking=True))

    def _l1_and_giou(self, boxes: Tensor, wanted: Tensor, num_boxes: Tensor | float) -> Losses:
        """Matched boxes and their objects', cxcywh [..., N, 4] -> loss_bbox and loss_giou [...]."""
        boxes, wanted = at_least_float32(boxes), at_least_float32(wanted)
        l1 = F.l1_loss(boxes, wanted, reduction="none")
        corners = box_ops.box_cxcywh_to_xyxy(boxes), box_ops.box_cxcywh_to_xyxy(wanted)
        if is_original(box_ops, "generalized_box_iou"):
            giou = box_ops.paired_generalized_box_iou(*corners)  # [..., N]
        else:  # user-defined, called as published
            giou = torch.diag(box_ops.generalized_box_iou(*corners))
        return {
            "loss_bbox": l1.sum((-2, -1)) / num_boxes,
            "loss_giou": (1 - giou).sum(-1) / num_boxes,
        }


def _layers(outputs: Outputs) -> list[Outputs]:
    """The outputs of every layer: the last layer's, then the earlier ones'; then the same of each group."""
    last = {name: x for name, x in outputs.items() if name not in ("aux_outputs", "group_outputs")}
    others = [layer for group in outputs.get("group_outputs", []) for layer in _layers(group)]
    return [last, *outputs.get("aux_outputs", []), *others]


def _all_original(owner: Any, *names: str) -> bool:
    return all(is_original(owner, name) for name in names)
