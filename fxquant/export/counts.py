"""Numbers that follow the batch: what they are in batches of other sizes than were run.

    x[: x.shape[0] - 1]             n - 1 of any n: a line
    x[: 9 * x.shape[0] // 10]       n - 1 of 2, 3 and 6, but 9 of 11: refused
    x.shape[0] > 8                  False of 2, 3 and 6, but True of 9: refused

Shapes are taken to go on in a line, and arithmetic on them is done again: that needs no tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx

from fxquant.errors import ExportError
from fxquant.graph.edit import map_nodes
from fxquant.graph.place import describe
from fxquant.graph.values import is_query, scalars

_OTHERS = (*range(1, 131), *(2**bits + more for bits in range(8, 17) for more in (-1, 0, 1)))
"""Rows for which numbers are computed: whatever is small, and around powers of two."""


def numbers_beyond(
    graph: fx.Graph, runs: Sequence[Mapping[fx.Node, Any]], rows: Sequence[int]
) -> dict[int, dict[fx.Node, Any]]:
    """What the numbers of a graph are in batches of other sizes than those that were run, of so
    many rows each; None where that is not known.

    Raises:
        ExportError: a number lies on a line in the runs, and leaves it; names both, and the rows.
    """
    numbers = scalars(graph)
    computed = [node for node in graph.nodes if node in numbers]
    beyond: dict[int, dict[fx.Node, Any]] = {}
    for size in _OTHERS:
        values = beyond[size] = {}
        for node in computed:
            found = [run[node] for run in runs]
            expected = continued(found, rows, size)
            values[node] = expected if is_query(node) else _value(node, values, found[0])
            if None not in (expected, values[node]) and values[node] != expected:
                raise follows_otherwise(
                    node, f"{values[node]} of {size} rows, {found[-1]} of {rows[-1]}"
                )
    return beyond


def follows_otherwise(node: fx.Node, found: object) -> ExportError:
    """What is wrong with a node that gives what was `found`, in batches of several sizes."""
    return ExportError(
        f"{describe(node)} follows the batch otherwise than one for one: {found}.\n"
        "What to do: fix the size of batches, batch=…"
    )


def _value(node: fx.Node, values: Mapping[fx.Node, Any], held: Any) -> Any:
    """A number `held`, or computed from others; None where they are unknown, or give none."""
    if node.op == "get_attr":
        return held
    if any(values[read] is None for read in node.all_input_nodes):
        return None
    function: Any = node.target
    args, kwargs = map_nodes((node.args, node.kwargs), values.__getitem__)
    try:
        return function(*args, **kwargs)
    except (ArithmeticError, LookupError, ValueError, TypeError):  # such a batch has no such number
        return None


def continued(found: Sequence[Any], rows: Sequence[int], size: int) -> Any:
    """What whole numbers become for `size` rows on the line through those of the runs; None where
    they lie on none.
    """
    first = found[0]
    if isinstance(first, (tuple, list)) and len({*map(len, found)}) == 1:
        parts = [continued(part, rows, size) for part in zip(*found, strict=True)]
        return None if None in parts else tuple(parts)
    if all(value == first for value in found):
        return first
    if not all(isinstance(value, int) for value in found):
        return None
    slope, rest = divmod(found[1] - first, rows[1] - rows[0])
    start = first - slope * rows[0]
    on_it = all(start + slope * n == value for n, value in zip(rows, found, strict=True))
    return start + slope * size if on_it and not rest else None
