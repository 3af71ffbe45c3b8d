"""Adaptive average pooling: the mean of each cell, as `ops/average.py` computes it.

    real      y = (Σ over the cell of x) / c
    integer   q_y = clamp(z_y + round((s_x/s_y)·Σ(q_x - z_x) / c))

Cell i of n over a length L reaches from floor(i·L/n) to ceil((i+1)·L/n); c is its size. Unlike a
window's, this mean is rounded before the zero point is added, as QLinearGlobalAveragePool has it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from functools import partial, reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.forms.onnx import OnnxCall, Value, centred_value, sum_of
from fxquant.forms.tflite import TfliteCall
from fxquant.forms.tflite import Value as TfliteValue
from fxquant.forms.tflite_ways import look_up_means, sum_of_cells
from fxquant.intmath import centred, per_channel, sum_of_mean
from fxquant.ops.accumulator import Accumulator, IntegerCall
from fxquant.ops.average import (
    AverageNumbers,
    accumulator_of_average,
    average_numbers,
    finish_cells,
    quotient,
    quotient_type,
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


def cell_elements(length: int, cells: int) -> tuple[Tensor, Tensor]:
    """Where the elements of each cell lie, as many of each as the largest has, and how many there
    are: int64 [cells, most] and [cells].
    """
    sizes = cell_sizes(length, cells)
    first = torch.arange(cells) * length // cells
    return first[:, None] + torch.arange(int(sizes.max())), sizes


def _cell_counts(lengths: Sequence[int], cells: Sequence[int]) -> Tensor:
    """How many elements each cell over those dimensions holds: int64, in the shape of the cells."""
    counts, dims = torch.ones((1,) * len(cells), dtype=torch.int64), len(cells)
    for i, (length, count) in enumerate(zip(lengths, cells, strict=True)):
        counts = counts * per_channel(cell_sizes(length, count), i, dims)
    return counts


def _elements_there(length: int, cells: int) -> tuple[Tensor, Tensor]:
    """Where the elements of each cell lie, and which of them there are: [cells, most]."""
    inside, sizes = cell_elements(length, cells)
    there = torch.arange(inside.shape[1]) < sizes[:, None]
    return inside.clamp(max=length - 1), there


def _most_elements(lengths: Iterable[int], cells: Iterable[int]) -> int:
    """A cell has at most ceil(L/n) + 1 of each dimension's elements."""
    most = (-(-length // n) + 1 for length, n in zip(lengths, cells, strict=True))
    return reduce(operator.mul, most)


def _sums_of_cells(
    codes: Value, axes: Sequence[int], inside: Sequence[tuple[Tensor, Tensor]]
) -> Value:
    """Along each axis the sums over its cells, whose elements and sizes `inside` says."""
    total, rank = codes, len(codes.sizes)
    for axis, (elements, sizes) in zip(axes, inside, strict=True):
        picked = total.gather(elements.clamp(max=codes.sizes[axis] - 1), axis)
        kept = (torch.arange(elements.shape[1]) < sizes[:, None]).to(torch.int64)
        kept = kept.reshape(*kept.shape, *[1] * (rank - 1 - axis))
        total = (picked * kept).reduce("ReduceSum", [axis + 1], keepdim=False)
    return total


def _accumulator(dims: int, call: IntegerCall) -> Accumulator:
    shape = call.inputs[0].shape
    if shape is None or "output_size" not in call.settings:
        return accumulator_of_average(call, None)
    sizes = per_dimension(call.settings["output_size"], dims)
    cells = [n or length for n, length in zip(sizes, shape[-dims:], strict=True)]
    return accumulator_of_average(call, _most_elements(shape[-dims:], cells))


def _onnx(dims: int, call: OnnxCall) -> Value:
    n, (x,), cells = call.numbers, call.codes, call.shape[-dims:]
    lengths, axes = x.sizes[-dims:], range(len(x.sizes) - dims, len(x.sizes))
    size = _cell_counts(lengths, cells)
    elements = int(size.max())
    if all(count == 1 for count in cells):
        total = sum_of(x, n.x_zero, axes, dtype=quotient_type(call, elements, size))
    else:
        inside = list(map(cell_elements, lengths, cells))
        total = _sums_of_cells(centred_value(x, n.x_zero), axes, inside)
        total = total.to(quotient_type(call, elements, size))
    y: Value = quotient(call, total, elements, size, 0) + n.y_zero
    return y.clamp(n.low, n.high).to(call.dtype)


def _tflite(dims: int, call: TfliteCall) -> TfliteValue:
    """A table of what the sums of cells become."""
    n, (x,), cells = call.numbers, call.codes, call.shape[-dims:]
    lengths, total = x.sizes[-dims:], x.centred(n.x_zero)
    size = _cell_counts(lengths, cells)
    if all(count == 1 for count in cells):
        total = total.sum(range(len(x.shape) - dims, len(x.shape)))
    else:
        total = sum_of_cells(total, list(map(_elements_there, lengths, cells)))

    def mean(sums: Tensor, divisor: Tensor) -> Tensor:
        return finish_cells(sums, int(divisor), divisor, n, call.dtype)

    return look_up_means(call, total, int(size.max()), size, mean)


def _record(
    function: Callable[..., Tensor], spellings: tuple[Any, ...], module: type[nn.Module], dims: int
) -> OpSpec:
    def options(module: nn.Module) -> dict[str, Any]:
        return module_options(module, "output_size")

    def kernel(
        n: AverageNumbers, dtype: torch.dtype, codes: Tensor, output_size: Any
    ) -> Tensor:
        mean = function(centred(codes, n.x_zero, torch.float64), output_size)
        lengths, cells = codes.shape[-dims:], mean.shape[-dims:]
        size = _cell_counts(lengths, cells).to(codes.device)
        elements = _most_elements(lengths, cells)
        return finish_cells(sum_of_mean(mean, size), elements, size, n, dtype)

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
        accumulator=partial(_accumulator, dims),
        onnx=partial(_onnx, dims),
        tflite=partial(_tflite, dims),
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
