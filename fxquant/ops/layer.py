"""What convolutions and linear layers have in common: their numbers and their kernel.

    integer   q_y[c] = clamp(z_y + round((s_x·s_w[c] / s_y) · (b_q[c] + Σ w_q[c]·(q_x - z_x))))

The sum is the float operator itself, run on integers that float kernels add up exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from fxquant import intmath
from fxquant.forms.onnx import (
    OnnxCall,
    OnnxForm,
    OnnxGraph,
    Value,
    add_bytes,
    bytes_of,
    fits_nibbles,
    requantize,
)
from fxquant.forms.tflite import LAST, TfliteCall
from fxquant.forms.tflite import Value as TfliteValue
from fxquant.forms.tflite_ways import Frame, fused, padded, two
from fxquant.forms.weight_scales import weight_scales
from fxquant.intmath import (
    LayerNumbers,
    accumulator_bound,
    carrier,
    centred,
    finish_layer,
    per_channel,
    without_autocast,
)
from fxquant.kernels import layers as kernels
from fxquant.kernels.kernel import Kernel, KernelChoice, Plain
from fxquant.kernels.sums import Geometry, Layer
from fxquant.ops.accumulator import Accumulator, IntegerCall
from fxquant.ops.spec import Call, FastKernel, Reader, RealCall, signature_reader
from fxquant.rounding import HIGH_MUL_SHIFT, RUY, Rescale
from fxquant.schemes import Channels, QParams

LAYER_REAL = ("weight", "bias", "batch_norm")


def layer_reader(function: Callable[..., Tensor]) -> Reader:
    """Read a call by the signature of `function`; its groups say where channels of the weight lie,
    so they are a number.
    """
    by_signature = signature_reader(function)

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | str | None:
        call = by_signature(args, kwargs)
        if call is not None and isinstance(call.options["groups"], fx.Node):
            return "only a shape tells how many groups it has (pass example_inputs)"
        return call

    return read


def layer_numbers(call: RealCall) -> LayerNumbers:
    """Every integer of a layer."""
    assert call.weights is not None  # a layer without a weight is never a site
    return intmath.layer_numbers(
        *call.weights, call.inputs[0], call.target, call.accumulator_bits
    )


def layer_accumulator(axis: int) -> Callable[[IntegerCall], Accumulator]:
    """What a layer sums whose weight has its output channels along `axis`: read off its integer
    weights and bias, channel by channel. The carrier is chosen by the bound that is stored.
    """

    def accumulator(call: IntegerCall) -> Accumulator:
        n: LayerNumbers = call.numbers
        channels = Channels(axis, call.settings.get("groups", 1))
        x = QParams(torch.ones(()), n.x_zero, call.inputs[0].scheme)
        bound = accumulator_bound(n.weight, channels, x)
        return Accumulator(
            worst=tuple((bound + n.bias.abs()).tolist()),
            terms=channels.rows(n.weight).shape[1],
            bits=call.bits,
            carrier=carrier(n.bound, n.weight.dtype, x.scheme.dtype),
            exact=bool((bound <= n.bound).all()),
        )

    return accumulator


def layer_kernel(function: Callable[..., Tensor], spatial: int) -> Callable[..., Tensor]:
    """The integer kernel of `function(x, weight, **settings)`, whose channels lie before
    `spatial` dimensions.
    """

    def kernel(n: LayerNumbers, dtype: torch.dtype, codes: Tensor, **settings: Any) -> Tensor:
        kind = carrier(n.bound, n.weight.dtype, codes.dtype, worst=_worst(n))
        return _in_carrier(function, spatial, kind, n, dtype, codes, **settings)

    return kernel


def _worst(n: LayerNumbers) -> int:
    """What no sum of products exceeds, whatever the bytes are."""
    terms = n.weight.numel() // len(n.bound)
    return terms * 128 * 255


def layer_onnx(sum_up: Callable[[OnnxCall, Value, Tensor], Value], spatial: int) -> OnnxForm:
    """The form of a layer: the sums of products, the bias, one rounding.

    `sum_up(call, codes, zero)` is Σ w_q·(codes - zero), int32, of codes of one byte.
    """

    def form(call: OnnxCall) -> Value:
        n: LayerNumbers = call.numbers
        acc = add_bytes(sum_up(call, *part) for part in bytes_of(call.codes[0], n.x_zero))
        bias, multiplier, shift = (
            per_channel(values, -1 - spatial, spatial + 1)
            for values in (n.bias, n.multiplier, n.shift)
        )
        return requantize(acc + bias, n.rounding, Rescale(multiplier, shift), n, call.dtype)

    return form


def unsigned(graph: OnnxGraph, weight: Tensor) -> tuple[Value, Tensor]:
    """A weight and its zero point as engines sum them everywhere: of two bytes of which one is
    signed the sums of pairs saturate on x86 without VNNI.
    """
    zero = 8 if fits_nibbles(weight) else 128
    stored = graph.weight((weight.to(torch.int16) + zero).to(torch.uint8))
    return stored, torch.tensor(zero, dtype=torch.uint8)


def convolve_in_tflite(
    call: TfliteCall, x: TfliteValue, moves: Geometry, count: tuple[int, int]
) -> TfliteValue:
    """CONV_2D or DEPTHWISE_CONV_2D of [N, C, H, W] to so many rows and columns; LiteRT makes the
    multipliers of the scales.

    Raises ExportError where it would not make ours of them, or would add them up otherwise.
    """
    n: LayerNumbers = call.numbers
    scale = _scale_of_weight(call, x)
    weight = n.weight.reshape(*n.weight.shape[:2], *two(n.weight.shape[2:], 1))
    outputs, inputs, *kernel = weight.shape
    depthwise = inputs == 1 and moves.groups == x.shape[1]
    if moves.groups > 1 and not depthwise and n.rounding is RUY:
        raise call.refuse("has groups, which LiteRT's optimized kernels round otherwise",
                          'QuantConfig(rounding="gemmlowp")')
    stride, dilation = two(moves.stride, 1), two(moves.dilation, 1)
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    before = two([width for width, _ in moves.padding], 0)
    x, padding = padded(x, Frame(count, stride, tuple(spans), before), int(n.x_zero))
    activation = fused(call)
    settings: dict[str, Any] = {
        "padding": padding, "strideH": stride[0], "strideW": stride[1],
        "dilationHFactor": dilation[0], "dilationWFactor": dilation[1],
        "fusedActivationFunction": activation,
    }
    assert x.grid is not None  # or its scale were not known
    bias = call.graph.weight(n.bias, x.grid.scale.float() * scale, 0)
    like: dict[str, Any] = {
        "shape": (x.shape[0], outputs, *count), "dtype": call.dtype, "order": LAST,
        "grid": call.output,
    }
    if depthwise:
        kernels = call.graph.weight(weight.permute(1, 2, 3, 0), scale, 3)
        y = call.graph.operator(
            "DEPTHWISE_CONV_2D", x.laid_out(LAST), kernels, bias, **like,
            options="DepthwiseConv2D", depthMultiplier=outputs // moves.groups, **settings,
        )
    else:
        kernels = call.graph.weight(weight.permute(0, 2, 3, 1), scale, 0)
        y = call.graph.operator(
            "CONV_2D", x.laid_out(LAST), kernels, bias, **like, options="Conv2D", **settings
        )
    return y if activation != "NONE" else y.clamp(n.low, n.high)


def _scale_of_weight(call: TfliteCall, x: TfliteValue) -> Tensor:
    """Float32 [C], of which LiteRT makes the multipliers of the layer."""
    n: LayerNumbers = call.numbers
    if x.grid is None or not x.grid.scheme.is_byte or n.weight.dtype is not torch.int8:
        raise call.refuse("has codes or weights of more than 8 bits", "quantize it with 8")
    scale = weight_scales(n, x.grid.scale, call.output.scale, call.graph.place)
    left = (HIGH_MUL_SHIFT - n.shift).clamp(min=0)
    if n.rounding.reals is torch.float64 and bool(
        ((n.bound + n.bias.abs()) << left >= 2**HIGH_MUL_SHIFT).any()
    ):
        raise call.refuse(
            "has outputs on a much finer scale than its sums, which LiteRT shifts out of 32 bits",
            "calibrate with data that make it give more",
        )
    return scale


def _in_carrier(
    function: Callable[..., Tensor], spatial: int, kind: torch.dtype, n: LayerNumbers,
    dtype: torch.dtype, codes: Tensor, **settings: Any,
) -> Tensor:
    with without_autocast(codes):
        total = function(centred(codes, n.x_zero, kind), n.weight.to(kind), **settings)
    return finish_layer(total, n, -1 - spatial, dtype)


def fast_in_carrier(function: Callable[..., Tensor], spatial: int) -> FastKernel:
    """The float operator itself, in a type that is chosen once."""

    def fast(call: IntegerCall, dtype: torch.dtype, choice: KernelChoice) -> Kernel:
        n: LayerNumbers = call.numbers
        kind = carrier(n.bound, n.weight.dtype, call.inputs[0].scheme.dtype)
        kernel = partial(_in_carrier, function, spatial, kind, n, dtype)
        return Plain(kernel, str(kind).removeprefix("torch."))

    return fast


def fast_layer(
    function: Callable[..., Tensor],
    spatial: int,
    geometry: Callable[[Tensor, Mapping[str, Any]], Geometry | None] | None,
) -> FastKernel:
    """The kernels of `function` for weights that stand still. `geometry(weight, settings)` says how
    it moves; None: it does not, a linear layer.
    """

    def fast(call: IntegerCall, dtype: torch.dtype, choice: KernelChoice) -> Kernel:
        n: LayerNumbers = call.numbers
        otherwise = partial(_in_carrier, function, spatial, torch.float64, n, dtype)
        moves = None if geometry is None else geometry(n.weight, call.settings)
        if geometry is not None and moves is None:
            return Plain(otherwise, "float64", "its padding is no number of zeros")
        codes, shape = call.inputs[0]
        sizes = None if shape is None else shape[-spatial:]
        layer = Layer(n, codes, moves, sizes)
        return kernels.layer_kernel(layer, dtype, choice, otherwise)

    return fast
