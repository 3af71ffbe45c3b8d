"""The float network inside a prepared one.

    before   x ── quantize ── conv(fq(w)) → fq ── y
    after    x ────────────── conv(w) ────────── y
"""

from __future__ import annotations

import copy

import torch
from torch import fx

from fxquant.fake_quant import WeightFakeQuant
from fxquant.graph.edit import (
    called_module,
    constant_site,
    delete_unused_sites,
    erase,
    erase_unread_attributes,
    get_attribute,
    replace_site,
)
from fxquant.pipeline import Stage, need_prepared, set_stage, stage_of
from fxquant.sites.call_site import CallSite, InputQuantizer
from fxquant.sites.quantized_layer import QuantizedLayer


def as_float(prepared: fx.GraphModule) -> fx.GraphModule:
    """A copy of `prepared`, with its parameters of now, that rounds nothing; weights are what
    their quantizers make of them before they round.

    What a trained or equalized network is to be compared with: beside the model that it was made
    from, its parameters have moved as well.

    Raises StageError for anything but what prepare_qat returned.
    """
    if not isinstance(prepared, fx.GraphModule) or stage_of(prepared) is not Stage.MIXED:
        need_prepared(prepared, "as_float")
    gm = copy.deepcopy(prepared)
    for node in list(gm.graph.nodes):
        module = called_module(gm, node)
        if isinstance(module, CallSite):
            _shape_weight(gm, node, module.weight_quant)
            module.output, module.weight_quant, module.sources = None, None, ()
        elif isinstance(module, QuantizedLayer):
            _shape_weight(gm, node, module.weight_quant, module.group)
            replace_site(gm, node, CallSite(module.op))
        elif isinstance(module, InputQuantizer):
            erase(node, node.args[0])
    set_stage(gm, Stage.FLOAT)
    erase_unread_attributes(gm)
    delete_unused_sites(gm)
    gm.recompile()
    return gm


def _shape_weight(
    gm: fx.GraphModule, node: fx.Node, quant: WeightFakeQuant | None, group: int | None = None
) -> None:
    """Let a call read the weight that its quantizer would round, where that is another."""
    weight = node.kwargs.get("weight")
    if quant is None or not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return
    value = get_attribute(gm, str(weight.target)).detach()
    rows = value if group is None else value.reshape(-1, group)
    shaped = quant.transform(rows).reshape(value.shape)
    if not torch.equal(shaped, value):
        with gm.graph.inserting_before(node):
            constant = constant_site(gm, f"{node.name}_weight", shaped.clone())
        node.kwargs = {**node.kwargs, "weight": constant}
