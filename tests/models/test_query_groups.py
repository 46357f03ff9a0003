"""Groups of queries: K models in one that share all but their queries, and none of it in the model itself."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import main
from models.criterion import SetCriterion
from models.query_groups import QueryGroups
from tests.helpers import TINY_MODEL
from tests.reference.settings import build, parse
from util.errors import UserError

K = 3
TINY = f"{TINY_MODEL} --backbone_stages 2 --dec_layers 3 --num_queries 5 --num_classes 5 --dropout 0"
MASKS = f"{TINY} --masks --backbone_stages 3 --hidden_dim 128 --nheads 8"
IMAGES = [torch.randn(3, *size, generator=torch.Generator().manual_seed(1)) for size in ((64, 96), (40, 60))]
TARGETS = [
    {
        "labels": torch.tensor(labels),
        "boxes": torch.rand(len(labels), 4, generator=torch.Generator().manual_seed(2)) * 0.3 + 0.3,
    }
    for labels in ([1, 2, 3], [4])
]


class OneByOne(SetCriterion):
    """A user-defined loss: layers are compared one by one."""

    def loss_labels(self, *args: Any, **kwargs: Any) -> Any:
        return super().loss_labels(*args, **kwargs)

    def loss_boxes(self, *args: Any, **kwargs: Any) -> Any:
        return super().loss_boxes(*args, **kwargs)


def grouped(flags: str = TINY, trained: bool = False) -> tuple[QueryGroups, Any]:
    model, criterion, _ = build(flags, seed=1)
    return QueryGroups(model.train(), K, seed=0, starts_trained=trained), criterion.train()


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("user_defined", [False, True])
def test_losses_and_gradients_are_those_of_separate_models_averaged(user_defined: bool) -> None:
    groups, criterion = grouped()
    criterion.__class__ = OneByOne if user_defined else SetCriterion
    losses = criterion(groups(IMAGES), TARGETS)
    sum(losses[name] * weight for name, weight in criterion.weight_dict.items()).backward()
    found = gradients(groups)

    model: Any = groups.module
    alone: list[dict[str, Tensor]] = []
    expected: dict[str, list[Tensor]] = {}
    for queries in [model.query_embed.weight, *groups.queries]:
        separate = copy.deepcopy(model)
        separate.zero_grad()
        separate.query_embed.weight.data.copy_(queries)
        alone.append(criterion(separate(IMAGES), TARGETS))
        (sum(alone[-1][name] * w for name, w in criterion.weight_dict.items()) / K).backward()
        for name, gradient in gradients(separate).items():
            expected.setdefault(name, []).append(gradient)

    assert losses.keys() == alone[0].keys()
    for name, value in losses.items():
        is_mean = name.startswith("loss")
        wanted = sum(each[name] for each in alone) / K if is_mean else alone[0][name]
        torch.testing.assert_close(value, wanted, rtol=1e-6, atol=1e-6)
    first, *others = expected.pop("query_embed.weight")
    torch.testing.assert_close(found.pop("module.query_embed.weight"), first)
    torch.testing.assert_close(found.pop("others.weight"), torch.cat(others))
    assert found.keys() == {f"module.{name}" for name in expected}
    for name, of_groups in expected.items():
        torch.testing.assert_close(found[f"module.{name}"], sum(of_groups), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("flags", [TINY, f"{MASKS} --pre_norm"])
def test_no_group_sees_another(flags: str) -> None:
    groups, _ = grouped(flags)
    model: Any = groups.module
    alone = model(IMAGES)
    before = groups(IMAGES)
    with torch.no_grad():
        groups.queries[1] += 1.0
    after = groups(IMAGES)
    assert len(before["group_outputs"]) == K - 1
    for old, new in ((before, after), (before["group_outputs"][0], after["group_outputs"][0])):
        for one, other in zip([old, *old["aux_outputs"]], [new, *new["aux_outputs"]], strict=True):
            assert torch.equal(one["pred_logits"], other["pred_logits"])
            assert torch.equal(one["pred_boxes"], other["pred_boxes"])
    assert not torch.equal(before["group_outputs"][1]["pred_boxes"], after["group_outputs"][1]["pred_boxes"])
    for name in alone.keys() - {"aux_outputs"}:  # the first group's, masks too, are the model's own
        torch.testing.assert_close(before[name], alone[name])


def test_all_groups_and_layers_are_matched_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    groups, criterion = grouped()
    outputs = groups(IMAGES)
    batches: list[int] = []
    distance = torch.cdist

    def counted(*boxes: Any, **options: Any) -> Any:
        batches.append(len(boxes[0]))
        return distance(*boxes, **options)

    monkeypatch.setattr(torch, "cdist", counted)
    criterion(outputs, TARGETS)
    assert batches == [K * 3 * len(IMAGES)]


def test_the_model_and_all_other_initial_values_know_nothing_of_them() -> None:
    model, _, _ = build(TINY, seed=1)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    groups = QueryGroups(model, K, seed=3)
    assert torch.equal(torch.get_rng_state(), random)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(QueryGroups(model, K, seed=3).queries, groups.queries)
    assert not torch.equal(QueryGroups(model, K, seed=4).queries, groups.queries)
    assert 0.8 < groups.queries.std() < 1.2


def test_of_a_trained_model_they_start_beside_the_first() -> None:
    groups, _ = grouped(trained=True)
    detector: Any = groups.module
    first: Tensor = detector.query_embed.weight
    assert 0.05 * first.std() < (groups.queries - first).std() < 0.2 * first.std()


@pytest.mark.parametrize("flags", [TINY, MASKS])
def test_they_are_the_last_parameter_of_the_first_optimizer_group(flags: str) -> None:
    groups, _ = grouped(flags)
    optimizer = main.build_optimizer(groups, parse(flags))
    own = main.build_optimizer(groups.module, parse(flags))
    (first, backbone), (own_first, own_backbone) = optimizer.param_groups, own.param_groups
    assert first["params"][-1] is groups.others.weight
    for ours, theirs in (
        (first["params"][:-1], own_first["params"]),
        (backbone["params"], own_backbone["params"]),
    ):
        assert all(a is b for a, b in zip(ours, theirs, strict=True))


def test_a_criterion_or_model_that_does_not_know_them_is_named() -> None:
    groups, criterion = grouped()
    outputs = groups(IMAGES)
    del outputs["group_outputs"]
    criterion(outputs, TARGETS)["loss_ce"].backward()
    with pytest.raises(UserError, match="--query_groups 3: the criterion does not read `group_outputs`"):
        groups.check_gradient()

    class Published(nn.Module):
        def forward(self, samples: Any) -> Any: ...

    with pytest.raises(UserError, match="--query_groups 3: forward of Published takes no `other_queries`"):
        QueryGroups(Published(), K, seed=0)
