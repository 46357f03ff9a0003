"""Masks of the queries that are used: the same values, gradients and losses as with all masks."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine import train_one_epoch
from models.criterion import SetCriterion
from models.selection import MatchedQueries, confident_queries, masks_of
from tests.mask_model import assert_same_gradients, build, gradients, images, targets, weighted
from tests.ranks import ranks
from util.nested_tensor import nested_tensor_from_tensor_list

# --- Selected queries ------------------------------------------------------------------------------------


def test_selected_masks_are_rows_of_all_masks() -> None:
    model, _, _ = build()
    chosen = [torch.tensor([7, 2, 3]), torch.tensor([0])]
    every = model(images())
    some = model(images(), select=lambda outputs: chosen)
    rows = torch.cat([every["pred_masks"][i, queries] for i, queries in enumerate(chosen)])
    assert every["pred_masks"].shape == (2, 9, 24, 24)
    assert some["pred_masks"].shape == (4, 24, 24)
    torch.testing.assert_close(some["pred_masks"], rows, rtol=1e-5, atol=1e-6)
    assert some["selected"] is chosen and "selected" not in every
    weights = torch.randn(rows.shape, generator=torch.Generator().manual_seed(2))
    model_of_rows = gradients(model, (rows * weights).sum())
    assert_same_gradients(model_of_rows, gradients(model, (some["pred_masks"] * weights).sum()))


@pytest.mark.parametrize("counts", [(3, 4), (0, 2), (12, 1), (0, 0)])
def test_criterion_gives_the_same_with_matched_masks_alone(counts: tuple[int, int]) -> None:
    model, criterion, _ = build()
    wanted = targets(*counts)
    outputs = model(images())
    losses = criterion(outputs, wanted)
    expected = gradients(model, weighted(losses, criterion))
    select = criterion.matched_queries(wanted)
    outputs = model(images(), select=select)
    assert len(outputs["pred_masks"]) == sum(min(n, 9) for n in counts)
    selected = criterion(outputs, wanted, matches=select.matches)
    assert selected.keys() == losses.keys()
    for name, value in losses.items():
        torch.testing.assert_close(selected[name], value, rtol=1e-5, atol=1e-6, equal_nan=True, msg=name)
    assert_same_gradients(expected, gradients(model, weighted(selected, criterion)))


def test_matching_is_found_once() -> None:
    model, criterion, _ = build()
    calls: list[int] = []
    criterion.matcher.register_forward_hook(lambda *_: calls.append(1))
    wanted = targets(3, 4)
    select = criterion.matched_queries(wanted)
    outputs = model(images(), select=select)
    criterion(outputs, wanted, matches=select.matches)
    assert len(calls) == 1


def test_further_selection_is_added() -> None:
    def match(outputs: Any, wanted: Any) -> list:
        return [[(torch.tensor([4, 1]), torch.tensor([0, 1])), (torch.tensor([], dtype=torch.int64),) * 2]]

    select = MatchedQueries(match, None, also=lambda outputs: [torch.tensor([1, 7]), torch.tensor([3])])
    assert [queries.tolist() for queries in select({})] == [[1, 4, 7], [3]]


def test_masks_of_finds_wanted_queries_among_selected_ones() -> None:
    every = torch.randn(2, 9, 3, 4)
    selected = [torch.tensor([5, 0, 8]), torch.tensor([2, 1])]
    outputs = {"selected": selected, "pred_masks": torch.cat([every[0, selected[0]], every[1, selected[1]]])}
    cases: list[list[list[int]]] = [[[8, 5], [1]], [[], [2, 1]], [[5, 0, 8], [2, 1]], [[], []]]
    for wanted in cases:
        queries = [torch.tensor(row, dtype=torch.int64) for row in wanted]
        rows = torch.cat([every[0, queries[0]], every[1, queries[1]]])
        assert torch.equal(masks_of(outputs, queries), rows)
        assert torch.equal(masks_of({"pred_masks": every}, queries), rows)
    for first, second in ((4, 2), (9, 2), (5, 0)):
        with pytest.raises(ValueError, match="image [01]: masks were computed"):
            masks_of(outputs, [torch.tensor([first]), torch.tensor([second])])
    nothing = {"selected": [torch.zeros(0, dtype=torch.int64)] * 2, "pred_masks": every[0, :0]}
    with pytest.raises(ValueError, match="image 1"):
        masks_of(nothing, [torch.zeros(0, dtype=torch.int64), torch.tensor([2])])


def test_confident_queries() -> None:
    probability = torch.tensor([[[0.6, 0.3, 0.1], [0.1, 0.2, 0.7], [0.45, 0.1, 0.45]]])
    chosen = confident_queries({"pred_logits": probability.log()}, 0.4)
    assert [queries.tolist() for queries in chosen] == [[0, 2]]


def test_training_draws_matched_queries_alone() -> None:
    model, criterion, _ = build()
    drawn: list[int] = []
    model.mask_head.register_forward_hook(lambda module, inputs, output: drawn.append(len(output)))
    batches = [(nested_tensor_from_tensor_list(images()), targets(*counts)) for counts in ((3, 2), (0, 0))]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    stats = train_one_epoch(model, criterion, batches, optimizer, torch.device("cpu"), 0, 0.1)
    assert drawn == [5, 0]
    assert stats["loss_mask"] > 0 and stats["loss_dice"] > 0


class OwnMaskLoss(SetCriterion):
    """What a fork does: a mask loss that indexes the masks of all queries."""

    def loss_masks(self, outputs: Any, targets: Any, indices: Any, num_boxes: Any) -> dict[str, Tensor]:
        masks = outputs["pred_masks"][self._get_src_permutation_idx(indices)]
        return {"loss_mask": masks.square().mean()}


def test_own_mask_loss_gets_all_masks() -> None:
    model, criterion, _ = build()
    own = OwnMaskLoss(91, criterion.matcher, {"loss_mask": 1.0}, 0.1, ["masks"])
    assert own.matched_queries(targets(3, 2)) is None
    drawn: list[int] = []
    model.mask_head.register_forward_hook(lambda module, inputs, output: drawn.append(len(output)))
    batches = [(nested_tensor_from_tensor_list(images()), targets(3, 2))]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    train_one_epoch(model, own, batches, optimizer, torch.device("cpu"), 0)
    assert drawn == [18]


# --- Nothing selected ------------------------------------------------------------------------------------


def test_empty_selection_gives_zero_gradients_not_absent_ones() -> None:
    model, criterion, _ = build()
    wanted = targets(0, 0)
    select = criterion.matched_queries(wanted)
    outputs = model(images(), select=select)
    assert outputs["pred_masks"].shape == (0, 24, 24)
    found = gradients(model, weighted(criterion(outputs, wanted, matches=select.matches), criterion))
    head = {name: value for name, value in found.items() if name.startswith(("mask_head", "bbox_attention"))}
    assert len(head) == 32
    for name, value in head.items():
        assert value is not None and not value.any(), name


def gradients_of_one_image() -> dict[str, torch.Tensor | None]:
    """One of two processes: image and objects of its own -> the gradients of the mask head."""
    rank = torch.distributed.get_rank()
    model, criterion, _ = build()
    sizes = ((64, 96),) * 2
    ours, wanted = images(sizes)[rank], targets(4, 0, sizes=sizes)[rank]
    shared = nn.parallel.DistributedDataParallel(model)
    for _ in range(2):  # a process out of step fails in the second round
        select = criterion.matched_queries([wanted])
        outputs = shared([ours], select=select)
        found = gradients(model, weighted(criterion(outputs, [wanted], matches=select.matches), criterion))
    return found


def test_two_processes_one_without_objects() -> None:
    """The mask head's gradients equal those of one process with both images."""
    found = ranks().run(2, gradients_of_one_image)
    model, criterion, _ = build()
    sizes = ((64, 96),) * 2
    losses = criterion(model(images(sizes)), targets(4, 0, sizes=sizes))
    expected = gradients(model, weighted(losses, criterion))
    head = [name for name in expected if name.startswith(("mask_head", "bbox_attention"))]
    for grads in found:
        assert_same_gradients({name: expected[name] for name in head}, {name: grads[name] for name in head})
