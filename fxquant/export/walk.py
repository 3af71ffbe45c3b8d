"""What ways out have in common: the integer network node by node, and the shapes of its values.

Shapes are those of one run, or of two runs with batches of two sizes: what differs is the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from fxquant.errors import ConfigError, ExportError, StageError
from fxquant.graph.nested import leaves, mapped
from fxquant.graph.place import describe
from fxquant.graph.values import assertions, scalars
from fxquant.pipeline import Stage, stage_of

_BATCHES = (2, 3)


@dataclass(frozen=True)
class Like:
    """What is known of a tensor: None in its shape stands for a batch of any size."""

    shape: tuple[int | None, ...]
    dtype: torch.dtype


class Walk(NamedTuple):
    """An integer network and what its nodes give.

    `runs`    for each run, what every node gave: `Like`s in the place of tensors
    `numbers` the nodes that give numbers, or check them
    """

    gm: fx.GraphModule
    runs: tuple[dict[fx.Node, Any], ...]
    numbers: frozenset[fx.Node]

    def of(self, node: fx.Node) -> Any:
        """What a node gives, None in the place of a number or size that follows the batch."""
        return merged([run[node] for run in self.runs])

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
        ExportError: it does not run on other batch sizes than that of the example, and `batch` is
            None.
    """
    if not isinstance(quantized, fx.GraphModule) or stage_of(quantized) is not Stage.INTEGER:
        raise StageError(
            "what is exported is an integer network.\nWhat to do: hand it what `convert` gives."
        )
    if not isinstance(example_inputs, (Tensor, list, tuple)):
        raise ConfigError(
            "example_inputs are the arguments of one call, as a list, or its only tensor; got "
            f"{type(example_inputs).__name__}"
        )
    inputs = [example_inputs] if isinstance(example_inputs, Tensor) else list(example_inputs)
    rows = [len(x) for x in leaves(inputs) if isinstance(x, Tensor) and x.dim()]
    if not rows or not rows[0]:
        raise ConfigError("example_inputs are the arguments of one call; they hold no row")
    if batch is not None and (type(batch) is not int or batch < 1):
        raise ConfigError(f"batch is the size of a batch, or None for any, got {batch!r}")
    sizes = _BATCHES if batch is None else (batch,)
    runs = []
    for size in sizes:
        recorder = _Recorder(quantized)
        resized = mapped(partial(_resized, rows=rows[0], size=size), inputs)
        try:
            with torch.no_grad():
                recorder.run(*resized)
        except Exception as error:
            raise ExportError(
                f"the network does not run on a batch of {size}: {error}\n"
                "What to do: fix the size of its batches, batch=…, or check the example inputs."
            ) from error
        runs.append(recorder.found)
    graph = quantized.graph
    return Walk(quantized, tuple(runs), frozenset(scalars(graph) | assertions(graph)))


class _Recorder(fx.Interpreter):
    """Keeps what every node gives: of computed tensors the shape and the type, constants whole."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.found: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.found[n] = result if n.op == "get_attr" else mapped(_like, result)
        return result


def _like(value: Any) -> Any:
    return Like(tuple(value.shape), value.dtype) if isinstance(value, Tensor) else value


def _resized(value: Any, rows: int, size: int) -> Any:
    """A tensor with so many rows, if it has as many as the first input; else it is no batch."""
    if isinstance(value, Tensor) and value.is_meta:
        value = torch.zeros_like(value, device="cpu")
    if not isinstance(value, Tensor) or value.shape[:1] != (rows,):
        return value
    return value[torch.arange(size) % rows]


def merged(found: Sequence[Any]) -> Any:
    """What several runs gave, as one: None where they differ."""
    first = found[0]
    if isinstance(first, Tensor):
        return first
    if isinstance(first, Like):
        shapes = zip(*(like.shape for like in found), strict=True)
        return Like(tuple(s[0] if len(set(s)) == 1 else None for s in shapes), first.dtype)
    if isinstance(first, (tuple, list)):
        parts = [merged(part) for part in zip(*found, strict=True)]
        return tuple(parts) if isinstance(first, tuple) else parts
    if isinstance(first, dict):
        return {key: merged([each[key] for each in found]) for key in first}
    if isinstance(first, slice):
        ends = [(s.start, s.stop, s.step) for s in found]
        return slice(*merged(ends))
    return first if all(value == first for value in found) else None
