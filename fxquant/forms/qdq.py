"""The QDQ form of an operator: the real one between codes, which engines run as one on integers.

    codes ── DequantizeLinear ── Conv ── QuantizeLinear ── codes        runs as QLinearConv

Scales say the multipliers: s_x·s_w/s_y in float32 is that of `rounding="fp32_rne"`, which is what
onnxruntime then rounds by. Only operators whose integers an engine is known to give so have such a
form (docs/rounding.md); the others stand in the graph in integer operators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fxquant.forms.onnx import OnnxCall, Value, pad_codes
from fxquant.forms.weight_scales import weight_scales
from fxquant.schemes import QParams

QdqForm = Callable[[OnnxCall], Value | None]
"""None where this call has to stay in integer operators."""


def grids_of(call: OnnxCall) -> tuple[QParams, ...] | None:
    """The parameters of the codes that come in, where all are known and are what engines have
    integer kernels for.
    """
    found = tuple(q for q in call.inputs if q is not None and _has_kernels(q))
    return found if len(found) == len(call.inputs) and _has_kernels(call.output) else None


def _has_kernels(q: QParams) -> bool:
    return q.scheme.is_byte and q.scale.dtype is torch.float32


def to_real(codes: Value, scale: Tensor, zero: Tensor, axis: int | None = None) -> Value:
    """What codes stand for."""
    along = {} if axis is None else {"axis": axis}
    return codes.graph.node(
        "DequantizeLinear", codes, scale, zero.to(codes.dtype), dtype=torch.float32, **along
    )


def to_codes(call: OnnxCall, real: Value) -> Value:
    """Codes of the output: what saturates needs no clamp, unless the clamp is tighter."""
    q, n = call.output, call.numbers
    zero = q.zero_point.to(call.dtype)
    codes = real.graph.node("QuantizeLinear", real, q.scale, zero, dtype=call.dtype)
    ends = torch.iinfo(call.dtype)
    if int(n.low.max()) > ends.min or int(n.high.min()) < ends.max:
        return codes.clamp(n.low, n.high)
    return codes


class Picture(NamedTuple):
    """What a convolution of two dimensions reads: the codes, the weight that gives the same sums of
    them however they are arranged, strides, and padding before and behind.
    """

    codes: Value
    weight: Tensor
    strides: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]


def arranged(picture: Picture, zero: Tensor, groups: int, dilation: tuple[int, ...]) -> Picture:
    """Channels by fours, which is how engines sum bytes: a picture of three has a fourth of zeros,
    and, where the stride is 2, pixels side by side become channels, or those of a square do.

        3×3, stride 2, of 3 channels     3×2, stride 2 and 1, of 8 in a picture half as wide
        7×7, stride 2, of 3 channels     4×4, stride 1, of 12 in one half as wide and high
    """
    codes, weight, strides, pads = picture
    if groups > 1 or len(strides) != 2 or weight.shape[1] % 4 == 0 or weight.shape[1] > 4:
        return picture
    if dilation == (1, 1):
        blocks = [b for b in (_Block(1, 2), _Block(2, 2)) if b.fits(weight, strides)]
        if blocks:  # the shortest sum; of two, the picture that is moved less
            return min(blocks, key=lambda block: block.terms(weight)).arrange(picture, zero)
    missing = -weight.shape[1] % 4
    wide = pad_codes(codes, [(0, missing), (0, 0), (0, 0)], zero)
    return Picture(wide, F.pad(weight, (0, 0, 0, 0, 0, missing)), strides, pads)


class _Block(NamedTuple):
    """So many pixels below and beside each other that become channels of one, as strides have it.
    """

    rows: int
    columns: int

    def fits(self, weight: Tensor, strides: tuple[int, ...]) -> bool:
        """Whether windows start where blocks do, and some reach further."""
        sides = zip(self, strides, weight.shape[2:], strict=True)
        return all(side == 1 or (side == stride and k > 1) for side, stride, k in sides)

    def channels(self, weight: Tensor) -> int:
        """How many of the picture there have to be, for those of a block to come by fours."""
        return weight.shape[1] + -weight.shape[1] % (4 // (self.rows * self.columns))

    def terms(self, weight: Tensor) -> int:
        """How many products a sum has then."""
        return self.whole(weight, 2) * self.whole(weight, 3) * self.channels(weight)

    def whole(self, weight: Tensor, dim: int) -> int:
        """That size of the weight in whole blocks."""
        return weight.shape[dim] + -weight.shape[dim] % self[dim - 2]

    def arrange(self, picture: Picture, zero: Tensor) -> Picture:
        """The picture in blocks, and the weight that gives the same sums of it."""
        codes, weight, strides, pads = picture
        assert codes.shape is not None  # as of all that the integer network itself gives
        channels, around, blocks, steps = self.channels(weight), [], [], []
        for i, (length, (before, behind)) in enumerate(zip(codes.sizes[2:], pads, strict=True)):
            side, windows = self[i], (length + before + behind - weight.shape[i + 2]) // strides[i]
            steps.append(strides[i] // side)
            blocks.append(windows * steps[i] + self.whole(weight, i + 2) // side)
            around.append((before, side * blocks[i] - length - before))
        batch, (h, w), (rows, columns) = codes.shape[0], blocks, self
        # channels last, so that what moves are rows of pixels; engines convolve so anyway
        around = [(0, channels - weight.shape[1]), *around]
        pixels = pad_codes(codes, around, zero).permute((0, 2, 3, 1))
        if rows > 1:
            apart = pixels.reshape([batch, h, rows, w, columns * channels])
            pixels = apart.permute((0, 1, 3, 2, 4))
        pixels = pixels.reshape([batch, h, w, rows * columns * channels]).permute((0, 3, 1, 2))
        sizes = [(0, self.whole(weight, dim) - weight.shape[dim]) for dim in (3, 2)]
        even = F.pad(weight, (*sizes[0], *sizes[1], *around[0]))
        high, wide = even.shape[2] // rows, even.shape[3] // columns
        in_blocks = even.reshape(-1, channels, high, rows, wide, columns)
        in_blocks = in_blocks.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)
        return Picture(pixels, in_blocks.contiguous(), tuple(steps), ((0, 0), (0, 0)))


def weight_and_bias(call: OnnxCall, x: QParams, weight: Tensor, axis: int) -> tuple[Value, Value]:
    """Those of a layer as real numbers, whose integers and scales are constants."""
    n, graph = call.numbers, call.graph
    scale = weight_scales(n, x.scale, call.output.scale, graph.place)
    zero = torch.zeros_like(scale, dtype=torch.int8)
    w = to_real(graph.weight(weight), scale, zero, axis)
    b = to_real(graph.value(n.bias), x.scale * scale, torch.zeros_like(n.bias), 0)
    return w, b
