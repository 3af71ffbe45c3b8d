"""What the integers look like, and the one place that computes scales and zero points.

    q = clamp(round(x / s) + z, qmin, qmax)        x ≈ (q - z) · s

Rounding of a real number to an integer is half-up everywhere: `floor(x + 0.5)`.
Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", equation 1.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from fxquant.errors import ConfigError
from fxquant.fields import check_fields

_FLOAT32 = struct.Struct("f")
SMALLEST_SCALE = float(torch.finfo(torch.float32).tiny)  # so that 1 / scale stays finite
LARGEST = float(torch.finfo(torch.float32).max)  # of scales and of the ends of ranges

Ends = tuple[float, float]  # of an interval
EVERYWHERE: Ends = (-math.inf, math.inf)


@dataclass(frozen=True)
class QuantScheme:
    """The integers a real tensor is mapped to.

    `bits` is 1 to 16; `signed` says whether codes may be negative, as those beyond 8 bits must.
    `symmetric` fixes the zero point at the middle of the range; `narrow` leaves the lowest
    code out (-127..127), so that a weight and its negative are both representable;
    `per_channel` gives every output channel of a weight its own scale; `power_of_two` takes the
    next power of two for a scale, so that nothing is clipped that was not, and results are only
    shifted. 1 bit is a sign: -1 and 1, for weights alone.
    """

    bits: int = 8
    signed: bool = True
    symmetric: bool = True
    narrow: bool = False
    per_channel: bool = False
    power_of_two: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if type(self.bits) is not int or not 1 <= self.bits <= 16:
            raise ConfigError(f"a scheme has 1 to 16 bits, got bits={self.bits!r}")
        if self.bits == 1 and not (self.signed and self.symmetric):
            raise ConfigError("1 bit is the sign of a weight: it needs a signed, symmetric scheme")
        if self.bits > 8 and not self.signed:
            raise ConfigError(f"more than 8 bits need signed integers, got bits={self.bits}")
        if self.narrow and not self.signed:
            raise ConfigError("narrow range needs signed integers, got signed=False")
        if self.symmetric and not self.signed:
            raise ConfigError("a symmetric scheme needs signed integers, got signed=False")

    @property
    def qmin(self) -> int:
        """The lowest code."""
        if self.bits == 1:
            return -1
        return -(1 << (self.bits - 1)) + self.narrow if self.signed else 0

    @property
    def qmax(self) -> int:
        """The highest code."""
        if self.bits == 1:
            return 1
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def is_byte(self) -> bool:
        """Whether a code is a byte: kernels, tables and engines have more for these."""
        return self.bits <= 8

    @property
    def dtype(self) -> torch.dtype:
        """The integer type that stores the codes."""
        if not self.is_byte:
            return torch.int16
        return torch.int8 if self.signed else torch.uint8

    def with_bits(self, bits: int) -> QuantScheme:
        """The same with so many bits; beyond 8 they are signed."""
        return replace(self, bits=bits, signed=self.signed or bits > 8)

    def __str__(self) -> str:
        kind = "int" if self.signed else "uint"
        return f"{kind}{self.bits}" + ("/channel" if self.per_channel else "")


UINT8 = QuantScheme(signed=False, symmetric=False)
INT16 = QuantScheme(bits=16, symmetric=False)
INT8_WEIGHT = QuantScheme(narrow=True, per_channel=True)
TERNARY = INT8_WEIGHT.with_bits(2)
"""Weights of -1, 0 and 1, a scale for each output channel."""
BINARY = INT8_WEIGHT.with_bits(1)
"""Weights of -1 and 1, a scale for each output channel."""


class QParams(NamedTuple):
    """The numbers that go with a scheme: `scale` (float32) and `zero_point` (int32).

    Both are 0-dimensional, or of one shape that broadcasts against the tensor they describe.
    """

    scale: Tensor
    zero_point: Tensor
    scheme: QuantScheme


def in_memory_order(x: Tensor) -> Tensor:
    """A view with the axes behind the first in the order in which they lie in memory, so that
    channels_last tensors are read as they lie.
    """
    if x.is_contiguous():
        return x
    return x.permute(0, *sorted(range(1, x.dim()), key=x.stride, reverse=True))


def on_host(x: Tensor) -> bool:
    """Whether numbers can be had of tensors without waiting for a device or ending a graph."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def to_float32(x: float) -> float:
    """The float32 nearest to a number, infinities included."""
    (nearest,) = _FLOAT32.unpack(_FLOAT32.pack(x))
    return float(nearest)


def round_half_up(x: Tensor) -> Tensor:
    """Round to the nearest integer, ties towards plus infinity. Any float dtype, same out."""
    return torch.floor(x + 0.5)


def range_to_qparams(low: Tensor, high: Tensor, scheme: QuantScheme) -> QParams:
    """Scale and zero point for real values in [low, high], two tensors of one shape.

        s = (high - low) / (qmax - qmin)        z = qmin + round(-low / s)

    or, symmetric, `s = max(-low, high) / qmax` and z = 0; in float64, the scale rounded to float32.
    The range is widened to hold 0, because padding and ReLU need it exact. A range that is
    only the point 0 gets scale 1: every scale is positive and finite.
    """
    low, high = low.double().clamp(max=0.0), high.double().clamp(min=0.0)
    span, steps = _span_and_steps(low, high, torch.maximum(-low, high), scheme)
    scale = torch.where(span == 0.0, 1.0, (span / steps).clamp(min=SMALLEST_SCALE)).float()
    scale = next_power_of_two(scale) if scheme.power_of_two else scale
    zero_point = torch.zeros_like(scale)
    if not scheme.symmetric:
        zero_point = scheme.qmin + round_half_up(-low / scale.double())
    return QParams(scale, zero_point.to(torch.int32), scheme)


def range_to_numbers(low: float, high: float, scheme: QuantScheme) -> tuple[float, int]:
    """The scale and the zero point of `range_to_qparams`, for one range whose ends are numbers."""
    low, high = min(low, 0.0), max(high, 0.0)
    span, steps = _span_and_steps(low, high, max(-low, high), scheme)
    if span == 0.0:
        return 1.0, 0 if scheme.symmetric else scheme.qmin
    scale = to_float32(max(span / steps, SMALLEST_SCALE))
    if scheme.power_of_two:
        mantissa, exponent = math.frexp(scale)
        scale = math.ldexp(1.0, min(exponent - (mantissa == 0.5), 127))
    zero_point = 0 if scheme.symmetric else scheme.qmin + math.floor(-low / scale + 0.5)
    return scale, zero_point


def next_power_of_two(scale: Tensor) -> Tensor:
    """The smallest power of two that is not smaller than each scale, at most 2^127: float32."""
    mantissa, exponent = torch.frexp(scale)
    exponent = exponent - (mantissa == 0.5).to(exponent.dtype)
    return torch.ldexp(torch.ones_like(scale), exponent.clamp(max=127))


Number = TypeVar("Number", float, Tensor)


def _span_and_steps(
    low: Number, high: Number, largest: Number, scheme: QuantScheme
) -> tuple[Number, int]:
    """What a range that holds 0 spans, and in how many steps."""
    if scheme.symmetric:
        return largest, scheme.qmax
    return high - low, scheme.qmax - scheme.qmin


class Channels(NamedTuple):
    """Where the C output channels of a weight lie: along `axis`, anew in each group.

    Layers have axis 0, where groups lie one behind the other anyway. A transposed convolution
    has axis 1 of a weight [I, C/groups, ...], the groups along axis 0.
    """

    axis: int = 0
    groups: int = 1

    def rows(self, weight: Tensor) -> Tensor:
        """What each channel is made with: [C, elements]."""
        by_group = weight.reshape(self.groups, -1, *weight.shape[1:]).movedim(1 + self.axis, 1)
        return by_group.flatten(2).flatten(0, 1)

    def largest(self, weight: Tensor) -> Tensor:
        """The largest absolute value of each channel: [C]."""
        rows, others = weight, list(range(1, weight.dim()))
        if self.axis != 0:
            rows, others = self.rows(weight), [1]
        return torch.maximum(rows.amax(others), rows.amin(others).neg_())

    def spread(self, values: Tensor, weight: Tensor) -> Tensor:
        """A number per channel, [C], shaped to broadcast against `weight`."""
        if self.axis == 0:
            return values.reshape(-1, *[1] * (weight.dim() - 1))
        shape = [1] * (weight.dim() + 1)
        shape[0], shape[1 + self.axis] = self.groups, -1
        inputs = weight.shape[0] // self.groups
        return values.reshape(shape).repeat_interleave(inputs, 1).flatten(0, 1)


def weight_scale(weight: Tensor, scheme: QuantScheme, channels: Channels) -> Tensor:
    """The scale of a weight, float32 [C], one per output channel (all equal if per tensor).

    `max|w| / qmax`, so that no weight is ever clipped. A channel of zeros gets the smallest
    scale rather than 1: its bias alone decides the scale (see `intmath.layer_numbers`).
    """
    largest = channels.largest(weight.detach().to(torch.float32))
    if not scheme.per_channel:
        largest = largest.max().expand_as(largest)
    scale = (largest / scheme.qmax).clamp_(min=SMALLEST_SCALE)
    return next_power_of_two(scale) if scheme.power_of_two else scale


def quantize(x: Tensor, q: QParams) -> Tensor:
    """Real numbers to integers of `q.scheme.dtype`, same shape.

    Half-up: between the operators of a network values lie on the grid already, where all roundings
    agree. What enters it may lie anywhere, and is for `Rounding.quantize`.
    """
    codes = round_half_up(x.to(torch.float32) / q.scale) + q.zero_point
    return codes.clamp(q.scheme.qmin, q.scheme.qmax).to(q.scheme.dtype)


def dequantize(codes: Tensor, q: QParams) -> Tensor:
    """Integers to the real numbers they stand for, in the dtype of the scale, same shape."""
    return (codes.to(torch.int32) - q.zero_point).to(q.scale.dtype) * q.scale


def code_of(value: float | Tensor, q: QParams) -> Tensor:
    """The code that stands for a real number, clamped into the scheme: int32, its shape."""
    code = round_half_up(value / q.scale) + q.zero_point
    return code.clamp(q.scheme.qmin, q.scheme.qmax).to(torch.int32)
