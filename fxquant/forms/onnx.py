"""The ONNX form of an operator: arithmetic on values that a graph will compute.

    y = ⌊acc·M + (z + ½)⌋        Cast ── Mul ── Add ── Floor ── Clip ── Cast

A form computes with `Value`s as a kernel does with tensors; each step writes a node down. What
`Rounding` does to tensors it does to values too, so that no rounding is written twice. Nothing
here imports onnx: `export/onnx.py` makes its protobufs of what is written down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from fxquant.errors import ExportError
from fxquant.intmath import FLOAT32_EXACT
from fxquant.rounding import FP32_RNE, HALF_UP, Rescale, Rounding
from fxquant.schemes import QParams

_DOUBLE_BITS = 52  # up to here a half is still a number of its own
_FAR = 2**62  # what ONNX shifts is unsigned: by so much it is lifted


class Node(NamedTuple):
    """One node of an ONNX graph. `place` is the node of the integer network that it belongs to."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    place: str


class OnnxGraph:
    """What has been written down so far: nodes in order, and constants by name, of which `nibbles`
    are those that a file stores in 4 bits.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.constants: dict[str, Tensor] = {}
        self.nibbles: set[str] = set()
        self.place = ""
        self._known: dict[Any, str] = {}
        self._count = 0

    def node(
        self, operator: str, *inputs: Value | Tensor | None, dtype: torch.dtype, **attributes: Any
    ) -> Value:
        """The value that a new node gives; None is an input left out."""
        (found,) = self.node_of_several(operator, *inputs, dtype=dtype, outputs=1, **attributes)
        return found

    def node_of_several(
        self, operator: str, *inputs: Value | Tensor | None, dtype: torch.dtype, outputs: int,
        **attributes: Any,
    ) -> tuple[Value, ...]:
        """The values that a new node with so many outputs gives."""
        names = tuple(self._fresh(operator) for _ in range(outputs))
        read = tuple("" if x is None else self.value(x).name for x in inputs)
        self.nodes.append(Node(operator, read, names, attributes, self.place))
        return tuple(Value(self, name, dtype) for name in names)

    def value(self, x: Value | Tensor | float) -> Value:
        """A value as it is, a tensor or number as a constant; equal small ones are one."""
        if isinstance(x, Value):
            return x
        tensor = torch.as_tensor(x).detach().cpu().contiguous()
        key: Any = None
        if tensor.numel() <= 64:
            key = tensor.dtype, tuple(tensor.shape), tuple(tensor.flatten().tolist())
        name = self._known.get(key) if key is not None else None
        if name is None:
            name = self._fresh("constant")
            self.constants[name] = tensor
            if key is not None:
                self._known[key] = name
        return Value(self, name, tensor.dtype, tuple(tensor.shape))

    def weight(self, codes: Tensor) -> Value:
        """Codes of one byte as a constant, which a file stores in 4 bits where all fit into them.

        An engine makes bytes of it when it loads the file. Where it is given 4 bits to
        dequantize, onnxruntime computes in float.
        """
        if not fits_nibbles(codes):
            return self.value(codes)
        name = self._fresh("weight")
        self.constants[name] = codes.detach().cpu().contiguous()
        self.nibbles.add(name)
        return self.node(
            "Cast", Value(self, name, codes.dtype), dtype=codes.dtype, to=codes.dtype
        )

    def sizes(self, shape: Sequence[int | None], batch: Value | None) -> Value:
        """A shape as int64 [n], with the number of rows, int64 [1], in the place of None."""
        given = torch.tensor([1 if size is None else size for size in shape])
        if None not in shape:
            return self.value(given)
        assert batch is not None  # where a batch has any size, its size is asked for
        return self.value(torch.tensor([size is None for size in shape])).where(batch, given)

    def rename(self, value: Value, name: str, since: int) -> None:
        """Call what one of the nodes from `since` on gives `name`; add an Identity if none does."""
        made = {output for node in self.nodes[since:] for output in node.outputs}
        if value.name not in made:
            self.nodes.append(Node("Identity", (value.name,), (name,), {}, self.place))
            return
        for i in range(since, len(self.nodes)):
            node = self.nodes[i]
            read, given = (
                tuple(name if n == value.name else n for n in names)
                for names in (node.inputs, node.outputs)
            )
            self.nodes[i] = node._replace(inputs=read, outputs=given)

    def drop_unread(self, outputs: Iterable[Value]) -> None:
        """Leave out the nodes that nothing reads on its way to one of `outputs`."""
        read, kept = {value.name for value in outputs}, []
        for node in reversed(self.nodes):
            if not read.isdisjoint(node.outputs):
                read.update(node.inputs)
                kept.append(node)
        self.nodes = kept[::-1]

    def _fresh(self, what: str) -> str:
        self._count += 1
        return f"{self.place}/{what}_{self._count}"


class Value:
    """A tensor that the graph will compute. Arithmetic on it writes nodes down.

    `shape` is known of what nodes of the integer network give; None stands for a batch of any
    size.
    """

    def __init__(
        self, graph: OnnxGraph, name: str, dtype: torch.dtype,
        shape: tuple[int | None, ...] | None = None,
    ) -> None:
        self.graph, self.name, self.dtype, self.shape = graph, name, dtype, shape

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """`torch.round(value)` is `value.round()`, and so is `tensor + value`."""
        graph = next(a.graph for a in args if isinstance(a, Value))
        return getattr(graph.value(args[0]), function.__name__)(*args[1:], **(kwargs or {}))

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape where every dimension but the first is known; the batch counts as 1."""
        assert self.shape is not None  # asked only of what the integer network itself gives
        if None in self.shape[1:]:
            raise ExportError(f"'{self.name}' has a batch that is not its first dimension")
        return tuple(1 if size is None else size for size in self.shape)

    def _with(self, other: Any) -> tuple[Value, Value]:
        """Both in the one type that arithmetic on them has; a plain number takes this one's."""
        if isinstance(other, Tensor) and other.dtype != self.dtype:
            common = torch.promote_types(self.dtype, other.dtype)
            return self.to(common), self.graph.value(other.to(common))
        if not isinstance(other, (Tensor, Value)):
            other = torch.tensor(other, dtype=self.dtype)
        right = self.graph.value(other)
        common = torch.promote_types(self.dtype, right.dtype)
        return self.to(common), right.to(common)

    def _binary(self, operator: str, other: Any) -> Value:
        left, right = self._with(other)
        return self.graph.node(operator, left, right, dtype=left.dtype)

    def _compare(self, operator: str, other: Any) -> Value:
        left, right = self._with(other)
        return self.graph.node(operator, left, right, dtype=torch.bool)

    def _unary(self, operator: str) -> Value:
        return self.graph.node(operator, self, dtype=self.dtype)

    def to(self, dtype: torch.dtype) -> Value:
        """Cast, unless it has that type."""
        if dtype == self.dtype:
            return self
        found = self.graph.node("Cast", self, dtype=dtype, to=dtype)
        found.shape = self.shape
        return found

    def double(self) -> Value:
        """As float64."""
        return self.to(torch.float64)

    def add(self, other: Any) -> Value:
        """self + other"""
        return self._binary("Add", other)

    def sub(self, other: Any) -> Value:
        """self - other"""
        return self._binary("Sub", other)

    def rsub(self, other: Any) -> Value:
        """other - self"""
        return self.graph.value(torch.as_tensor(other, dtype=self.dtype)).sub(self)

    def mul(self, other: Any) -> Value:
        """self · other"""
        return self._binary("Mul", other)

    def div(self, other: Any, rounding_mode: str | None = None) -> Value:
        """self / other, of integers floored: ONNX's own division cuts off towards 0."""
        if rounding_mode == "floor":
            return self.sub(self.remainder(other))._binary("Div", other)
        return self._binary("Div", other)

    def remainder(self, other: Any) -> Value:
        """self mod other, with the sign of `other`."""
        return self._binary("Mod", other)

    def bitwise_right_shift(self, by: Any) -> Value:
        """⌊self / 2^by⌋ of an int64 within ±2^62; `by` a constant, of any shape."""
        shift = torch.as_tensor(by)
        if not shift.any():
            return self
        lifted = (self + _FAR).to(torch.uint64)
        shifted = self.graph.node(
            "BitShift", lifted, shift.to(torch.uint64), dtype=torch.uint64, direction="RIGHT"
        )
        return shifted.to(torch.int64) - (torch.tensor(_FAR) >> shift)

    def bitwise_left_shift(self, by: Any) -> Value:
        """self · 2^by; `by` a constant, of any shape."""
        return self * (1 << torch.as_tensor(by))

    def clamp(self, min: Any = None, max: Any = None) -> Value:
        """Between constants, of which either may be missing, or have a shape."""
        if self.dtype in (torch.int16, torch.uint16):
            return self.to(torch.int32).clamp(min, max).to(self.dtype)
        ends = [None if x is None else torch.as_tensor(x).to(self.dtype) for x in (min, max)]
        if any(end is not None and end.dim() for end in ends):
            above = self if ends[0] is None else self._binary("Max", ends[0])
            return above if ends[1] is None else above._binary("Min", ends[1])
        return self.graph.node("Clip", self, *ends, dtype=self.dtype)

    def where(self, chosen: Any, other: Any) -> Value:
        """`chosen` where this, a bool, is true."""
        if not isinstance(chosen, Value):
            chosen = self.graph.value(torch.as_tensor(chosen))
        left, right = chosen._with(other)
        return self.graph.node("Where", self, left, right, dtype=left.dtype)

    def reduce(self, operator: str, dims: Sequence[int] | None, keepdim: bool = True) -> Value:
        """ReduceSum or ReduceMax over `dims`; over all where they are None."""
        axes = None if dims is None else torch.tensor(list(dims))
        return self.graph.node(
            operator, self, axes, dtype=self.dtype, keepdims=int(keepdim)
        )

    def largest(self, dims: Sequence[int], keepdim: bool = True) -> Value:
        """The largest along those dimensions; there is none of 16 bits."""
        wide = self.to(torch.int32) if self.dtype is torch.int16 else self
        return wide.reduce("ReduceMax", dims, keepdim).to(self.dtype)

    def gather(self, index: Any, axis: int = 0) -> Value:
        """The elements at `index` along `axis`; an index of n dimensions makes n of one."""
        return self.graph.node(
            "Gather", self, self.graph.value(index), dtype=self.dtype, axis=axis
        )

    def look_up(self, table: Tensor) -> Value:
        """`table[self]`"""
        return self.graph.node("Gather", table, self, dtype=table.dtype, axis=0)

    def reshape(self, shape: Iterable[int | None]) -> Value:
        """In another shape; None for a batch of any size."""
        sizes = [-1 if size is None else size for size in shape]
        return self.graph.node("Reshape", self, torch.tensor(sizes), dtype=self.dtype)

    def unsqueeze(self, axis: int) -> Value:
        """With one more dimension, of 1, at `axis`."""
        return self.graph.node("Unsqueeze", self, torch.tensor([axis]), dtype=self.dtype)

    def permute(self, order: Sequence[int]) -> Value:
        """Its dimensions in another order."""
        return self.graph.node("Transpose", self, dtype=self.dtype, perm=list(order))

    def slice(self, dim: int, start: int | None, end: int | None, step: int = 1) -> Value:
        """Every step-th element along `dim`, as Python slices a list."""
        ends = torch.tensor([2**62 if end is None else end])
        return self.graph.node(
            "Slice", self, torch.tensor([start or 0]), ends, torch.tensor([dim]),
            torch.tensor([step]), dtype=self.dtype,
        )

    def flip(self, dims: Sequence[int]) -> Value:
        """Backwards along those dimensions."""
        last = torch.full((len(dims),), -1)
        far = torch.full((len(dims),), -(2**62))
        return self.graph.node(
            "Slice", self, last, far, torch.tensor(dims), last, dtype=self.dtype
        )

    def split(self, sizes: Sequence[int], dim: int) -> tuple[Value, ...]:
        """Parts of those sizes."""
        return self.graph.node_of_several(
            "Split", self, torch.tensor(sizes), dtype=self.dtype, outputs=len(sizes), axis=dim
        )

    def expand(self, shape: Sequence[int | None], batch: Value | None = None) -> Value:
        """Broadcast to that shape; `batch` is the number of rows, int64 [1], where it is None, and
        was not before.
        """
        assert self.shape is not None  # as of all that a move reads
        before = [1] * (len(shape) - len(self.shape)) + [*self.shape]
        wider = [1 if own is None else size for own, size in zip(before, shape, strict=True)]
        sizes = self.graph.sizes(wider, batch)
        return self.graph.node("Expand", self, sizes, dtype=self.dtype)

    def repeat(self, repeats: Sequence[int | None], batch: Value | None = None) -> Value:
        """So many copies along each dimension; None as for `expand`."""
        x = self
        assert x.shape is not None  # as of all that a move reads
        if len(repeats) > len(x.shape):
            x = x.reshape([*[1] * (len(repeats) - len(x.shape)), *x.shape])
        return self.graph.node(
            "Tile", x, self.graph.sizes(repeats, batch), dtype=self.dtype
        )

    def round(self) -> Value:
        """To the nearest integer, ties to even."""
        return self._unary("Round")

    def floor(self) -> Value:
        """To the next integer below."""
        return self._unary("Floor")

    def trunc(self) -> Value:
        """To the next integer towards 0."""
        return self.sign() * self.abs().floor()

    def sign(self) -> Value:
        """-1, 0 or 1."""
        return self._unary("Sign")

    def abs(self) -> Value:
        """Its absolute value."""
        return self._unary("Abs")

    def sqrt(self) -> Value:
        """Its square root."""
        return self._unary("Sqrt")

    def neg(self) -> Value:
        """-self"""
        return self._unary("Neg")

    def eq(self, other: Any) -> Value:
        """self == other"""
        return self._compare("Equal", other)

    def lt(self, other: Any) -> Value:
        """self < other"""
        return self._compare("Less", other)

    def le(self, other: Any) -> Value:
        """self <= other"""
        return self._compare("LessOrEqual", other)

    def gt(self, other: Any) -> Value:
        """self > other"""
        return self._compare("Greater", other)

    def ge(self, other: Any) -> Value:
        """self >= other"""
        return self._compare("GreaterOrEqual", other)

    def maximum(self, other: Any) -> Value:
        """The larger of the two."""
        return self._binary("Max", other)

    def bitwise_and(self, other: Any) -> Value:
        """Both, of bools."""
        return self._compare("And", other)

    __add__ = __radd__ = add_ = add
    __sub__ = sub_ = subtract = sub
    __rsub__ = rsub
    __mul__ = __rmul__ = mul_ = mul
    __truediv__ = div
    __mod__ = remainder
    __neg__ = neg
    __abs__ = abs
    __rshift__ = bitwise_right_shift_ = bitwise_right_shift
    __lshift__ = bitwise_left_shift
    __and__ = bitwise_and
    __eq__ = eq  # type: ignore[assignment]
    __lt__, __le__, __gt__, __ge__ = lt, le, gt, ge
    __hash__ = object.__hash__


class OnnxCall(NamedTuple):
    """One call of an integer operator, to be written down.

    `numbers` are its integers, `dtype` and `codes` the types and values that it gives and reads;
    `settings` what its kernel takes beside them, plain numbers all; `sizes` are those of the
    result, None for a batch of any size, and `rows` is then how large it is, int64 [1]. What the
    codes stand for is said by `inputs`, None where that is not known, and `output`.
    """

    graph: OnnxGraph
    numbers: Any
    dtype: torch.dtype
    codes: tuple[Value, ...]
    settings: Mapping[str, Any]
    inputs: tuple[QParams | None, ...]
    output: QParams
    sizes: tuple[int | None, ...]
    rows: Value | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the result, where the batch counts as 1."""
        return tuple(1 if size is None else size for size in self.sizes)


OnnxForm = Callable[[OnnxCall], Value]


def of_values(function: Callable[..., Tensor]) -> Callable[..., Value]:
    """What computes with tensors, as all that a `Rounding` does, computes with values as well."""
    return cast(Callable[..., Value], function)


def fits_nibbles(codes: Tensor) -> bool:
    """Whether 4 bits hold every code: -8 to 7, or 0 to 15."""
    low = -8 if codes.dtype.is_signed else 0
    return bool(((codes >= low) & (codes < low + 16)).all())


def centred_value(codes: Value, zero: Tensor) -> Value:
    """`q - z`, int64, in the shape of the codes."""
    d = codes.to(torch.int64) - zero.to(torch.int64)
    d.shape = codes.shape
    return d


def sum_of(
    codes: Value, zero: Tensor, dims: Sequence[int], keepdim: bool = True,
    dtype: torch.dtype = torch.int64,
) -> Value:
    """Σ (q - z) over those dimensions, one rounding-free sum: in float32 where codes are so few
    that it holds every part of it.
    """
    count = math.prod(codes.sizes[dim] for dim in dims)
    short = count << torch.iinfo(codes.dtype).bits < FLOAT32_EXACT
    wide = codes.to(torch.float32 if short else torch.int64)
    total = wide.reduce("ReduceSum", dims, keepdim).to(dtype)
    return total - (count * zero.to(torch.int64)).to(dtype)


def requantize(
    acc: Value, rounding: Rounding, rescale: Rescale, n: Any, dtype: torch.dtype
) -> Value:
    """Accumulators to codes: `clamp(multiply(acc) + y_zero, low, high)` of the numbers `n`.

    Half-up in float64, where that is exact: if the result is not saturated, acc·m has no more
    than S and the codes' bits; if it is, rounding is monotone, and saturated it stays.
    """
    bits = torch.iinfo(dtype).bits
    if rounding is HALF_UP and int(rescale.shift.max()) + bits <= _DOUBLE_BITS:
        factor = torch.ldexp(rescale.multiplier.double(), -rescale.shift)
        y: Value = (acc.double() * factor + (n.y_zero.double() + 0.5)).floor()
    elif rounding is FP32_RNE:
        y = (acc.to(torch.float32) * rescale.multiplier).round() + n.y_zero.float()
    else:
        y = of_values(rounding.multiply)(acc.to(torch.int64), rescale) + n.y_zero
    return y.clamp(n.low, n.high).to(dtype)


def finish_value(
    total: Value, rounding: Rounding, shift: Tensor, n: Any, dtype: torch.dtype
) -> Value:
    """What was multiplied already to codes: one shift, the zero point, the clamp."""
    y: Value = of_values(rounding.shift)(total, shift) + n.y_zero
    return y.clamp(n.low, n.high).to(dtype)


def bytes_of(codes: Value, zero: Tensor) -> list[tuple[Value, Tensor]]:
    """Codes in bytes, most significant first, each with its part of the zero point: integer
    products of ONNX take bytes only. `add_bytes` puts together what is made of them.
    """
    if torch.iinfo(codes.dtype).bits == 8:
        return [(codes, zero.to(codes.dtype))]
    lift = -torch.iinfo(codes.dtype).min
    positive, z = codes.to(torch.int32) + lift, zero.to(torch.int32) + lift
    high = positive.div(256)  # positive, so that cut off is floored
    parts = [(high, z >> 8), (positive - high * 256, z & 255)]
    found = []
    for value, part in parts:
        byte = value.to(torch.uint8)
        byte.shape = codes.shape
        found.append((byte, part.to(torch.uint8)))
    return found


def add_bytes(sums: Iterable[Value]) -> Value:
    """Sums over bytes, most significant first, as one sum of all."""
    total: Value | None = None
    for part in sums:
        total = part if total is None else total.to(torch.int64) * 256 + part
    assert total is not None  # a code has at least one byte
    return total


def pad_codes(
    codes: Value, widths: Sequence[tuple[int, int]], fill: Tensor
) -> Value:
    """So many elements before and behind along the last dimensions; below 0 cuts off."""
    wide = codes.to(torch.int32) if codes.dtype is torch.int16 else codes
    assert codes.shape is not None  # asked only of what the integer network itself gives
    rest = [0] * (len(codes.shape) - len(widths))
    pads = [*rest, *(w[0] for w in widths), *rest, *(w[1] for w in widths)]
    fill = fill.to(wide.dtype)
    padded = codes.graph.node(
        "Pad", wide, torch.tensor(pads), fill, dtype=wide.dtype, mode="constant"
    )
    return padded.to(codes.dtype)
