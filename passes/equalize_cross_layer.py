"""Even out the weight ranges of layers that feed one another, channel by channel.

    before   x ── conv(W1, b1) ── relu ── conv(W2) ── y
    after    x ── conv(W1/s, b1/s) ── relu ── conv(W2·s) ── y

A positive factor goes through ReLU, pools, means over space, dropout, reshapes and, with limits
divided by it, through ReLU6 and clamps. Channels that meet in a sum must have one factor; a
concat lays factors side by side. So each *class* of channels, as the graph ties them, gets one:

    s = √(geometric mean of |w| on the way in / geometric mean of |w| on the way out)

over all layers that write the class and all that read it, visited again until nothing moves.
A class is fixed (s = 1) where it reaches an input or output of the network, a float layer, a
live or lone batch norm, a shared weight, or a call whose effect on channels is not known.
Reshapes need example_inputs. With a scale per channel there is little to gain, and the log
says so.
Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
Correction", section 4.1, from pairs to whole regions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from fxquant.graph.normal import Normal, normal_of, set_normal
from fxquant.graph.place import example_of, rank_of
from fxquant.graph.sharing import parameter_reads, shared_parameter
from fxquant.graph.values import scalars
from fxquant.ops.adaptive_avg_pool import ADAPTIVE_AVG_POOLS
from fxquant.ops.add import ADD
from fxquant.ops.avg_pool import AVG_POOLS
from fxquant.ops.cat import CAT
from fxquant.ops.linear import LINEAR
from fxquant.ops.max_pool import MAX_POOLS
from fxquant.ops.mean import MEAN, spaces
from fxquant.ops.pad import PAD
from fxquant.ops.weighted_sum import WEIGHTED_SUM
from fxquant.pipeline import Log, Pass, Stage
from fxquant.schemes import INT8_WEIGHT, Channels, QuantScheme
from fxquant.sites.call_site import CallSite
from fxquant.sites.flow import inputs_of, site_of
from fxquant.sites.move import apply_move, hands_on, is_move
from fxquant.sites.parameters import layer_channels, parameters_of, set_bias, set_weight

_SUMS = (ADD, WEIGHTED_SUM)
_FIXED = 0  # the class whose factor is 1
_ROUNDS = 50
_SETTLED = 1e-3  # in log: a change this small is none
_LIMIT = math.log(1e6)  # of a factor: a nearly dead channel must not run away


class EqualizeCrossLayer(Pass):
    """Evens out the weight ranges of layers that feed one another, channel by channel."""

    name = "equalize_cross_layer"
    summary = "weight ranges are evened out across layers"
    needs = gives = Stage.OBSERVED

    def __init__(self, weight: QuantScheme = INT8_WEIGHT) -> None:
        """The scheme that the weights will have."""
        self.weight = weight

    def edit(self, gm: fx.GraphModule, log: Log) -> None:
        """Tie channels into classes, find each class's factor, scale the layers by it."""
        if self.weight.per_channel:
            log.note("every weight channel has a scale of its own: this gains little")
        layers, classes = _Regions(gm, log).solve()
        factors = settle(layers, classes)
        for layer in layers:
            into, out = factors[layer.into], factors[layer.out]
            if bool((into != 1.0).any()) or bool((out != 1.0).any()):
                _scale(gm, layer.node, into, out)
                spans = [f"{float(s.min()):.3g} to {float(s.max()):.3g}" for s in (into, out)]
                log.change(layer.node, f"inputs times {spans[0]}, outputs divided by {spans[1]}")


@dataclass(frozen=True)
class Layer:
    """A layer: the largest |w| from each input channel to each output channel of a group,
    [groups, O/groups, I/groups], with the classes that it writes, [groups, O/groups], and
    reads, [groups, I/groups].
    """

    node: fx.Node
    ranges: Tensor
    out: Tensor
    into: Tensor


def settle(layers: list[Layer], classes: int) -> Tensor:
    """The factor of every class, float64 [classes]; class 0 keeps 1.

    A visit moves log s of each class half way to where the mean of log|w| over the layers
    that write it equals the mean over those that read it.
    """
    logs = torch.zeros(classes, dtype=torch.float64)
    for _ in range(_ROUNDS):
        written, read = _Means(classes), _Means(classes)
        for layer in layers:
            ranges = layer.ranges * logs[layer.into].exp()[:, None, :].to(layer.ranges.dtype)
            ranges = ranges / logs[layer.out].exp()[:, :, None].to(layer.ranges.dtype)
            written.add(layer.out.flatten(), ranges.amax(2).flatten())
            read.add(layer.into.flatten(), ranges.amax(1).flatten())
        step = (written.logs() - read.logs()) / 2
        step = torch.where((written.count > 0) & (read.count > 0), step, 0.0)
        step[_FIXED] = 0.0
        moved = (logs + step).clamp(-_LIMIT, _LIMIT)
        settled, logs = float((moved - logs).abs().max()) < _SETTLED, moved
        if settled:
            break
    return logs.exp()


class _Means:
    """The mean, over layers, of the logarithm of each class's range; dead ones left out."""

    def __init__(self, classes: int) -> None:
        self.total = torch.zeros(classes, dtype=torch.float64)
        self.count = torch.zeros(classes, dtype=torch.float64)

    def add(self, classes: Tensor, ranges: Tensor) -> None:
        """One layer: the largest of the ranges that belong to a class is the class's."""
        ranges = ranges.to(self.total.dtype)
        largest = torch.zeros_like(self.total).scatter_reduce_(0, classes, ranges, "amax")
        self.total += torch.where(largest > 0, largest, 1.0).log()
        self.count += largest > 0

    def logs(self) -> Tensor:
        return self.total / self.count.clamp(min=1)


class _Value(NamedTuple):
    """The class of each channel, [C], of a value with so many dimensions behind axis 1."""

    classes: Tensor
    spatial: int


class _Regions:
    """Which channels of which values must have one factor: union and find over classes."""

    def __init__(self, gm: fx.GraphModule, log: Log) -> None:
        self.gm, self.log = gm, log
        self.reads = parameter_reads(gm)
        self.parent = [_FIXED]
        self.values: dict[fx.Node, _Value] = {}
        self.labels: dict[fx.Node, Any] = {}  # a move's result, with classes for numbers
        self.found: list[tuple[fx.Node, Tensor, Tensor]] = []

    def solve(self) -> tuple[list[Layer], int]:
        """The layers, and how many classes there are."""
        numbers = scalars(self.gm.graph)
        for node in self.gm.graph.nodes:
            site = site_of(self.gm, node)
            if node in numbers:
                continue
            if site is not None and site.op.weight_axis is not None:
                self._visit_layer(node, site)
            elif site is not None:
                self._visit_site(node, site)
            else:
                self._visit_other(node)
        roots = torch.tensor([self._root(i) for i in range(len(self.parent))])
        _, number = torch.unique(roots, return_inverse=True)  # _FIXED, the smallest, stays 0
        layers = []
        for node, out, into in self.found:
            ranges = _ranges(self.gm, node)
            layers.append(Layer(node, ranges, number[out].reshape(ranges.shape[:2]), number[into]))
        return layers, int(number.max()) + 1

    def _visit_layer(self, node: fx.Node, site: CallSite) -> None:
        ranges = _ranges(self.gm, node)
        into = self._behind_weights(node, site, ranges)
        outputs = ranges.shape[0] * ranges.shape[1]
        out = torch.arange(len(self.parent), len(self.parent) + outputs)
        self.parent.extend(out.tolist())
        reason = self._why_not(node, site)
        if reason is not None:
            self.log.leave(node, reason)
            self._fix(into, out)
        self.found.append((node, out, into))
        self.values[node] = _Value(out, parameters_of(self.gm, node)[0].dim() - 2)

    def _behind_weights(self, node: fx.Node, site: CallSite, ranges: Tensor) -> Tensor:
        """The class of every input channel, by group; fixed where it is not known."""
        value = self.values.get(inputs_of(node)[0])
        groups, _, per_group = ranges.shape
        fits = value is not None and len(value.classes) == groups * per_group
        if value is None or not fits or (value.spatial == 0) is not (site.op is LINEAR):
            self._leave(node, inputs_of(node), "it reads other channels than another layer writes")
            return torch.full((groups, per_group), _FIXED)
        return value.classes.reshape(groups, per_group)

    def _why_not(self, node: fx.Node, site: CallSite) -> str | None:
        shared = shared_parameter(self.gm, node, self.reads)
        if shared is not None:
            return shared
        if "batch_norm" in node.kwargs:
            return "its batch norm is live and would undo the factors"
        if site.op is LINEAR and rank_of(node) not in (2, None):
            return "a linear layer over more than two dimensions"
        return None

    def _visit_site(self, node: fx.Node, site: CallSite) -> None:
        """An operator without a weight: what it does to the classes of what it reads."""
        inputs = inputs_of(node)
        values = [self.values[x] for x in inputs if x in self.values]
        first = values[0] if len(values) == len(inputs) else None
        clamps = site.activation is not None and not site.activation.lets_factors_through
        if first is None or clamps or any(v.spatial != first.spatial for v in values):
            self._leave(node, inputs, f"{site.op.name} does not let factors through here")
        elif site.op.homogeneous or _pools_space(site, first) or _pads_space(node, site, first):
            self.values[node] = first
        elif site.op is CAT and node.kwargs["dim"] == 1 and (first.spatial or rank_of(node) == 2):
            self.values[node] = _Value(torch.cat([v.classes for v in values]), first.spatial)
        elif site.op is MEAN and (over := spaces(node.kwargs["dim"], first.spatial + 2)):
            gone = 0 if node.kwargs["keepdim"] else len(over)
            self.values[node] = _Value(first.classes, first.spatial - gone)
        elif site.op in _SUMS and all(len(v.classes) == len(first.classes) for v in values):
            for value in values[1:]:
                self._unite(first.classes, value.classes)
            self.values[node] = first
        else:
            self._leave(node, inputs, f"{site.op.name} does not let factors through")

    def _visit_other(self, node: fx.Node) -> None:
        """A move carries classes along; any other reader must see what it saw before."""
        source = node.args[0] if node.args else None
        if not is_move(self.gm, node) or not isinstance(source, fx.Node):
            if node.op == "output":  # every network has one, hence not a word on the last layer
                for value in [x for x in node.all_input_nodes if len(x.users) > 1]:
                    self._leave(value, [value], "it is also an output of the network")
                self._fix_values(node.all_input_nodes)
            else:
                reason = "it must see the numbers that it saw before"
                self._leave(node, node.all_input_nodes, reason)
            return
        if hands_on(self.gm, node):
            if source in self.values:
                self.values[node] = self.values[source]
            return
        labels = self.labels.get(source, _labels(source, self.values.get(source)))
        moved = None if labels is None else apply_move(self.gm, node, labels)
        if moved is None:
            reason = "how it moves channels is not known (pass example_inputs to make it known)"
            self._leave(node, [source], reason)
            return
        self.labels[node] = moved
        # half way through a shuffle axis 1 mixes channels, and a chunk gives several tensors:
        # then only the labels tell, and whoever else reads the value fixes all of them
        if isinstance(moved, Tensor) and moved.dim() >= 2:
            rows = moved.transpose(0, 1).flatten(1)
            if bool((rows == rows[:, :1]).all()):
                self.values[node] = _Value(rows[:, 0], moved.dim() - 2)

    def _leave(self, node: fx.Node, values: list[fx.Node], reason: str) -> None:
        """Fix what `node` reads, and say why if anything of it had factors so far."""
        if any(value in self.values or value in self.labels for value in values):
            self.log.leave(node, reason)
        self._fix_values(values)

    def _fix_values(self, nodes: Iterable[fx.Node]) -> None:
        for node in nodes:
            if node in self.values:
                self._fix(self.values[node].classes)
            elif node in self.labels:
                parts = self.labels[node]
                self._fix(*parts if isinstance(parts, (tuple, list)) else (parts,))

    def _fix(self, *classes: Any) -> None:
        for part in classes:
            if isinstance(part, Tensor):
                for number in set(part.flatten().tolist()):
                    self._unite_two(_FIXED, number)

    def _unite(self, ours: Tensor, theirs: Tensor) -> None:
        for a, b in zip(ours.tolist(), theirs.tolist(), strict=True):
            self._unite_two(a, b)

    def _unite_two(self, a: int, b: int) -> None:
        low, high = sorted((self._root(a), self._root(b)))
        self.parent[high] = low  # the smaller leads, so that _FIXED stays itself

    def _root(self, i: int) -> int:
        while self.parent[i] != i:
            self.parent[i] = i = self.parent[self.parent[i]]
        return i


def _ranges(gm: fx.GraphModule, node: fx.Node) -> Tensor:
    """The largest |w| from each input to each output channel: [groups, O/groups, I/groups]."""
    weight = parameters_of(gm, node)[0].detach().abs()
    groups = node.kwargs.get("groups", 1)
    assert isinstance(groups, int)
    largest = weight.flatten(2).amax(2) if weight.dim() > 2 else weight
    rows = layer_channels(gm, node).rows(largest)
    return rows.reshape(groups, -1, rows.shape[1])


def scale_weight(weight: Tensor, into: Tensor, out: Tensor, channels: Channels) -> Tensor:
    """The weight with every input channel multiplied by its factor in `into`, [groups,
    I/groups], and every output channel divided by its own in `out`, [groups, O/groups].
    """
    # [groups, channels along axis 0, along axis 1, elements]: layers lie as (out, in),
    # transposed ones as (in, out)
    shape = (len(into), -1, weight.shape[1], weight[0, 0].numel())
    first, second = (1 / out, into) if channels.axis == 0 else (into, 1 / out)
    by_group = weight.reshape(shape) * first[:, :, None, None] * second[:, None, :, None]
    return by_group.reshape(weight.shape)


def _scale(gm: fx.GraphModule, node: fx.Node, into: Tensor, out: Tensor) -> None:
    """Scale a layer's weight, and divide its bias and its clamp by `out`."""
    (weight, bias), site = parameters_of(gm, node), site_of(gm, node)
    channels = layer_channels(gm, node)
    scaled = scale_weight(weight.detach().double(), into, out, channels)
    out = out.flatten()
    set_weight(gm, node, scaled.to(weight.dtype))
    if bias is not None:
        set_bias(gm, node, (bias.detach().double() / out).to(bias.dtype))
    normal = normal_of(node)
    if normal is not None:
        set_normal(node, Normal(*(values / out.to(values.dtype) for values in normal)))
    if site is not None and site.activation is not None:
        per_channel = out.reshape(-1, *[1] * (weight.dim() - 2)).to(weight.dtype)
        site.divide_clamp(per_channel)


def _labels(node: fx.Node, value: _Value | None) -> Tensor | None:
    """`node`'s example with, in every element, the class of its channel."""
    example = example_of(node)
    if value is None or not isinstance(example, Tensor) or example.dim() != value.spatial + 2:
        return None  # not known, or without a batch: then axis 1 is another
    shape = (1, -1, *[1] * (example.dim() - 2))
    return value.classes.reshape(shape).expand(example.shape)


def _pools_space(site: CallSite, value: _Value) -> bool:
    """Whether a pool works on just the dimensions behind the channels."""
    kinds = (MAX_POOLS, AVG_POOLS, ADAPTIVE_AVG_POOLS)
    return any(site.op in pools[value.spatial - 1 : value.spatial] for pools in kinds)


def _pads_space(node: fx.Node, site: CallSite, value: _Value) -> bool:
    """Whether it puts zeros around the dimensions behind the channels."""
    if site.op is not PAD:
        return False
    widths, fill = node.kwargs["pad"], node.kwargs["value"]
    known = isinstance(widths, (tuple, list))
    return known and not fill and len(widths) <= 2 * value.spatial  # type: ignore[arg-type]
