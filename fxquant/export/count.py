"""How large each layer of an integer network is, and how much it computes for one row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, fx

from fxquant.export.walk import Like, Walk, walk
from fxquant.graph.edit import called_module, state_bytes
from fxquant.graph.nested import leaves
from fxquant.ops.moments import MomentNumbers
from fxquant.sites.integer import IntegerOp


class Counts(NamedTuple):
    """Of one row.

    `numbers`     bytes of weights, biases, multipliers and tables
    `output`      bytes of codes that it gives
    `products`    products of two codes, or of a code and a weight, that it sums up
    `roundings`   elements that it rounds or looks up
    """

    numbers: int
    output: int
    products: int
    roundings: int

    def __add__(self, other: Any) -> Counts:
        """Of both."""
        return Counts(*(a + b for a, b in zip(self, other, strict=True)))


class CountTable(dict[str, Counts]):
    """Those of each integer operator, by the name of its node; it prints as a table."""

    @property
    def total(self) -> Counts:
        """Of all."""
        return sum(self.values(), Counts(0, 0, 0, 0))

    def __str__(self) -> str:
        rows = [(name, *map("{:,}".format, counts)) for name, counts in self.items()]
        rows.append(("together", *map("{:,}".format, self.total)))
        titles = ("operator", *Counts._fields)
        first, *others = (max(map(len, column)) for column in zip(titles, *rows, strict=True))
        return "\n".join(
            "  ".join((name.ljust(first), *map(str.rjust, cells, others))).rstrip()
            for name, *cells in (titles, *rows)
        )


def count_operations(
    quantized: fx.GraphModule, example_inputs: Sequence[Any] | Tensor
) -> CountTable:
    """Size and operations of each integer operator for one row.

    Raises StageError where `quantized` is no converted network.
    """
    walked = walk(quantized, example_inputs, 1)
    return CountTable({
        node.name: count_node(walked, node)
        for node in quantized.graph.nodes
        if isinstance(called_module(quantized, node), IntegerOp)
    })


def count_node(walked: Walk, node: fx.Node) -> Counts:
    """Of the integer operator that a node calls."""
    module = called_module(walked.gm, node)
    assert isinstance(module, IntegerOp)  # asked of operators alone
    like = walked.like(node)
    elements = math.prod(size or 1 for size in like.shape)
    rounds = hasattr(module.numbers, "rounding") or hasattr(module.numbers, "table")
    return Counts(
        numbers=state_bytes(module),
        output=elements * like.dtype.itemsize,
        products=_products(walked, node, module, elements),
        roundings=elements if rounds else 0,
    )


def _products(walked: Walk, node: fx.Node, module: IntegerOp, elements: int) -> int:
    shapes = [like.shape for like in map(walked.of, leaves(node.args)) if isinstance(like, Like)]
    weight: Tensor | None = getattr(module.numbers, "weight", None)
    if weight is not None and module.op.weight_axis == 1:  # each input meets the whole window
        return math.prod(size or 1 for size in shapes[0]) * weight[0].numel()
    if weight is not None:
        return elements * weight[0].numel()
    if module.op.name == "matmul":
        return elements * int(shapes[0][-1] or 1)
    if module.op.name in ("mul", "sum_of_products"):
        return elements * max(len(shapes) // 2, 1)
    return 2 * elements if isinstance(module.numbers, MomentNumbers) else 0
