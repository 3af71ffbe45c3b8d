"""Which parameters weight decay is for: not for those of grids, which it would shrink to 0."""

from __future__ import annotations

from typing import Any

from torch import fx

from fxquant.fake_quant.quantizer import Quantizer
from fxquant.pipeline import need_prepared


def parameter_groups(prepared: fx.GraphModule) -> list[dict[str, Any]]:
    """The parameters of `prepared` for any optimizer, learned scales without weight decay.

        torch.optim.SGD(parameter_groups(prepared), lr=0.1, weight_decay=1e-4)

    Two groups: the model's own parameters, then those of quantizers (steps, offsets, thresholds;
    none unless QuantConfig asks for a fake-quant that learns). Each parameter is in one, once.

    Raises:
        StageError: `prepared` did not come from prepare_qat.
    """
    need_prepared(prepared, "parameter_groups")
    quantizers = [module for module in prepared.modules() if isinstance(module, Quantizer)]
    of_grids = {id(p): p for quantizer in quantizers for p in quantizer.parameters()}
    own = [p for p in prepared.parameters() if id(p) not in of_grids]
    return [{"params": own}, {"params": list(of_grids.values()), "weight_decay": 0.0}]
