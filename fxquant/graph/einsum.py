"""`torch.einsum` as one matrix product, where the equation is one.

    before   einsum("bihd, bjhd -> bhij", q, k)
    after    matmul(q as b h i d, k as b h d j)

Letters that both operands and the result have count batches; those that the result lacks are
summed. Left alone: other numbers of operands, a letter twice in one operand, and letters of one
operand alone that the result lacks.
"""

from __future__ import annotations

import string
from typing import Any, NamedTuple

from fxquant.graph.attention import NotSpelledOutError, like


class Equation(NamedTuple):
    """The letters of both operands and of the result, and what becomes of each."""

    left: str
    right: str
    result: str
    batch: str
    rows: str
    summed: str
    columns: str


def einsum(equation: str, *operands: Any) -> Any:
    """A product of two operands as `matmul`: [batch, rows, summed]·[batch, summed, columns]."""
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = tuple(operands[0])
    if not isinstance(equation, str) or len(operands) != 2:
        raise NotSpelledOutError("an einsum of other than two operands")
    left, right = operands
    e = read_equation(equation, lambda i: like(operands[i]).dim())
    a = _grouped(_ordered(left, e.left, e.batch + e.rows + e.summed), e.batch, e.rows, e.summed)
    b = _grouped(
        _ordered(right, e.right, e.batch + e.summed + e.columns), e.batch, e.summed, e.columns
    )
    y = _several(a @ b, len(e.batch) + 1, e.columns, right, e.right)
    y = _several(y, len(e.batch), e.rows, left, e.left)
    return _ordered(y, e.batch + e.rows + e.columns, e.result)


def read_equation(equation: str, rank: Any) -> Equation:
    """The equation of a matrix product; `rank(i)` is asked where operand i has an ellipsis."""
    text = equation.replace(" ", "")
    inputs, arrow, result = text.partition("->")
    sides = inputs.split(",")
    if len(sides) != 2:
        raise NotSpelledOutError(f"an einsum over {len(sides)} operands")
    if not arrow:  # what stands once, in alphabetical order
        once = sorted(c for c in set(inputs) - set(",.") if inputs.count(c) == 1)
        result = ("..." if "..." in inputs else "") + "".join(once)
    free = [c for c in string.ascii_letters if c not in text]
    counts = [rank(i) - len(side) + 3 for i, side in enumerate(sides) if "..." in side]
    if len(set(counts)) > 1:
        raise NotSpelledOutError("an einsum whose operands have ellipses of other lengths")
    ellipsis = "".join(free[: counts[0] if counts else 0])
    left, right, result = (part.replace("...", ellipsis) for part in (*sides, result))
    for part in (left, right, result):
        if len(set(part)) < len(part):
            raise NotSpelledOutError(f"an einsum with a letter twice in '{part}'")
    alone = (set(left) ^ set(right)) - set(result)
    if alone or set(result) - set(left) - set(right):
        raise NotSpelledOutError(f"an einsum that is no matrix product, '{equation}'")
    return Equation(
        left,
        right,
        result,
        batch="".join(c for c in left if c in right and c in result),
        rows="".join(c for c in left if c not in right),
        summed="".join(c for c in left if c in right and c not in result),
        columns="".join(c for c in right if c not in left),
    )


def _ordered(x: Any, letters: str, wanted: str) -> Any:
    """`x`, whose dimensions are `letters`, with its dimensions as `wanted`."""
    return x if letters == wanted else x.permute([letters.index(c) for c in wanted])


def _grouped(x: Any, batch: str, first: str, second: str) -> Any:
    """Two groups of letters behind the batches as one dimension each."""
    x = _one(x, len(batch) + len(first), len(second))
    return _one(x, len(batch), len(first))


def _one(x: Any, at: int, count: int) -> Any:
    if count == 1:
        return x
    return x.unsqueeze(at) if count == 0 else x.flatten(at, at + count - 1)


def _several(x: Any, at: int, letters: str, source: Any, of_source: str) -> Any:
    """A dimension as the `letters` that it was made of, as long as they are in `source`."""
    if len(letters) == 1:
        return x
    sizes = tuple(source.size(of_source.index(c)) for c in letters)
    return x.unflatten(at, sizes) if letters else x.squeeze(at)
