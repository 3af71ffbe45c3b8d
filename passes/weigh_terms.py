"""Take a product with a number that parameters decide for a term of a weighted sum.

    before   w = softmax(alpha)[i]     mul(x, w) ── y
    after    w = softmax(alpha)[i]     weighted_sum(x, factors=(w,)) ── y

Only the parameters decide such a number, so that in integers it goes into the multiplier: it costs
no rounding. join_adds then makes one sum of the terms.
Left alone: factors of more than one element, and those that the input decides.
"""

from __future__ import annotations

import math

from torch import Tensor, fx

from fxquant.graph.edit import call_site, erase
from fxquant.graph.held import held
from fxquant.graph.place import copy_place, example_of, rank_of
from fxquant.ops.flow import site_of
from fxquant.ops.mul import MUL
from fxquant.ops.site import CallSite
from fxquant.ops.weighted_sum import WEIGHTED_SUM
from fxquant.pipeline import Log, Pass, Stage


class WeighTerms(Pass):
    """Takes a product with a number that parameters decide for a term of a weighted sum."""

    name = "weigh_terms"
    summary = "products with numbers that parameters decide become terms of weighted sums"
    needs = gives = Stage.FLOAT

    def edit(self, gm: fx.GraphModule, log: Log) -> None:
        """Visit every product once, in order."""
        held_nodes = held(gm)
        for node in list(gm.graph.nodes):
            site = site_of(gm, node)
            if site is None or site.op is not MUL or site.activation is not None:
                continue
            for x, factor in (node.args, node.args[::-1]):
                if factor in held_nodes and x not in held_nodes and _is_number(factor, x):
                    _replace(gm, node, x, factor)
                    log.change(factor, "weighs a term of a sum")
                    break


def _is_number(factor: fx.Node, x: fx.Node) -> bool:
    """Whether `factor` has one element, and multiplying by it leaves the shape of `x`."""
    example = example_of(factor)
    if not isinstance(example, Tensor) or math.prod(example.shape) != 1:
        return False
    return example.dim() <= (rank_of(x) or 0)


def _replace(gm: fx.GraphModule, node: fx.Node, x: fx.Node, factor: fx.Node) -> None:
    with gm.graph.inserting_before(node):
        term = call_site(gm, node.name, CallSite(WEIGHTED_SUM), (x,), {"factors": (factor,)})
    copy_place(node, term)
    name = node.name
    erase(node, term)
    term.name = name  # free again: the node that had it is gone
