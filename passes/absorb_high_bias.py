"""Move what a ReLU never sees below out of a layer and into the bias of its readers.

    before   x ── conv(W1, b1) ───── relu ── conv(W2, b2) ─────────── y
    after    x ── conv(W1, b1 - c) ─ relu ── conv(W2, b2 + Σ W2·c) ── y

    c = max(0, β - 3·|γ|)      of the batch norm that was folded into the first layer

Equalization makes some biases large, and a range spent on an offset is wasted. Where a channel
always lies above c, relu(y - c) = relu(y) - c; three deviations leave 0.13 % of a normal channel
below, so this pass keeps the function nearly, not quite.
Left alone, with the reason: readers that pad with zeros (the offset is missing there) or are
transposed, values that others than layers read, activations with an upper limit, shared weights.
Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
Correction", section 4.1.3.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from fxquant.graph.normal import Normal, normal_of, set_normal
from fxquant.graph.place import rank_of
from fxquant.graph.sharing import parameter_reads, shared_parameter
from fxquant.ops.fold import fold_input_affine
from fxquant.ops.linear import LINEAR
from fxquant.pipeline import Keeps, Log, RewritePass, Stage
from fxquant.sites.flow import site_of
from fxquant.sites.parameters import parameters_of, set_bias, why_not_shifted

_DEVIATIONS = 3.0


class AbsorbHighBias(RewritePass):
    """Moves what a ReLU never sees below into the bias of the layers behind it."""

    name = "absorb_high_bias"
    summary = "high biases go into the layers behind"
    needs = gives = Stage.OBSERVED
    keeps = Keeps.NOTHING

    def edit(self, gm: fx.GraphModule, log: Log) -> None:
        """Count once who reads which parameter, then visit every node."""
        self._reads = parameter_reads(gm)
        super().edit(gm, log)

    def match(self, gm: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, ...] | None:
        """A layer with a channel high above 0 and an activation, and all that read it."""
        site, normal = site_of(gm, node), normal_of(node)
        if site is None or site.activation is None or normal is None:
            return None
        return (node, *node.users) if bool((high_bias(normal) > 0).any()) else None

    def reject(self, gm: fx.GraphModule, match: tuple[fx.Node, ...]) -> str | None:
        """Every reader must be a layer that sees the offset at every place."""
        layer, *readers = match
        site = site_of(gm, layer)
        assert site is not None
        assert site.activation is not None
        if not site.activation.lets_factors_through:
            return f"{site.activation} has limits that would move"
        shared = shared_parameter(gm, layer, self._reads)
        if shared is not None:
            return shared
        return next((r for r in (self._why_not(gm, reader) for reader in readers) if r), None)

    def _why_not(self, gm: fx.GraphModule, reader: fx.Node) -> str | None:
        site = site_of(gm, reader)
        if site is None or site.op.weight_axis is None:
            return f"'{reader.name}', which reads it, is not a layer"
        if site.op is LINEAR and rank_of(reader) != 2:
            return f"'{reader.name}' may have more than two dimensions"
        return why_not_shifted(gm, reader) or shared_parameter(gm, reader, self._reads)

    def rewrite(self, gm: fx.GraphModule, match: tuple[fx.Node, ...]) -> str:
        """Take c from the layer's bias, and give what it sums to to its readers'."""
        layer, *readers = match
        normal = normal_of(layer)
        assert normal is not None
        absorbed = high_bias(normal)
        with torch.no_grad():
            _, bias = parameters_of(gm, layer)
            set_bias(gm, layer, -absorbed if bias is None else bias - absorbed)
            set_normal(layer, Normal(normal.mean - absorbed, normal.deviation))
            for reader in readers:
                _, shifted = fold_input_affine(
                    *parameters_of(gm, reader), torch.ones_like(absorbed), absorbed
                )
                set_bias(gm, reader, shifted)
        return f"up to {float(absorbed.max()):.3g} go into {', '.join(r.name for r in readers)}"


def high_bias(normal: Normal) -> Tensor:
    """The offset [C] that a channel all but never falls below, 0 where it may be negative."""
    return (normal.mean - _DEVIATIONS * normal.deviation).clamp(min=0)
