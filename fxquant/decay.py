"""How an optimizer treats the numbers of grids: without weight decay, which would shrink them to 0,
and at a rate that fits the size of each.
"""

from __future__ import annotations

import math
from typing import Any

from torch import fx, nn

from fxquant.calibration import quantizers_of
from fxquant.errors import ConfigError, UncalibratedError
from fxquant.fake_quant.quantizer import Quantizer
from fxquant.fake_quant.tqt import TrainedThreshold, TrainedWeightThreshold
from fxquant.fields import is_number
from fxquant.graph.place import describe
from fxquant.pipeline import need_prepared


def parameter_groups(
    prepared: fx.GraphModule, grid_rate: float | None = None
) -> list[dict[str, Any]]:
    """The parameters of `prepared` for any optimizer, learned scales without weight decay.

        torch.optim.SGD(parameter_groups(prepared), lr=0.1, weight_decay=1e-4)

    Two groups: the model's own parameters, then those of quantizers (steps, offsets, thresholds;
    none unless QuantConfig asks for a fake-quant that learns). Each parameter is in one, once.

    Adam and its kin move a number by about the learning rate, however small its gradient, and the
    numbers of grids differ by thousands. With `grid_rate` each has a group of its own, whose rate
    is that share of what it is now; the first batch starts them:

        prepared.train()(batch)
        torch.optim.Adam(parameter_groups(prepared, grid_rate=0.01), lr=5e-3)

    Args:
        prepared: what prepare_qat returned.
        grid_rate: with 0.01 a step of 3 has the learning rate 0.03, and a threshold's logarithm
            has 0.01; an offset that is 0 stays 0. None for the rate of the network.

    Raises:
        StageError: `prepared` did not come from prepare_qat.
        ConfigError: `grid_rate` is no positive number.
        UncalibratedError: a rate is to fit a grid that has seen no data yet.
    """
    need_prepared(prepared, "parameter_groups")
    quantizers = [module for module in prepared.modules() if isinstance(module, Quantizer)]
    of_grids = {id(p): (p, quantizer) for quantizer in quantizers for p in quantizer.parameters()}
    own = {"params": [p for p in prepared.parameters() if id(p) not in of_grids]}
    if grid_rate is None:
        return [own, {"params": [p for p, _ in of_grids.values()], "weight_decay": 0.0}]
    _check(prepared, grid_rate)
    return [
        own,
        *(
            {"params": [p], "lr": grid_rate * _size(p, quantizer), "weight_decay": 0.0}
            for p, quantizer in of_grids.values()
        ),
    ]


def _check(prepared: fx.GraphModule, rate: float) -> None:
    if not is_number(rate) or not 0 < rate < math.inf:
        raise ConfigError(f"grid_rate is a positive number, such as 0.01, got {rate!r}")
    for node, quantizer in quantizers_of(prepared).items():
        if not quantizer.ready and any(True for _ in quantizer.parameters()):
            raise UncalibratedError(
                f"{describe(node)} has seen no finite data: its grid has no size yet.\n"
                "What to do: run a batch through the prepared model in train() mode first."
            )


def _size(number: nn.Parameter, quantizer: Quantizer) -> float:
    if isinstance(quantizer, (TrainedThreshold, TrainedWeightThreshold)):
        return 1.0  # a logarithm: what it moves by is a share already
    return float(number.detach().abs().mean())
