"""Give linear layers and convolutions integer weights, between values that stay float.

    before   x ── conv(w) ── relu ── y
    after    x ── conv(fq(w)) ── relu ── y     or conv(fq(x), fq(w)), the range of each batch

What has no weight stays as it is. With groups, each `group_size` weights of an output channel that
lie one behind the other have a scale of their own.
"""

from __future__ import annotations

from torch import fx

from fxquant.errors import ConfigError
from fxquant.graph.edit import replace_site
from fxquant.graph.place import describe
from fxquant.overrides import Choices
from fxquant.pipeline import Keeps, Log, Pass, Stage
from fxquant.schemes import Channels
from fxquant.sites.flow import sites
from fxquant.sites.parameters import layer_channels, parameters_of
from fxquant.sites.quantized_layer import QuantizedLayer


class QuantizeLayers(Pass):
    """Gives layers integer weights, between values that stay float."""

    name = "quantize_layers"
    summary = "layers get integer weights between float values"
    needs = Stage.FLOAT
    gives = Stage.MIXED
    keeps = Keeps.NOTHING

    def __init__(
        self, choices: Choices, dynamic: bool = False, group_size: int | None = None
    ) -> None:
        """What the weight of each layer is quantized with; whether what it reads is, too, with the
        range of each batch; how many weights share a scale, None for those of a channel.
        """
        self.choices = choices
        self.dynamic = dynamic
        self.group_size = group_size

    def edit(self, gm: fx.GraphModule, log: Log) -> None:
        """One layer after the other."""
        choices = self.choices.of(gm)
        for node, site in sites(gm):
            if site.op.weight_axis is None:
                continue
            choice, channels = choices[node], layer_channels(gm, node)
            weight, _ = parameters_of(gm, node)
            if self.group_size is not None:
                row = channels.rows(weight).shape[1]
                if channels.axis != 0 or row % self.group_size:
                    raise ConfigError(
                        f"group_size={self.group_size} does not divide the {row} weights of each "
                        f"channel of {describe(node)}.\nWhat to do: choose one that does, or keep "
                        f"the layer in float."
                    )
                weight, channels = weight.reshape(-1, self.group_size), Channels()
            quant = choice.weight_quantizer(channels, weight)
            activation = choice.activation if self.dynamic else None
            layer = QuantizedLayer(site.op, quant, activation, self.group_size)
            replace_site(gm, node, layer.train(site.training))
            why = f": {choice.why}" if choice.why else ""
            log.change(node, f"weight in {choice.weight}{why}")
