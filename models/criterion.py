"""The set loss: match predictions with objects, then compare the pairs (paper, section 3.1).

Shapes: L decoder layers, B batch, Q queries, C classes, N matched pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from util.distributed import get_world_size
from util.metrics import accuracy

from .losses import (
    MatchedPairs,
    box_losses,
    cardinality_error,
    classification_loss,
    mask_losses,
)
from .mask_sampling import covered
from .matcher import HungarianMatcher, Matches
from .selection import MatchedQueries, Select, flat_index, masks_of

Outputs = dict[str, Any]
Targets = list[dict[str, Tensor]]
Losses = dict[str, Tensor]


class Normalizers(NamedTuple):
    """What losses are divided by.

    Attributes:
        num_boxes: for boxes and masks, the mean number of objects over ranks, at least 1.
        class_weight: for the classification loss, the summed class weights; None: the batch's own.
    """

    num_boxes: Tensor | float
    class_weight: Tensor | None = None


class SetCriterion(nn.Module):
    """Matches each image's predictions with its objects and computes the losses of the pairs.

    All decoder layers are matched and compared in one pass. A subclass that overrides a `loss_*` method or
    `get_loss`, or a matcher of another class or with hooks, is called once for each layer instead.

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
        self.sync_ce = sync_ce
        self._class_weight_of_step: Tensor | None = None  # loss_labels has no argument for it
        self.num_classes = num_classes
        self.matcher = matcher
        self.weight_dict = weight_dict
        self.eos_coef = eos_coef
        self.losses = losses
        weight = torch.ones(num_classes + 1)
        weight[-1] = eos_coef
        self.register_buffer("empty_weight", weight)

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
                `aux_outputs`, a list of such dicts, one for each earlier layer.
            targets: for each image `labels` [n] and `boxes` [n, 4] (cxcywh in [0, 1]), perhaps `masks`.
            matches: what `match` gave for these outputs, if it has been called already.
            normalizers: of a step that accumulates several batches; left out, this batch's.

        Returns:
            Scalars by name. The last layer's have plain names; an earlier layer's end in _0, _1, ...
        """
        layers = [*outputs.get("aux_outputs", []), {k: v for k, v in outputs.items() if k != "aux_outputs"}]
        suffixes = [f"_{i}" for i in range(len(layers) - 1)] + [""]
        matches = self.match(outputs, targets) if matches is None else matches
        normalizers = normalizers or self.normalizers([targets], outputs)
        num_boxes = normalizers.num_boxes
        together = {loss for loss in self.losses if self._is_plain(loss, matches)}
        losses: Losses = {}
        if together:
            losses.update(self._all_layers(together, layers, suffixes, targets, matches, normalizers))
        self._class_weight_of_step = normalizers.class_weight
        try:
            for layer, suffix, matched in zip(layers, suffixes, matches, strict=True):
                for loss in self.losses:
                    if loss in together or (loss == "masks" and suffix):
                        continue  # masks are predicted by the last layer alone
                    options = {"log": False} if loss == "labels" and suffix else {}
                    values = self.get_loss(loss, layer, targets, matched, num_boxes, **options)
                    losses.update({name + suffix: value for name, value in values.items()})
        finally:
            self._class_weight_of_step = None
        return losses

    def match(self, outputs: Outputs, targets: Targets) -> list[Matches]:
        """The matches of every layer, the last one's at the end."""
        layers = [*outputs.get("aux_outputs", []), outputs]
        if (
            isinstance(self.matcher, HungarianMatcher)
            and type(self.matcher).forward is HungarianMatcher.forward
            and not self.matcher._forward_hooks
        ):
            logits = torch.stack([layer["pred_logits"].detach() for layer in layers])
            boxes = torch.stack([layer["pred_boxes"].detach() for layer in layers])
            return self.matcher.match_layers(logits, boxes, targets)
        return [
            self.matcher({k: v for k, v in layer.items() if k != "aux_outputs"}, targets) for layer in layers
        ]

    def matched_queries(self, targets: Targets, also: Select | None = None) -> MatchedQueries | None:
        """A selection of the queries whose masks this criterion compares, for a model that takes one.

        None where a subclass's own loss may read the masks of all queries, or takes no matches.

        Args:
            targets: of the batch that the model is about to see.
            also: a further selection to add.
        """
        own = self._is_own("forward") and self._is_own("loss_masks")
        return MatchedQueries(self.match, targets, also) if own else None

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
            sums.append(self._class_weight(batches, logits.shape[1]).to(sums[0]))
        own = torch.stack(sums)
        mean = own.clone()
        if shared:
            torch.distributed.all_reduce(mean)
            mean /= get_world_size()
        class_weight = (mean if self.sync_ce else own)[1] if weighs_classes else None
        return Normalizers(mean[0].clamp(min=1), class_weight)

    def _class_weight(self, batches: Sequence[Targets], queries: int) -> Tensor:
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

    def _is_plain(self, loss: str, matches: list[Matches]) -> bool:
        """Whether a loss is computed for all layers at once: nobody has put another in its place."""
        method = {"labels": "loss_labels", "cardinality": "loss_cardinality", "boxes": "loss_boxes"}.get(loss)
        if method is None:
            return False
        same_number = len({sum(len(queries) for queries, _ in layer) for layer in matches}) == 1
        return same_number and self._is_own(method)

    def _is_own(self, method: str) -> bool:
        """Whether a loss is computed by the method of this class: nobody has put another in its place."""
        return not any(
            name in vars(self) or getattr(type(self), name) is not getattr(SetCriterion, name)
            for name in (method, "get_loss")
        )

    def _all_layers(
        self,
        names: set[str],
        layers: list[Outputs],
        suffixes: list[str],
        targets: Targets,
        matches: list[Matches],
        normalizers: Normalizers,
    ) -> Losses:
        """The losses of all layers in one pass."""
        logits = torch.stack([layer["pred_logits"] for layer in layers])  # [L, B, Q, C + 1]
        pairs = MatchedPairs.from_matches(matches, [len(t["labels"]) for t in targets], logits.device)
        losses: Losses = {}
        if "labels" in names:
            values, class_error = self._labels(logits, targets, pairs, normalizers.class_weight)
            losses.update(_named("loss_ce", values, suffixes), class_error=class_error)
        if "cardinality" in names:
            losses.update(_named("cardinality_error", self._cardinality(logits, targets), suffixes))
        if "boxes" in names:
            boxes = torch.stack([layer["pred_boxes"] for layer in layers])  # [L, B, Q, 4]
            l1, giou = self._boxes(boxes, targets, pairs, normalizers.num_boxes)
            losses.update(_named("loss_bbox", l1, suffixes), **_named("loss_giou", giou, suffixes))
        return losses

    def _labels(
        self, logits: Tensor, targets: Targets, pairs: MatchedPairs, divisor: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Classification loss of each layer [L], and the last layer's class_error."""
        logits = logits.float()
        labels = torch.cat([target["labels"] for target in targets])[pairs.object]  # [L, N]
        classes = torch.full(logits.shape[:3], self.num_classes, dtype=torch.int64, device=logits.device)
        layer = torch.arange(len(logits), device=logits.device)[:, None]
        classes[layer, pairs.image, pairs.query] = labels
        matched = logits[-1, pairs.image[-1], pairs.query[-1]]  # [N, C + 1]
        class_error = 100 - accuracy(matched.detach(), labels[-1])[0]
        return classification_loss(logits, classes, self.empty_weight, divisor), class_error

    def _cardinality(self, logits: Tensor, targets: Targets) -> Tensor:
        counts = torch.tensor([float(len(target["labels"])) for target in targets])
        return cardinality_error(logits, counts.to(logits.device, non_blocking=True))

    def _boxes(
        self, boxes: Tensor, targets: Targets, pairs: MatchedPairs, num_boxes: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        wanted = torch.cat([target["boxes"] for target in targets])[pairs.object]  # [L, N, 4]
        return box_losses(pairs.of(boxes).float(), wanted.float(), num_boxes)

    # One layer at a time, under the names and signatures that forks override.

    def loss_labels(
        self,
        outputs: Outputs,
        targets: Targets,
        indices: Matches,
        num_boxes: Tensor | float,
        log: bool = True,
    ) -> Losses:
        """`loss_ce`, and with `log` also `class_error`, the share in percent of matched queries that err."""
        logits = outputs["pred_logits"][None]
        pairs = self._pairs(indices, targets, logits.device)
        values, class_error = self._labels(logits, targets, pairs, self._class_weight_of_step)
        return {"loss_ce": values[0], "class_error": class_error} if log else {"loss_ce": values[0]}

    def loss_cardinality(
        self, outputs: Outputs, targets: Targets, indices: Matches, num_boxes: Tensor | float
    ) -> Losses:
        """`cardinality_error`, for logging only: it has no gradient."""
        return {"cardinality_error": self._cardinality(outputs["pred_logits"][None], targets)[0]}

    def loss_boxes(
        self, outputs: Outputs, targets: Targets, indices: Matches, num_boxes: Tensor | float
    ) -> Losses:
        """`loss_bbox` (L1) and `loss_giou`, both over `num_boxes`."""
        boxes = outputs["pred_boxes"][None]
        l1, giou = self._boxes(boxes, targets, self._pairs(indices, targets, boxes.device), num_boxes)
        return {"loss_bbox": l1[0], "loss_giou": giou[0]}

    def loss_masks(
        self, outputs: Outputs, targets: Targets, indices: Matches, num_boxes: Tensor | float
    ) -> Losses:
        """`loss_mask` (focal) and `loss_dice` over the padded canvas, both over `num_boxes`.

        `pred_masks` are [B, Q, h, w], or [N, h, w] of the queries under `selected`.
        """
        wanted = [
            target["masks"][objects.to(target["masks"].device)]
            for target, (_, objects) in zip(targets, indices, strict=True)
        ]
        height, width = (max(target["masks"].shape[axis] for target in targets) for axis in (-2, -1))
        masks = masks_of(outputs, [queries for queries, _ in indices])  # [N, h, w]
        canvas = covered(masks.shape[-2], height), covered(masks.shape[-1], width)
        focal, dice = mask_losses(masks, wanted, (height, width), canvas, num_boxes)
        return {"loss_mask": focal, "loss_dice": dice}

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
        methods = {
            "labels": self.loss_labels,
            "cardinality": self.loss_cardinality,
            "boxes": self.loss_boxes,
            "masks": self.loss_masks,
        }
        if loss not in methods:
            raise ValueError(f"loss {loss!r}: not one of {', '.join(methods)}")
        return methods[loss](outputs, targets, indices, num_boxes, **kwargs)

    def _pairs(self, indices: Matches, targets: Targets, device: torch.device) -> MatchedPairs:
        return MatchedPairs.from_matches([indices], [len(target["labels"]) for target in targets], device)

    def _get_src_permutation_idx(self, indices: Matches) -> tuple[Tensor, Tensor]:
        """(image, query) of all matched pairs, to index predictions [B, Q, ...] with."""
        return flat_index([query for query, _ in indices])

    def _get_tgt_permutation_idx(self, indices: Matches) -> tuple[Tensor, Tensor]:
        """(image, object) of all matched pairs, to index padded targets [B, n, ...] with."""
        return flat_index([obj for _, obj in indices])


def _named(name: str, values: Tensor, suffixes: list[str]) -> Losses:
    return {name + suffix: value for suffix, value in zip(suffixes, values.unbind(), strict=True)}
