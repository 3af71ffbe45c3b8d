"""How far the training of a quantized network has come, call by call.

    observe   ranges follow the data, nothing is rounded         Phase(round=False)
    train     values and weights are rounded, too                Phase()
    settle    ranges stand still                                 Phase(observe=False)
    finish    batch norms stand still as well                    Phase(False, True, False)

eval() asks none of it: there a network always computes on its integers, once it has ranges.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.fake_quant import ActivationFakeQuant
from fxquant.fields import check_fields
from fxquant.graph.edit import Site
from fxquant.observers.base import in_backward


@dataclass(frozen=True)
class Phase:
    """What train() does at a call.

    observe           whether the ranges of activations follow the data; where they do not, learned
                      scales of activations get no gradient either
    round             whether values and weights are rounded
    batch_statistics  whether batch norms normalise with the statistics of the batch, and follow
                      them; γ and β train on in any case
    """

    observe: bool = True
    round: bool = True
    batch_statistics: bool = True

    def __post_init__(self) -> None:
        check_fields(self)


class PhasedSite(Site):
    """A site that trains as its phase says, which travels in the state_dict.

    As extra state, not as a buffer: Python asks for it at every call, and to ask a tensor would
    wait for its device and end a compiled graph.
    """

    def __init__(self) -> None:
        super().__init__()
        self.phase = Phase()

    def get_extra_state(self) -> Tensor:
        """For state_dict()."""
        return torch.tensor(astuple(self.phase), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """For load_state_dict()."""
        self.phase = Phase(*(bool(flag) for flag in state.tolist()))

    def in_phase(self, quantizer: ActivationFakeQuant, x: Tensor, *limits: float) -> Tensor:
        """`x`, limited, on the grid of `quantizer`, in train(); where nothing is rounded, `x`."""
        if not self.phase.round:
            if self.phase.observe and quantizer.training:
                quantizer.observe(x)
            return x
        take: Tensor = (quantizer if self.phase.observe else quantizer.frozen)(x, *limits)
        return take

    def normalised(self, batch_norm: nn.Module, x: Tensor) -> Tensor:
        """`x`, [N, C, ...], through a BatchNorm module; same shape."""
        if not self.training or self.phase.batch_statistics:
            live: Tensor = _again(batch_norm, x) if in_backward() else batch_norm(x)
            return live
        bn: Any = batch_norm
        return F.batch_norm(
            x, bn.running_mean, bn.running_var, bn.weight, bn.bias, False, 0.0, bn.eps
        )


def _again(batch_norm: nn.Module, x: Tensor) -> Any:
    """As `batch_norm(x)`, whose statistics have followed this batch already."""
    kept = {name: buffer.clone() for name, buffer in batch_norm.named_buffers()}
    return torch.func.functional_call(batch_norm, kept, (x,))
