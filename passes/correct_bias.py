"""Take from each bias what the rounding of its weight adds to the output on average.

    before   y = fq(W)·x + b
    after    y = fq(W)·x + b - Σ (fq(W) - W)·E[x]

without data: E[x] is known where folded batch norms tell how the layers before are distributed,
through their activations (a clipped normal), sums, concats, average pools and reshapes. It takes
each place of the input to be alike, so zeros that pad it are not accounted for.
Left alone, with the reason: layers whose input is not known, transposed ones, linear ones that may
sum over another dimension than the channels, and live batch norms, which see to it themselves.
`fxquant.correct_bias` does the same from data.
Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
Correction", section 4.2 and appendix C.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx

from fxquant.graph.normal import Normal, normal_of
from fxquant.graph.place import example_of, rank_of
from fxquant.graph.sharing import parameter_reads, shared_parameter
from fxquant.ops.adaptive_avg_pool import ADAPTIVE_AVG_POOLS
from fxquant.ops.add import ADD
from fxquant.ops.avg_pool import AVG_POOLS
from fxquant.ops.cat import CAT
from fxquant.ops.fold import fold_input_affine
from fxquant.ops.linear import LINEAR
from fxquant.ops.mean import MEAN, spaces
from fxquant.ops.spec import Clamp
from fxquant.pipeline import Keeps, Log, Pass, Stage
from fxquant.sites.call_site import CallSite
from fxquant.sites.flow import inputs_of, site_of, sites
from fxquant.sites.move import apply_move, is_move
from fxquant.sites.parameters import layer_channels, parameters_of, set_bias


class CorrectBias(Pass):
    """Takes from each bias what the rounding of its weight adds on average."""

    name = "correct_bias"
    summary = "biases make up for what rounded weights add on average"
    needs = gives = Stage.FAKE_QUANT
    keeps = Keeps.NOTHING

    def edit(self, gm: fx.GraphModule, log: Log) -> None:
        """Follow the means through the graph, and correct each layer that reads a known one."""
        reads = parameter_reads(gm)
        means = _means(gm)
        for node, site in sites(gm):
            if site.weight_quant is None:
                continue
            mean = means.get(inputs_of(node)[0])
            reason = _why_not(gm, node, mean) or shared_parameter(gm, node, reads)
            if reason is not None:
                log.leave(node, reason)
                continue
            assert mean is not None  # or there was a reason
            with torch.no_grad():
                weight, bias = parameters_of(gm, node)
                error = site.weight_quant(weight) - weight
                _, added = fold_input_affine(error, None, torch.ones_like(mean), mean)
                set_bias(gm, node, -added if bias is None else bias - added)
            log.change(node, f"bias corrected by up to {float(added.abs().max()):.3g}")


def _why_not(gm: fx.GraphModule, node: fx.Node, mean: Tensor | None) -> str | None:
    site = site_of(gm, node)
    if "batch_norm" in node.kwargs:
        return "its live batch norm takes the mean out itself"
    if mean is None:
        return "the mean of its input is not known"
    if site is not None and site.op is LINEAR and rank_of(node) != 2:
        return "it may have more than two dimensions, and sum over another than the channels"
    if layer_channels(gm, node).axis != 0:
        return "it is transposed: how often it reads an input depends on the place"
    return None


def _means(gm: fx.GraphModule) -> dict[fx.Node, Tensor]:
    """The mean of each channel, [C], of every value of which it is known."""
    means: dict[fx.Node, Tensor] = {}
    for node in gm.graph.nodes:
        site, normal = site_of(gm, node), normal_of(node)
        mean: Tensor | None = None
        if site is not None and normal is not None:
            mean = clipped_mean(normal, site.activation, site.clamp_divisor)
        elif site is not None:
            mean = _mean_behind(node, site, [means.get(x) for x in inputs_of(node)])
        else:
            mean = _moved(gm, node, means)
        if mean is not None:
            means[node] = mean
    return means


def _mean_behind(node: fx.Node, site: CallSite, inputs: list[Tensor | None]) -> Tensor | None:
    """The mean behind an operator that is linear in its inputs."""
    known = [mean for mean in inputs if mean is not None]
    if not known or len(known) < len(inputs) or site.activation is not None:
        return None
    over_space = site.op is MEAN and spaces(node.kwargs["dim"], rank_of(inputs_of(node)[0]))
    if site.op in (*AVG_POOLS, *ADAPTIVE_AVG_POOLS) or over_space:
        return known[0]
    if site.op is ADD and all(mean.shape == known[0].shape for mean in known):
        return torch.stack(known).sum(0)
    if site.op is CAT and node.kwargs["dim"] == 1:
        return torch.cat(known)
    return None


def _moved(gm: fx.GraphModule, node: fx.Node, means: dict[fx.Node, Tensor]) -> Tensor | None:
    """The mean of each channel of a move's result: moved as an example that holds the means."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or source not in means or not is_move(gm, node):
        return None
    example = example_of(source)
    if not isinstance(example, Tensor) or example.dim() < 2:
        return None
    shape = (1, -1, *[1] * (example.dim() - 2))
    moved = apply_move(gm, node, means[source].reshape(shape).expand(example.shape))
    if not isinstance(moved, Tensor) or moved.dim() < 2:
        return None
    return moved.transpose(0, 1).flatten(1).mean(1)


def clipped_mean(normal: Normal, clamp: Clamp | None, divisor: Tensor | None = None) -> Tensor:
    """E[clamp(x)], [C], of channels x ~ N(mean, deviation²), limits divided by `divisor`.

        E = μ·(Φ(β) - Φ(α)) + σ·(φ(α) - φ(β)) + a·Φ(α) + b·(1 - Φ(β))

    with α = (a - μ)/σ and β = (b - μ)/σ for limits a and b.
    """
    if clamp is None:
        return normal.mean
    mean, deviation = normal.mean.double(), normal.deviation.double().clamp(min=1e-12)
    scale = 1.0 if divisor is None else divisor.flatten().double()
    inside = torch.ones_like(mean)
    total = torch.zeros_like(mean)
    for limit, sign in ((clamp.low, 1.0), (clamp.high, -1.0)):
        if math.isinf(limit):
            continue
        end = torch.full_like(mean, limit) / scale
        z = (end - mean) / deviation
        beyond = torch.special.ndtr(sign * z)  # the share that the limit cuts off
        density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
        inside -= beyond
        total += sign * deviation * density + end * beyond
    return (mean * inside + total).to(normal.mean.dtype)
