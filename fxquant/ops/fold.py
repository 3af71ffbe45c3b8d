"""A factor and an offset of each channel, taken into the layer beside them.

    behind the layer     f·(W·x + b) + o  =  (f·W)·x + (f·b + o)
    in front of it       W·(f·x + o) + b  =  (W·f)·x + (W·o + b)
"""

from __future__ import annotations

from torch import Tensor

from fxquant.schemes import Channels


def fold_output_affine(
    weight: Tensor, bias: Tensor | None, factor: Tensor, offset: Tensor, channels: Channels
) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer whose output goes through `factor · y + offset`, both [C]."""
    scaled = weight * channels.spread(factor, weight)
    return scaled, offset if bias is None else bias * factor + offset


def fold_input_affine(
    weight: Tensor, bias: Tensor | None, factor: Tensor, offset: Tensor
) -> tuple[Tensor, Tensor]:
    """Weight [O, C/groups, ...], bias [O] of a layer that reads `factor·x + offset`, both [C]."""
    groups = factor.numel() // weight.shape[1]
    rows = weight.reshape(groups, -1, weight.shape[1], weight[0, 0].numel())
    per_input = (groups, 1, weight.shape[1], 1)
    scaled = (rows * factor.reshape(per_input)).reshape(weight.shape)
    shift = (rows * offset.reshape(per_input)).sum((2, 3)).flatten()
    return scaled, shift if bias is None else bias + shift
