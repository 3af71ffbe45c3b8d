"""Take a product with a number that parameters decide for a term of a weighted sum.

    before   w = softmax(alpha)[i]     mul(x, w) ── y
    after    w = softmax(alpha)[i]     weighted_sum(x, factors=(w,)) ── y

Only the parameters decide such a number, so that in integers it goes into the multiplier: it costs
no rounding. join_adds then makes one sum of the terms.
Left alone, with the reason: factors of more than one element, which scale_by_parameters takes.
Those that the input decides are join_products' affair.
"""

from __future__ import annotations

import math

from torch import Tensor, fx

from fxquant.graph.edit import erase, insert_site, set_source, source_of
from fxquant.graph.held import held
from fxquant.graph.place import copy_place, example_of, rank_of
from fxquant.ops.mul import MUL
from fxquant.ops.weighted_sum import WEIGHTED_SUM
from fxquant.pipeline import Log, Pass, Stage
from fxquant.sites.call_site import CallSite
from fxquant.sites.flow import inputs_of, sites


class WeighTerms(Pass):
    """Takes a product with a number that parameters decide for a term of a weighted sum."""

    name = "weigh_terms"
    summary = "products with numbers that parameters decide become terms of weighted sums"
    needs = gives = Stage.FLOAT

    def edit(self, gm: fx.GraphModule, log: Log) -> None:
        """Visit every product once, in order."""
        held_nodes = held(gm)
        for node, site in sites(gm):
            factors = [x for x in inputs_of(node) if x in held_nodes]
            if site.op is not MUL or site.activation is not None or len(factors) != 1:
                continue
            (factor,) = factors
            (x,) = (value for value in inputs_of(node) if value is not factor)
            reason = _why_not_number(factor, x)
            if reason is not None:
                log.leave(node, reason)
            else:
                _replace(gm, node, x, factor)
                log.change(factor, "weighs a term of a sum")


def _why_not_number(factor: fx.Node, x: fx.Node) -> str | None:
    """Why `factor` is no number that leaves the shape of `x`, as a sentence, or None if it is."""
    example = example_of(factor)
    if not isinstance(example, Tensor):
        return f"the shape of '{factor.name}' is not known (pass example_inputs to make it known)"
    if math.prod(example.shape) != 1:
        return f"'{factor.name}' has more than one element"
    if example.dim() > (rank_of(x) or 0):
        return f"'{factor.name}' may have more dimensions than '{x.name}'"
    return None


def _replace(gm: fx.GraphModule, node: fx.Node, x: fx.Node, factor: fx.Node) -> None:
    with gm.graph.inserting_before(node):
        term = insert_site(gm, node.name, CallSite(WEIGHTED_SUM), (x,), {"factors": (factor,)})
    copy_place(node, term)
    set_source(gm, term, source_of(gm, node))
    name = node.name
    erase(node, term)
    term.name = name  # free again: the node that had it is gone
