"""Resizing: nearest picks codes, linear adds neighbours up with integer weights, in 1 to 3 dims.

    real      y[i] = x[nearest(i)]
    integer   q_y[i] = q_x[nearest(i)]

    real      y[i] = (1 - λ)·x[j] + λ·x[j+1]        along each of d dimensions
    integer   q_y = round(Σ w·q_x / 2^K)            Σ w = 2^K, one rounding for all

Each w is a product of d integers, round(λ·2^k) or 2^k less that, K = d·k. Codes of 8 bits have
k = 11: a sum fits 32 bits in two dimensions, 64 in three, λ is off by 2^-12 at most, and so a code
by 255·d·2^-12 before it is rounded, 0.12 steps in two dimensions. λ is the very fraction that the
sizes say, where torch has a float of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.forms.movable import along_axes
from fxquant.forms.onnx import OnnxCall, Value, of_values
from fxquant.forms.tflite import TfliteCall
from fxquant.intmath import ACCUMULATOR_BITS
from fxquant.kernels.kernel import Kernel, KernelChoice, Plain
from fxquant.ops.accumulator import Accumulator, IntegerCall, adds_nothing
from fxquant.ops.selection import no_numbers, selection_kernel
from fxquant.ops.spec import Call, OpSpec, Output, Reader, RealCall, per_dimension, signature_reader
from fxquant.rounding import Rounding

NEAREST = ("nearest", "nearest-exact")
LINEAR = ("linear", "bilinear", "trilinear")
SHORT_BITS = 11  # of weights for codes up to 8 bits: 8 + 2·11 < 32
LONG_BITS = 15  # of weights for longer ones: 16 + 3·15 < 64


class LinearNumbers(NamedTuple):
    """`fraction`, the bits of a weight along each dimension: 0-dim int32."""

    fraction: Tensor
    rounding: Rounding


def interpolate(
    input: Tensor, size: Any, scale_factor: Any, mode: str, align_corners: bool | None,
    recompute_scale_factor: bool | None,
) -> Tensor:
    """[N, C, ...] to [N, C, ...'], as torch.nn.functional.interpolate."""
    return F.interpolate(input, size, scale_factor, mode, align_corners, recompute_scale_factor)


_by_signature = signature_reader(F.interpolate)


def _reader(modes: tuple[str, ...]) -> Reader:
    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | str | None:
        call = _by_signature(args, kwargs)
        if call is None:
            return None
        options = dict(call.options)
        if options.pop("antialias"):
            return "antialiasing is a filter as wide as the factor: do it before the network"
        why_not = _why_not(options["mode"])
        if why_not is not None or options["mode"] not in modes:
            return why_not
        return Call(call.inputs, options)

    return read


def _why_not(mode: str) -> str | None:
    """Why a mode has no integer form, as a sentence, or None."""
    if mode in (*NEAREST, *LINEAR):
        return None
    if mode == "bicubic":
        return "bicubic weights are negative too: its values leave the range that they would keep"
    return f"mode='{mode}' is none of {', '.join((*NEAREST, *LINEAR))}"


def _nearest_options(module: Any) -> dict[str, Any] | None:
    return _settings(module) if module.mode in NEAREST else None


def _linear_options(module: Any) -> dict[str, Any] | str | None:
    return _settings(module) if module.mode in LINEAR else _why_not(module.mode)


def _settings(module: Any) -> dict[str, Any]:
    return {
        "size": module.size,
        "scale_factor": module.scale_factor,
        "mode": module.mode,
        "align_corners": module.align_corners,
        "recompute_scale_factor": module.recompute_scale_factor,
    }


class Taps(NamedTuple):
    """Along one dimension: the two neighbours of each new place, and the weight of the second."""

    first: list[int]
    second: list[int]
    weight: list[int]


@lru_cache(maxsize=256)
def taps(length: int, size: int, step: Fraction, align_corners: bool, bits: int) -> Taps:
    """Where `size` new places lie among `length` old ones, `step` apart; weights of 2^bits."""
    if align_corners:
        step = Fraction(length - 1, max(size - 1, 1))
        places = [i * step for i in range(size)]
    else:
        places = [max(step * (2 * i + 1) / 2 - Fraction(1, 2), Fraction(0)) for i in range(size)]
    first = [min(math.floor(place), length - 1) for place in places]
    shares = (place - math.floor(place) for place in places)
    weight = [math.floor(share * 2**bits + Fraction(1, 2)) for share in shares]
    return Taps(first, [min(i + 1, length - 1) for i in first], weight)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # no graph has fractions
def taps_of(
    lengths: tuple[int, ...], size: Any, scale_factor: Any, recompute: bool | None,
    align_corners: bool | None, bits: int,
) -> list[Taps]:
    """Those along each dimension."""
    sizes = new_sizes(lengths, size, scale_factor, recompute)
    return [
        taps(length, new, step, bool(align_corners), bits)
        for length, (new, step) in zip(lengths, sizes, strict=True)
    ]


def new_sizes(
    lengths: tuple[int, ...], size: Any, scale_factor: Any, recompute: bool | None
) -> list[tuple[int, Fraction]]:
    """How long each dimension becomes, and how far apart its new places lie."""
    given = size if scale_factor is None else scale_factor
    each = per_dimension(given, len(lengths))
    if scale_factor is None:
        return [(new, Fraction(old, new)) for old, new in zip(lengths, each, strict=True)]
    sizes = [math.floor(old * float(factor)) for old, factor in zip(lengths, each, strict=True)]
    if recompute:
        return [(new, Fraction(old, new)) for old, new in zip(lengths, sizes, strict=True)]
    return [(new, 1 / Fraction(factor)) for new, factor in zip(sizes, each, strict=True)]


def _numbers(call: RealCall) -> LinearNumbers:
    bits = _bits_of_weights(call.inputs[0].scheme.dtype)
    fraction = torch.full_like(call.target.qparams.zero_point, bits)
    return LinearNumbers(fraction, call.target.rounding)


def _bits_of_weights(codes: torch.dtype) -> int:
    return SHORT_BITS if codes.itemsize == 1 else LONG_BITS


def _accumulator(call: IntegerCall) -> Accumulator:
    n: LinearNumbers = call.numbers
    (x,) = call.inputs
    if x.shape is None:
        return Accumulator(None, None, bits=64)
    dims = len(x.shape) - 2
    fraction = dims * int(n.fraction)
    worst = (max(-x.scheme.qmin, x.scheme.qmax) << fraction) + (1 << fraction >> 1)
    return Accumulator((worst,), 2**dims, bits=ACCUMULATOR_BITS if worst < 2**31 else 64)


def _linear(n: LinearNumbers, dtype: torch.dtype, codes: Tensor, **settings: Any) -> Tensor:
    # not n.fraction, which is the same: to ask a tensor would end a compiled graph
    return _resized(_bits_of_weights(codes.dtype), n.rounding, dtype, codes, **settings)


def _fast_linear(call: IntegerCall, dtype: torch.dtype, choice: KernelChoice) -> Kernel:
    n: LinearNumbers = call.numbers
    return Plain(partial(_resized, int(n.fraction), n.rounding, dtype))


def _resized(
    bits: int, rounding: Rounding, dtype: torch.dtype, codes: Tensor, size: Any,
    scale_factor: Any, mode: str, align_corners: bool | None, recompute_scale_factor: bool | None,
) -> Tensor:
    lengths = tuple(codes.shape[2:])
    total = codes.to(torch.int64)
    settings = size, scale_factor, recompute_scale_factor, align_corners
    for axis, found in enumerate(taps_of(lengths, *settings, bits), start=2):
        first, second, weight = (torch.tensor(values, device=codes.device) for values in found)
        weight = weight.reshape(-1, *[1] * (codes.dim() - 1 - axis))
        above = total.index_select(axis, second) * weight
        total = total.index_select(axis, first) * (2**bits - weight) + above
    shift = torch.tensor(bits * len(lengths), device=codes.device)
    return rounding.divide_shift(total, shift).to(dtype)


def _nearest_form(call: OnnxCall | TfliteCall) -> Any:
    x: Any = call.codes[0]
    dims = len(x.sizes) - 2

    def index(axis: int) -> Tensor:
        places = torch.arange(x.sizes[axis], dtype=torch.float32)
        places = places.reshape(-1, *[1] * (len(x.sizes) - 1 - axis)).expand(x.sizes[2:])
        found = interpolate(places[None, None], **call.settings)
        return found.movedim(axis, 0).flatten(1)[:, 0].to(torch.int64)

    return along_axes(x, dims, index)


def _linear_onnx(call: OnnxCall) -> Value:
    (x,), s, n = call.codes, call.settings, call.numbers
    lengths, bits = x.sizes[2:], int(n.fraction)
    total = x.to(torch.int64)
    names = ("size", "scale_factor", "recompute_scale_factor", "align_corners")
    for axis, found in enumerate(taps_of(lengths, *(s[name] for name in names), bits), start=2):
        first, second, weight = map(torch.tensor, found)
        weight = weight.reshape(-1, *[1] * (len(x.sizes) - 1 - axis))
        above = total.gather(second, axis) * weight
        total = total.gather(first, axis) * (2**bits - weight) + above
    divide_shift = of_values(n.rounding.divide_shift)
    return divide_shift(total, torch.tensor(bits * len(lengths))).to(call.dtype)


INTERPOLATE_NEAREST = OpSpec(
    name="interpolate_nearest",
    function=interpolate,
    functions=(F.interpolate,),
    methods=(),
    modules={nn.Upsample: _nearest_options, nn.UpsamplingNearest2d: _nearest_options},
    read=_reader(NEAREST),
    output=Output.EXACT,
    range=None,
    homogeneous=False,
    weight_axis=None,
    numbers=no_numbers,
    kernel=selection_kernel(interpolate),
    accumulator=adds_nothing,
    onnx=_nearest_form,
    tflite=_nearest_form,
)

INTERPOLATE_LINEAR = OpSpec(
    name="interpolate_linear",
    function=interpolate,
    functions=(F.interpolate,),
    methods=(),
    modules={nn.Upsample: _linear_options, nn.UpsamplingBilinear2d: _linear_options},
    read=_reader(LINEAR),
    output=Output.INPUT,
    range=None,
    homogeneous=False,
    weight_axis=None,
    numbers=_numbers,
    kernel=_linear,
    fast=_fast_linear,
    accumulator=_accumulator,
    onnx=_linear_onnx,
)
