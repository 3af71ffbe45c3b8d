"""What rounding costs where: values one at a time, weights not at all, images one by one.

    of_values      x ── conv ── fq ── relu ── fc ── y      one value on its grid, all else in float
    of_images      how the error is spread over the images of a batch

Values are activations: what has a range of its own in a prepared network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from fxquant.graph.edit import called_module
from fxquant.ops.spec import Output
from fxquant.schemes import QParams, dequantize, quantize
from fxquant.see.as_float import as_float
from fxquant.sites.call_site import CallSite
from measures import decibels


class OfValues(NamedTuple):
    """`together`: decibels with all values rounded, and no weight; `worst`: the node whose rounding
    alone costs most, and the decibels that leaves; of `number` values with a range of their own.
    """

    number: int
    together: float
    worst: str
    alone: float


class OfImages(NamedTuple):
    """`median`: decibels of the image in the middle; `share` of all errors that one image makes."""

    median: float
    share: float


def of_values(prepared: fx.GraphModule, x: Tensor) -> OfValues:
    """What the rounding of activations costs, on a batch that need not have been seen."""
    plain = as_float(prepared).eval()
    ranges = dict(_ranges(prepared, plain))
    with torch.no_grad():
        real = plain(x)
        alone = {}
        for name, (module, q) in ranges.items():
            with rounded(module, q):
                alone[name] = decibels(real, plain(x))
        with ExitStack() as all_of_them:
            for module, q in ranges.values():
                all_of_them.enter_context(rounded(module, q))
            together = decibels(real, plain(x))
    worst = min(alone, key=alone.__getitem__)
    return OfValues(len(ranges), together, worst, alone[worst])


def of_images(real: Tensor, ours: Tensor) -> OfImages:
    """How errors of logits [N, classes] are spread over the images."""
    errors = (real.double() - ours.double()).square().sum(1)
    signals = real.double().square().sum(1)
    share = float(errors.max() / errors.sum()) if errors.any() else 0.0
    return OfImages(_decibels(float((signals / errors).median())), share)


@contextmanager
def rounded(module: nn.Module, q: QParams) -> Iterator[None]:
    """While it lasts, what `module` gives lies on that grid."""

    def on_grid(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return dequantize(quantize(output, q), q)

    hook = module.register_forward_hook(on_grid)
    try:
        yield
    finally:
        hook.remove()


def _ranges(
    prepared: fx.GraphModule, plain: fx.GraphModule
) -> Iterator[tuple[str, tuple[nn.Module, QParams]]]:
    """The nodes with a range of their own: who gives the value in `plain`, and its grid."""
    nodes = {node.name: node for node in plain.graph.nodes}
    for node in prepared.graph.nodes:
        site = called_module(prepared, node)
        if isinstance(site, CallSite) and site.op.output is Output.OWN and node.name in nodes:
            module, quantizer = called_module(plain, nodes[node.name]), site.quantizer
            if module is not None and quantizer is not None:
                yield node.name, (module, quantizer.qparams)


def _decibels(ratio: float) -> float:
    return 10 * math.log10(ratio) if 0 < ratio < math.inf else math.inf
