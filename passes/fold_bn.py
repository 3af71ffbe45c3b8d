"""Fold a batch norm, `y = f·x + o` per channel, into the layers beside it.

    before   x ── conv(w, b) ── bn ── y
    after    x ── conv(f·w, f·b + o) ── y                 f = γ/√(σ²+ε),  o = β - μ·f

    before   x ── conv ──┐                                through a concat of channels, each
             x ── conv ── cat ── bn ── y                  layer takes its own part of f and o

    before   x ── bn ── conv(w, b) ── y                   without padding only: it would have
    after    x ── conv(w·f, b + Σ w·o) ── y               put zeros behind the bn, not before

Left alone, with the reason: a layer whose output something else reads too, a weight or bias
that another call shares, a linear layer whose output may have more than two dimensions.
Source: Jacob et al. 2018, section 3.2.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxquant.graph.edit import (
    erase,
    get_attribute,
    put_identities,
    set_source,
    source_of,
)
from fxquant.graph.held import held_value
from fxquant.graph.normal import Normal, set_normal
from fxquant.graph.place import take_in
from fxquant.graph.sharing import parameter_reads, read_elsewhere, shared_parameter
from fxquant.ops.batch_norm import BATCH_NORM, batch_norm_affine
from fxquant.ops.cat import CAT
from fxquant.ops.fold import fold_input_affine, fold_output_affine
from fxquant.pipeline import Keeps, Log, Pass, Stage
from fxquant.sites.flow import inputs_of, site_of, sites
from fxquant.sites.foldable import can_take_norm, why_not_one
from fxquant.sites.parameters import (
    layer_channels,
    parameters_of,
    set_bias,
    set_weight,
    why_not_shifted,
)


class FoldBatchNorm(Pass):
    """Folds a batch norm into the layers beside it."""

    name = "fold_bn"
    summary = "batch norms go into the layers beside them"
    needs = gives = Stage.FLOAT
    keeps = Keeps.EVAL

    def edit(self, gm: fx.GraphModule, log: Log) -> None:
        """Fold where it fits, then empty the batch norms that nothing reads any more."""
        reads = parameter_reads(gm)
        folded: set[str] = set()
        for norm in [node for node, site in sites(gm) if site.op is BATCH_NORM]:
            module = norm.kwargs["batch_norm"]
            assert isinstance(module, fx.Node)
            reasons = []
            for layers, why_not, fold in (
                (_layers_before(gm, norm), _why_not_before, _fold_before),
                (_layers_after(gm, norm), _why_not_after, _fold_after),
            ):
                reason = why_not(gm, layers, norm, reads) if layers else None
                if layers and reason is None:
                    fold(gm, layers, norm, held_value(gm, module))
                    log.change(norm, f"folded into {', '.join(layer.name for layer in layers)}")
                    folded.add(str(module.target))
                    reads[id(held_value(gm, module))] -= 1
                    break
                reasons += [reason] if reason else []
            else:
                log.leave(norm, "; ".join(reasons) or "no layer stands beside it")
        gone = {id(get_attribute(gm, path)) for path in folded}
        put_identities(gm, {module for module in gone if reads[module] == 0})


def _layers_before(gm: fx.GraphModule, norm: fx.Node) -> tuple[fx.Node, ...]:
    """The layer that the norm reads, or all those behind a concat of channels, or none."""
    value = inputs_of(norm)[0]
    if can_take_norm(gm, value):
        return (value,)
    site = site_of(gm, value)
    joins = site is not None and site.op is CAT and value.kwargs["dim"] == 1
    layers = tuple(inputs_of(value)) if joins else ()
    return layers if all(can_take_norm(gm, layer) for layer in layers) else ()


def _why_not_before(
    gm: fx.GraphModule, layers: tuple[fx.Node, ...], norm: fx.Node, reads: Counter[int]
) -> str | None:
    value = inputs_of(norm)[0]
    if len(set(layers)) < len(layers):
        return f"'{value.name}' holds '{layers[0].name}' twice"
    reasons = [read_elsewhere(value, norm)]
    for layer in layers:
        reader = norm if layer is value else value
        reasons += [shared_parameter(gm, layer, reads), why_not_one(gm, layer, reader)]
    return next((reason for reason in reasons if reason), None)


def _layers_after(gm: fx.GraphModule, norm: fx.Node) -> tuple[fx.Node, ...]:
    """The layer that reads the norm first, or none."""
    reader = next(iter(norm.users), None)
    return (reader,) if reader is not None and can_take_norm(gm, reader) else ()


def _why_not_after(
    gm: fx.GraphModule, layers: tuple[fx.Node, ...], norm: fx.Node, reads: Counter[int]
) -> str | None:
    (layer,) = layers
    return (
        why_not_shifted(gm, layer)
        or shared_parameter(gm, layer, reads)
        or why_not_one(gm, norm, layer)
    )


def _fold_before(
    gm: fx.GraphModule, layers: tuple[fx.Node, ...], norm: fx.Node, module: nn.Module
) -> None:
    """Scale each weight, shift each bias, drop the norm."""
    with torch.no_grad():
        factor, offset = batch_norm_affine(module)
        normal = _normal(module)
        start = 0
        for layer in layers:
            weight, bias = parameters_of(gm, layer)
            channels = layer_channels(gm, layer)
            part = slice(start, start + len(channels.rows(weight)))
            start = part.stop
            _set(gm, layer, *fold_output_affine(weight, bias, factor[part], offset[part], channels))
            set_normal(layer, Normal(normal.mean[part], normal.deviation[part]))
    value = inputs_of(norm)[0]
    for layer in layers:
        set_source(gm, layer, str(layer.target))  # behind a concat a part of the norm's value
    set_source(gm, value, source_of(gm, norm))
    take_in(value, norm)
    erase(norm, value)


def _fold_after(
    gm: fx.GraphModule, layers: tuple[fx.Node, ...], norm: fx.Node, module: nn.Module
) -> None:
    """Scale the weight's input channels, add what the offset sums to, drop the norm."""
    (layer,) = layers
    with torch.no_grad():
        weight, bias = parameters_of(gm, layer)
        _set(gm, layer, *fold_input_affine(weight, bias, *batch_norm_affine(module)))
    erase(norm, inputs_of(norm)[0])


def _set(gm: fx.GraphModule, layer: fx.Node, weight: Tensor, bias: Tensor) -> None:
    set_weight(gm, layer, weight)
    set_bias(gm, layer, bias)


def _normal(module: nn.Module) -> Normal:
    """What comes out of a batch norm: β and |γ|."""
    bn: Any = module
    mean = torch.zeros_like(bn.running_mean) if bn.bias is None else bn.bias.detach().clone()
    spread = torch.ones_like(mean) if bn.weight is None else bn.weight.detach().abs()
    return Normal(mean, spread)
