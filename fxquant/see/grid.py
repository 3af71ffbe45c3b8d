"""Which values of a graph lie on an integer grid, and on which."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, fx

from fxquant.fake_quant import ActivationFakeQuant
from fxquant.graph.edit import called_module
from fxquant.schemes import QParams, QuantScheme
from fxquant.sites.call_site import CallSite, InputQuantizer
from fxquant.sites.integer import Dequantize, IntegerOp, Quantize
from fxquant.sites.move import is_move


class Grid(NamedTuple):
    """The integers that a value is, or is going to be; their numbers where known."""

    scheme: QuantScheme
    qparams: QParams | None


def grids_of(gm: fx.GraphModule) -> dict[fx.Node, Grid]:
    """Every value on an integer grid: results of sites, of integer operators, and moved ones."""
    found: dict[fx.Node, Grid] = {}
    ends = (m.scale.dtype for m in gm.modules() if isinstance(m, (Quantize, Dequantize)))
    real = next(ends, torch.float32)  # a float64 network has float64 numbers around its integers
    for node in gm.graph.nodes:
        module = called_module(gm, node)
        first = node.args[0] if node.args else None
        source = found.get(first) if isinstance(first, fx.Node) else None
        if isinstance(module, (CallSite, InputQuantizer)):
            quantizer = module.quantizer if isinstance(module, CallSite) else module.output
            if isinstance(quantizer, ActivationFakeQuant):
                known = quantizer.qparams if quantizer.ready else None
                found[node] = Grid(quantizer.scheme, known)
        elif isinstance(module, Quantize):
            found[node] = Grid(module.qparams.scheme, module.qparams)
        elif isinstance(module, IntegerOp):
            found[node] = Grid(module.scheme, _output(module, real))
        elif source is not None and is_move(gm, node):
            found[node] = source
    return found


def _output(module: IntegerOp, real: torch.dtype) -> QParams:
    """What its codes stand for, in numbers of type `real` on the device of its own."""
    device = next((number.device for number in module.buffers()), None)
    scale = torch.tensor(module.facts.scale, dtype=real, device=device)
    zero_point = torch.tensor(module.facts.zero_point, dtype=torch.int32, device=device)
    return QParams(scale, zero_point, module.scheme)


def is_code(value: Tensor) -> bool:
    """Whether a value on a grid is its integers already, and not what they stand for."""
    return not value.is_floating_point()
