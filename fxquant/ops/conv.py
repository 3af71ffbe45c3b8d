"""Convolution over one, two or three dimensions, any groups, strides, padding and dilation.

    real      y[c] = b[c] + Σ w[c]·x
    integer   q_y[c] = clamp(z_y + round((s_x·s_w[c] / s_y) · (b_q[c] + Σ w_q[c]·(q_x - z_x))))

Padding adds q_x = z_x, the integer that stands for 0, or copies of other q_x. Grouped and depthwise
alike: the bound of a channel's sum is read off that channel's own integer weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.forms.movable import padded_with_copies
from fxquant.forms.onnx import OnnxCall, Value
from fxquant.forms.qdq import (
    Picture,
    QdqForm,
    arranged,
    grids_of,
    to_codes,
    to_real,
    weight_and_bias,
)
from fxquant.forms.tflite import TfliteCall, TfliteForm
from fxquant.forms.tflite import Value as TfliteValue
from fxquant.forms.tflite_ways import pictures, two
from fxquant.kernels.sums import Geometry
from fxquant.ops.layer import (
    LAYER_REAL,
    convolve_in_tflite,
    fast_layer,
    layer_accumulator,
    layer_kernel,
    layer_numbers,
    layer_onnx,
    layer_reader,
    unsigned,
)
from fxquant.ops.spec import (
    Call,
    OpSpec,
    Output,
    Parameter,
    Reader,
    module_options,
    per_dimension,
)


def conv1d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None,
    stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    """[N, C, L] and weight [O, C/groups, K] to [N, O, L']."""
    input, padding = _with_copies(input, weight, padding, dilation, padding_mode)
    return F.conv1d(input, weight, bias, stride, padding, dilation, groups)


def conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None,
    stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    """[N, C, H, W] and weight [O, C/groups, Kh, Kw] to [N, O, H', W']."""
    input, padding = _with_copies(input, weight, padding, dilation, padding_mode)
    return F.conv2d(input, weight, bias, stride, padding, dilation, groups)


def conv3d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None,
    stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    """[N, C, D, H, W] and weight [O, C/groups, Kd, Kh, Kw] to [N, O, D', H', W']."""
    input, padding = _with_copies(input, weight, padding, dilation, padding_mode)
    return F.conv3d(input, weight, bias, stride, padding, dilation, groups)


def _with_copies(
    x: Tensor, weight: Tensor, padding: Any, dilation: Any, mode: str
) -> tuple[Tensor, Any]:
    """What a convolution reads, padded already where that is with copies, and how much of 0 there
    is to pad; settings as a module has them.
    """
    if mode == "zeros" or padding == "valid":
        return x, padding
    widths = _widths(weight, padding, dilation)
    return F.pad(x, [width for pair in reversed(widths) for width in pair], mode), 0


def _widths(weight: Tensor, padding: Any, dilation: Any) -> list[tuple[int, int]]:
    """How far each dimension is padded, before and behind."""
    dims = weight.dim() - 2
    if padding == "same":
        spans = zip(per_dimension(dilation, dims), weight.shape[2:], strict=True)
        return [(d * (k - 1) // 2, d * (k - 1) - d * (k - 1) // 2) for d, k in spans]
    if padding == "valid":
        return [(0, 0)] * dims
    return [(width, width) for width in per_dimension(padding, dims)]


def _moves(weight: Tensor, settings: Mapping[str, Any]) -> Geometry | None:
    """What the kernels that pad codes with numbers take; None where copies are padded."""
    if settings.get("padding_mode", "zeros") != "zeros":
        return None
    stride, dilation = settings["stride"], settings["dilation"]
    dims = weight.dim() - 2
    return Geometry(
        stride=per_dimension(stride, dims),
        padding=tuple(_widths(weight, settings["padding"], dilation)),
        dilation=per_dimension(dilation, dims),
        groups=settings["groups"],
    )


def _options(module: Any) -> dict[str, Any]:
    bias = None if module.bias is None else Parameter("bias")
    settings = module_options(module, "stride", "padding", "dilation", "groups")
    if module.padding_mode != "zeros":
        settings["padding_mode"] = module.padding_mode
    return {"weight": Parameter("weight"), "bias": bias, **settings}


def _reader(function: Callable[..., Tensor]) -> Reader:
    """Read a function call: only modules pad with anything but zeros."""
    by_signature = layer_reader(function)

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | str | None:
        call = by_signature(args, kwargs)
        if isinstance(call, Call):
            del call.options["padding_mode"]
        return call

    return read


def _geometry(call: OnnxCall, dims: int) -> tuple[dict[str, Any], list[tuple[int, int]]]:
    """The attributes of a convolution, and how much it pads before and behind."""
    weight, s = call.numbers.weight, call.settings
    dilation = per_dimension(s["dilation"], dims)
    spans = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if s["padding"] in ("same", "valid"):
        same = s["padding"] == "same"
        widths = [(span // 2, span - span // 2) if same else (0, 0) for span in spans]
    else:
        widths = [(width, width) for width in per_dimension(s["padding"], dims)]
    attributes = {
        "kernel_shape": list(weight.shape[2:]), "group": s["groups"],
        "dilations": list(dilation), "strides": list(per_dimension(s["stride"], dims)),
    }
    return attributes, widths


def _pads(widths: Sequence[tuple[int, int]]) -> list[int]:
    return [width[end] for end in (0, 1) for width in widths]


def _qdq(dims: int) -> QdqForm:
    """Conv, which engines run as QLinearConv."""

    def form(call: OnnxCall) -> Value | None:
        grids, (attributes, widths) = grids_of(call), _geometry(call, dims)
        if grids is None or call.settings.get("padding_mode", "zeros") != "zeros":
            return None
        (x,), dilation = grids, tuple(attributes["dilations"])
        given = Picture(
            call.codes[0], call.numbers.weight, tuple(attributes["strides"]), tuple(widths)
        )
        codes, weight, strides, pads = arranged(given, x.zero_point, attributes["group"], dilation)
        attributes |= {"kernel_shape": list(weight.shape[2:]), "strides": list(strides)}
        real = call.graph.node(
            "Conv", to_real(codes, x.scale, x.zero_point), *weight_and_bias(call, x, weight, 0),
            dtype=torch.float32, pads=_pads(pads), **attributes,
        )
        return to_codes(call, real)

    return form


def _sum_up(dims: int) -> Callable[..., Value]:
    """ConvInteger of one byte of the codes, int32."""

    def sum_up(call: OnnxCall, codes: Value, zero: Tensor) -> Value:
        attributes, widths = _geometry(call, dims)
        mode = call.settings.get("padding_mode", "zeros")
        if mode != "zeros":
            codes = padded_with_copies(codes, widths, mode)
            widths = [(0, 0)] * dims
        stored, weight_zero = unsigned(call.graph, call.numbers.weight)
        return call.graph.node(
            "ConvInteger", codes, stored, zero, weight_zero,
            dtype=torch.int32, pads=_pads(widths), **attributes,
        )

    return sum_up


def _tflite(dims: int) -> TfliteForm:
    """CONV_2D; what pads with copies picks them beforehand."""

    def form(call: TfliteCall) -> TfliteValue:
        x, settings = pictures(call, dims), dict(call.settings)
        mode = settings.get("padding_mode", "zeros")
        if mode != "zeros":
            widths = _widths(call.numbers.weight, settings["padding"], settings["dilation"])
            x = padded_with_copies(x, widths, mode)
            settings |= {"padding": 0, "padding_mode": "zeros"}
        moves = _moves(call.numbers.weight, settings)
        assert moves is not None  # as nothing pads with copies any more
        found = convolve_in_tflite(call, x, moves, two(call.shape[2:], 1))
        return found if dims == 2 else found.reshape(call.sizes)

    return form


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
        read=_reader(function),
        output=Output.OWN,
        range=None,
        homogeneous=False,
        weight_axis=0,
        numbers=layer_numbers,
        kernel=layer_kernel(function, spatial),
        accumulator=layer_accumulator(0),
        onnx=layer_onnx(_sum_up(spatial), spatial),
        tflite=_tflite(spatial),
        qdq=_qdq(spatial),
        real=LAYER_REAL,
        fast=fast_layer(function, spatial, _moves),
    )


CONV1D = _record(conv1d, (F.conv1d, torch.conv1d), nn.Conv1d, 1)
CONV2D = _record(conv2d, (F.conv2d, torch.conv2d), nn.Conv2d, 2)
CONV3D = _record(conv3d, (F.conv3d, torch.conv3d), nn.Conv3d, 3)
