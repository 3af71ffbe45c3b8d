"""What ways out have in common: the integer network node by node, and the shapes of its values.

Shapes are those of one run, or of runs with batches of several sizes: what differs follows the
batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, fx

from fxquant.errors import ConfigError, ExportError, StageError
from fxquant.export.counts import continued, follows_otherwise, numbers_beyond
from fxquant.graph.nested import leaves, mapped
from fxquant.graph.place import describe
from fxquant.graph.values import assertions, scalars
from fxquant.pipeline import Stage, stage_of

V = TypeVar("V")

_BATCHES = (2, 3, 6)  # 6 tells half of the rows, or all but four at most, from a number


@dataclass(frozen=True)
class Like:
    """What is known of a tensor: None in its shape stands for a size that follows the batch."""

    shape: tuple[int | None, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Varying:
    """In the place of a number that differs from run to run and is not that of the rows."""

    found: tuple[Any, ...]

    def __str__(self) -> str:
        runs = zip(self.found, _BATCHES, strict=True)
        return ", ".join(f"{value} of {rows} rows" for value, rows in runs)


class Walk(NamedTuple):
    """An integer network and what its nodes give.

    `runs`    for each run, what every node gave: `Like`s in the place of tensors
    `numbers` the nodes that give numbers, or check them
    `beyond`  by the rows of other batches, what numbers are there; nothing if they have one size
    """

    gm: fx.GraphModule
    runs: tuple[dict[fx.Node, Any], ...]
    numbers: frozenset[fx.Node]
    beyond: Mapping[int, Mapping[fx.Node, Any]]

    def of(self, node: fx.Node) -> Any:
        """What a node gives, None in the place of the number of rows, and of sizes that follow it.

        Raises ExportError for a number that follows it in another way.
        """
        found = merged([run[node] for run in self.runs])
        if any(isinstance(part, Varying) for part in leaves(found)):
            raise follows_otherwise(node, found)
        return found

    def shape_beyond(self, node: fx.Node, rows: int) -> Any:
        """The shape of the tensor that a node gives of so many rows, if it goes on in a line; None
        where it does not, or where there is no tensor.
        """
        likes = [run[node] for run in self.runs]
        if not isinstance(likes[0], Like):
            return None
        return continued([like.shape for like in likes], _BATCHES, rows)

    def setting(self, node: fx.Node) -> Any:
        """A number that an operator is called with.

        Raises ExportError for one that follows the batch.
        """
        found = [run[node] for run in self.runs]
        if any(value != found[0] for value in found):
            raise ExportError(
                f"{describe(node)} follows the batch, and an operator computes by it: "
                f"{Varying(tuple(found))}.\nWhat to do: fix the size of batches, batch=…"
            )
        return found[0]

    def like(self, node: fx.Node) -> Like:
        """The shape and the type of the tensor that a node gives."""
        found = self.of(node)
        if not isinstance(found, Like):
            raise ExportError(f"{describe(node)} gives no tensor")
        return found


def walk(quantized: fx.GraphModule, example_inputs: Any, batch: int | None) -> Walk:
    """Run a converted network on inputs like those, of which only shapes and types matter.

    Raises:
        StageError: `quantized` did not come from convert.
        ConfigError: `example_inputs` are no arguments, or `batch` is no size.
        ExportError: it does not run on `batch` rows, or, where `batch` is None, on any number of
            them; or a number in it then leaves the line that it shows in the runs.
    """
    if not isinstance(quantized, fx.GraphModule) or stage_of(quantized) is not Stage.INTEGER:
        raise StageError(
            "what is exported is an integer network.\nWhat to do: hand it what `convert` gives."
        )
    if batch is not None and (type(batch) is not int or batch < 1):
        raise ConfigError(f"batch is the size of a batch, or None for any, got {batch!r}")
    inputs, rows = _inputs_and_rows(example_inputs)
    _refuse_more_than_it_takes(quantized.graph, inputs)
    runs = []
    for size in _BATCHES if batch is None else (batch,):
        recorder = _Recorder(quantized)
        resized = mapped(partial(_resized, rows=rows, size=size), inputs)
        try:
            with torch.no_grad():
                recorder.run(*resized)
        except Exception as error:
            said = str(error).partition("\n")[0]  # fx adds its graph and a traceback
            shapes = [tuple(x.shape) for x in leaves(resized) if isinstance(x, Tensor)]
            raise ExportError(
                f"the network does not run on a batch of {size}, inputs of {shapes}: {said}\n"
                "What to do: give example inputs that it takes (of a command: --size and "
                "--channels), or fix the size of its batches, batch=…"
            ) from error
        runs.append(recorder.found)
    graph = quantized.graph
    beyond = numbers_beyond(graph, runs, _BATCHES) if batch is None else {}
    return Walk(quantized, tuple(runs), frozenset(scalars(graph) | assertions(graph)), beyond)


def _inputs_and_rows(example_inputs: Any) -> tuple[list[Any], int]:
    """The arguments of a call, and how many rows the first tensor among them has."""
    if not isinstance(example_inputs, (Tensor, list, tuple)):
        raise ConfigError(
            "example_inputs are the arguments of one call, as a list, or its only tensor; got "
            f"{type(example_inputs).__name__}"
        )
    inputs = [example_inputs] if isinstance(example_inputs, Tensor) else list(example_inputs)
    tensors = [x for x in leaves(inputs) if isinstance(x, Tensor)]
    for x in tensors:
        if x.layout is not torch.strided:
            raise ConfigError(
                f"example_inputs hold a tensor of layout {x.layout}, and no format has one.\n"
                "What to do: hand it x.to_dense()."
            )
    rows = [len(x) for x in tensors if x.dim()]
    if not rows or not rows[0]:
        raise ConfigError("example_inputs are the arguments of one call; they hold no row")
    return inputs, rows[0]


def _refuse_more_than_it_takes(graph: fx.Graph, inputs: list[Any]) -> None:
    """fx would leave out what no placeholder takes."""
    taken = [str(node.target) for node in graph.nodes if node.op == "placeholder"]
    if len(inputs) > len(taken) and not any(name.startswith("*") for name in taken):
        raise ConfigError(
            f"example_inputs are {len(inputs)} arguments, and the network takes {len(taken)}: "
            f"{', '.join(taken)}.\nWhat to do: hand it those of one call."
        )


class _Recorder(fx.Interpreter):
    """Keeps what every node gives: of computed tensors the shape and the type, constants whole."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.found: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.found[n] = result if n.op == "get_attr" else mapped(_like, result)
        return result


class _Keeper(fx.Interpreter):
    """Keeps the tensors of every node."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.found: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and n.op not in ("placeholder", "output"):
            self.found[n.name] = result
        return result


def values_of(
    gm: fx.GraphModule, arguments: Sequence[Any]
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """What the nodes of the network give, by name, and what comes out."""
    keeper = _Keeper(gm)
    with torch.no_grad():
        result = keeper.run(*arguments)
    return keeper.found, [x for x in leaves(result) if isinstance(x, Tensor)]


def _like(value: Any) -> Any:
    return Like(tuple(value.shape), value.dtype) if isinstance(value, Tensor) else value


def _resized(value: Any, rows: int, size: int) -> Any:
    """A tensor with so many rows, if it has as many as the first input; else it is no batch."""
    if isinstance(value, Tensor) and value.is_meta:
        value = torch.zeros_like(value, device="cpu")
    if not isinstance(value, Tensor) or value.shape[:1] != (rows,):
        return value
    return value[torch.arange(size) % rows]


def zeros(value: Any) -> Any:
    """A tensor like one of one run; whatever else a node gave as it is."""
    if not isinstance(value, Like):
        return value
    shape: Any = value.shape  # of one run: no batch of any size
    return torch.zeros(shape, dtype=value.dtype)


def one_shape(shapes: Sequence[Sequence[int | None]]) -> tuple[int | None, ...]:
    """The shape of a tensor in the runs, as one: None for a size that follows the batch."""
    sizes = zip(*shapes, strict=True)
    return tuple(size[0] if len(set(size)) == 1 else None for size in sizes)


def merged(found: Sequence[Any]) -> Any:
    """What the runs gave, as one: where they differ, None for the number of rows and for sizes of
    tensors, else `Varying`.
    """
    first = found[0]
    if isinstance(first, Tensor):
        return first
    if isinstance(first, Like):
        return Like(one_shape([like.shape for like in found]), first.dtype)
    if isinstance(first, (tuple, list)):
        if len({len(each) for each in found}) > 1:
            return Varying(tuple(map(len, found)))
        parts = [merged(part) for part in zip(*found, strict=True)]
        return tuple(parts) if isinstance(first, tuple) else parts
    if isinstance(first, dict):
        return {key: merged([each[key] for each in found]) for key in first}
    if isinstance(first, slice):
        ends = [(s.start, s.stop, s.step) for s in found]
        return slice(*merged(ends))
    if all(value == first for value in found):
        return first
    return None if tuple(found) == _BATCHES else Varying(tuple(found))


# ------------------------------------------------------------------------ what is written


def taken_in(like: Any, name: str, tensor: Callable[[str, Like], Any]) -> Any:
    """What comes in under a name: `tensor(name, like)` of every tensor in it; None for a number,
    which the examples have fixed.
    """
    if isinstance(like, Like):
        return tensor(name, like)
    if isinstance(like, (tuple, list)):
        return tuple(taken_in(part, f"{name}_{i}", tensor) for i, part in enumerate(like))
    if isinstance(like, dict):
        return {key: taken_in(part, f"{name}_{key}", tensor) for key, part in like.items()}
    return None


def only_value(node: fx.Node, values: Mapping[fx.Node, Any], kind: type[V]) -> V:
    """The one value, of this kind, that a node reads.

    Raises ExportError where it reads several.
    """
    found = values[node.all_input_nodes[0]]
    if not isinstance(found, kind):
        raise ExportError(f"{describe(node)} reads several tensors at once")
    return found


def has_no_form(
    walk: Walk, node: fx.Node, values: Mapping[fx.Node, Any], format: str
) -> ExportError:
    """What is wrong with a node that is no operator of ours and moves nothing."""
    if not set(node.all_input_nodes) & values.keys():
        return ExportError(f"{describe(node)} is computed from sizes: {walk.of(node)}")
    return ExportError(
        f"{describe(node)} has no form in {format}: it computes in float, between integers.\n"
        "What to do: convert the network without keep_float."
    )
