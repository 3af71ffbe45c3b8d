"""Make one sum of a chain of sums, so that it is rounded once.

    before   a + b ── t + c ── y
    after    add(a, b, c) ── y

Left alone: a partial sum that something else reads too.
"""

from __future__ import annotations

from torch import fx

from fxquant.graph.edit import erase
from fxquant.ops.add import ADD
from fxquant.ops.flow import inputs_of, site_of
from fxquant.pipeline import RewritePass, Stage


class JoinAdds(RewritePass):
    """Makes one sum of a chain of sums."""

    name = "join_adds"
    summary = "chains of sums become one sum, rounded once"
    needs = gives = Stage.FLOAT

    def match(self, gm: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, ...] | None:
        """A sum, and the sums among its operands."""
        if not _is_add(gm, node):
            return None
        partial = [x for x in inputs_of(node) if _is_add(gm, x)]
        return (node, *partial) if partial else None

    def reject(self, gm: fx.GraphModule, match: tuple[fx.Node, ...]) -> str | None:
        """Only a partial sum that nothing else reads can go."""
        node, *partial = match
        if any(set(x.users) == {node} and node.args.count(x) == 1 for x in partial):
            return None
        return f"'{partial[0].name}' is also read elsewhere"

    def rewrite(self, gm: fx.GraphModule, match: tuple[fx.Node, ...]) -> str:
        """Put the operands of each partial sum in its place."""
        node, *partial = match
        joined = [x for x in partial if set(x.users) == {node} and node.args.count(x) == 1]
        operands: list[fx.Node] = []
        for x in inputs_of(node):
            operands.extend(inputs_of(x) if x in joined else [x])
        node.args = tuple(operands)
        for x in joined:
            erase(x)
        return f"one sum of {len(operands)} operands"


def _is_add(gm: fx.GraphModule, node: fx.Node) -> bool:
    site = site_of(gm, node)
    return site is not None and site.op is ADD and site.activation is None
