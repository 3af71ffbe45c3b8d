"""What a function does to tensors, in the few operators that torch itself has for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx


def in_aten(
    function: Callable[..., Any], examples: Sequence[Tensor],
    simpler: Mapping[Any, Callable[..., Any]],
) -> fx.GraphModule:
    """The graph of what `function` does to tensors like the examples: shapes are those of the
    examples, and stand in the graph as numbers. `simpler` says how operators are spelled in others.
    """
    traced: fx.GraphModule = make_fx(function, decomposition_table=dict(simpler))(*examples)
    return traced


def shape_of(step: fx.Node) -> Any:
    """The shape that a node of such a graph gives, or a list of them."""
    value = step.meta["val"]
    if isinstance(value, (tuple, list)):
        return [tuple(part.shape) for part in value]
    return tuple(value.shape)
