"""The LiteRT form of an operator: operators of a .tflite file, on values that it will compute.

    y = conv2d(x)      TRANSPOSE ── CONV_2D           channels last from here on
    y = f(x)           CAST ── ADD 128 ── GATHER      one code for each code: a table has them all

A form computes with `Value`s, each of which is a tensor as torch sees it; `order` says how its
dimensions lie in the file. What only moves dimensions writes nothing down: they are transposed
where an operator needs them otherwise.

LiteRT has kernels of its own rounding for few operators. What it rounds as the network does is
written so (docs/rounding.md); all else that has one code, two codes or a sum of codes to go by is
looked up in a table that our own kernel filled, and so is equal in every kernel set. Codes are int8
in the file: those that are uint8 in the network are less by 128, and so are their zero points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fxquant.errors import ExportError
from fxquant.schemes import QParams

Shape = tuple[int | None, ...]
CODES = (torch.uint8, torch.int8)
LAST = (0, 2, 3, 1)  # the dimensions of [N, C, H, W] as LiteRT has them


class Operator(NamedTuple):
    """One operator of the file. `settings` are the fields of its options, `options` their kind."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    options: str
    settings: Mapping[str, Any]


class Stored(NamedTuple):
    """A tensor as it lies in the file; constant if it has `data`, quantized if it has `scale`.

    `scale` is float32 [1], or [C] along `axis`, and then `zero` is 0. None in its shape stands for
    a batch of any size.
    """

    dtype: torch.dtype
    shape: Shape
    data: Tensor | None = None
    scale: Tensor | None = None
    zero: int = 0
    axis: int = 0


class TfliteGraph:
    """What has been written down so far: operators in order, tensors by name."""

    def __init__(self) -> None:
        self.operators: list[Operator] = []
        self.tensors: dict[str, Stored] = {}
        self.labels: dict[str, tuple[str, Value]] = {}
        self.place = ""
        self._laid_out: dict[tuple[str, tuple[int, ...]], Value] = {}
        self._known: dict[Any, Value] = {}

    def operator(
        self, name: str, *inputs: Value, shape: Sequence[int | None], dtype: torch.dtype,
        order: tuple[int, ...] | None = None, grid: QParams | None = None, options: str = "",
        **settings: Any,
    ) -> Value:
        """The value that a new operator gives, of that shape as torch sees it."""
        found = self.tensor(name, shape, dtype, order, grid)
        read = tuple(x.name for x in inputs)
        self.operators.append(Operator(name, read, (found.name,), options, settings))
        return found

    def tensor(
        self, what: str, shape: Sequence[int | None], dtype: torch.dtype,
        order: tuple[int, ...] | None = None, grid: QParams | None = None,
        data: Tensor | None = None,
    ) -> Value:
        """A tensor that something is going to give, or that is given: `data`, in its order."""
        name = f"{self.place}/{what.lower()}_{len(self.tensors)}"
        order = order or tuple(range(len(shape)))
        lies = tuple(shape[d] for d in order)
        scale = None if grid is None else grid.scale.float().reshape(1)
        zero = 0 if grid is None else int(grid.zero_point) - lift(dtype)
        stored = None if data is None else data.permute(order).contiguous()
        kind = torch.int8 if dtype in CODES else dtype
        if stored is not None:
            stored = (stored.to(torch.int16) - lift(dtype)).to(kind) if dtype in CODES else stored
        self.tensors[name] = Stored(kind, lies, stored, scale, zero)
        return Value(self, name, dtype, tuple(shape), order, grid)

    def constant(self, data: Tensor, grid: QParams | None = None) -> Value:
        """A constant; equal small ones are one."""
        data = data.detach().cpu()
        key: Any = None
        if data.numel() <= 64 and grid is None:
            key = data.dtype, tuple(data.shape), tuple(data.flatten().tolist())
        if key in self._known:
            return self._known[key]
        found = self.tensor("constant", data.shape, data.dtype, grid=grid, data=data)
        if key is not None:
            self._known[key] = found
        return found

    def weight(self, data: Tensor, scale: Tensor, axis: int) -> Value:
        """A constant with a scale for each output channel, which lie along `axis`."""
        found = self.tensor("weight", data.shape, data.dtype, data=data)
        self.tensors[found.name] = self.tensors[found.name]._replace(scale=scale, axis=axis)
        return found

    def value(self, x: Value | Tensor) -> Value:
        """A value as it is, a tensor as a constant: indices have 32 bits."""
        if isinstance(x, Value):
            return x
        return self.constant(x.to(torch.int32) if x.dtype is torch.int64 else x)

    def label(self, value: Value, name: str) -> None:
        """Call a tensor of the file after a node, unless it is called after another one."""
        self.labels.setdefault(value.name, (name, value))


def lift(dtype: torch.dtype) -> int:
    """How much less the codes of that type are in the file."""
    return 128 if dtype is torch.uint8 else 0


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor that the file will compute: `shape` and `dtype` as in the network, None for a batch
    of any size; dimension `order[i]` lies i-th in the file; `grid` says what its codes stand for.
    """

    graph: TfliteGraph
    name: str
    dtype: torch.dtype
    shape: Shape
    order: tuple[int, ...]
    grid: QParams | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape where every dimension but the first is known; the batch counts as 1."""
        if None in self.shape[1:]:
            raise ExportError(
                f"node '{self.graph.place}' reads a batch that is not its first dimension.\n"
                "What to do: fix its size, batch=…"
            )
        return tuple(1 if size is None else size for size in self.shape)

    def length(self, dim: int) -> int:
        """How many there are along that dimension."""
        size = self.shape[dim]
        if size is None:
            raise ExportError(
                f"node '{self.graph.place}' needs to know how many rows there are.\n"
                "What to do: fix the size of batches, batch=…"
            )
        return size

    @property
    def data(self) -> Tensor | None:
        """Of a constant what it holds, in the file's order."""
        return self.graph.tensors[self.name].data

    @property
    def plain(self) -> Value:
        """In torch's own order."""
        return self.laid_out(tuple(range(len(self.shape))))

    def laid_out(self, order: tuple[int, ...]) -> Value:
        """With its dimensions in that order: transposed, unless none but single ones move."""
        if order == self.order:
            return self
        found = self.graph._laid_out.get((self.name, order))
        if found is None:
            found = self._laid_out(order)
            self.graph._laid_out[self.name, order] = found
        return found

    def _laid_out(self, order: tuple[int, ...]) -> Value:
        steps = [self.order.index(d) for d in order]
        if self.data is not None:
            stored = self.graph.tensors[self.name]
            found = self.graph.tensor("constant", self.shape, self.dtype, order, self.grid)
            self.graph.tensors[found.name] = stored._replace(
                shape=tuple(stored.shape[i] for i in steps), data=self.data.permute(steps)
            )
            return found
        if self._moving(self.order) == self._moving(order):
            return self._relaid(self.shape, order)
        return self._give("TRANSPOSE", torch.tensor(steps), order=order)

    def _moving(self, order: Sequence[int]) -> list[int]:
        return [d for d in order if self.shape[d] != 1]

    def _relaid(self, shape: Shape, order: tuple[int, ...]) -> Value:
        lies = [shape[d] for d in order]
        if lies.count(None) > 1:
            raise ExportError(f"node '{self.graph.place}' has several sizes that are not known")
        sizes = torch.tensor([-1 if size is None else size for size in lies], dtype=torch.int32)
        return self._give("RESHAPE", sizes, shape=shape, order=order, options="Reshape",
                          newShape=sizes.tolist())

    def _give(self, name: str, *others: Value | Tensor, **like: Any) -> Value:
        """What an operator makes of it: like itself, but for what is said."""
        same: dict[str, Any] = {
            "shape": self.shape, "dtype": self.dtype, "order": self.order, "grid": self.grid
        }
        read = (self, *map(self.graph.value, others))
        return self.graph.operator(name, *read, **(same | like))

    # -------------------------------------------------------------------- what moves elements

    def reshape(self, shape: Iterable[int | None]) -> Value:
        """In another shape; None for a batch of any size."""
        sizes = tuple(shape)
        order = tuple(range(len(sizes)))
        if sizes == self.shape:
            return self
        if self.data is not None:
            plain = self.plain
            assert plain.data is not None  # a constant stays one
            found = self.graph.tensor("constant", sizes, self.dtype, order, self.grid)
            stored = self.graph.tensors[self.name]._replace(
                shape=sizes, data=plain.data.reshape([n or 0 for n in sizes])
            )
            self.graph.tensors[found.name] = stored
            return found
        as_it_lies = self._moving(self.order) == self._moving(sorted(self.order))
        return (self if as_it_lies else self.plain)._relaid(sizes, order)

    def permute(self, order: Sequence[int]) -> Value:
        """Its dimensions in another order: as it lies it stays."""
        place = {old: new for new, old in enumerate(order)}
        shape = tuple(self.shape[d] for d in order)
        return replace(self, shape=shape, order=tuple(place[d] for d in self.order))

    def gather(self, index: Value | Tensor, axis: int = 0) -> Value:
        """The elements at `index` along `axis`; an index of n dimensions makes n of one."""
        axis %= len(self.shape)
        picked = self.graph.value(index).plain
        if picked.data is not None and bool((picked.data < 0).any()):  # from the end
            places = picked.data.to(torch.int64)
            picked = self.graph.value(torch.where(places < 0, places + self.length(axis), places))
        x = self if len(picked.shape) == 1 else self.plain
        shape = (*self.shape[:axis], *picked.shape, *self.shape[axis + 1 :])
        order = x.order if len(shape) == len(self.shape) else tuple(range(len(shape)))
        return x._give("GATHER", picked, shape=shape, order=order, options="Gather",
                       axis=x.order.index(axis))

    def slice(self, dim: int, start: int | None, end: int | None, step: int = 1) -> Value:
        """Every step-th element along `dim`, as Python slices a list."""
        dim %= len(self.shape)
        place = self.order.index(dim)
        first, last, _ = slice(start, end, step).indices(self.length(dim))
        ranks, rest = len(self.shape), (1 << len(self.shape)) - 1 - (1 << place)

        def along(value: int, others: int) -> Tensor:
            return torch.tensor([value if i == place else others for i in range(ranks)])

        cut = (*self.shape[:dim], len(range(first, last, step)), *self.shape[dim + 1 :])
        return self._give("STRIDED_SLICE", along(first, 0), along(last, 0), along(step, 1),
                          shape=cut, options="StridedSlice", beginMask=rest, endMask=rest)

    def flip(self, dims: Sequence[int]) -> Value:
        """Backwards along those dimensions."""
        x = self
        for dim in dims:
            x = x.gather(torch.arange(x.length(dim) - 1, -1, -1), dim)
        return x

    def split(self, sizes: Sequence[int], dim: int) -> tuple[Value, ...]:
        """Parts of those sizes."""
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        return tuple(
            self.slice(dim, end - size, end) for size, end in zip(sizes, ends, strict=True)
        )

    def expand(self, shape: Shape, batch: object = None) -> Value:
        """Broadcast to that shape."""
        x = self.of_rank(len(shape))
        return x.repeat([1 if old == new else new for old, new in zip(x.shape, shape, strict=True)])

    def repeat(self, repeats: Sequence[int | None], batch: object = None) -> Value:
        """So many copies along each dimension."""
        x = self.of_rank(len(repeats))
        times = [replace(x, shape=tuple(repeats)).length(d) for d in x.order]
        shape = [n if k == 1 else x.length(d) * (k or 0)
                 for d, (n, k) in enumerate(zip(x.shape, repeats, strict=True))]
        return x._give("TILE", torch.tensor(times), shape=shape)

    def of_rank(self, rank: int) -> Value:
        """With dimensions of 1 before the others."""
        return self.reshape((*[1] * (rank - len(self.shape)), *self.shape))

    def pad(self, widths: Sequence[tuple[int, int]], fill: int) -> Value:
        """So many elements of the code `fill` before and behind along the last dimensions; below 0
        cuts off.
        """
        x, first = self, len(self.shape) - len(widths)
        for dim, (before, behind) in enumerate(widths, start=first):
            if min(before, behind) < 0:
                end = x.sizes[dim] + min(behind, 0)
                x = x.slice(dim, max(-before, 0), end)
        around = [(0, 0)] * first + [(max(a, 0), max(b, 0)) for a, b in widths]
        if not any(map(any, around)):
            return x
        shape = [n if not any(w) else x.sizes[d] + sum(w)
                 for d, (n, w) in enumerate(zip(x.shape, around, strict=True))]
        lies = torch.tensor([around[d] for d in x.order], dtype=torch.int32)
        if x.grid is not None and fill == int(x.grid.zero_point):
            return x._give("PAD", lies, shape=shape)
        value = self.graph.constant(torch.tensor(fill, dtype=x.dtype), x.grid)
        return x._give("PADV2", lies, value, shape=shape)

    # -------------------------------------------------------------------- what computes

    def to(self, dtype: torch.dtype) -> Value:
        """Cast, as it stands in the file, unless it has that type."""
        if dtype == self.dtype:
            return self
        kind = torch.int8 if self.dtype in CODES else self.dtype
        return self._give("CAST", dtype=dtype, grid=None, options="Cast", inDataType=kind,
                          outDataType=dtype)

    def quantized(self, q: QParams) -> Value:
        """Real numbers as codes, as the kernels of QUANTIZE round."""
        return self._give("QUANTIZE", dtype=q.scheme.dtype, grid=q, options="Quantize")

    def as_codes(self, q: QParams) -> Value:
        """Real numbers that are codes in number, as codes of that type."""
        lowered = self + -float(lift(q.scheme.dtype))
        return lowered._give("CAST", dtype=q.scheme.dtype, grid=q, options="Cast",
                             inDataType=torch.float32, outDataType=torch.int8)

    def between(self, low: float, high: float) -> Value:
        """Real numbers, limited."""
        below = self._give("MAXIMUM", torch.tensor(low), options="MaximumMinimum")
        return below._give("MINIMUM", torch.tensor(high), options="MaximumMinimum")

    def as_reals(self, zero: Tensor) -> Value:
        """Of codes, `q - z` as real numbers."""
        return self.to(torch.float32) + float(lift(self.dtype) - int(zero))

    def dequantized(self) -> Value:
        """Codes as the real numbers that they stand for: the file has their scale."""
        stored = self.graph.tensors[self.name]
        assert stored.scale is not None  # as of all codes
        return self._give("DEQUANTIZE", dtype=torch.float32, grid=None)

    @property
    def copy(self) -> Value:
        """The same, as another tensor of the file."""
        return self._relaid(self.shape, self.order)

    @property
    def index(self) -> Value:
        """Of codes, how far each lies above the lowest there is: int32, 0 to 255."""
        return self.to(torch.int32) + 128  # of either type: in the file they are int8

    def centred(self, zero: Tensor) -> Value:
        """Of codes, `q - z`: int32."""
        return self.to(torch.int32) + (lift(self.dtype) - int(zero))

    def __add__(self, other: Value | Tensor | float) -> Value:
        return self._arithmetic("ADD", "Add", other)

    def __mul__(self, other: Value | Tensor | float) -> Value:
        return self._arithmetic("MUL", "Mul", other)

    def __truediv__(self, other: Tensor) -> Value:
        return self._arithmetic("DIV", "Div", other)

    def _arithmetic(self, name: str, options: str, other: Value | Tensor | float) -> Value:
        """Of numbers that are no codes."""
        if not isinstance(other, Value):
            other = torch.as_tensor(other, dtype=self.dtype)
        a, b = together((self, self.graph.value(other)))
        return a._give(name, b, shape=broadcast(a.shape, b.shape), options=options)

    def round(self) -> Value:
        """Real numbers to the nearest integers, ties to even."""
        return self._give("ROUND")

    def sum(self, dims: Sequence[int], keepdim: bool = True) -> Value:
        """Over those dimensions."""
        return self._reduce("SUM", dims, keepdim)

    def largest(self, dims: Sequence[int], keepdim: bool = True) -> Value:
        """The largest along those dimensions."""
        return self._reduce("REDUCE_MAX", dims, keepdim)

    def _reduce(self, name: str, dims: Sequence[int], keepdim: bool) -> Value:
        over = {d % len(self.shape) for d in dims}
        axes = torch.tensor(sorted(self.order.index(d) for d in over))
        if keepdim:
            shape = [1 if d in over else n for d, n in enumerate(self.shape)]
            order = self.order
        else:
            left = [d for d in range(len(self.shape)) if d not in over]
            shape = [self.shape[d] for d in left]
            order = tuple(left.index(d) for d in self.order if d not in over)
        return self._give(name, axes, shape=shape, order=order, options="Reducer",
                          keepDims=keepdim)

    def look_up(self, table: Tensor, grid: QParams | None = None) -> Value:
        """`table[self]`, of indices; `grid` says what is in the table, if codes are."""
        known = self.graph.constant(table, grid)
        return known._give("GATHER", self, shape=self.shape, order=self.order, options="Gather",
                           axis=0)

    def clamp(self, low: Tensor, high: Tensor) -> Value:
        """Codes between two, or between two for each place; what no code exceeds is left out."""
        ends, x = torch.iinfo(self.dtype), self
        if int(low.max()) > ends.min:
            x = x._limited("MAXIMUM", low)
        if int(high.min()) < ends.max:
            x = x._limited("MINIMUM", high)
        return x

    def _limited(self, name: str, limit: Tensor) -> Value:
        end = self.graph.constant(limit.to(self.dtype), self.grid)
        if end.shape:
            end = end.of_rank(len(self.shape)).laid_out(self.order)
        return self._give(name, end, options="MaximumMinimum")


def together(values: Sequence[Value]) -> list[Value]:
    """Values that broadcast, of one rank and laid out alike: as the first that has the rank."""
    rank = max(len(x.shape) for x in values)
    order = next((x.order for x in values if len(x.shape) == rank and x.data is None),
                 tuple(range(rank)))
    return [x.of_rank(rank).laid_out(order) for x in values]


def broadcast(*shapes: Shape) -> Shape:
    """The shape of what values of one rank give together."""
    return tuple(next((n for n in sizes if n != 1), 1) for sizes in zip(*shapes, strict=True))


# ------------------------------------------------------------------------ calls


class TfliteCall(NamedTuple):
    """One call of an integer operator, to be written down.

    `numbers` are its integers, `dtype` and `codes` the types and values that it gives and reads;
    `settings` what its kernel takes beside them, plain numbers all; `sizes` are those of the
    result, None for a batch of any size; `output` says what its codes stand for. `kernel` is that
    of the operator, with all but the codes filled in.
    """

    graph: TfliteGraph
    numbers: Any
    dtype: torch.dtype
    codes: tuple[Value, ...]
    settings: Mapping[str, Any]
    output: QParams
    sizes: Shape
    kernel: Callable[..., Tensor]

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the result, where the batch counts as 1."""
        return tuple(1 if size is None else size for size in self.sizes)

    def refuse(self, why: str, do: str = "keep it out of the network") -> ExportError:
        """An error that names the node."""
        return ExportError(f"node '{self.graph.place}' {why}.\nWhat to do: {do}.")


TfliteForm = Callable[[TfliteCall], Value]
