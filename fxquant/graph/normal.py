"""What a folded batch norm said of a value: each channel's mean and deviation.

Scratch paper for one run of a recipe: it does not outlive a pickle.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, fx

_NORMAL = "fxquant_normal"


class Normal(NamedTuple):
    """Channels taken as normally distributed: `mean` and `deviation`, both [C]."""

    mean: Tensor
    deviation: Tensor


def normal_of(node: fx.Node) -> Normal | None:
    """How the output of the layer at `node` is distributed, before its activation, if known."""
    normal: Normal | None = node.meta.get(_NORMAL)
    return normal


def set_normal(node: fx.Node, normal: Normal) -> None:
    """Note how the output of the layer at `node` is distributed, before its activation."""
    node.meta[_NORMAL] = normal
