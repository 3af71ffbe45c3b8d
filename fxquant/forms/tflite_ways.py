"""Ways to write operators down in LiteRT's: what the forms of several records share.

    by_operator    one of LiteRT's own, which rounds as we do
    by_table       one code for each code: GATHER of 256
    by_pairs       one code for each two: GATHER of 65,536
    look_up_means  one code for each sum of codes, and each divisor

A table is filled by our own kernel, so whatever rounds, and however, it is equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from fxquant.forms.tflite import LAST, TfliteCall, Value, together
from fxquant.rounding import GEMMLOWP, RUY, Rescale, round_half_away

TWO_STEPS = (GEMMLOWP, RUY)  # LiteRT's own: one rounds so in its reference, one in its optimized
ACTIVATIONS = {
    "NONE": (-math.inf, math.inf), "RELU": (0.0, math.inf), "RELU6": (0.0, 6.0),
    "RELU_N1_TO_1": (-1.0, 1.0),
}


def every_code(x: Value) -> Tensor:
    """All 256 codes of its type, those that its scheme has not as the nearest that it has."""
    ends = torch.iinfo(x.dtype)
    codes = torch.arange(ends.min, ends.max + 1)
    scheme = None if x.grid is None else x.grid.scheme
    return (codes if scheme is None else codes.clamp(scheme.qmin, scheme.qmax)).to(x.dtype)


def by_table(call: TfliteCall, shape: Sequence[int] = ()) -> Value:
    """What goes by one code alone, or by that and the place: places differ along `shape`, which
    broadcasts against the result without its batch.
    """
    (x,) = call.codes
    codes = every_code(x).reshape(-1, *[1] * len(shape)).expand(-1, *shape)
    table = call.kernel(codes).reshape(256, -1).t().flatten()
    places = torch.arange(math.prod(shape), dtype=torch.int32).reshape(tuple(shape)) * 256
    index = x.index + places if len(places.flatten()) > 1 else x.index
    return index.look_up(table, call.output)


def by_channel(call: TfliteCall) -> Value:
    """What goes by one code and its channel."""
    _, channels, *rest = call.shape
    return by_table(call, (channels, *[1] * len(rest)))


def by_pairs(call: TfliteCall) -> Value:
    """What goes by two codes: a table of all 65,536 pairs."""
    a, b = call.codes
    table = call.kernel(every_code(a)[:, None], every_code(b)[None])
    return (a.index * 256 + b.index).look_up(table.flatten(), call.output)


def by_operator(call: TfliteCall, name: str) -> Value:
    """What LiteRT's own operator of two tensors gives: `name`, such as ADD."""
    a, b = together(call.codes)
    activation = fused(call)
    y = call.graph.operator(
        name, a, b, shape=call.sizes, dtype=call.dtype, order=a.order, grid=call.output,
        options=name.capitalize(), fusedActivationFunction=activation,
    )
    return y if activation != "NONE" else y.clamp(call.numbers.low, call.numbers.high)


def rounded(call: TfliteCall, total: Value, rescale: Rescale) -> Value:
    """Sums of 32 bits, rescaled, as codes: QUANTIZE rounds them as gemmlowp does, in all of
    LiteRT's kernels. It divides one scale by another: a copy then has the right one.
    """
    scales = _scales_that_give(rescale, call.output.scale)
    if scales is None:
        raise call.refuse("has a sum on another scale than LiteRT can bring to its output's")
    above, below = scales
    stored = call.graph.tensors[total.name]
    call.graph.tensors[total.name] = stored._replace(scale=above.reshape(1))
    y = total.quantized(call.output._replace(scale=below))
    if not torch.equal(below, call.output.scale):
        y = replace(y, grid=call.output).copy
    return y.clamp(call.numbers.low, call.numbers.high)


def _scales_that_give(rescale: Rescale, near: Tensor) -> tuple[Tensor, Tensor] | None:
    """Two float32 numbers of which one over the other, below, is that rescale in LiteRT's 31 bits.

    The one below is near another: of 2^14 float32 numbers in a row about a hundred do, since
    quotients of two have 48 bits to choose from.
    """
    one = near.float().reshape(1).view(torch.int32)
    below = (one + torch.arange(2**14, dtype=torch.int32)).view(torch.float32)
    factor = torch.ldexp(rescale.multiplier.double(), -rescale.shift)
    above = (factor * below.double()).float()
    found = GEMMLOWP.rescale(above.double() / below.double())
    fits = (found.multiplier == rescale.multiplier) & (found.shift == rescale.shift)
    first = int(fits.to(torch.int8).argmax())
    return (above[first], below[first]) if bool(fits[first]) else None


def concatenated(call: TfliteCall, parts: Sequence[Value], dim: int) -> Value:
    """CONCATENATION of codes of one scale."""
    first, *rest = together(parts)
    return first._give(
        "CONCATENATION", *rest, shape=call.sizes, grid=call.output, options="Concatenation",
        axis=first.order.index(dim % len(first.shape)),
    )


def fused(call: TfliteCall) -> str:
    """The activation of LiteRT that clamps to the limits of the call, else NONE: what comes out is
    then still to be clamped, which writes nothing where all codes are within.
    """
    n, q = call.numbers, call.output
    if n.low.numel() > 1 or n.high.numel() > 1:
        return "NONE"
    ends = torch.iinfo(call.dtype)

    def code(real: float, end: int) -> int:
        if math.isinf(real):
            return end
        steps = int(round_half_away(torch.tensor(real) / q.scale.float()))
        return min(max(steps + int(q.zero_point), ends.min), ends.max)

    for name, (low, high) in ACTIVATIONS.items():
        if (code(low, ends.min), code(high, ends.max)) == (int(n.low), int(n.high)):
            return name
    return "NONE"


MOST_SUMS = 2**24  # that a table has a code for


def sum_of_cells(x: Value, cells: Sequence[tuple[Tensor, Tensor]]) -> Value:
    """Sums of int32 over cells along the last dimensions. Of each dimension's cells [n, most]: the
    places of their elements, and which of them there are.
    """
    first = len(x.shape) - len(cells)
    for axis, (inside, there) in enumerate(cells, start=first):
        picked = x.gather(inside, axis)
        if not bool(there.all()):
            behind = [1] * (len(x.shape) - 1 - axis)
            picked = picked * there.to(torch.int32).reshape(*there.shape, *behind)
        x = picked.sum([axis + 1], keepdim=False)
    return x


def look_up_means(
    call: TfliteCall, total: Value, most: int, divisor: Tensor,
    mean: Callable[[Tensor, Tensor], Tensor],
) -> Value:
    """`mean(sums, divisor)`, codes of centred codes that are summed, `most` at a time: from a table
    for each divisor there is, which broadcasts against the sums.
    """
    (x,) = call.codes
    if x.grid is None:
        raise call.refuse("sums codes of which nothing is known")
    zero, scheme = int(x.grid.zero_point), x.grid.scheme
    sums = torch.arange(most * (scheme.qmin - zero), most * (scheme.qmax - zero) + 1)
    sizes, which = torch.unique(divisor.to(torch.int64), return_inverse=True)
    if len(sums) * len(sizes) > MOST_SUMS:
        raise call.refuse("sums more codes than a table of what comes of them may have",
                          "take a smaller picture, or sum in two steps")
    table = torch.cat([mean(sums, size).to(call.dtype) for size in sizes])
    places: Tensor = which.reshape(divisor.shape).to(torch.int32) * len(sums) - int(sums[0])
    return (total + places).look_up(table, call.output)


class Frame(NamedTuple):
    """The windows of a picture, for each dimension: how many, their steps, how far each reaches,
    and how much is padded before; behind there is as much as the last one reaches.
    """

    windows: tuple[int, ...]
    stride: tuple[int, ...]
    span: tuple[int, ...]
    before: tuple[int, ...]

    def padding(self, lengths: Sequence[int]) -> str | None:
        """VALID or SAME, where LiteRT then has these windows."""
        if not any(self.before) and self.windows == tuple(
            (length - span) // step + 1
            for length, step, span in zip(lengths, self.stride, self.span, strict=True)
        ):
            return "VALID"
        same = all(
            n == -(-length // step) and before == max((n - 1) * step + span - length, 0) // 2
            for length, n, step, span, before in zip(lengths, *self, strict=True)
        )
        return "SAME" if same else None

    def around(self, lengths: Sequence[int]) -> list[tuple[int, int]]:
        """How much there is to pad before and behind."""
        return [
            (before, max((n - 1) * step + span - length - before, 0))
            for length, n, step, span, before in zip(lengths, *self, strict=True)
        ]


def padded(x: Value, frame: Frame, fill: int) -> tuple[Value, str]:
    """A picture that has these windows by one of LiteRT's two paddings, and which: padded with the
    code `fill`, which SAME stands for, too, or beforehand.
    """
    lengths = x.sizes[2:]
    named = frame.padding(lengths)
    if named is not None:
        return x, named
    return x.pad(frame.around(lengths), fill), "VALID"


def pool(call: TfliteCall, name: str, x: Value, frame: Frame, padding: str) -> Value:
    """AVERAGE_POOL_2D or MAX_POOL_2D of [N, C, H, W]."""
    return call.graph.operator(
        name, x.laid_out(LAST), shape=(*x.shape[:2], *frame.windows), dtype=call.dtype, order=LAST,
        grid=x.grid, options="Pool2D", padding=padding, strideH=frame.stride[0],
        strideW=frame.stride[1], filterHeight=frame.span[0], filterWidth=frame.span[1],
    )


def pictures(call: TfliteCall, dims: int) -> Value:
    """What a call reads as [N, C, H, W]: of one dimension, H is 1."""
    (x,) = call.codes
    if dims > 2 or len(x.shape) != dims + 2:
        raise call.refuse("reads no batch of pictures of one or two dimensions, and LiteRT has no "
                          "integer kernel for others")
    return x if dims == 2 else x.reshape((*x.shape[:2], 1, x.shape[2]))


def two(values: Sequence[int], missing: int) -> tuple[int, int]:
    """A setting for rows and columns of a picture, `missing` for those that there are not."""
    rows, columns = [missing] * (2 - len(values)) + list(values)
    return rows, columns
