"""Put a fake-quant on every value that will be an integer, and on every weight.

    before   x ── quantize ── conv(w) ─────────── y    quantize and conv hold observers
    after    x ── quantize ── conv(fq(w)) → fq ── y    and now the fake-quants around them

Each site also learns the quantizers of the values it reads: in eval() it computes in their
integers. A value that keeps its input's range shares its input's quantizer. Shares that weigh
other values (a softmax that only products read) get 16 bits: with 8, a tenth to a fifth of the
sums would move. So do scores with a mask, whose -100 would leave 8 bits few codes for the scores,
and the mask. A range that is known beforehand is never learned.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from fxquant.fake_quant import ActivationFakeQuant, ObservedStep, WeightFakeQuant
from fxquant.graph.edit import called_module
from fxquant.graph.held import held
from fxquant.intmath import ACCUMULATOR_BITS
from fxquant.observers import Fixed, Observer
from fxquant.ops.add import ADD
from fxquant.ops.flow import grids, inputs_of, layer_channels, quantizer_of, site_of, sites
from fxquant.ops.masks import is_mask, only_softmax_reads
from fxquant.ops.move import is_move
from fxquant.ops.mul import MUL
from fxquant.ops.site import CallSite, InputQuantizer
from fxquant.ops.softmax import SOFTMAX
from fxquant.ops.sum_of_products import SUM_OF_PRODUCTS
from fxquant.pipeline import Keeps, Log, Pass, Stage
from fxquant.rounding import HALF_UP, Rounding
from fxquant.schemes import INT8_WEIGHT, INT16, UINT8, QuantScheme


class InsertFakeQuant(Pass):
    """Puts a fake-quant on every value that will be an integer, and on every weight."""

    name = "insert_fake_quant"
    summary = "values and weights are rounded to their grids"
    needs = Stage.OBSERVED
    gives = Stage.FAKE_QUANT
    keeps = Keeps.NOTHING

    def __init__(
        self,
        activation: QuantScheme = UINT8,
        weight: QuantScheme = INT8_WEIGHT,
        step: Callable[[QuantScheme, Observer], ActivationFakeQuant] = ObservedStep,
        accumulator_bits: int = ACCUMULATOR_BITS,
        rounding: Rounding = HALF_UP,
    ) -> None:
        """The schemes of activations and of weights, what quantizes an activation, the bits that
        sums may have, and how eval() rounds.
        """
        self.activation = activation
        self.weight = weight
        self.step = step
        self.accumulator_bits = accumulator_bits
        self.rounding = rounding

    def edit(self, gm: fx.GraphModule, log: Log) -> None:
        """Wrap the observers, quantize the weights, then tell each site what it reads."""
        double = any(p.dtype is torch.float64 for p in gm.parameters())
        for node in gm.graph.nodes:
            module = called_module(gm, node)
            if not isinstance(module, (CallSite, InputQuantizer)):
                continue
            module.rounding = self.rounding
            if isinstance(module.output, Observer):
                wide = _weighs_others(gm, node) or _is_masked(gm, node) or _masks(gm, node)
                scheme = INT16 if wide else self.activation
                step = ObservedStep if isinstance(module.output, Fixed) else self.step
                quantizer = step(scheme, module.output)
                # in a float64 network real numbers are float64 on both sides of the integers
                module.output = (quantizer.double() if double else quantizer).train(module.training)
                log.change(node, f"output in {scheme}")
            if isinstance(module, CallSite) and module.op.weight_axis is not None:
                module.weight_quant = WeightFakeQuant(self.weight, layer_channels(gm, node))
                module.weight_quant.train(module.training)
                log.change(node, f"weight in {self.weight}")
        grid = grids(gm)
        for node, site in sites(gm):
            site.sources = tuple(quantizer_of(gm, grid[value]) for value in inputs_of(node))
            site.accumulator_bits = self.accumulator_bits


def _weighs_others(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether `node` is a softmax of which each reader, behind moves, is a product."""
    site = site_of(gm, node)
    return site is not None and site.op is SOFTMAX and _reaches_products(gm, node)


def _is_masked(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether `node` is a sum of scores and a mask, for softmaxes alone."""
    site = site_of(gm, node)
    if site is None or site.op is not ADD or not only_softmax_reads(gm, node):
        return False
    return any(_enters_as_mask(gm, x) for x in inputs_of(node))


def _masks(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether `node` is where a mask enters that masked scores alone read."""
    return _enters_as_mask(gm, node) and all(_is_masked(gm, reader) for reader in node.users)


def _enters_as_mask(gm: fx.GraphModule, node: fx.Node) -> bool:
    if not isinstance(called_module(gm, node), InputQuantizer):
        return False
    (value,) = inputs_of(node)
    return value in held(gm) and is_mask(gm, value)


def _reaches_products(gm: fx.GraphModule, node: fx.Node) -> bool:
    for reader in node.users:
        site = site_of(gm, reader)
        if site is None and not (is_move(gm, reader) and _reaches_products(gm, reader)):
            return False
        if site is not None and site.op not in (MUL, SUM_OF_PRODUCTS):
            return False
    return bool(node.users)
