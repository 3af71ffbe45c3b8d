"""Replace every quantized layer by one that holds the integers of its weight.

    before   x ── conv(fq(w)) ── relu ── y
    after    x ── conv(w_q·s) ── relu ── y     w_q int8, all else as it was in eval()

The codes are those that eval() computes with, made by the same function. What only training does is
dropped.
"""

from __future__ import annotations

import torch
from torch import fx

from fxquant.graph.edit import called_module, map_nodes, replace_site
from fxquant.graph.eval_only import drop_training, erase_dead
from fxquant.graph.held import held_values
from fxquant.graph.place import describe
from fxquant.pipeline import Keeps, Log, Pass, Stage
from fxquant.sites.parameters import refuse_nonfinite
from fxquant.sites.quantized_layer import QuantizedLayer


class LowerLayers(Pass):
    """Replaces every quantized layer by one that holds the integers of its weight."""

    name = "lower_layers"
    summary = "quantized layers hold the integers of their weights"
    needs = Stage.MIXED
    gives = Stage.INTEGER_LAYERS
    keeps = Keeps.EVAL

    def edit(self, gm: fx.GraphModule, log: Log) -> None:
        """Drop what eval() does not do, then lower."""
        drop_training(gm)
        with torch.no_grad():
            constants = held_values(gm)
        for node in list(gm.graph.nodes):
            module = called_module(gm, node)
            if not isinstance(module, QuantizedLayer):
                continue
            known = map_nodes(dict(node.kwargs), lambda part: constants.get(part, part))
            weight, bias = known["weight"], known.get("bias")
            refuse_nonfinite(f"the weight of {describe(node)}", weight)
            refuse_nonfinite(f"the bias of {describe(node)}", bias)
            with torch.no_grad():
                layer = module.lowered(weight, bias)
            replace_site(gm, node, layer)
            node.kwargs = {k: v for k, v in node.kwargs.items() if k not in ("weight", "bias")}
            log.change(node, f"{layer.extra_repr()}, weight in integers")
        erase_dead(gm)
