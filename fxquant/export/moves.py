"""What moves or picks elements, in the formats of files.

    x.view(n, 2, c // 2, h, w)        x.flatten(1)        x[:, :, ::2]        torch.chunk(x, 2, 1)

Users spell it in a hundred ways, and torch itself in few: a node is traced into those of aten, for
each of the runs that `walk` made, and what differs between them follows the batch.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, fx

from fxquant.errors import ExportError
from fxquant.export.walk import Varying, Walk, merged, one_shape, zeros
from fxquant.forms.movable import Movable, Shape
from fxquant.forms.onnx import Value as OnnxValue
from fxquant.graph.aten import in_aten, shape_of
from fxquant.graph.edit import map_nodes, module_at, nodes_in
from fxquant.graph.nested import leaves
from fxquant.graph.place import describe

V = TypeVar("V", bound=Movable)

aten = torch.ops.aten


class Graph(Protocol):
    """What is written down."""

    def value(self, x: Tensor) -> Any:
        """A tensor as a constant."""


def move(
    graph: Graph, walk: Walk, node: fx.Node, values: Mapping[fx.Node, Any], batch: Any
) -> Any:
    """The value, or the tuple of values, that `node` makes of those that it reads.

    `batch` is the number of rows, where it is not known and the format computes it.
    """
    if node.target is operator.getitem:
        several, key = values[node.all_input_nodes[0]], node.args[1]
        if isinstance(several, (tuple, dict)):
            return several[key]  # type: ignore[index]
    tensors = [n for n in dict.fromkeys(nodes_in((node.args, node.kwargs))) if n in values]
    _need_line(walk, node, tensors)
    runs = [_traced(walk.gm, node, tensors, run) for run in walk.runs]
    if len({tuple(str(n.target) for n in run.graph.nodes) for run in runs}) > 1:
        raise ExportError(
            f"{describe(node)} moves elements in another way where a batch is larger.\n"
            "What to do: fix its size, batch=…"
        )
    env: dict[fx.Node, Any] = {}
    known: dict[fx.Node, Any] = {}  # constants, for those who ask what is in them
    twins: dict[fx.Node, fx.Node] = {}  # what stands in the first run for a node of another
    inputs = iter(tensors)
    for steps in zip(*(run.graph.nodes for run in runs), strict=True):
        step = steps[0]
        twins.update(dict.fromkeys(steps, step))
        if step.op == "placeholder":
            read = next(inputs)
            env[step] = values[read]
            if read.op == "get_attr":
                known[step] = walk.runs[0][read]
        elif step.op == "get_attr":
            known[step] = getattr(runs[0], str(step.target))
            env[step] = graph.value(known[step])
        elif step.op == "output":
            result: Any = map_nodes(step.args[0], env.__getitem__)
            return tuple(result) if isinstance(result, (tuple, list)) else result
        else:
            read_by_run = [map_nodes(s.args[1:], twins.__getitem__) for s in steps]
            places = _PLACES.get(step.target)
            others = merged(read_by_run) if places is None else places(steps)
            others = map_nodes(others, lambda n: known.get(n, env[n]))
            env[step] = _step(node, steps, env, others, batch)
    raise AssertionError("a graph ends with its output")


def _need_line(walk: Walk, node: fx.Node, tensors: Sequence[fx.Node]) -> None:
    """Refuse a move by numbers that follow the batch, if its shape leaves its line in another one:
    of four channels the first 2n are all of them, but of one row.
    """
    numbers = walk.numbers.intersection(node.all_input_nodes)
    if all(run[n] == walk.runs[0][n] for run in walk.runs for n in numbers):
        return
    for rows in _ELSEWHERE:
        shapes = {n: walk.shape_beyond(n, rows) for n in (*tensors, node)}
        if None in shapes.values():
            continue
        given = {
            n: torch.empty(shapes[n], dtype=walk.runs[0][n].dtype, device="meta") for n in tensors
        }
        try:
            found = _applied(walk.gm, node, given, walk.beyond[rows])
        except Exception:  # the network itself does not run on so many
            continue
        if found.shape != shapes[node]:
            raise _follows_otherwise(
                node, f"{list(found.shape)} of {rows} rows, {list(shapes[node])} expected"
            )


def _traced(
    gm: fx.GraphModule, node: fx.Node, tensors: Sequence[fx.Node], run: Mapping[fx.Node, Any]
) -> fx.GraphModule:
    """The move as a graph of aten's operators."""

    def apply(*given: Tensor) -> Any:
        return _applied(gm, node, dict(zip(tensors, given, strict=True)), run)

    examples = [zeros(run[n]) for n in tensors]
    return in_aten(apply, examples, _SIMPLER)


def apply_to(walk: Walk, node: fx.Node, values: Mapping[fx.Node, Tensor]) -> Any:
    """What a move makes of other values than its own, of the same shapes."""
    return _applied(walk.gm, node, values, walk.runs[0])


def _applied(
    gm: fx.GraphModule, node: fx.Node, values: Mapping[fx.Node, Tensor],
    run: Mapping[fx.Node, Any],
) -> Any:
    args, kwargs = map_nodes((node.args, node.kwargs), lambda n: values.get(n, run.get(n)))
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    function: Any = module_at(gm, node) if node.op == "call_module" else node.target
    return function(*args, **kwargs)


def _step(
    node: fx.Node, steps: Sequence[fx.Node], env: Mapping[fx.Node, Any], others: Sequence[Any],
    batch: Any,
) -> Any:
    """One operator of aten, from the nodes that stand for it in each run; `others` is what it is
    given beside the value that it moves.
    """
    first, target = steps[0], steps[0].target
    if target is operator.getitem:
        source: Any = first.args[0]
        return env[source][first.args[1]]
    form = _FORMS.get(target)
    if form is None:
        raise ExportError(f"{describe(node)}: {target} has no form in a file")
    several = [shape_of(s) for s in steps]
    if isinstance(several[0], list) and len({*map(len, several)}) > 1:
        raise _follows_otherwise(node, "they are counted out")
    shape = (
        [one_shape(part) for part in zip(*several, strict=True)]
        if isinstance(several[0], list) else one_shape(several)
    )
    varying = [x for x in leaves(others) if isinstance(x, Varying)]
    if varying and form not in _BY_SHAPE:
        raise _follows_otherwise(node, varying[0])
    (read,) = first.args[:1]
    try:
        result = form(shape, batch, map_nodes(read, env.__getitem__), *others)
    except _UnknownError as unknown:
        raise _follows_otherwise(node, unknown) from None
    parts = result if isinstance(result, tuple) else (result,)
    for part, size in zip(parts, shape if isinstance(shape, list) else [shape], strict=True):
        if isinstance(part, OnnxValue):
            part.shape = size
    return result


class _UnknownError(Exception):
    """What a form would have to know of a batch of any size."""


def _follows_otherwise(node: fx.Node, what: object) -> ExportError:
    return ExportError(
        f"{describe(node)} moves elements by how many rows there are: {what}.\n"
        "What to do: fix the size of batches, batch=…"
    )


def _slices(steps: Sequence[fx.Node]) -> list[Any]:
    """The dimension, start, end and step of aten's slice."""
    names = ("dim", "start", "end", "step")
    given: list[dict[str, Any]] = [dict(zip(names, s.args[1:], strict=False)) for s in steps]
    dim = given[0].get("dim", 0)
    sizes = [_size(s, dim) for s in steps]
    told = [g.get("end") for g in given]
    ends = [size if end is None else end for end, size in zip(told, sizes, strict=True)]
    same = len({*ends}) == 1 and ends[0] < _FAR
    end = None if _all_behind(ends, sizes) and not same else _place(ends, sizes)
    start = _place([g.get("start") or 0 for g in given], sizes)
    step = [g.get("step", 1) for g in given]
    return [dim, start, end, step[0] if len({*step}) == 1 else Varying(tuple(step))]


def _selects(steps: Sequence[fx.Node]) -> list[Any]:
    """The dimension and place of aten's select."""
    dim: Any = steps[0].args[1]
    return [dim, _place([s.args[2] for s in steps], [_size(s, dim) for s in steps])]


def _size(step: fx.Node, dim: int) -> int:
    read: Any = step.args[0]
    size: int = shape_of(read)[dim]
    return size


def _all_behind(ends: Sequence[int], sizes: Sequence[int]) -> bool:
    """Whether they lie behind all elements, and as far in every batch."""
    gaps = {min(end - size, _FAR) for end, size in zip(ends, sizes, strict=True)}
    return len(gaps) == 1 and min(gaps) >= 0


def _place(places: Sequence[Any], sizes: Sequence[int]) -> Any:
    """A place along a dimension, counted from its start, or from its end as numbers below 0."""
    behind = {place - size for place, size in zip(places, sizes, strict=True)}
    if len({*places}) > 1 and len(behind) == 1 and min(places) >= 0 > max(behind):
        return behind.pop()
    return places[0] if len({*places}) == 1 else Varying(tuple(places))


_ELSEWHERE = (1, 100)  # rows, other than those of the runs
_FAR = 2**62
_PLACES: dict[Any, Callable[[Sequence[fx.Node]], list[Any]]] = {
    aten.slice.Tensor: _slices, aten.select.int: _selects,
}
"""Arguments that are places along a dimension: behind a larger batch they may lie further on."""


def _reshaped(shape: Shape, batch: Any, x: V, *rest: Any) -> V:
    if shape.count(None) > 1:
        raise _UnknownError("several sizes follow it")
    return x if shape == x.shape else x.reshape(shape)


def _same(shape: Shape, batch: Any, x: V, *rest: Any) -> V:
    return x


def _permuted(shape: Shape, batch: Any, x: V, order: Sequence[int]) -> V:
    return x.permute([d % len(shape) for d in order])


def _transposed(shape: Shape, batch: Any, x: V, a: int = 0, b: int = 1) -> V:
    order = list(range(len(shape)))
    if len(shape) > 1:
        order[a], order[b] = order[b], order[a]
    return x.permute(order)


def _sliced(
    shape: Shape, batch: Any, x: V, dim: int = 0, start: int | None = None, end: int | None = None,
    step: int = 1,
) -> V:
    size = None if x.shape is None else x.shape[dim]
    whole = end is None or (size is not None and end >= size)
    return x if not start and whole and step == 1 else x.slice(dim, start, end, step)


def _selected(shape: Shape, batch: Any, x: V, dim: int, index: int) -> V:
    return x.gather(torch.tensor(index), dim)


def _picked(shape: Shape, batch: Any, x: V, dim: int, index: Any) -> V:
    return x.gather(index, dim)


def _indexed(shape: Shape, batch: Any, x: V, indices: Sequence[Any]) -> V:
    given = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    if len(given) != 1:
        raise ExportError("an index along several dimensions at once has no form in a file")
    axis, index = given[0]
    if isinstance(index, Tensor) and index.dtype is torch.bool:
        if index.dim() > 1:
            raise ExportError("a mask of several dimensions has no form in a file")
        (index,) = index.nonzero(as_tuple=True)
    return x.gather(index, axis)


def _expanded(shape: Shape, batch: Any, x: V, sizes: Sequence[Any], **rest: Any) -> V:
    assert x.shape is not None  # as of all that a move reads
    before = [1] * (len(shape) - len(x.shape)) + [*x.shape]
    for size, own in zip(sizes, before, strict=True):
        if isinstance(size, Varying) and own is not None:
            raise _UnknownError(size)
    return x if shape == x.shape else x.expand(shape, batch)


def _repeated(shape: Shape, batch: Any, x: V, repeats: Shape) -> V:
    return x.repeat(tuple(repeats), batch)


def _flipped(shape: Shape, batch: Any, x: V, dims: Sequence[int]) -> V:
    return x.flip(dims)


def _rolled(
    shape: Shape, batch: Any, x: V, shifts: Sequence[int], dims: Sequence[int] = ()
) -> V:
    for shift, dim in zip(shifts, dims, strict=True):
        size = shape[dim]
        if size is None or shift is None:
            raise _UnknownError("it rolls them")
        x = x.gather((torch.arange(size) - shift) % size, dim)
    return x


def _split(
    shape: list[tuple[int, ...]], batch: Any, x: V, size: Any, dim: int = 0
) -> tuple[V, ...]:
    sizes = [part[dim] for part in shape]
    if None in sizes:
        raise _UnknownError("it splits them")
    return tuple(x.split(sizes, dim))


def _unbound(shape: list[Shape], batch: Any, x: V, dim: int = 0) -> tuple[V, ...]:
    return tuple(x.gather(torch.tensor(i), dim) for i in range(len(shape)))


_BY_SHAPE: tuple[Callable[..., Any], ...] = (_reshaped, _same, _expanded)
"""Of whose arguments all that matters is in the shape of the result, or is looked at there."""

_FORMS: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys(
        (
            aten.view.default, aten._unsafe_view.default, aten.reshape.default,
            aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default,
        ),
        _reshaped,
    ),
    **dict.fromkeys(
        (
            aten.clone.default, aten.alias.default, aten.detach.default,
            aten.lift_fresh_copy.default,
        ),
        _same,
    ),
    aten.permute.default: _permuted,
    aten.transpose.int: _transposed,
    aten.t.default: _transposed,
    aten.slice.Tensor: _sliced,
    aten.select.int: _selected,
    aten.index_select.default: _picked,
    aten.index.Tensor: _indexed,
    aten.expand.default: _expanded,
    aten.repeat.default: _repeated,
    aten.flip.default: _flipped,
    aten.roll.default: _rolled,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    aten.unbind.int: _unbound,
}


def _shuffled(x: Tensor, groups: int) -> Tensor:
    n, c, *places = x.shape
    return x.view(n, groups, c // groups, *places).transpose(1, 2).reshape(n, c, *places)


def _space_from_depth(x: Tensor, factor: int) -> Tensor:
    *lead, c, h, w = x.shape
    apart = x.reshape(*lead, c // factor**2, factor, factor, h, w)
    axes = [*range(len(lead) + 1), *(len(lead) + i for i in (3, 1, 4, 2))]
    return apart.permute(axes).reshape(*lead, c // factor**2, h * factor, w * factor)


def _depth_from_space(x: Tensor, factor: int) -> Tensor:
    *lead, c, h, w = x.shape
    apart = x.reshape(*lead, c, h // factor, factor, w // factor, factor)
    axes = [*range(len(lead) + 1), *(len(lead) + i for i in (2, 4, 1, 3))]
    return apart.permute(axes).reshape(*lead, c * factor**2, h // factor, w // factor)


_SIMPLER: dict[Any, Callable[..., Any]] = {
    aten.channel_shuffle.default: _shuffled,
    aten.pixel_shuffle.default: _space_from_depth,
    aten.pixel_unshuffle.default: _depth_from_space,
}
"""What aten has an operator for, and files none."""
