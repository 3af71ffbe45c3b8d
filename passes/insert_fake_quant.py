"""Put a fake-quant on every value that will be an integer, and on every weight.

    before   x ── quantize ── conv(w) ─────────── y    quantize and conv hold observers
    after    x ── quantize ── conv(fq(w)) → fq ── y    and now the fake-quants around them

Each site also learns the quantizers of the values it reads: in eval() it computes in their
integers. A value that keeps its input's range shares its input's quantizer. What 8 bits describe
badly gets 16 (ops/width.py says what that is). A range that is known beforehand is never learned.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from fxquant.fake_quant import ActivationFakeQuant, ObservedStep, WeightFakeQuant
from fxquant.graph.edit import called_module
from fxquant.intmath import ACCUMULATOR_BITS
from fxquant.observers import Fixed, Observer
from fxquant.ops.flow import grids, inputs_of, layer_channels, quantizer_of, sites
from fxquant.ops.site import CallSite, InputQuantizer
from fxquant.ops.width import wide_values
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
        widen: bool = True,
    ) -> None:
        """The schemes of activations and of weights, what quantizes an activation, the bits that
        sums may have, how eval() rounds, and whether some activations get 16 bits (ops/width.py).
        """
        self.activation = activation
        self.weight = weight
        self.step = step
        self.accumulator_bits = accumulator_bits
        self.rounding = rounding
        self.widen = widen

    def edit(self, gm: fx.GraphModule, log: Log) -> None:
        """Wrap the observers, quantize the weights, then tell each site what it reads."""
        wide = wide_values(gm) if self.widen else {}
        double = any(p.dtype is torch.float64 for p in gm.parameters())
        for node in gm.graph.nodes:
            module = called_module(gm, node)
            if not isinstance(module, (CallSite, InputQuantizer)):
                continue
            module.rounding = self.rounding
            if isinstance(module.output, Observer):
                scheme = INT16 if node in wide else self.activation
                step = ObservedStep if isinstance(module.output, Fixed) else self.step
                quantizer = step(scheme, module.output)
                # in a float64 network real numbers are float64 on both sides of the integers
                module.output = (quantizer.double() if double else quantizer).train(module.training)
                why = f": {wide[node]}" if node in wide else ""
                log.change(node, f"output in {scheme}{why}")
            if isinstance(module, CallSite) and module.op.weight_axis is not None:
                module.weight_quant = WeightFakeQuant(self.weight, layer_channels(gm, node))
                module.weight_quant.train(module.training)
                log.change(node, f"weight in {self.weight}")
        grid = grids(gm)
        for node, site in sites(gm):
            site.sources = tuple(quantizer_of(gm, grid[value]) for value in inputs_of(node))
            site.accumulator_bits = self.accumulator_bits
