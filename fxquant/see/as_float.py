"""The float network inside a prepared one.

    before   x ── quantize ── conv(fq(w)) → fq ── y
    after    x ────────────── conv(w) ────────── y
"""

from __future__ import annotations

import copy

import torch
from torch import fx

from fxquant.graph.edit import (
    called_module,
    constant_site,
    delete_unused_sites,
    erase,
    erase_unread_attributes,
    get_attribute,
)
from fxquant.ops.site import CallSite, InputQuantizer
from fxquant.pipeline import Stage, need_prepared, set_stage


def as_float(prepared: fx.GraphModule) -> fx.GraphModule:
    """A copy of `prepared`, with its parameters of now, that rounds nothing; weights are what
    their quantizers make of them before they round.

    What a trained or equalized network is to be compared with: beside the model that it was made
    from, its parameters have moved as well.

    Raises StageError for anything but what prepare_qat returned.
    """
    need_prepared(prepared, "as_float")
    gm = copy.deepcopy(prepared)
    for node in list(gm.graph.nodes):
        module = called_module(gm, node)
        if isinstance(module, CallSite):
            _shape_weight(gm, node, module)
            module.output, module.weight_quant, module.sources = None, None, ()
        elif isinstance(module, InputQuantizer):
            erase(node, node.args[0])
    set_stage(gm, Stage.FLOAT)
    erase_unread_attributes(gm)
    delete_unused_sites(gm)
    gm.recompile()
    return gm


def _shape_weight(gm: fx.GraphModule, node: fx.Node, site: CallSite) -> None:
    """Let a call read the weight that its quantizer would round, where that is another."""
    weight = node.kwargs.get("weight")
    if site.weight_quant is None or not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return
    value = get_attribute(gm, str(weight.target)).detach()
    shaped = site.weight_quant.transform(value)
    if not torch.equal(shaped, value):
        with gm.graph.inserting_before(node):
            constant = constant_site(gm, f"{node.name}_weight", shaped.clone())
        node.kwargs = {**node.kwargs, "weight": constant}
