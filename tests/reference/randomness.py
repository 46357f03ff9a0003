"""How parameters start, and where dropout acts: statistics over many draws."""

from collections import defaultdict

import numpy as np
import torch
from torch import Tensor, nn

from tests.reference.compare import Values
from tests.reference.settings import parse, quiet
from tests.reference.streams import fill_state, float_tensor, stream

BUILDS = 6
COPIES = 4000  # equal inputs that differ in nothing but dropout's draws
WIDTH, HEADS, HIDDEN, DROPOUT = 16, 4, 32, 0.4
# the last layer of a part that is set to zero, so that only the other part is seen
SILENCED = {"whole": (), "attention": ("linear2",), "ffn": ("out_proj",)}


def _moments(values: Tensor) -> tuple[float, float]:
    """Standard deviation and kurtosis (1.8 of a uniform, 3 of a normal); of a constant its value and 0."""
    deviation = float(values.std())
    if not deviation:
        return float(values[0]), 0.0
    centred = values - values.mean()
    return deviation, float((centred**4).mean() / (centred**2).mean() ** 2)


def initial_values(prefix: str, flags: str, seed: int) -> Values:
    """Spread and kurtosis of every parameter outside the ResNet, over six builds."""
    from models import build_model

    drawn: dict[str, list[Tensor]] = defaultdict(list)
    for build_number in range(BUILDS):
        torch.manual_seed(1000 + build_number + seed)
        with quiet():
            model = build_model(parse(flags))[0]
        for name, parameter in model.named_parameters():
            if "backbone.0" not in name:
                drawn[name].append(parameter.detach().double().flatten())
    names = sorted(drawn)
    moments = np.array([_moments(torch.cat(drawn[name])) for name in names])
    return {
        f"{prefix}/names": np.array(names),
        f"{prefix}/std~": moments[:, 0],
        f"{prefix}/kurtosis~": moments[:, 1],
    }


def _layer(kind: str, normalize_before: bool, silenced: tuple[str, ...], seed: int) -> nn.Module:
    from models.transformer import TransformerDecoderLayer, TransformerEncoderLayer

    layer_class = TransformerEncoderLayer if kind == "encoder" else TransformerDecoderLayer
    layer = layer_class(WIDTH, HEADS, HIDDEN, DROPOUT, "relu", normalize_before)
    fill_state(layer, seed)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if any(part in name for part in silenced):
                parameter.zero_()
    return layer.train()


@torch.no_grad()
def dropout(seed: int) -> Values:
    """The deviation that dropout causes in a layer's output: whole, by attention alone, by the FFN alone."""
    random = stream("dropout", seed)

    def tokens(length: int) -> Tensor:  # [length, COPIES, WIDTH]
        return float_tensor(random.normal(0, 1, (length, 1, WIDTH))).expand(-1, COPIES, -1)

    values: Values = {}
    for kind in ("encoder", "decoder"):
        for order in ("post", "pre"):
            for part, silenced in SILENCED.items():
                layer = _layer(kind, order == "pre", silenced, seed)
                torch.manual_seed(5 + seed)
                if kind == "encoder":
                    src, pos = tokens(5), tokens(5)
                    out = layer(src, pos=pos)
                else:
                    tgt, memory, pos, query_pos = tokens(3), tokens(5), tokens(5), tokens(3)
                    out = layer(tgt, memory, pos=pos, query_pos=query_pos)
                deviation, size = out.std(1).mean(1), out.mean(1).abs().mean(1)  # of each token
                values[f"dropout/{kind}/{order}/{part}~"] = torch.cat([deviation, size]).double().numpy()
    return values
