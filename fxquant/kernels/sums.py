"""The sums of a layer, Σ w·(q - z), by whatever adds them up exactly and quickly.

    int8 matmul        Σ w·(q - 128) in int32               1x1 convolutions, linear layers
    int8 convolution   Σ w·q in int32, given as float32     exact below 2^24, or where beyond it
                                                            the clamp gives its ends anyway
    float32 …          Σ w·(q - z)                          the same, on any processor
    … in n parts       sums over some of the inputs each, where all would pass 2^24
    float64            everything else

What a kernel leaves out, such as -z·Σ w, is a constant for each channel: it goes into the bias.
Codes come as the network has them, [N, C, H, W] or [..., C]; sums have the channels last, which
is how the values lie in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fxquant.intmath import FLOAT32_EXACT, LayerNumbers, without_autocast
from fxquant.kernels.canary import (
    convolve_float32,
    convolve_int8,
    pack,
    why_no_float_convolution,
    why_no_int8_convolution,
    why_no_int8_matmul,
)
from fxquant.schemes import QuantScheme

_SIGN = -128  # xor with it brings a byte from uint8 to int8, or back
_INT32 = 2**31
_ANY_SIZE = 14  # oneDNN's layout of a weight depends little on the input's size


class Geometry(NamedTuple):
    """How a convolution over n dimensions moves: a number each, and two of padding."""

    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int


class Layer(NamedTuple):
    """What decides how a layer may be summed. `geometry` is None for a linear layer; `sizes` are
    those of an example, if there was one. The sums of a part are added to those of others, before
    anything is clamped.
    """

    numbers: LayerNumbers
    codes: QuantScheme
    geometry: Geometry | None
    sizes: tuple[int, ...] | None
    is_part: bool = False

    @property
    def weight(self) -> Tensor:
        """The integer weights, int8 or int16, [O, I/groups, ...]."""
        return self.numbers.weight

    @property
    def is_matmul(self) -> bool:
        """Whether one product of matrices gives it."""
        g = self.geometry
        if g is None:
            return True
        return g.groups == 1 and self.weight[0, 0].numel() == 1 and not any(map(any, g.padding))


class Sums(Protocol):
    """Codes to their sums of products, channels last; the type holds them exactly."""

    @property
    def name(self) -> str: ...

    def __call__(self, codes: Tensor) -> Tensor: ...


class Found(NamedTuple):
    """A way to sum, and the bias that is still to be added: int64 [C]."""

    sums: Sums
    bias: Tensor


class Refused(NamedTuple):
    """Why a layer cannot be summed so, and whether its parts may be."""

    why: str
    too_large: bool = False


Way = Callable[[Layer], Found | Refused]


# ------------------------------------------------------------------------ codes


def channels_last(x: Tensor) -> Tensor:
    """[N, C, ...] as [N, ..., C]."""
    return x.permute(0, 2, 3, 1) if x.dim() == 4 else x.movedim(1, -1)


def _start(x: QuantScheme) -> int:
    """The lowest number that the type of the codes holds."""
    return torch.iinfo(x.dtype).min


def as_int8(codes: Tensor) -> Tensor:
    """Codes of 8 bits as int8: of uint8 ones, q - 128."""
    if codes.dtype is torch.int8:
        return codes
    if torch.compiler.is_compiling():  # which has no vectors for bytes seen as other bytes
        return (codes.to(torch.int32) + _SIGN).to(torch.int8)
    return codes.view(torch.int8) ^ _SIGN


def as_uint8(codes: Tensor) -> Tensor:
    """Codes of 8 bits as uint8: of int8 ones, q + 128."""
    if codes.dtype is torch.uint8:
        return codes
    if torch.compiler.is_compiling():
        return (codes.to(torch.int32) - _SIGN).to(torch.uint8)
    return (codes ^ _SIGN).view(torch.uint8)


@dataclass(frozen=True, eq=False)
class Rows:
    """What a product of matrices reads, channels last: of an image, each pixel or each so many."""

    of_image: bool
    stride: tuple[int, ...] | None

    def __call__(self, codes: Tensor) -> Tensor:
        """A view."""
        x = channels_last(codes) if self.of_image else codes
        if self.stride is None:
            return x
        return x[:, *(slice(None, None, step) for step in self.stride)]


def _rows(g: Geometry | None) -> Rows:
    moves = g is not None and any(step > 1 for step in g.stride)
    return Rows(g is not None, g.stride if g is not None and moves else None)


# ------------------------------------------------------------------------ int8


@dataclass(frozen=True, eq=False)
class Int8Matmul:
    """`weight` int8 [I, O]."""

    weight: Tensor
    rows: Rows
    name: str = "int8 matmul"

    def __call__(self, codes: Tensor) -> Tensor:
        """int32."""
        x = as_int8(self.rows(codes))
        total = torch._int_mm(x.reshape(-1, x.shape[-1]), self.weight)
        return total.view(*x.shape[:-1], total.shape[-1])


def int8_matmul(layer: Layer) -> Found | Refused:
    """Sums in int32, which need no bound, or why not."""
    n = layer.numbers
    why = _not_8_bits(layer) or why_no_int8_matmul()
    if why is not None:
        return Refused(why)
    rows = n.weight.flatten(1)
    if rows.shape[1] == 1:  # torch 2.13 gives what lay in memory
        return Refused("with one input torch's int8 matmul does not add up exactly")
    centre = _start(layer.codes) + 128  # what as_int8 takes off
    bias = n.bias.long() + (centre - n.x_zero.long()) * rows.sum(1)
    if int((128 * rows.long().abs().sum(1) + bias.abs()).max()) >= _INT32:
        return Refused("its sums may leave 32 bits before the zero point is taken off")
    return Found(Int8Matmul(rows.t().contiguous(), _rows(layer.geometry)), bias)


@dataclass(frozen=True, eq=False)
class Int8Convolution:
    """`packed` in oneDNN's layout; `bias` float32 [O], or None; codes are padded with `fill`
    by `pad`, as F.pad takes it, before oneDNN pads with zeros by `padding`.
    """

    packed: Tensor
    bias: Tensor | None
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int
    pad: list[int]
    fill: int
    two_columns: int
    name: str = "int8 convolution"

    def __call__(self, codes: Tensor) -> Tensor:
        """float32."""
        x = _padded(as_uint8(codes), self.pad, self.fill)
        missing = self.two_columns - x.shape[-1]
        if self.stride[-1] == 1 or missing <= 0:
            return self._convolved(x)
        # with AMX oneDNN 3.13 reads the wrong rows where it strides to one column: give it two
        return self._convolved(F.pad(x, [0, missing]))[..., :1, :]

    def _convolved(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=_in_memory(x))
        return channels_last(
            convolve_int8(
                x, self.packed, self.bias, self.stride, self.padding, self.dilation, self.groups
            )
        )


def int8_convolution(layer: Layer) -> Found | Refused:
    """Sums of the codes as uint8, or why not."""
    n, g = layer.numbers, layer.geometry
    assert g is not None  # a linear layer is a product of matrices
    why = _not_8_bits(layer) or why_no_int8_convolution()
    if why is not None:
        return Refused(why)
    zero = int(n.x_zero) - _start(layer.codes)
    highest = layer.codes.qmax - _start(layer.codes)
    rows = n.weight.flatten(1).long()
    bound = highest * torch.maximum(rows.clamp(min=0).sum(1), -rows.clamp(max=0).sum(1))
    bias = n.bias.long() - zero * rows.sum(1)
    inside = int((bound + bias.abs()).max()) < FLOAT32_EXACT
    inside = inside or _is_clamped_anyway(layer, bound, bias)
    if int(bound.max()) >= FLOAT32_EXACT and not inside:
        return Refused(f"its sums may reach {int(bound.max())}, beyond 2^24", too_large=True)
    pad, padding = _ways_to_pad(g, native=zero == 0)
    stride, dilation = list(g.stride), list(g.dilation)
    shape = _example_shape(layer, pad)
    sums = Int8Convolution(
        packed=pack(n.weight, stride, padding, dilation, g.groups, shape),
        bias=bias.float() if inside else None,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=g.groups,
        pad=pad,
        fill=zero,
        two_columns=g.dilation[-1] * (n.weight.shape[-1] - 1) + 1 + g.stride[-1] - 2 * padding[-1],
    )
    return Found(sums, torch.zeros_like(bias) if inside else bias)


def _is_clamped_anyway(layer: Layer, bound: Tensor, bias: Tensor) -> bool:
    """Whether every sum from 2^24 on, bias and all, lies beyond the clamp.

    Then it need not be exact: int32 holds it, and float32 rounds it, and its sum with the bias,
    monotonically, so that neither comes back below 2^24 - |b|. Twice as far as any code lies from
    the zero point leaves room for every way to round.
    """
    if layer.is_part or int(bound.max()) >= _INT32:
        return False
    n = layer.numbers
    distance = int(torch.maximum(n.high.abs(), n.low.abs()).max()) + abs(int(n.y_zero)) + 1
    factor = torch.ldexp(n.multiplier.double(), -n.shift)
    room = FLOAT32_EXACT - bias.abs().double()
    return bool((room > 0).all()) and bool((room * factor >= 2 * distance).all())


def _not_8_bits(layer: Layer) -> str | None:
    if layer.weight.device.type != "cpu":
        return "it is not on the CPU"
    narrow = layer.codes.is_byte and layer.weight.dtype is torch.int8
    return None if narrow else "its codes or weights have more than 8 bits"


def _ways_to_pad(g: Geometry, native: bool) -> tuple[list[int], list[int]]:
    """What F.pad does, and what the convolution does: all of it, if it can."""
    if native and all(before == after for before, after in g.padding):
        return [], [before for before, _ in g.padding]
    widths = [width for pair in reversed(g.padding) for width in pair]
    return widths if any(widths) else [], [0] * len(g.padding)


def _padded(x: Tensor, pad: list[int], fill: int) -> Tensor:
    return F.pad(x, pad, value=fill) if pad else x


def _in_memory(codes: Tensor) -> torch.memory_format:
    return torch.channels_last if codes.dim() == 4 else torch.channels_last_3d


def _example_shape(layer: Layer, pad: Sequence[int]) -> list[int]:
    """The shape of one input as the convolution reads it, or of any."""
    g, kernel = layer.geometry, layer.weight.shape[2:]
    assert g is not None
    reach = [d * (k - 1) + 1 for d, k in zip(g.dilation, kernel, strict=True)]
    sizes = [max(_ANY_SIZE, r) for r in reach]
    if layer.sizes is not None:
        added = [a + b for a, b in zip(pad[::-1][::2], pad[::-1][1::2], strict=True)]
        sizes = [size + more for size, more in zip(layer.sizes, added or [0] * 3, strict=False)]
    return [1, layer.weight.shape[1] * g.groups, *sizes]


# ------------------------------------------------------------------------ float


@dataclass(frozen=True, eq=False)
class FloatMatmul:
    """`weight` float32 [I, O]; `zero` is taken off the codes."""

    weight: Tensor
    bias: Tensor
    zero: float
    rows: Rows
    name: str = "float32 matmul"

    def __call__(self, codes: Tensor) -> Tensor:
        """float32."""
        x = _centred(self.rows(codes), self.zero)
        with without_autocast(codes):
            total = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        return total.view(*x.shape[:-1], total.shape[-1])


@dataclass(frozen=True, eq=False)
class FloatConvolution:
    """`weight` float32 [O, I/groups, ...], the other fields as an Int8Convolution has them."""

    weight: Tensor
    bias: Tensor
    zero: float
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int
    pad: list[int]
    name: str = "float32 convolution"

    def __call__(self, codes: Tensor) -> Tensor:
        """float32."""
        codes = codes.contiguous(memory_format=_in_memory(codes))
        x = _padded(_centred(codes, self.zero), self.pad, 0)
        return channels_last(
            convolve_float32(
                x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
            )
        )


def _centred(codes: Tensor, zero: float) -> Tensor:
    x = codes.to(torch.float32)
    return x.sub_(zero) if zero else x


def float32_sums(layer: Layer) -> Found | Refused:
    """Sums of centred codes, or why not."""
    n, g = layer.numbers, layer.geometry
    why = _not_8_bits(layer)  # of more, kernels that compute with bfloat16 or TF32 would cut off
    if why is None and not layer.is_matmul:
        why = why_no_float_convolution()
    if why is not None:
        return Refused(why)
    bound, bias = _bound(n.weight, layer), n.bias.long()
    if int(bound.max()) >= FLOAT32_EXACT:
        return Refused(f"its sums may reach {int(bound.max())}, beyond 2^24", too_large=True)
    inside, left = bias, torch.zeros_like(bias)
    if int((bound + bias.abs()).max()) >= FLOAT32_EXACT:
        inside, left = left, inside
    zero = float(n.x_zero)
    if g is None or layer.is_matmul:
        matrix = n.weight.flatten(1).t().float()
        return Found(FloatMatmul(matrix, inside.float(), zero, _rows(g)), left)
    pad, padding = _ways_to_pad(g, native=True)
    steps = list(g.stride), padding, list(g.dilation), g.groups, pad
    weight = n.weight.float().contiguous(memory_format=_in_memory(n.weight))
    return Found(FloatConvolution(weight, inside.float(), zero, *steps), left)


def _bound(weight: Tensor, layer: Layer) -> Tensor:
    """No partial sum of centred codes exceeds it: int64 [C], as intmath.accumulator_bound."""
    rows, zero = weight.flatten(1).long(), int(layer.numbers.x_zero)
    positive, negative = rows.clamp(min=0).sum(1), -rows.clamp(max=0).sum(1)
    high, low = layer.codes.qmax - zero, zero - layer.codes.qmin
    return torch.maximum(positive * high + negative * low, positive * low + negative * high)


# ------------------------------------------------------------------------ one dimension


@dataclass(frozen=True, eq=False)
class InOneDimension:
    """Sums over [N, C, 1, L] of [N, C, L]."""

    sums: Sums

    @property
    def name(self) -> str:
        """What adds up."""
        return self.sums.name

    def __call__(self, codes: Tensor) -> Tensor:
        """[N, L', C]."""
        return self.sums(codes.unsqueeze(2)).squeeze(1)


def in_two_dimensions(layer: Layer) -> Layer:
    """A layer over one dimension as one over two, the first of which is 1."""
    n, g = layer.numbers, layer.geometry
    assert g is not None
    wide = Geometry((1, *g.stride), ((0, 0), *g.padding), (1, *g.dilation), g.groups)
    sizes = None if layer.sizes is None else (1, *layer.sizes)
    wider = n._replace(weight=n.weight.unsqueeze(2))
    return layer._replace(numbers=wider, geometry=wide, sizes=sizes)


# ------------------------------------------------------------------------ in parts


@dataclass(frozen=True, eq=False)
class Parts:
    """Sums over a share of the inputs each; `axis` is where the inputs lie."""

    parts: tuple[Sums, ...]
    ends: tuple[int, ...]
    axis: int

    @property
    def name(self) -> str:
        """What each part is, and how many there are."""
        return f"{self.parts[0].name} in {len(self.parts)} parts"

    def __call__(self, codes: Tensor) -> Tensor:
        """float64."""
        starts = (0, *self.ends[:-1])
        shares = [
            part(codes.narrow(self.axis, start, end - start)).double()
            for part, start, end in zip(self.parts, starts, self.ends, strict=True)
        ]
        total = shares[0]
        for share in shares[1:]:
            total = total + share
        return total


def in_parts(way: Way, layer: Layer) -> Found | Refused:
    """What `way` finds for a layer, or for the fewest parts of it that it can sum."""
    found, inputs = way(layer), layer.weight.shape[1]
    grouped = layer.geometry is not None and layer.geometry.groups > 1
    count = 2
    while isinstance(found, Refused) and found.too_large and not grouped and count <= inputs:
        found = _together(way, layer, count)
        count *= 2
    return found


def _together(way: Way, layer: Layer, count: int) -> Found | Refused:
    """A layer in so many parts."""
    parts: list[Found] = []
    shares = _split(layer.numbers, count)
    for numbers in shares:
        found = way(layer._replace(numbers=numbers, is_part=True))
        if isinstance(found, Refused):
            return found
        parts.append(found)
    ends = accumulate(numbers.weight.shape[1] for numbers in shares)
    axis = -1 if layer.geometry is None else 1
    sums = Parts(tuple(part.sums for part in parts), tuple(ends), axis)
    return Found(sums, torch.stack([part.bias for part in parts]).sum(0))


def _split(n: LayerNumbers, count: int) -> list[LayerNumbers]:
    """The layer's inputs in so many shares; the first has the bias."""
    shares = n.weight.tensor_split(count, 1)
    biases = [n.bias, *[torch.zeros_like(n.bias)] * (count - 1)]
    return [n._replace(weight=w, bias=b) for w, b in zip(shares, biases, strict=True)]
