"""The float network inside a prepared one.

    before   x ── quantize ── conv(fq(w)) → fq ── y
    after    x ────────────── conv(w) ────────── y
"""

from __future__ import annotations

import copy

from torch import fx

from fxquant.graph.edit import called_module, delete_unused_sites, erase
from fxquant.ops.site import CallSite, InputQuantizer
from fxquant.pipeline import Stage, need_prepared, set_stage


def as_float(prepared: fx.GraphModule) -> fx.GraphModule:
    """A copy of `prepared`, with its parameters of now, that rounds nothing.

    What a trained or equalized network is to be compared with: beside the model that it was made
    from, its parameters have moved as well.

    Raises StageError for anything but what prepare_qat returned.
    """
    need_prepared(prepared, "as_float")
    gm = copy.deepcopy(prepared)
    for node in list(gm.graph.nodes):
        module = called_module(gm, node)
        if isinstance(module, CallSite):
            module.output, module.weight_quant, module.sources = None, None, ()
        elif isinstance(module, InputQuantizer):
            erase(node, node.args[0])
    set_stage(gm, Stage.FLOAT)
    delete_unused_sites(gm)
    gm.recompile()
    return gm
