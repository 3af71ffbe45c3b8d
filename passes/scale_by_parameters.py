"""Take a product with numbers that parameters decide for a scale.

    before   g = exp(temperature)     mul(x, g) ── y
    after    g = exp(temperature)     scale(x, factors=g) ── y

Only the parameters decide such numbers (LayerScale's, one a channel; a temperature for each head),
so that in integers they go into the multipliers: they cost no rounding.
Left alone: what weigh_terms and join_products have made terms of a sum.
"""

from __future__ import annotations

from torch import fx

from fxquant.graph.held import held
from fxquant.ops.mul import MUL
from fxquant.ops.scale import SCALE
from fxquant.pipeline import Log, Pass, Stage
from fxquant.sites.flow import inputs_of, sites


class ScaleByParameters(Pass):
    """Takes a product with numbers that parameters decide for a scale."""

    name = "scale_by_parameters"
    summary = "products with what parameters decide go into multipliers"
    needs = gives = Stage.FLOAT

    def edit(self, gm: fx.GraphModule, log: Log) -> None:
        """Visit every product once, in order."""
        constants = held(gm)
        for node, site in sites(gm):
            if site.op is not MUL or site.activation is not None:
                continue
            a, b = inputs_of(node)
            if (a in constants) is (b in constants):
                continue
            x, factors = (b, a) if a in constants else (a, b)
            site.op = SCALE
            node.args, node.kwargs = (x,), {"factors": factors}
            log.change(node, f"scales by '{factors.name}'")
