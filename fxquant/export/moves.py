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
from fxquant.export.walk import Walk, merged, zeros
from fxquant.forms.movable import Movable, Shape
from fxquant.forms.onnx import Value as OnnxValue
from fxquant.graph.aten import in_aten, shape_of
from fxquant.graph.edit import map_nodes, module_at, nodes_in
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
    runs = [_traced(walk.gm, node, tensors, run) for run in walk.runs]
    if len({tuple(str(n.target) for n in run.graph.nodes) for run in runs}) > 1:
        raise ExportError(
            f"{describe(node)} moves elements in another way where a batch is larger.\n"
            "What to do: fix its size, batch=…"
        )
    env: dict[fx.Node, Any] = {}
    inputs = iter(tensors)
    for steps in zip(*(run.graph.nodes for run in runs), strict=True):
        step = steps[0]
        if step.op == "placeholder":
            env[step] = values[next(inputs)]
        elif step.op == "get_attr":
            env[step] = graph.value(getattr(runs[0], str(step.target)))
        elif step.op == "output":
            result: Any = map_nodes(step.args[0], env.__getitem__)
            return tuple(result) if isinstance(result, (tuple, list)) else result
        else:
            env[step] = _step(node, steps, env, batch)
    raise AssertionError("a graph ends with its output")


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
    node: fx.Node, steps: Sequence[fx.Node], env: Mapping[fx.Node, Any], batch: Any
) -> Any:
    """One operator of aten, from the nodes that stand for it in each run."""
    args = merged([map_nodes((*s.args,), lambda n: n.name) for s in steps])
    args = tuple(env[a] if isinstance(a, fx.Node) else b
                 for a, b in zip(steps[0].args, args, strict=True))
    shape = merged([shape_of(s) for s in steps])
    if steps[0].target is operator.getitem:
        return args[0][args[1]]
    form = _FORMS.get(steps[0].target)
    if form is None:
        raise ExportError(f"{describe(node)}: {steps[0].target} has no form in a file")
    result = form(shape, batch, *_with_lists(args, steps[0].args, env))
    parts = result if isinstance(result, tuple) else (result,)
    for part, size in zip(parts, shape if isinstance(shape, list) else [shape], strict=True):
        if isinstance(part, OnnxValue):
            part.shape = size
    return result


def _with_lists(args: tuple[Any, ...], raw: Sequence[Any], env: Mapping[fx.Node, Any]) -> list[Any]:
    """Lists of nodes (the indices of an index) as lists of values."""
    return [
        [env[n] if isinstance(n, fx.Node) else n for n in r]
        if isinstance(r, (list, tuple)) and any(isinstance(n, fx.Node) for n in r) else a
        for a, r in zip(args, raw, strict=True)
    ]


def _reshaped(shape: Shape, batch: Any, x: V, *rest: Any) -> V:
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
    return x if x.shape == shape and step == 1 else x.slice(dim, start, end, step)


def _selected(shape: Shape, batch: Any, x: V, dim: int, index: int) -> V:
    return x.gather(torch.tensor(index), dim)


def _picked(shape: Shape, batch: Any, x: V, dim: int, index: Any) -> V:
    return x.gather(index, dim)


def _indexed(shape: Shape, batch: Any, x: V, indices: Sequence[Any]) -> V:
    given = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    if len(given) != 1:
        raise ExportError("an index along several dimensions at once has no form in a file")
    axis, index = given[0]
    return x.gather(index, axis)


def _expanded(shape: Shape, batch: Any, x: V, sizes: Any, **rest: Any) -> V:
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
        if size is None:
            raise ExportError("a roll along the batch has no form in a file")
        x = x.gather((torch.arange(size) - shift) % size, dim)
    return x


def _split(
    shape: list[tuple[int, ...]], batch: Any, x: V, size: Any, dim: int = 0
) -> tuple[V, ...]:
    return tuple(x.split([part[dim] for part in shape], dim))


def _unbound(shape: list[Shape], batch: Any, x: V, dim: int = 0) -> tuple[V, ...]:
    return tuple(x.gather(torch.tensor(i), dim) for i in range(len(shape)))


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
