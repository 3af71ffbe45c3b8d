"""Sum of n tensors, each times a number that parameters decide: the mixed operation of DARTS.

    real      y = w_1·x_1 + … + w_n·x_n
    integer   q_y = clamp(z_y + ((Σ (q_i - z_i)·m_i + 2^(S-1)) >> S))

with m_i = round(w_i·s_i/s_y · 2^S) over one common shift: the weights cost no rounding of their
own. They stay real, and trainable, until the network is converted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fxquant.ops.operands import (
    OperandNumbers,
    accumulator_of_operands,
    fast_sum,
    ratios_of,
    sum_numbers,
    sum_onnx,
    sum_operands,
    terms_tflite,
)
from fxquant.ops.spec import OpSpec, Output, RealCall, not_spelled


def weighted_sum(*inputs: Tensor, factors: Sequence[Tensor | float]) -> Tensor:
    """Tensors of shapes that broadcast, and as many numbers (floats or tensors of one element)."""
    total = inputs[0] * factors[0]
    for x, factor in zip(inputs[1:], factors[1:], strict=True):
        total = total + x * factor
    return total


def _numbers(call: RealCall) -> OperandNumbers:
    scale = call.target.qparams.scale
    factors = [torch.as_tensor(w, device=scale.device) for w in call.options["factors"]]
    weights = torch.stack([w.detach().double().reshape(()) for w in factors])
    ratios = ratios_of(call)
    return sum_numbers(call, ratios * weights)


WEIGHTED_SUM = OpSpec(
    name="weighted_sum",
    function=weighted_sum,
    functions=(),
    methods=(),
    modules={},
    read=not_spelled,
    output=Output.OWN,
    range=None,
    homogeneous=False,
    weight_axis=None,
    numbers=_numbers,
    kernel=sum_operands,
    fast=fast_sum,
    accumulator=accumulator_of_operands,
    onnx=sum_onnx,
    tflite=terms_tflite,
    real=("factors",),
)
"""Spelled as products and sums, of which the passes weigh_terms and join_adds make it."""
