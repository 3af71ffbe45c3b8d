"""Make one sum of a chain of sums, so that it is rounded once.

    before   a + b ── t + c ── y                    w·a ── t      v·b + c ── u      t + u ── y
    after    add(a, b, c) ── y                      weighted_sum(a, b, c, factors=(w, v, 1)) ── y

Left alone: a partial sum that something else reads too.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from fxquant.graph.edit import erase
from fxquant.ops.add import ADD
from fxquant.ops.weighted_sum import WEIGHTED_SUM
from fxquant.pipeline import RewritePass, Stage
from fxquant.sites.flow import inputs_of, site_of


class JoinAdds(RewritePass):
    """Makes one sum of a chain of sums."""

    name = "join_adds"
    summary = "chains of sums become one sum, rounded once"
    needs = gives = Stage.FLOAT

    def match(self, gm: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, ...] | None:
        """A sum, and the sums among its operands."""
        if not _is_sum(gm, node) or any(factor != 1.0 for factor in _factors(node)):
            return None
        partial = [x for x in inputs_of(node) if _is_sum(gm, x)]
        return (node, *partial) if partial else None

    def reject(self, gm: fx.GraphModule, match: tuple[fx.Node, ...]) -> str | None:
        """Only a partial sum that nothing else reads can go."""
        node, *partial = match
        if any(_joins(x, node) for x in partial):
            return None
        return f"'{partial[0].name}' is also read elsewhere"

    def rewrite(self, gm: fx.GraphModule, match: tuple[fx.Node, ...]) -> str:
        """Put the operands of each partial sum in its place."""
        node, *partial = match
        joined = [x for x in partial if _joins(x, node)]
        operands: list[fx.Node] = []
        factors: list[Any] = []
        for x in inputs_of(node):
            operands.extend(inputs_of(x) if x in joined else [x])
            factors.extend(_factors(x) if x in joined else [1.0])
        node.args = tuple(operands)
        if any(factor != 1.0 for factor in factors):
            site = site_of(gm, node)
            assert site is not None
            site.op = WEIGHTED_SUM
            node.kwargs = {"factors": tuple(factors)}
        for x in joined:
            erase(x)
        return f"one sum of {len(operands)} operands"


def _is_sum(gm: fx.GraphModule, node: fx.Node) -> bool:
    site = site_of(gm, node)
    return site is not None and site.op in (ADD, WEIGHTED_SUM) and site.activation is None


def _joins(partial: fx.Node, node: fx.Node) -> bool:
    return set(partial.users) == {node} and node.args.count(partial) == 1


def _factors(node: fx.Node) -> tuple[Any, ...]:
    """What each operand of a sum is multiplied by: a number, or a node."""
    factors = node.kwargs.get("factors", (1.0,) * len(node.args))
    assert isinstance(factors, (tuple, list))
    return tuple(factors)
