"""Put a fake-quant on every value that will be an integer, and on every weight.

    before   x ── quantize ── conv(w) ─────────── y    quantize and conv hold observers
    after    x ── quantize ── conv(fq(w)) → fq ── y    and now the fake-quants around them

Each site also learns the quantizers of the values it reads: in eval() it computes in their
integers. A value that keeps its input's range shares its input's quantizer. What 8 bits describe
badly gets 16 (sites/width.py says what that is), and calls may have schemes of their own
(overrides.py). A range that is known beforehand is never learned.
"""

from __future__ import annotations

import torch
from torch import fx

from fxquant.fake_quant import FakeQuant, StraightThrough
from fxquant.graph.edit import called_module
from fxquant.intmath import ACCUMULATOR_BITS
from fxquant.observers import Fixed, Observer
from fxquant.overrides import Choice, Choices, Override
from fxquant.pipeline import Keeps, Log, Pass, Stage
from fxquant.rounding import HALF_UP, Rounding
from fxquant.schemes import INT8_WEIGHT, UINT8, QuantScheme
from fxquant.sites.call_site import CallSite, InputQuantizer
from fxquant.sites.flow import grids, inputs_of, quantizer_of, sites
from fxquant.sites.parameters import layer_channels, parameters_of

STRAIGHT_THROUGH: FakeQuant = StraightThrough()


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
        fake_quant: FakeQuant = STRAIGHT_THROUGH,
        weight_fake_quant: FakeQuant | None = None,
        accumulator_bits: int = ACCUMULATOR_BITS,
        rounding: Rounding = HALF_UP,
        widen: bool = True,
        first_last_bits: int | None = None,
        overrides: tuple[Override, ...] = (),
    ) -> None:
        """The schemes of activations and of weights, what rounds them, and weights if otherwise,
        the bits that sums may have, how eval() rounds, whether some activations get 16 bits
        (sites/width.py), the bits of the first and the last layer if they have their own, and what
        else has.
        """
        default = Choice(activation, weight, fake_quant, weight_fake_quant or fake_quant)
        self.choices = Choices(default, first_last_bits, widen, overrides)
        self.accumulator_bits = accumulator_bits
        self.rounding = rounding

    def edit(self, gm: fx.GraphModule, log: Log) -> None:
        """Wrap the observers, quantize the weights, then tell each site what it reads."""
        choices = self.choices.of(gm)
        double = any(p.dtype is torch.float64 for p in gm.parameters())
        for node in gm.graph.nodes:
            module = called_module(gm, node)
            if not isinstance(module, (CallSite, InputQuantizer)):
                continue
            module.rounding = self.rounding
            choice = choices[node]
            why = f": {choice.why}" if choice.why else ""
            if isinstance(module.output, Observer):
                if choice.calibrator is not None:  # only now entrances stand that it may be for
                    module.output = Observer(choice.calibrator)
                known = isinstance(module.output.calibrator, Fixed)
                method = STRAIGHT_THROUGH if known else choice.fake_quant
                quantizer = method.activation(choice.activation, module.output)
                # in a float64 network real numbers are float64 on both sides of the integers
                module.output = (quantizer.double() if double else quantizer).train(module.training)
                log.change(node, f"output in {choice.activation}{why}")
            if isinstance(module, CallSite) and module.op.weight_axis is not None:
                weight, _ = parameters_of(gm, node)
                quant = choice.weight_quantizer(layer_channels(gm, node), weight)
                module.weight_quant = quant.train(module.training)
                log.change(node, f"weight in {choice.weight}{why}")
        grid = grids(gm)
        for node, site in sites(gm):
            site.sources = tuple(quantizer_of(gm, grid[value]) for value in inputs_of(node))
            site.accumulator_bits = self.accumulator_bits
