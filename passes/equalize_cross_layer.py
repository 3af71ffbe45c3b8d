"""Even out the weight ranges of two layers in a row, channel by channel.

    before   x ── conv(W1, b1) ── relu ── conv(W2) ── y
    after    x ── conv(W1/s, b1/s) ── relu ── conv(W2·s) ── y

    s[c] = √(r1[c] / r2[c])      r1, r2: largest |w| of channel c on its way out and in

A ReLU between them lets a positive factor through; so do pools, dropout and the like. Pairs
are visited again until nothing moves (depthwise triples settle that way), at most 40 times.
Left alone, with the reason: a value that something else reads too, a shared weight, a clamp
with an upper limit, a batch norm that is still live, a call that mixes channels.
Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
Correction", section 4.1.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import torch
from torch import Tensor, fx

from fxquant.graph.edit import get_attribute, module_at, set_parameter
from fxquant.graph.modes import is_identity_in_eval
from fxquant.graph.sharing import parameter_reads
from fxquant.ops.adaptive_avg_pool import (
    ADAPTIVE_AVG_POOL1D,
    ADAPTIVE_AVG_POOL2D,
    ADAPTIVE_AVG_POOL3D,
)
from fxquant.ops.avg_pool import AVG_POOL1D, AVG_POOL2D, AVG_POOL3D
from fxquant.ops.flow import inputs_of, site_of, sites
from fxquant.ops.max_pool import MAX_POOL1D, MAX_POOL2D, MAX_POOL3D
from fxquant.ops.relu import RELU
from fxquant.ops.site import CallSite, Clamp
from fxquant.ops.spec import per_channel
from fxquant.pipeline import Log, Pass, Stage

_HOMOGENEOUS = (
    *(RELU, MAX_POOL1D, MAX_POOL2D, MAX_POOL3D, AVG_POOL1D, AVG_POOL2D, AVG_POOL3D),
    *(ADAPTIVE_AVG_POOL1D, ADAPTIVE_AVG_POOL2D, ADAPTIVE_AVG_POOL3D),
)
_ROUNDS = 40
_SETTLED = 1e-3  # a factor this near to 1 is no longer worth a change
_FACTOR_LIMIT = 1e4  # of one visit: a nearly dead channel must not run away


class EqualizeCrossLayer(Pass):
    """Evens out the weight ranges of two layers in a row, channel by channel."""

    name = "equalize_cross_layer"
    needs = gives = Stage.OBSERVED

    def edit(self, gm: fx.GraphModule, log: Log) -> None:
        """Find the pairs, refuse those that would change the function, settle the rest."""
        reads = parameter_reads(gm)
        pairs: list[tuple[fx.Node, fx.Node]] = []
        for node, site in sites(gm):
            path = _path_to_layer_before(gm, node) if site.op.weight_axis is not None else None
            if path is None:
                continue
            reason = _why_not(gm, path, reads)
            if reason is not None:
                log.leave(node, reason)
            else:
                pairs.append((path[-1], node))
        parameters = _parameters(gm, pairs)
        total: dict[tuple[fx.Node, fx.Node], Tensor] = {}
        for _ in range(_ROUNDS):
            change = 0.0
            for pair in pairs:
                s = _factors(parameters, *pair)
                _apply(parameters, *pair, s)
                total[pair] = total.get(pair, 1.0) * s
                change = max(change, float(s.log().abs().max()))
            if change < _SETTLED:
                break
        for name, value in parameters.items():
            set_parameter(gm, name, value.to(get_attribute(gm, name).dtype))
        for (first, second), s in total.items():
            low, high = float(s.min()), float(s.max())
            log.change(first, f"evened out with '{second.name}', factors {low:.3g} to {high:.3g}")


def factors(range_out: Tensor, range_in: Tensor) -> Tensor:
    """`s = √(r1/r2)` per channel; 1 where a channel is dead on either side. All [C]."""
    alive = (range_out > 0) & (range_in > 0)
    s = torch.sqrt(range_out / range_in).clamp(1 / _FACTOR_LIMIT, _FACTOR_LIMIT)
    return torch.where(alive, s, torch.ones_like(s))


def range_in(weight: Tensor, groups: int) -> Tensor:
    """The largest |w| that reads each input channel: [C] of a weight [O, C/groups, ...]."""
    return _by_group(weight, groups).abs().amax((1, 3)).flatten()


def scale_in(weight: Tensor, groups: int, s: Tensor) -> Tensor:
    """The weight with each input channel multiplied by its factor."""
    rows = _by_group(weight, groups)
    return (rows * s.reshape(groups, 1, -1, 1)).reshape(weight.shape)


def _by_group(weight: Tensor, groups: int) -> Tensor:
    """[O, C/groups, ...] as [groups, O/groups, C/groups, elements]."""
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def _path_to_layer_before(gm: fx.GraphModule, node: fx.Node) -> list[fx.Node] | None:
    """From the layer `node` back to the one whose channels it reads, one channel for one."""
    path = [node]
    while inputs_of(path[-1]):
        value = inputs_of(path[-1])[0]
        path.append(value)
        site = site_of(gm, value)
        if site is not None and site.op.weight_axis is not None:
            return path
        if not _lets_factors_through(gm, value, site):
            return None
    return None


def _lets_factors_through(gm: fx.GraphModule, node: fx.Node, site: CallSite | None) -> bool:
    """Whether f(s·x) = s·f(x) for every s > 0, channel by channel."""
    if site is not None:
        return site.op in _HOMOGENEOUS
    module = module_at(gm, node) if node.op == "call_module" else None
    return module is not None and is_identity_in_eval(module)


def _why_not(gm: fx.GraphModule, path: list[fx.Node], reads: Counter[int]) -> str | None:
    """Why the pair at the ends of `path` must stay as it is, or None."""
    first, second = path[-1], path[0]
    for reader, value in pairwise(path):
        others = [r.name for r in value.users if r is not reader]
        if others:
            return f"'{value.name}' is also read by '{others[0]}'"
    for layer in (first, second):
        for parameter in _parameter_nodes(layer):
            if reads[id(get_attribute(gm, str(parameter.target)))] > 1:
                return f"'{parameter.target}' is shared with another call"
    if "batch_norm" in first.kwargs:
        return f"the batch norm of '{first.name}' is live and would undo the factors"
    site = site_of(gm, first)
    if site is not None and site.activation not in (None, Clamp(0.0, math.inf)):
        return f"{site.activation} behind '{first.name}' does not let factors through"
    return None


def _parameter_nodes(layer: fx.Node) -> list[fx.Node]:
    named = (layer.kwargs.get(name) for name in ("weight", "bias"))
    return [node for node in named if isinstance(node, fx.Node)]


def _parameters(gm: fx.GraphModule, pairs: list[tuple[fx.Node, fx.Node]]) -> dict[str, Tensor]:
    """The weights and biases of all pairs by path, in float64."""
    layers = dict.fromkeys(layer for pair in pairs for layer in pair)
    paths = [str(node.target) for layer in layers for node in _parameter_nodes(layer)]
    return {path: get_attribute(gm, path).detach().double() for path in paths}


def _factors(parameters: dict[str, Tensor], first: fx.Node, second: fx.Node) -> Tensor:
    out = parameters[_path(first, "weight")].abs().flatten(1).amax(1)
    return factors(out, range_in(parameters[_path(second, "weight")], _groups(second)))


def _apply(parameters: dict[str, Tensor], first: fx.Node, second: fx.Node, s: Tensor) -> None:
    for name in ("weight", "bias"):
        if isinstance(first.kwargs[name], fx.Node):
            path = _path(first, name)
            parameters[path] = parameters[path] / per_channel(s, 0, parameters[path].dim())
    path = _path(second, "weight")
    parameters[path] = scale_in(parameters[path], _groups(second), s)


def _path(layer: fx.Node, name: str) -> str:
    node = layer.kwargs[name]
    assert isinstance(node, fx.Node)
    return str(node.target)


def _groups(layer: fx.Node) -> int:
    groups = layer.kwargs.get("groups", 1)
    assert isinstance(groups, int)
    return groups
