"""A layer of integer weights between float values.

    weight only   y = f(x, s_w·w_q) + b
    dynamic       y = s_x·s_w · Σ w_q·(q_x - z_x) + b        s_x and z_x of this batch's range

Integers are w_q, and, dynamic, q_x and the sum, which is exact. Scales, factors and biases are
float. A dynamic range is that of the whole batch: what stands beside an input moves its last bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from fxquant.fake_quant import WeightFakeQuant, fake_quantize
from fxquant.fake_quant.quantizer import keeping_bits
from fxquant.graph.edit import Site
from fxquant.intmath import accumulator_bound, carrier, centred, per_channel, without_autocast
from fxquant.ops.spec import OpSpec
from fxquant.schemes import (
    Channels,
    QParams,
    QuantScheme,
    quantize,
    range_to_qparams,
    round_half_up,
)


class Kept(NamedTuple):
    """The weight of such a layer: codes in its shape, `scale` float32 of C channels, or of groups
    of so many weights that lie one behind the other.
    """

    codes: Tensor
    scale: Tensor
    channels: Channels
    group: int | None

    @property
    def real(self) -> Tensor:
        """The weight that the codes stand for: float32, its shape."""
        rows = self.codes if self.group is None else self.codes.reshape(-1, self.group)
        real = rows.float() * self.channels.spread(self.scale, rows)
        return real.reshape(self.codes.shape)


def kept(weight: Tensor, quant: WeightFakeQuant, group: int | None) -> Kept:
    """The codes of a weight, as eval() and convert take them."""
    rows = weight if group is None else weight.reshape(-1, group)
    scale, scheme = quant.scale(rows), quant.scheme
    codes = round_half_up(quant.transform(rows).float() / quant.channels.spread(scale, rows))
    codes = codes.clamp(scheme.qmin, scheme.qmax).to(scheme.dtype)
    return Kept(codes.reshape(weight.shape), scale, quant.channels, group)


def weight_only(
    op: OpSpec, x: Tensor, weight: Kept, bias: Tensor | None, settings: dict[str, Any]
) -> Tensor:
    """The float layer with the weight that the codes stand for."""
    return op.function(x, weight=weight.real.to(x.dtype), bias=bias, **settings)


def dynamic(
    op: OpSpec,
    x: Tensor,
    weight: Kept,
    bias: Tensor | None,
    settings: dict[str, Any],
    scheme: QuantScheme,
) -> Tensor:
    """Quantized with the range of `x`, summed in integers; the result has the dtype of `x`. A batch
    that is empty, or holds NaN or infinity, has no range and is left as it is.
    """
    q = range_of(x, scheme)
    if q is None:
        return weight_only(op, x, weight, bias, settings)
    bound = accumulator_bound(weight.codes, weight.channels, q)
    kind = carrier(bound, weight.codes.dtype, scheme.dtype)
    with without_autocast(x):
        reals, integers = centred(quantize(x, q), q.zero_point, kind), weight.codes.to(kind)
        total = op.function(reals, weight=integers, bias=None, **settings)
    axis = 1 - weight.codes.dim()
    total = total * per_channel(q.scale.to(kind) * weight.scale.to(kind), axis, total.dim())
    if bias is not None:
        total = total + per_channel(bias.to(kind), axis, total.dim())
    result: Tensor = total.to(x.dtype)
    return result


def range_of(x: Tensor, scheme: QuantScheme) -> QParams | None:
    """The parameters for the extremes of a batch; None where it has none."""
    if x.numel() == 0:
        return None
    low, high = torch.aminmax(x.detach().to(torch.float32))
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        return None
    return range_to_qparams(low, high, scheme)


class QuantizedLayer(Site):
    """A layer that trains with a fake-quant on its weight, and on what it reads if `activation`, a
    scheme, says so; in eval() it computes what the converted one will compute.
    """

    def __init__(
        self, op: OpSpec, weight_quant: WeightFakeQuant, activation: QuantScheme | None,
        group: int | None,
    ) -> None:
        super().__init__()
        self.op = op
        self.weight_quant = weight_quant
        self.activation = activation
        self.group = group

    def forward(
        self, x: Tensor, *, weight: Tensor, bias: Tensor | None = None, **settings: Any
    ) -> Tensor:
        """As the layer's float function."""
        if not self.training:
            with torch.no_grad():
                return self.lowered(weight, bias).forward(x, **settings)
        rows = weight if self.group is None else weight.reshape(-1, self.group)
        weight = self.weight_quant(rows).reshape(weight.shape)
        q = None if self.activation is None else range_of(x, self.activation)
        x = x if q is None else fake_quantize(x, q)
        return self.op.function(x, weight=weight, bias=bias, **settings)

    def lowered(self, weight: Tensor, bias: Tensor | None) -> IntegerLayer:
        """What convert puts in its place."""
        return IntegerLayer(self.op, kept(weight, self.weight_quant, self.group), bias, self)

    def extra_repr(self) -> str:
        """The operator and how it is quantized, for print(model)."""
        return _text(self.op, self.activation, self.group)


class IntegerLayer(Site):
    """A layer whose weight is integers; all its numbers are buffers."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(
        self, op: OpSpec, weight: Kept, bias: Tensor | None, source: QuantizedLayer
    ) -> None:
        super().__init__()
        self.op = op
        self.channels = weight.channels
        self.activation = source.activation
        self.group = source.group
        self.register_buffer("weight", weight.codes)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("bias", bias if bias is None else bias.detach())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """half() and bfloat16() leave the scale alone; the bias is as the model's floats are."""
        scale = keeping_bits(fn)(self.scale)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.scale = scale
        return self

    def forward(self, x: Tensor, **settings: Any) -> Tensor:
        """Float in, float out; no gradient."""
        weight = Kept(self.weight, self.scale, self.channels, self.group)
        with torch.no_grad():
            if self.activation is None:
                return weight_only(self.op, x, weight, self.bias, settings)
            return dynamic(self.op, x, weight, self.bias, settings, self.activation)

    def extra_repr(self) -> str:
        """The operator and how it is quantized, for print(model)."""
        return _text(self.op, self.activation, self.group)


def _text(op: OpSpec, activation: QuantScheme | None, group: int | None) -> str:
    reads = "float" if activation is None else f"{activation}, the range of each batch"
    return f"{op.name}, reads {reads}" + (f", groups of {group}" if group else "")
