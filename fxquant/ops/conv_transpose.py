"""Transposed convolution over one, two or three dimensions, any groups and output padding.

    real      y[c] = b[c] + Σ w[c]·x, each x spread over a window of y
    integer   q_y[c] = clamp(z_y + round((s_x·s_w[c] / s_y) · (b_q[c] + Σ w_q[c]·(q_x - z_x))))

The weight is [I, C/groups, ...]: its output channels lie along axis 1, group by group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.forms.onnx import OnnxCall, Value, pad_codes
from fxquant.forms.tflite import TfliteCall, TfliteForm
from fxquant.forms.tflite import Value as TfliteValue
from fxquant.forms.tflite_ways import pictures, two
from fxquant.intmath import LayerNumbers
from fxquant.kernels.sums import Geometry
from fxquant.ops.layer import (
    LAYER_REAL,
    convolve_in_tflite,
    fast_in_carrier,
    layer_accumulator,
    layer_kernel,
    layer_numbers,
    layer_onnx,
    layer_reader,
    unsigned,
)
from fxquant.ops.spec import OpSpec, Output, Parameter, module_options, per_dimension


def conv_transpose1d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1,
    padding: Any = 0, output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Tensor:
    """[N, I, L] and weight [I, C/groups, K] to [N, C, L']."""
    return F.conv_transpose1d(
        input, weight, bias, stride, padding, output_padding, groups, dilation
    )


def conv_transpose2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1,
    padding: Any = 0, output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Tensor:
    """[N, I, H, W] and weight [I, C/groups, Kh, Kw] to [N, C, H', W']."""
    return F.conv_transpose2d(
        input, weight, bias, stride, padding, output_padding, groups, dilation
    )


def conv_transpose3d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1,
    padding: Any = 0, output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Tensor:
    """[N, I, D, H, W] and weight [I, C/groups, Kd, Kh, Kw] to [N, C, D', H', W']."""
    return F.conv_transpose3d(
        input, weight, bias, stride, padding, output_padding, groups, dilation
    )


def _options(module: Any) -> dict[str, Any]:
    bias = None if module.bias is None else Parameter("bias")
    names = ("stride", "padding", "output_padding", "groups", "dilation")
    return {"weight": Parameter("weight"), "bias": bias, **module_options(module, *names)}


def _around(*settings: Sequence[int]) -> list[tuple[int, int]]:
    """How much to pad before and behind a picture that has step - 1 codes of 0 behind each of its
    own, for each dimension's kernel, step, padding, output padding and dilation.
    """
    return [
        (d * (k - 1) - p, d * (k - 1) - p + extra - (step - 1))
        for k, step, p, extra, d in zip(*settings, strict=True)
    ]


def _sum_up(dims: int) -> Callable[..., Value]:
    """ConvInteger of one byte of the codes, int32: over a picture with codes of 0 between its own,
    by the weight turned round.
    """

    def sum_up(call: OnnxCall, codes: Value, zero: Tensor) -> Value:
        weight, s = call.numbers.weight, call.settings
        names = ("stride", "padding", "output_padding", "dilation")
        steps, widths, extra, dilation = (per_dimension(s[name], dims) for name in names)
        assert codes.shape is not None  # asked only of what the integer network itself gives
        lead, lengths = codes.shape[:-dims], codes.shape[-dims:]
        apart = codes.reshape([*lead, *(n for length in lengths for n in (length, 1))])
        apart.shape = (*lead, *(n for length in lengths for n in (length, 1)))
        gaps = [pair for step in steps for pair in ((0, 0), (0, step - 1))]
        spread = pad_codes(apart, gaps, zero)
        long = [length * step for length, step in zip(codes.sizes[-dims:], steps, strict=True)]
        picture = spread.reshape([*lead, *long])
        picture.shape = (*lead, *long)
        around = _around(weight.shape[2:], steps, widths, extra, dilation)
        groups = s["groups"]
        stored, weight_zero = unsigned(codes.graph, turned_round(weight, groups))
        return call.graph.node(
            "ConvInteger", pad_codes(picture, around, zero), stored, zero, weight_zero,
            dtype=torch.int32, kernel_shape=list(weight.shape[2:]), group=groups,
            dilations=list(dilation), strides=[1] * dims, pads=[0] * (2 * dims),
        )

    return sum_up


def _tflite(dims: int) -> TfliteForm:
    """CONV_2D of a picture with codes of 0 between its own, by the weight turned round."""

    def form(call: TfliteCall) -> TfliteValue:
        n: LayerNumbers = call.numbers
        x, s, zero = pictures(call, dims), call.settings, int(n.x_zero)
        steps, widths, extra, dilation = (
            two(per_dimension(s[name], dims), missing)
            for name, missing in (
                ("stride", 1), ("padding", 0), ("output_padding", 0), ("dilation", 1)
            )
        )
        for dim, step in enumerate(steps, start=2):
            if step > 1:
                before, (length, *rest) = x.shape[:dim], x.sizes[dim:]
                apart = x.reshape((*before, length, 1, *rest))
                apart = apart.pad([(0, step - 1), *[(0, 0)] * len(rest)], zero)
                x = apart.reshape((*before, length * step, *rest))
        around = _around(two(n.weight.shape[2:], 1), steps, widths, extra, dilation)
        turned = turned_round(n.weight, s["groups"])
        moves = Geometry((1, 1), ((0, 0), (0, 0)), dilation, s["groups"])
        found = convolve_in_tflite(
            call._replace(numbers=n._replace(weight=turned)), x.pad(around, zero), moves,
            two(call.shape[2:], 1),
        )
        return found.reshape(call.sizes)

    return form


def turned_round(weight: Tensor, groups: int) -> Tensor:
    """That of the convolution which sums the same: [I, C/groups, ...] to [C, I/groups, ...]."""
    turned = weight.flip(*range(2, weight.dim())).reshape(groups, -1, *weight.shape[1:])
    return turned.transpose(1, 2).flatten(0, 1)


def _record(
    function: Callable[..., Tensor],
    spellings: tuple[Any, ...],
    module: type[nn.Module],
    spatial: int,
) -> OpSpec:
    return OpSpec(
        name=function.__name__,
        function=function,
        functions=spellings,
        methods=(),
        modules={module: _options},
        read=layer_reader(function),
        output=Output.OWN,
        range=None,
        homogeneous=False,
        weight_axis=1,
        numbers=layer_numbers,
        kernel=layer_kernel(function, spatial),
        fast=fast_in_carrier(function, spatial),
        accumulator=layer_accumulator(1),
        onnx=layer_onnx(_sum_up(spatial), spatial),
        tflite=_tflite(spatial),
        real=LAYER_REAL,
    )


CONV_TRANSPOSE1D = _record(
    conv_transpose1d, (F.conv_transpose1d, torch.conv_transpose1d), nn.ConvTranspose1d, 1
)
CONV_TRANSPOSE2D = _record(
    conv_transpose2d, (F.conv_transpose2d, torch.conv_transpose2d), nn.ConvTranspose2d, 2
)
CONV_TRANSPOSE3D = _record(
    conv_transpose3d, (F.conv_transpose3d, torch.conv_transpose3d), nn.ConvTranspose3d, 3
)
