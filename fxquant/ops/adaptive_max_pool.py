"""Adaptive max pooling. Order is kept by quantization, so it picks the same elements.

    real      y = max over the cell of x
    integer   q_y = max over the cell of q_x

Cell i of n over a length L reaches from floor(i·L/n) to ceil((i+1)·L/n).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.forms.movable import along_axes
from fxquant.forms.onnx import OnnxCall
from fxquant.forms.tflite import TfliteCall
from fxquant.ops.accumulator import adds_nothing
from fxquant.ops.selection import no_numbers, reader_without_indices, selection_kernel
from fxquant.ops.spec import OpSpec, Output, module_options


def adaptive_max_pool1d(input: Tensor, output_size: Any) -> Tensor:
    """[N, C, L] to [N, C, n]."""
    return F.adaptive_max_pool1d(input, output_size)


def adaptive_max_pool2d(input: Tensor, output_size: Any) -> Tensor:
    """[N, C, H, W] to [N, C, h, w]."""
    return F.adaptive_max_pool2d(input, output_size)


def adaptive_max_pool3d(input: Tensor, output_size: Any) -> Tensor:
    """[N, C, D, H, W] to [N, C, d, h, w]."""
    return F.adaptive_max_pool3d(input, output_size)


def _options(module: Any) -> dict[str, Any] | None:
    return None if module.return_indices else module_options(module, "output_size")


def _form(dims: int) -> Callable[[Any], Any]:
    """A cell at a time: as many elements of each as the largest has, the last one repeated."""

    def form(call: OnnxCall | TfliteCall) -> Any:
        x: Any = call.codes[0]
        lengths, cells = x.sizes, call.shape[-dims:]

        def index(axis: int) -> Tensor:
            length, n = lengths[axis], cells[axis - len(lengths)]
            i = torch.arange(n)
            first, last = i * length // n, -((-(i + 1) * length) // n) - 1
            inside = first[:, None] + torch.arange(int((last - first).max()) + 1)
            return torch.minimum(inside, last[:, None])

        return along_axes(x, dims, index, cells=True)

    return form


def _record(
    function: Callable[..., Tensor], spelling: Callable[..., Any], module: type[nn.Module],
    dims: int,
) -> OpSpec:
    return OpSpec(
        name=function.__name__,
        function=function,
        functions=(spelling,),
        methods=(),
        modules={module: _options},
        read=reader_without_indices(function),
        output=Output.EXACT,
        range=None,
        homogeneous=False,
        weight_axis=None,
        numbers=no_numbers,
        kernel=selection_kernel(function),
        accumulator=adds_nothing,
        onnx=_form(dims),
        tflite=_form(dims),
    )


ADAPTIVE_MAX_POOL1D = _record(adaptive_max_pool1d, F.adaptive_max_pool1d, nn.AdaptiveMaxPool1d, 1)
ADAPTIVE_MAX_POOL2D = _record(adaptive_max_pool2d, F.adaptive_max_pool2d, nn.AdaptiveMaxPool2d, 2)
ADAPTIVE_MAX_POOL3D = _record(adaptive_max_pool3d, F.adaptive_max_pool3d, nn.AdaptiveMaxPool3d, 3)
