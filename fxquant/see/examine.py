"""What a report holds of a network: errors, distributions, sums and sizes, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxquant.api import convert
from fxquant.audit import Audit, AuditRow, audit
from fxquant.errors import FxQuantError
from fxquant.graph.edit import SITES, called_module, get_attribute, state_bytes
from fxquant.pipeline import Stage, stage_of
from fxquant.schemes import QParams
from fxquant.see.compare import measured
from fxquant.see.comparison import Comparison, Row
from fxquant.see.grid import grids_of
from fxquant.see.histogram import Distribution, Histogram
from fxquant.sites.call_site import CallSite
from fxquant.sites.integer import IntegerOp
from fxquant.sites.quantized_layer import IntegerLayer, QuantizedLayer


@dataclass(frozen=True)
class Layer:
    """What the report says of one node, beside the row of its comparison.

    values       what the reference computes here, beside the range of the node's grid
    weights      the weight's numbers: real ones of a prepared network, codes of a converted one
    multiplies   multiply-adds, or codes added up, for one input; None where nothing is summed
    """

    row: Row
    values: Histogram | None
    weights: Histogram | None
    multiplies: int | None
    weight_bytes: int


@dataclass(frozen=True)
class Report:
    """What `report` wrote.

    errors          how the network differs from the reference, node by node
    audit           of what it converts to; the error's text where there is none
    float_bytes     of the float network inside a prepared one
    integer_bytes   of the converted one; None where it does not convert
    """

    network: str
    stage: Stage
    errors: Comparison
    layers: tuple[Layer, ...]
    audit: Audit | str
    float_bytes: int | None
    integer_bytes: int | None

    @property
    def multiplies(self) -> int:
        """Multiply-adds, or codes added up, for one input, of all nodes."""
        return sum(layer.multiplies or 0 for layer in self.layers)


def examine(
    model: fx.GraphModule,
    inside: fx.GraphModule | None,
    reference: nn.Module,
    data: Tensor | Iterable[Any],
) -> Report:
    """All of it, on data; `inside` is the float network of a prepared one.

    Raises as `compare` does.
    """
    values = _Values(model)
    errors = measured(reference, model, data, values)
    quantized, found = _audited(model, converted=inside is None)
    sums = {} if isinstance(found, str) else {row.node: row for row in found.rows}
    nodes = {node.name: node for node in model.graph.nodes}
    return Report(
        network=type(model).__name__,
        stage=stage_of(model),
        errors=errors,
        layers=tuple(_layer(model, nodes[row.node], row, values, sums) for row in errors.rows),
        audit=found,
        float_bytes=None if inside is None else state_bytes(inside),
        integer_bytes=None if quantized is None else state_bytes(quantized),
    )


def _audited(
    model: fx.GraphModule, converted: bool
) -> tuple[fx.GraphModule | None, Audit | str]:
    """What the model converts to, and its audit; why not, where either cannot be had."""
    quantized = model if converted else None
    try:
        quantized = quantized or convert(model)
        return quantized, audit(quantized)
    except FxQuantError as error:
        return quantized, str(error)


def _layer(
    model: fx.GraphModule, node: fx.Node, row: Row, values: _Values, audited: dict[str, AuditRow]
) -> Layer:
    sums = audited.get(str(node.target).removeprefix(f"{SITES}."))
    terms = None if sums is None else sums.terms
    distribution = values.distributions.get(node.name)
    return Layer(
        row=row,
        values=None if distribution is None else distribution.histogram(),
        weights=_weights(model, node),
        multiplies=None if terms is None else terms * values.elements.get(node.name, 0),
        weight_bytes=0 if sums is None else sums.weight_bytes,
    )


class _Values:
    """As what watches a comparison: how the values of each node are distributed."""

    def __init__(self, model: fx.GraphModule) -> None:
        self._grids = {node.name: grid.qparams for node, grid in grids_of(model).items()}
        self.distributions: dict[str, Distribution] = {}
        self.elements: dict[str, int] = {}  # of one input

    def __call__(self, name: str, expected: Any, value: Any) -> None:
        if not isinstance(expected, Tensor) or not expected.dim():
            return
        self.distributions.setdefault(name, Distribution(self._grids.get(name))).add(expected)
        self.elements[name] = expected.numel() // max(1, len(expected))


def _weights(model: fx.GraphModule, node: fx.Node) -> Histogram | None:
    """Of a prepared network beside the ranges of their grid, as their quantizer shapes them."""
    module, weight = called_module(model, node), node.kwargs.get("weight")
    if isinstance(module, (IntegerOp, IntegerLayer)):
        codes = getattr(module, "weight", None)
        return _histogram(codes, None) if isinstance(codes, Tensor) else None
    if not isinstance(module, (CallSite, QuantizedLayer)) or module.weight_quant is None:
        return None
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return None  # computed from parameters
    quant, value = module.weight_quant, get_attribute(model, str(weight.target)).detach()
    if isinstance(module, QuantizedLayer) and module.group is not None:
        value = value.reshape(-1, module.group)
    scale = quant.scale(value)
    q = QParams(scale, torch.zeros_like(scale, dtype=torch.int32), quant.scheme)
    return _histogram(quant.transform(value), q)


def _histogram(values: Tensor, q: QParams | None) -> Histogram | None:
    distribution = Distribution(q)
    distribution.add(values)
    return distribution.histogram()
