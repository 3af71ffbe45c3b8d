"""Fold a batch norm into the layer before it.

    before   x ── conv(w, b) ── bn ── y
    after    x ── conv(w·f, b·f + o) ── y            f = γ/√(σ²+ε),  o = β - μ·f

Left alone, with the reason: a layer whose output something else reads too, a weight or bias
that another call shares, a linear layer whose output may have more than two dimensions.
Source: Jacob et al. 2018, section 3.2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fxquant.graph.edit import delete_unused, erase, get_attribute, set_parameter
from fxquant.graph.place import copy_place
from fxquant.graph.sharing import parameter_reads
from fxquant.ops.flow import site_of
from fxquant.ops.norms import layer_and_norm, why_not_one
from fxquant.ops.site import batch_norm_affine, fold_affine
from fxquant.pipeline import Log, RewritePass, Stage


class FoldBatchNorm(RewritePass):
    """Folds a batch norm into the layer before it."""

    name = "fold_bn"
    needs = gives = Stage.FLOAT

    def edit(self, gm: fx.GraphModule, log: Log) -> None:
        """Fold where it fits, then delete the batch norms that nothing reads any more."""
        self._reads = parameter_reads(gm)
        self._folded: set[str] = set()
        super().edit(gm, log)
        gone = {p for p in self._folded if self._reads[id(get_attribute(gm, p))] == 0}
        delete_unused(gm, gone)

    def match(self, gm: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, ...] | None:
        """A layer that can take a batch norm in, and the batch norm."""
        return layer_and_norm(gm, node)

    def reject(self, gm: fx.GraphModule, match: tuple[fx.Node, ...]) -> str | None:
        """Nobody else may see the change."""
        layer, norm = match
        for parameter in (layer.kwargs["weight"], layer.kwargs["bias"]):
            if isinstance(parameter, fx.Node) and self._reads[_id(gm, parameter)] > 1:
                return f"'{parameter.target}' is shared with another call"
        return why_not_one(gm, layer, norm)

    def rewrite(self, gm: fx.GraphModule, match: tuple[fx.Node, ...]) -> str:
        """Scale the weight, shift the bias, drop the batch norm."""
        layer, norm = match
        site, norm_module = site_of(gm, layer), norm.kwargs["batch_norm"]
        weight, bias = layer.kwargs["weight"], layer.kwargs["bias"]
        assert site is not None
        assert isinstance(weight, fx.Node)
        assert isinstance(norm_module, fx.Node)
        with torch.no_grad():
            factor, offset = batch_norm_affine(_value(gm, norm_module))
            old_bias = _value(gm, bias) if isinstance(bias, fx.Node) else None
            axis = site.op.weight_axis or 0
            new = fold_affine(_value(gm, weight), old_bias, factor, offset, axis)
        set_parameter(gm, str(weight.target), new[0])
        if isinstance(bias, fx.Node):
            set_parameter(gm, str(bias.target), new[1])
        else:
            _add_bias(gm, layer, weight, new[1])
        self._reads[_id(gm, norm_module)] -= 1
        self._folded.add(str(norm_module.target))
        erase(norm, layer)
        return f"took '{norm.name}' in"


def _add_bias(gm: fx.GraphModule, layer: fx.Node, weight: fx.Node, value: Tensor) -> None:
    """Let a layer that had no bias read one, beside its weight."""
    owner, _, name = str(weight.target).rpartition(".")
    # a layer's own empty place for it, or a new name beside a weight that stands alone
    own = name == "weight" and getattr(gm.get_submodule(owner), "bias", 0) is None
    path = f"{owner}.bias" if own else f"{weight.target}_bias"
    set_parameter(gm, path, value)
    with gm.graph.inserting_before(layer):
        bias = gm.graph.get_attr(path)
    copy_place(layer, bias)
    layer.kwargs = {**layer.kwargs, "bias": bias}


def _value(gm: fx.GraphModule, node: fx.Node) -> Any:
    return get_attribute(gm, str(node.target))


def _id(gm: fx.GraphModule, node: fx.Node) -> int:
    return id(_value(gm, node))
