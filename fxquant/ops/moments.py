"""What norms of rows have in common: exact sums, one integer square root, one last rounding.

    real      y = w·u/√V + b                          V = v + ε
    integer   i   = ⌊2^61 / ⌊√(V·4^h)⌋⌋               V·4^h has 60 to 62 bits
              t   = (u·i + 2^(60-h-k)) >> (61-h-k)    u/√V with k bits behind the point
              q_y = clamp(z_y + round((t·m + (o << k)) / 2^(S+k)))

with m·2^-S = w/s_y and o·2^-S = b/s_y. u and v are exact integers, of d = q_x - z_x and its sums
over the N codes of a row:

    about the mean    u = N·d - Σd    v = N·Σd² - (Σd)²    ε = N²·eps/s_x²
    about zero        u = N·d         v = N·Σd²            ε = N²·eps/s_x²
    to length 1       u = d           v = Σd²              V = max(v, (eps/s_x)²)

Where eps is larger than any variance of codes, u/√V is tiny. So that t keeps its bits, V is then
divided by 4^g and m by 2^g: eps/s_x² · 4^-g < R²/2, for codes of R values; g is mostly 0.

Nothing leaves int64. Rows are short enough for |u| < 2^31 and v < 2^62, and ε·4^-g < 2^61. Where u
is not 0, V·4^-g >= 1, so V·4^h >= 2^59, i < 2^31.5 and |u·i| < 2^62.5. |u/√V| is at most √N, or √8
if g > 0: from that follows k, so that |t| <= 2^33, |t·m| < 2^61, |o << k| < 2^59 and S + k < 60.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from fxquant.errors import AccumulatorError
from fxquant.forms.onnx import OnnxCall, OnnxForm, Value, centred_value, finish_value
from fxquant.intmath import integer_root, per_channel, shift_by
from fxquant.ops.accumulator import Accumulator, IntegerCall
from fxquant.ops.spec import Call, Parameter, RealCall, Spelling, signature_reader
from fxquant.rounding import Rounding, exponent_of, rescale_of, shift_half_up_

_LARGEST = 2**62  # of v
_INVERSE_BITS = 61
_UNIT_BITS = 33
_FACTOR_BITS = 28  # with t's 33 it has 61, parted so that both round about equally little


class MomentNumbers(NamedTuple):
    """`epsilon`, `fraction` and `gain`: eps in squared steps, by 4^-gain, is epsilon·2^-fraction.
    `multiplier`, `offset` and `shift`: m, o and S in the shape of weight and bias. All of them
    int64, and 0-dim where nothing is said; the others 0-dim int32.
    """

    epsilon: Tensor
    fraction: Tensor
    gain: Tensor
    multiplier: Tensor
    offset: Tensor
    shift: Tensor
    x_zero: Tensor
    y_zero: Tensor
    low: Tensor
    high: Tensor
    rounding: Rounding


def longest_row(bits: int) -> int:
    """How many codes of so many bits have sums that 64 bits hold: N·Σd² < 2^62."""
    return math.isqrt(_LARGEST) >> bits


def accumulator_of_norm(call: IntegerCall) -> Accumulator:
    """u·i, of the steps above the one that reaches farthest, whatever a row holds."""
    return Accumulator((math.isqrt(2**125),), None, bits=64)


class Units(NamedTuple):
    """`t`, int64 in the shape of the codes, and how many of its bits are behind the point."""

    t: Tensor
    bits: int


def moment_reader(function: Callable[..., Tensor]) -> Spelling:
    """Read a call by the signature of `function`, unless the graph computes its eps."""
    by_signature = signature_reader(function)

    def read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
        call = by_signature(args, kwargs)
        return None if call is None or isinstance(call.options["eps"], fx.Node) else call

    return read


def parameters_of_norm(module: Any) -> dict[str, Any]:
    """The options weight and bias of a norm's module, which may lack either."""
    names = [name for name in ("weight", "bias") if getattr(module, name, None) is not None]
    return {"weight": None, "bias": None} | {name: Parameter(name) for name in names}


def norm_numbers(call: RealCall) -> MomentNumbers:
    """The numbers of a norm whose eps is added to a variance."""
    return moment_numbers(call, call.options["eps"])


def moment_numbers(call: RealCall, eps: float) -> MomentNumbers:
    """The numbers of a call whose real squares `eps` is added to, or which it is the least of."""
    x, (y, low, high, rounding) = call.inputs[0], call.target
    epsilon = eps / x.scale.double().square()
    values = 2 ** torch.iinfo(x.scheme.dtype).bits
    gain = ((exponent_of(epsilon / (values**2 / 2)) + 1) >> 1).clamp(min=0)
    small = rescale_of(torch.ldexp(epsilon, -2 * gain))

    weight, bias = call.options.get("weight"), call.options.get("bias")
    s_y = y.scale.double()
    factor = torch.ldexp((torch.ones_like(s_y) if weight is None else weight.double()) / s_y, -gain)
    offset = (torch.zeros_like(s_y) if bias is None else bias.double()) / s_y
    larger = torch.maximum(factor.abs(), offset.abs())
    shift = (_FACTOR_BITS - exponent_of(larger)).clamp(0, _FACTOR_BITS)
    top = 2**_FACTOR_BITS - 1
    multiplier, offset = (
        torch.ldexp(real.expand_as(larger), shift).round().clamp(-top, top).to(torch.int64)
        for real in (factor, offset)
    )
    return MomentNumbers(
        epsilon=small.multiplier,
        fraction=small.shift,
        gain=gain,
        multiplier=multiplier,
        offset=offset,
        shift=shift,
        x_zero=x.zero_point,
        y_zero=y.zero_point,
        low=low,
        high=high,
        rounding=rounding,
    )


def about_mean(n: MomentNumbers, codes: Tensor, dims: tuple[int, ...]) -> Units:
    """Over those dimensions, mean 0 and variance 1."""
    count, d = _counted(codes, dims), _centred(n, codes)
    total = d.sum(dims, keepdim=True)
    v = count * (d * d).sum(dims, keepdim=True) - total * total
    return _units(n, d.mul_(count).sub_(total), v, count, torch.add)


def about_zero(n: MomentNumbers, codes: Tensor, dims: tuple[int, ...]) -> Units:
    """Over those dimensions, mean square 1."""
    count, d = _counted(codes, dims), _centred(n, codes)
    v = count * (d * d).sum(dims, keepdim=True)
    return _units(n, d.mul_(count), v, count, torch.add)


def to_length_one(n: MomentNumbers, codes: Tensor, dims: tuple[int, ...]) -> Units:
    """Over those dimensions, sum of squares 1; less where V is not v."""
    _counted(codes, dims)
    d = _centred(n, codes)
    return _units(n, d, (d * d).sum(dims, keepdim=True), 1, torch.maximum)


def _centred(n: MomentNumbers, codes: Tensor) -> Tensor:
    """`q - z` in memory of its own, in which all that has its shape is computed."""
    return codes.to(torch.int64).sub_(n.x_zero)


def _counted(codes: Tensor, dims: tuple[int, ...]) -> int:
    """How many codes a row has, proved to be few enough."""
    count = math.prod([codes.shape[dim] for dim in dims]) if codes.dim() else 1
    bits = torch.iinfo(codes.dtype).bits
    most = longest_row(bits)
    if count > most:
        raise AccumulatorError(
            f"a norm over {count} values of {bits} bits may leave 64 bits, {most} may not.\n"
            "What to do: keep it in float, QuantConfig(keep_float=(…,))."
        )
    return count


def _epsilon_of(n: MomentNumbers, count: int) -> tuple[Tensor, Tensor]:
    """count²·eps as an integer and how many of its bits are behind the point, by 4^-gain."""
    # M·N² in 62 bits, for an M of 31: what is left out of M·N, if N > 2^15, is beyond its 37th bit
    room = max(2 * (count - 1).bit_length() - 31, 0)
    return ((n.epsilon * count) >> room) * count, n.fraction - room  # not below 0


def _units(
    n: MomentNumbers,
    u: Tensor,
    v: Tensor,
    count: int,
    join: Callable[[Tensor, Tensor], Tensor],
) -> Units:
    """u/√V in the memory of u, where V is made of v and count²·eps: `join` says how."""
    epsilon, fraction = _epsilon_of(n, count)
    above = shift_by(v, -2 * n.gain) + (epsilon >> fraction) + 1
    h = (62 - exponent_of(above.double())) >> 1  # V·4^-g < 2^(62 - 2h)
    scaled = join(shift_by(v, 2 * (h - n.gain)), shift_by(epsilon, 2 * h - fraction))
    root = integer_root(scaled).clamp(min=1)
    inverse = torch.full_like(root, 2**_INVERSE_BITS).div(root, rounding_mode="floor")
    bits = _UNIT_BITS - max((count.bit_length() + 1) // 2, 2)
    return Units(shift_half_up_(u.mul_(inverse), _INVERSE_BITS - h - bits), bits)


def finish(
    n: MomentNumbers, dtype: torch.dtype, units: Units, axis: int | None = None
) -> Tensor:
    """Weight and bias, along the last dimensions or along one axis, and the one rounding.

    In the memory of the units.
    """
    m, o, shift = (
        values if axis is None else per_channel(values, axis, units.t.dim())
        for values in (n.multiplier, n.offset, n.shift)
    )
    total = units.t.mul_(m).add_(o << units.bits)
    y = n.rounding.shift(total, shift + units.bits).add_(n.y_zero)
    return torch.clamp(y, n.low, n.high).to(dtype)


class Rows(NamedTuple):
    """What a norm is asked to do in ONNX: the codes, perhaps in another shape, the dimensions of a
    row, and the axis of weight and bias, None for the last ones
    """

    codes: Value
    dims: tuple[int, ...]
    axis: int | None = None


class Moments(NamedTuple):
    """u of each code and v of each row, how often eps counts, and how V is made of v and eps."""

    u: Value
    v: Value
    times: int
    join: Callable[[Value, Value], Value]


def norm_onnx(
    rows: Callable[[OnnxCall], Rows], moments: Callable[[Value, int, tuple[int, ...]], Moments]
) -> OnnxForm:
    """The form of a norm: `rows` finds its rows, `moments` their u and v."""

    def form(call: OnnxCall) -> Value:
        n: MomentNumbers = call.numbers
        codes, dims, axis = rows(call)
        sizes = codes.sizes
        count = math.prod(sizes[dim] for dim in dims)
        found = moments(centred_value(codes, n.x_zero), count, dims)
        t, bits = _units_onnx(n, found, len(sizes))
        shape = call.codes[0].shape
        assert shape is not None  # as of all that the integer network itself gives
        m, o, shift = (
            values if axis is None else per_channel(values, axis, len(shape))
            for values in (n.multiplier, n.offset, n.shift)
        )
        total = (t if shape == codes.shape else t.reshape(shape)) * m + (o << bits)
        return finish_value(total, n.rounding, shift + bits, n, call.dtype)

    return form


def moments_about_mean(d: Value, count: int, dims: tuple[int, ...]) -> Moments:
    """As `about_mean`."""
    total = d.reduce("ReduceSum", dims)
    v = (d * d).reduce("ReduceSum", dims) * count - total.mul(total)
    return Moments(d * count - total, v, count, Value.add)


def moments_about_zero(d: Value, count: int, dims: tuple[int, ...]) -> Moments:
    """As `about_zero`."""
    return Moments(d * count, (d * d).reduce("ReduceSum", dims) * count, count, Value.add)


def moments_to_length_one(d: Value, count: int, dims: tuple[int, ...]) -> Moments:
    """As `to_length_one`."""
    return Moments(d, (d * d).reduce("ReduceSum", dims), 1, Value.maximum)


def _units_onnx(n: MomentNumbers, moments: Moments, rank: int) -> tuple[Value, int]:
    """As `_units`. How many bits V has is counted; all shifts that follow from it are looked up."""
    u, v, count, join = moments
    epsilon, fraction = _epsilon_of(n, count)
    above = (v >> 2 * n.gain) + (epsilon >> fraction) + 1
    powers = torch.ldexp(torch.ones(63, dtype=torch.float64), torch.arange(63))
    at_least = above.double().unsqueeze(rank) >= powers
    exponent = at_least.to(torch.int64).reduce("ReduceSum", [rank], keepdim=False)

    bits = _UNIT_BITS - max((count.bit_length() + 1) // 2, 2)
    h = (62 - torch.arange(64)) >> 1
    h = h.clamp(min=0)
    one = torch.ones_like(h)
    by, last = 2 * (h - n.gain), _INVERSE_BITS - h - bits
    scaled = (v * exponent.look_up(one << by.clamp(min=0))).div(
        exponent.look_up(one << (-by).clamp(0, 62)), rounding_mode="floor"
    )
    scaled = join(scaled, exponent.look_up(shift_by(epsilon.expand_as(h), 2 * h - fraction)))
    root = _root_onnx(scaled).clamp(min=1)
    inverse = u.graph.value(torch.tensor(2**_INVERSE_BITS)).div(root)
    product = u * inverse + exponent.look_up((one << last) >> 1)
    return product.div(exponent.look_up(one << last), rounding_mode="floor"), bits


def _root_onnx(value: Value) -> Value:
    """As `integer_root`."""
    root = value.double().sqrt().to(torch.int64)
    root = root - (root * root > value).to(torch.int64)
    return root + ((root + 1) * (root + 1) <= value).to(torch.int64)
