"""Make one sum of a sum of products, so that it is rounded once.

    before   mul(a, v) ── t      mul(b, w) ── u      add(t, u) ── y
    after    sum_of_products(a, b, v, w) ── y

This is a mixed operation whose weights the input decides, as a gate's softmax does.
Left alone: a sum with another operand than products, and a product that something else reads too.
"""

from __future__ import annotations

from torch import fx

from fxquant.graph.edit import erase
from fxquant.ops.add import ADD
from fxquant.ops.mul import MUL
from fxquant.ops.sum_of_products import SUM_OF_PRODUCTS
from fxquant.pipeline import RewritePass, Stage
from fxquant.sites.flow import inputs_of, site_of


class JoinProducts(RewritePass):
    """Makes one sum of a sum of products."""

    name = "join_products"
    summary = "sums of products become one sum, rounded once"
    needs = gives = Stage.FLOAT

    def match(self, gm: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, ...] | None:
        """A sum of nothing but products."""
        site = site_of(gm, node)
        if site is None or site.op is not ADD:
            return None
        terms = inputs_of(node)
        sites = [site_of(gm, term) for term in terms]
        products = all(s is not None and s.op is MUL and not s.activation for s in sites)
        return (node, *dict.fromkeys(terms)) if products else None

    def reject(self, gm: fx.GraphModule, match: tuple[fx.Node, ...]) -> str | None:
        """Only products that nothing else reads can go."""
        node, *terms = match
        for term in terms:
            if set(term.users) != {node} or node.args.count(term) > 1:
                return f"'{term.name}' is also read elsewhere"
        return None

    def rewrite(self, gm: fx.GraphModule, match: tuple[fx.Node, ...]) -> str:
        """Read the factors of the products in place of the products."""
        node, *terms = match
        site = site_of(gm, node)
        assert site is not None
        site.op = SUM_OF_PRODUCTS
        left, right = zip(*(inputs_of(term) for term in terms), strict=True)
        node.args = (*left, *right)
        for term in terms:
            erase(term)
        return f"one sum of {len(terms)} products"
