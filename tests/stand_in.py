"""A detector that takes no time, with batches and a criterion, to watch the loops of engine.py with."""

from typing import Any

import torch
from torch import Tensor, nn

from engine import train_one_epoch
from models.criterion import SetCriterion
from models.matcher import HungarianMatcher
from tests.reference.settings import quiet
from util.misc import NestedTensor, nested_tensor_from_tensor_list

CPU = torch.device("cpu")
CLASSES, QUERIES = 6, 5
WEIGHTS = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}
WEIGHTS |= {f"{name}_0": value for name, value in WEIGHTS.items()}
Batch = tuple[NestedTensor, tuple[dict[str, Tensor], ...]]


class Detector(nn.Module):
    """Two decoder layers' worth of predictions from the mean colours of an image; takes no time."""

    def __init__(self, classes: int = CLASSES, queries: int = QUERIES):
        super().__init__()
        self.queries = queries
        self.classify = nn.Linear(3, 2 * queries * (classes + 1))
        self.locate = nn.Linear(3, 2 * queries * 4)

    def forward(self, samples: NestedTensor) -> dict[str, Any]:
        colours = samples.tensors.mean((2, 3))  # [B, 3]
        shape = (len(colours), 2, self.queries, -1)
        logits, boxes = self.classify(colours).view(shape), self.locate(colours).view(shape).sigmoid()
        first, last = ({"pred_logits": logits[:, i], "pred_boxes": boxes[:, i]} for i in (0, 1))
        return {**last, "aux_outputs": [first]}


def make_detector(**sizes: int) -> Detector:
    torch.manual_seed(0)
    return Detector(**sizes)


def make_criterion() -> SetCriterion:
    matcher = HungarianMatcher(1, 5, 2)
    return SetCriterion(CLASSES, matcher, dict(WEIGHTS), 0.1, ["labels", "boxes", "cardinality"])


def make_batch(*counts: int, seed: int = 0) -> Batch:
    """One image and target for each number of objects, as the published loader gives them."""
    draw = torch.Generator().manual_seed(seed + 1)
    images = [torch.randn(3, 8, 8 + 4 * i, generator=draw) for i in range(len(counts))]
    targets = []
    for i, count in enumerate(counts):
        sides = torch.rand(count, 2, generator=draw) * 0.4 + 0.1
        centres = 0.3 + torch.rand(count, 2, generator=draw) * 0.4
        labels = torch.randint(1, CLASSES, (count,), generator=draw)
        size = torch.tensor([8, 8 + 4 * i])
        target = {"labels": labels, "boxes": torch.cat([centres, sides], 1), "image_id": torch.tensor([i])}
        targets.append({**target, "orig_size": size, "size": size})
    return nested_tensor_from_tensor_list(images), tuple(targets)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def train(model: nn.Module, batches: Any, optimizer: Any = None, **options: Any) -> dict[str, float]:
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.05)
    criterion = options.pop("criterion", None) or make_criterion()
    max_norm = options.pop("max_norm", 0.1)
    with quiet():
        return train_one_epoch(model, criterion, batches, optimizer, CPU, 3, max_norm, **options)
