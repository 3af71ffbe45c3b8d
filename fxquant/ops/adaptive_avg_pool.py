"""Adaptive average pooling: the mean of each cell, as `ops/average.py` computes it.

    real      y = (Σ over the cell of x) / c
    integer   q_y = clamp(z_y + round((s_x/s_y)·Σ(q_x - z_x) / c))

Cell i of n over a length L reaches from floor(i·L/n) to ceil((i+1)·L/n); c is its size. Unlike a
window's, this mean is rounded before the zero point is added, as QLinearGlobalAveragePool has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.intmath import centred, per_channel, sum_of_mean
from fxquant.ops.accumulator import Accumulator, IntegerCall
from fxquant.ops.average import (
    AverageNumbers,
    accumulator_of_average,
    average_numbers,
    finish_cells,
)
from fxquant.ops.spec import OpSpec, Output, module_options, per_dimension, signature_reader


def adaptive_avg_pool1d(input: Tensor, output_size: Any) -> Tensor:
    """[N, C, L] to [N, C, n]."""
    return F.adaptive_avg_pool1d(input, output_size)


def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    """[N, C, H, W] to [N, C, h, w]."""
    return F.adaptive_avg_pool2d(input, output_size)


def adaptive_avg_pool3d(input: Tensor, output_size: Any) -> Tensor:
    """[N, C, D, H, W] to [N, C, d, h, w]."""
    return F.adaptive_avg_pool3d(input, output_size)


def cell_sizes(length: int, cells: int) -> Tensor:
    """How many elements each cell of one dimension holds: int64 [cells]."""
    i = torch.arange(cells)
    return -((-(i + 1) * length) // cells) - (i * length) // cells


def _most_elements(lengths: Iterable[int], cells: Iterable[int]) -> int:
    """A cell has at most ceil(L/n) + 1 of each dimension's elements."""
    return math.prod(-(-length // n) + 1 for length, n in zip(lengths, cells, strict=True))


def _record(
    function: Callable[..., Tensor], spellings: tuple[Any, ...], module: type[nn.Module], dims: int
) -> OpSpec:
    def options(module: nn.Module) -> dict[str, Any]:
        return module_options(module, "output_size")

    def kernel(
        n: AverageNumbers, dtype: torch.dtype, codes: Tensor, output_size: Any
    ) -> Tensor:
        mean = function(centred(codes, n.x_zero, torch.float64), output_size)
        size = torch.ones((1,) * dims, dtype=torch.int64)
        for i in range(dims):
            cells = cell_sizes(codes.shape[i - dims], mean.shape[i - dims])
            size = size * per_channel(cells, i, dims)
        size = size.to(codes.device)
        elements = _most_elements(codes.shape[-dims:], mean.shape[-dims:])
        return finish_cells(sum_of_mean(mean, size), elements, size, n, dtype)

    def accumulator(call: IntegerCall) -> Accumulator:
        shape = call.inputs[0].shape
        if shape is None or "output_size" not in call.settings:
            return accumulator_of_average(call, None)
        sizes = per_dimension(call.settings["output_size"], dims)
        cells = [n or length for n, length in zip(sizes, shape[-dims:], strict=True)]
        return accumulator_of_average(call, _most_elements(shape[-dims:], cells))

    return OpSpec(
        name=function.__name__,
        function=function,
        functions=spellings,
        methods=(),
        modules={module: options},
        read=signature_reader(function),
        output=Output.OWN,
        range=None,
        homogeneous=False,
        weight_axis=None,
        numbers=average_numbers,
        kernel=kernel,
        accumulator=accumulator,
    )


ADAPTIVE_AVG_POOL1D = _record(
    adaptive_avg_pool1d, (F.adaptive_avg_pool1d, torch.adaptive_avg_pool1d), nn.AdaptiveAvgPool1d, 1
)
ADAPTIVE_AVG_POOL2D = _record(
    adaptive_avg_pool2d, (F.adaptive_avg_pool2d,), nn.AdaptiveAvgPool2d, 2
)
ADAPTIVE_AVG_POOL3D = _record(
    adaptive_avg_pool3d, (F.adaptive_avg_pool3d,), nn.AdaptiveAvgPool3d, 3
)

ADAPTIVE_AVG_POOLS = (ADAPTIVE_AVG_POOL1D, ADAPTIVE_AVG_POOL2D, ADAPTIVE_AVG_POOL3D)
"""Over one, two and three dimensions."""
