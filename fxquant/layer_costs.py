"""What it costs to round the weights of each layer to few bits, and what they take.

    real       y = f(w_1, …, w_i, …, w_n)
    rounded    ŷ = f(w_1, …, round(w_i), …, w_n)
    cost       Σ (y - ŷ)² / Σ y², or the rise of the loss

One layer at a time, with each number of bits; all else is real.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxquant.api import prepare_ptq
from fxquant.batches import arguments, each, named
from fxquant.config import QuantConfig
from fxquant.errors import ConfigError, DataError
from fxquant.extras import needs_extra
from fxquant.fake_quant import StraightThrough, WeightFakeQuant, weight_quantizer
from fxquant.files import ending_of, write_whole
from fxquant.graph.modes import evaluating
from fxquant.graph.place import place_of
from fxquant.graph.tensors import tensors_in
from fxquant.schemes import QuantScheme
from fxquant.see.as_float import as_float
from fxquant.sites.call_site import CallSite
from fxquant.sites.flow import sites
from fxquant.sites.parameters import layer_channels, parameters_of

_PICTURES = ("png", "svg", "pdf")
Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Layer:
    """What the weights of one layer cost, and what it costs to round them.

    sites       the calls that read the weight, as in the graph: one, or several that share it
    module      the path of the module that makes the first of them
    weights     how many there are
    products    how many multiplications one example takes
    activation  the bits of what the first call reads is multiplied with: those of the config
    cost        for each number of bits, the share of noise in the output or the rise of the loss
    """

    sites: tuple[str, ...]
    module: str
    weights: int
    products: int
    activation: int
    cost: Mapping[int, float]


@dataclass(frozen=True)
class Sensitivity:
    """What rounding costs, one of `layers` at a time, with each of `bits`; `measure` is "noise" or
    "loss".
    """

    layers: tuple[Layer, ...]
    bits: tuple[int, ...]
    measure: str

    def decibels(self, layer: Layer, bits: int) -> float:
        """How far the noise of a layer lies below the output."""
        noise = layer.cost[bits]
        return -10 * math.log10(noise) if noise > 0 else math.inf

    def __str__(self) -> str:
        """A table: layers by bits, in dB or in loss."""
        unit = "dB" if self.measure == "noise" else "loss"
        width = max(len("layer"), *(len(layer.sites[0]) for layer in self.layers))
        heading = "".join(f"{bits:>8} b" for bits in self.bits)
        lines = [f"{'layer':{width}} {'weights':>9}{heading}    ({unit})"]
        for layer in self.layers:
            cells = "".join(f"{self._shown(layer, bits):>10}" for bits in self.bits)
            lines.append(f"{layer.sites[0]:{width}} {layer.weights:>9}{cells}")
        return "\n".join(lines)

    def _shown(self, layer: Layer, bits: int) -> str:
        if self.measure == "noise":
            return f"{self.decibels(layer, bits):.1f}"
        return f"{layer.cost[bits]:+.4f}"

    def plot(self, path: str | os.PathLike[str], chosen: Mapping[str, int] | None = None) -> None:
        """A picture: for each layer what each number of bits costs; `chosen` bits are marked.

        Raises ConfigError for an ending but .png, .svg, .pdf; MissingExtraError without matplotlib;
        WriteError.
        """
        ending = ending_of(path, _PICTURES, "a plot")
        write_whole(path, _picture(self, chosen or {}, ending))


def _schemes(bits: Sequence[int], config: QuantConfig) -> dict[int, QuantScheme]:
    """Of weights, for each number of bits that is tried."""
    if not isinstance(config, QuantConfig):
        raise ConfigError(f"config is a QuantConfig, got {config!r}")
    if not isinstance(bits, Sequence) or any(type(number) is not int for number in bits):
        raise ConfigError(f"bits are numbers of them, such as (4, 8), got {bits!r}")
    schemes = {number: config.weight.with_bits(number) for number in sorted(set(bits))}
    if not schemes:
        raise ConfigError("sensitivity tries some numbers of bits, got none")
    return schemes


def sensitivity(
    model: nn.Module,
    batches: Iterable[Any],
    bits: Sequence[int] = (2, 3, 4, 6, 8),
    config: QuantConfig | None = None,
    example_inputs: Sequence[Any] | Tensor | None = None,
    loss: Loss | None = None,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Sensitivity:
    """Round the weights of one layer at a time, all else in float, and measure what it costs.

    Args:
        model: a trained float network; it is not touched. Batch norms are folded.
        batches: inputs, such as a DataLoader gives, perhaps with labels behind them; a few hundred
            examples are enough.
        bits: of weights, those to try.
        config: how else weights are rounded, and what activations have; None for 8 bits.
        example_inputs: as prepare_ptq takes them; None for the first batch, if it is a tensor.
        loss: `loss(output, batch)`, 0-dim; the cost is by how much it rises on average. None for
            the noise in the outputs: Σ (y - ŷ)² / Σ y².
        tell: called with the layers done and the layers in all, after each.

    Raises:
        ConfigError: bits that no weight can have.
        DataError: a batch is empty, holds NaN or infinity, or does not fit; or there is none.
        FxQuantError: and whatever else prepare_ptq raises.
    """
    config = QuantConfig() if config is None else config
    schemes = _schemes(bits, config)
    batches = list(each(batches))
    if not batches:
        raise DataError("there is no batch to measure on.\nWhat to do: hand in a list of batches.")
    if example_inputs is None and isinstance(batches[0], Tensor):
        example_inputs = batches[0]
    real = replace(  # what shapes weights shapes those of one layer at a time, too
        config, weight=config.weight.with_bits(8), weight_fake_quant=StraightThrough(),
        first_last_bits=None, overrides=(),
    )
    network = as_float(prepare_ptq(model, example_inputs, real))
    inputs = list(arguments(network, batches))
    with evaluating(network), torch.no_grad():
        runs = _Runs(network, inputs, batches, loss)
        groups = _by_weight(network)
        products = _products(network, inputs[0], groups)
        layers = []
        for number, nodes in enumerate(groups):
            count = sum(products[node] for node in nodes)
            layers.append(_layer(runs, nodes, count, config, schemes))
            tell(number + 1, len(groups))
    return Sensitivity(tuple(layers), tuple(schemes), "noise" if loss is None else "loss")


class _Runs:
    """The network on data, in float and with some layers rounded."""

    def __init__(
        self, network: fx.GraphModule, inputs: Sequence[tuple[Any, ...]], batches: Sequence[Any],
        loss: Loss | None,
    ) -> None:
        self.network, self.inputs, self.batches, self.loss = network, inputs, batches, loss
        self.sites = dict(sites(network))
        self.outputs = [self._run(number) for number in range(len(inputs))]
        self.in_float = [] if loss is None else self._losses(self.outputs, loss)

    def cost(self, nodes: Sequence[fx.Node], quantizer: WeightFakeQuant) -> float:
        """What it costs to round the weight of the calls at `nodes`."""
        called = [self.sites[node] for node in nodes]
        for site in called:
            site.training, site.weight_quant = True, quantizer  # rounds its weight, no more
        try:
            found = [self._run(number) for number in range(len(self.inputs))]
        finally:
            for site in called:
                site.training, site.weight_quant = False, None
        if self.loss is not None:
            rises = [b - a for a, b in zip(self.in_float, self._losses(found, self.loss),
                                           strict=True)]
            return sum(rises) / len(rises)
        noise = signal = 0.0
        for number, (real, rounded) in enumerate(zip(self.outputs, found, strict=True)):
            for y, other in zip(_floats(real), _floats(rounded), strict=True):
                signal += _finite(y.double().square().sum(), "output", number)
                noise += float((y.double() - other.double()).square().sum())
        return noise / signal if signal else 0.0

    def _run(self, number: int) -> Any:
        with named(self.inputs[number], number):
            return self.network(*self.inputs[number])

    def _losses(self, outputs: Sequence[Any], loss: Loss) -> list[float]:
        losses = [loss(y, batch) for y, batch in zip(outputs, self.batches, strict=True)]
        return [_finite(torch.as_tensor(x), "loss", number) for number, x in enumerate(losses)]


def _layer(
    runs: _Runs, nodes: Sequence[fx.Node], products: int, config: QuantConfig,
    schemes: Mapping[int, QuantScheme],
) -> Layer:
    """What is known of the layer that these calls make, and what each of the schemes costs it."""
    weight, _ = parameters_of(runs.network, nodes[0])
    channels = layer_channels(runs.network, nodes[0])
    method = config.weight_fake_quant or config.fake_quant
    quantizers = {
        bits: weight_quantizer(method, scheme, channels, weight).eval()
        for bits, scheme in schemes.items()
    }
    return Layer(
        sites=tuple(node.name for node in nodes),
        module=place_of(nodes[0]).module,
        weights=weight.numel(),
        products=products,
        activation=config.activation.bits,
        cost={bits: runs.cost(nodes, quantizer) for bits, quantizer in quantizers.items()},
    )


def _finite(value: Tensor, name: str, number: int) -> float:
    """As a number; a DataError that names the batch where it is none."""
    if value.numel() != 1 or not bool(torch.isfinite(value)):
        shown = f"{value.item():g}" if value.numel() == 1 else f"of shape {tuple(value.shape)}"
        raise DataError(
            f"the {name} of batch {number} is {shown}: there is nothing to compare with.\n"
            "What to do: look at the weights of the model, and at its values there."
        )
    return value.item()


def _floats(outputs: Any) -> list[Tensor]:
    return [x for x in tensors_in(outputs) if x.is_floating_point()]


def _by_weight(network: fx.GraphModule) -> list[list[fx.Node]]:
    """The layers, those that read one weight together."""
    found: dict[int, list[fx.Node]] = {}
    for node, site in sites(network):
        if site.op.weight_axis is not None:
            found.setdefault(id(parameters_of(network, node)[0]), []).append(node)
    return list(found.values())


def _products(
    network: fx.GraphModule, inputs: tuple[Any, ...], groups: Sequence[Sequence[fx.Node]]
) -> dict[fx.Node, int]:
    """How many multiplications each layer takes for one example."""
    found: dict[fx.Node, int] = {}

    def count(node: fx.Node) -> Callable[[nn.Module, Any, Tensor], None]:
        weight = parameters_of(network, node)[0]
        channels = layer_channels(network, node)

        def hook(site: nn.Module, args: Any, output: Tensor) -> None:
            # a transposed convolution spreads each input, the others gather for each output
            read, rows = (args[0], weight.shape[0]) if channels.axis else (output, len(weight))
            found[node] = read.numel() // max(len(read), 1) * (weight.numel() // rows)

        return hook

    called: Mapping[fx.Node, CallSite] = dict(sites(network))
    hooks = [called[n].register_forward_hook(count(n)) for nodes in groups for n in nodes]
    try:
        network(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _picture(found: Sensitivity, chosen: Mapping[str, int], ending: str) -> bytes:
    import io

    with needs_extra("see"):
        from matplotlib.figure import Figure
    figure = Figure(figsize=(max(5.0, 0.3 * len(found.layers) + 2), 4.5), layout="constrained")
    axes = figure.subplots()
    places = range(len(found.layers))
    noise = found.measure == "noise"

    def height(layer: Layer, bits: int) -> float:
        return min(found.decibels(layer, bits), 150.0) if noise else layer.cost[bits]

    for bits in found.bits:
        heights = [height(layer, bits) for layer in found.layers]
        axes.plot(places, heights, marker=".", label=f"{bits} bits")
    marks = [(i, chosen.get(layer.sites[0])) for i, layer in enumerate(found.layers)]
    marked = [(i, height(found.layers[i], bits)) for i, bits in marks if bits is not None]
    if marked:
        axes.plot(*zip(*marked, strict=True), "ko", fillstyle="none", markersize=9, label="chosen")
    axes.set_xticks(list(places), [layer.sites[0] for layer in found.layers], rotation=90,
                    fontsize=7)
    axes.set_ylabel("noise below the output, dB" if noise else "rise of the loss")
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format=ending)
    return buffer.getvalue()
