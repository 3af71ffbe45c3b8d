"""One call of an operator in a graph, together with its quantizers.

    in training   y = output(clamp(bn(function(x, weight_quant(weight), …))))      float
    in eval       y = dequantize(kernel(quantize(x), numbers(…)))                  integers

Both read the same graph arguments. Eval computes with the very integers, and the very kernel,
that `convert` writes into the integer network: what is validated is what is shipped.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fxquant.fake_quant import ActivationFakeQuant, WeightFakeQuant, round_to_grid
from fxquant.intmath import ACCUMULATOR_BITS, Target
from fxquant.observers import Observer
from fxquant.ops.batch_norm import batch_norm_affine
from fxquant.ops.fold import fold_output_affine
from fxquant.ops.spec import Affine, Clamp, OpSpec, Output, RealCall, Weights
from fxquant.rounding import HALF_UP, Rounding, need_real
from fxquant.schemes import QParams, code_of, dequantize, quantize
from fxquant.sites.phase import PhasedSite


class CallSite(PhasedSite):
    """One operator call: `site(*inputs, **options)` as `op.function` takes them.

    Passes fill it in: `activation` (fuse_conv_bn_relu), `output` and `weight_quant`
    (insert_observers, insert_fake_quant), and with these `rounding`, `accumulator_bits`, and
    `sources`, the quantizers of its inputs.
    `batch_norm=` among the options is a BatchNorm module that stands behind the operator.
    """

    clamp_divisor: Tensor | None

    def __init__(self, op: OpSpec) -> None:
        super().__init__()
        self.op = op
        self.activation: Clamp | None = None
        self.register_buffer("clamp_divisor", None)
        self.weight_quant: WeightFakeQuant | None = None
        self.output: Observer | ActivationFakeQuant | None = None
        self.rounding = HALF_UP
        # a tuple, hence not registered: each quantizer belongs to the site that it follows
        self.sources: tuple[ActivationFakeQuant, ...] = ()
        self.accumulator_bits = ACCUMULATOR_BITS

    def forward(self, *inputs: Tensor, **options: Any) -> Tensor:
        """The operator's output: same shape in both modes."""
        if self.training:
            return self._fake_quantized(inputs, options)
        if not self.ready:  # no data yet: the float network
            return self._real(inputs, options)
        with torch.no_grad():
            return self._on_integers(inputs, options)

    def _real(self, inputs: tuple[Tensor, ...], options: dict[str, Any]) -> Tensor:
        y = self._before_activation(inputs, options)
        return y if self.activation is None else self.activation(y, self.clamp_divisor)

    def _before_activation(self, inputs: tuple[Tensor, ...], options: dict[str, Any]) -> Tensor:
        norm = options.get("batch_norm")
        if norm is None:
            return self.op.function(*inputs, **options)
        if not self.op.folds:  # it is the operator
            norm = partial(self.normalised, norm)
            return self.op.function(*inputs, **options | {"batch_norm": norm})
        rest = {name: value for name, value in options.items() if name != "batch_norm"}
        return self.normalised(norm, self.op.function(*inputs, **rest))

    def _fake_quantized(self, inputs: tuple[Tensor, ...], options: dict[str, Any]) -> Tensor:
        if self.weight_quant is not None and self.phase.round:
            options = options | {"weight": self.weight_quant(options["weight"])}
        limits, quantizer = self._limits, self.output
        if limits is not None and isinstance(quantizer, ActivationFakeQuant) and self.phase.round:
            # one pass for the two
            return self.in_phase(quantizer, self._before_activation(inputs, options), *limits)
        y = self._real(inputs, options)
        if isinstance(quantizer, ActivationFakeQuant):
            return self.in_phase(quantizer, y)
        if quantizer is not None:
            observed: Tensor = quantizer(y)
            return observed
        if self.op.output is Output.INPUT and self.sources and self.phase.round:
            # not clamped: eval() never leaves the input's range, but dropout scales values up
            return round_to_grid(y, self.sources[0].qparams.scale)
        return y

    def _on_integers(self, inputs: tuple[Tensor, ...], options: dict[str, Any]) -> Tensor:
        pairs = zip(inputs, self.sources, strict=True)
        codes = [quantize(x, source.qparams) for x, source in pairs]
        numbers, settings = self.numbers_and_settings(options)
        q = self.target.qparams
        return dequantize(self.op.kernel(numbers, q.scheme.dtype, *codes, **settings), q)

    @property
    def _limits(self) -> tuple[float, float] | None:
        """Those of the activation, if a fake-quant can take it over."""
        clamp = self.activation
        if clamp is None or not clamp.stops_gradients or self.clamp_divisor is not None:
            return None
        return clamp.low, clamp.high

    @property
    def quantizer(self) -> ActivationFakeQuant | None:
        """What the output is quantized with, once the site has its fake-quants."""
        if isinstance(self.output, ActivationFakeQuant):
            return self.output
        return self.sources[0] if self.sources and self.op.output is not Output.OWN else None

    @property
    def ready(self) -> bool:
        """Whether the ranges of the output and of every input are known."""
        quantizer = self.quantizer
        return (
            quantizer is not None
            and quantizer.ready
            and all(source.ready for source in self.sources)
        )

    @property
    def target(self) -> Target:
        """Output parameters and clamp of the integer form."""
        quantizer = self.quantizer
        assert quantizer is not None  # asked for only once `ready`
        q = quantizer.qparams
        scheme, clamp = q.scheme, self.activation or Clamp(-math.inf, math.inf)
        low, high = (
            _limit(value, end, self.clamp_divisor, q)
            for value, end in ((clamp.low, scheme.qmin), (clamp.high, scheme.qmax))
        )
        return Target(q, low, high, self.rounding)

    def divide_clamp(self, divisor: Tensor) -> None:
        """Divide the activation's limits channel by channel; shaped to broadcast, positive."""
        if self.activation is not None and not self.activation.lets_factors_through:
            before = self.clamp_divisor
            self.clamp_divisor = divisor if before is None else before * divisor

    def numbers_and_settings(
        self, options: dict[str, Any]
    ) -> tuple[tuple[Tensor | Rounding, ...], dict[str, Any]]:
        """Every integer of this call, and the settings that its kernel takes beside them."""
        batch_norm, weight = options.get("batch_norm"), options.get("weight")
        affine = None if batch_norm is None else batch_norm_affine(batch_norm)
        weights = None
        if weight is not None and self.weight_quant is not None:
            quant, bias = self.weight_quant, options.get("bias")
            real, scale = quant.transform(weight), quant.scale(weight)
            weights = Weights(real, bias, scale, quant.scheme, quant.channels)
            weights = weights if affine is None else _fold(weights, affine)
        sources = tuple(source.qparams for source in self.sources)
        bits = self.accumulator_bits
        numbers = self.op.numbers(RealCall(sources, self.target, weights, affine, options, bits))
        return numbers, {k: v for k, v in options.items() if k not in self.op.real}

    def extra_repr(self) -> str:
        """The operator and its activation, for print(model)."""
        return " → ".join(str(part) for part in (self.op.name, self.activation) if part)


class InputQuantizer(PhasedSite):
    """Where a float value enters the integer part of a network."""

    def __init__(self, output: Observer | ActivationFakeQuant) -> None:
        super().__init__()
        self.output = output
        self.rounding = HALF_UP

    def forward(self, x: Tensor) -> Tensor:
        """`x` on its grid; as it is while only observed, or while no range is known.

        Raises DataError for what is not real.
        """
        need_real(x)
        if not isinstance(self.output, ActivationFakeQuant):
            out: Tensor = self.output(x)
            return out
        if self.training:
            return self.in_phase(self.output, x)
        if not self.output.ready:
            return x
        return dequantize(self.rounding.quantize(x, self.output.qparams), self.output.qparams)


def _fold(weights: Weights, affine: Affine) -> Weights:
    """Symmetric weights take a batch norm as a change of scale: their codes stay."""
    weight, bias = fold_output_affine(weights.weight, weights.bias, *affine, weights.channels)
    return weights._replace(weight=weight, bias=bias, scale=weights.scale * affine.factor.abs())


def _limit(value: float, end: int, divisor: Tensor | None, q: QParams) -> Tensor:
    if abs(value) == math.inf:  # isinf() ends a graph that is compiled for numbers of any size
        return torch.full_like(q.zero_point, end)
    return code_of(value if divisor is None else value / divisor, q)
