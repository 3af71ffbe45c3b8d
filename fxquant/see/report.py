"""Everything about one network, on one page that needs nothing but itself."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxquant.api import convert
from fxquant.audit import Audit, AuditRow, audit
from fxquant.errors import ConfigError, FxQuantError, StageError
from fxquant.files import write_whole
from fxquant.graph.edit import SITES, called_module, get_attribute, state_bytes
from fxquant.ops.integer import IntegerOp
from fxquant.ops.site import CallSite
from fxquant.pipeline import Stage, history, say_stage, stage_of
from fxquant.schemes import QParams
from fxquant.see.as_float import as_float
from fxquant.see.compare import measured
from fxquant.see.comparison import Comparison, Row
from fxquant.see.facts import to_networkx
from fxquant.see.grid import grids_of
from fxquant.see.histogram import Distribution, Histogram
from fxquant.see.page import finite, graph_data, page


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

    errors       how the network differs from the reference, node by node
    audit        of what it converts to; the error's text where it does not
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


def report(
    model: fx.GraphModule,
    data: Tensor | Iterable[Any],
    path: str | os.PathLike[str],
    reference: nn.Module | None = None,
) -> Report:
    """Write one HTML file about a network: its graph coloured by error, histograms of weights and
    activations with their ranges, a table of layers, the log of its passes, and its audit.

    The file loads nothing from anywhere, and is written whole or not at all.

    Args:
        model: what prepare_qat or convert returned.
        data: a batch, or batches such as a DataLoader gives.
        path: ends in .html.
        reference: what errors are measured against; of a prepared network the float network
            inside it, if None. Of a converted one errors are shown only beside a reference.

    Raises:
        StageError: `model` is neither prepared nor converted.
        ConfigError: another ending.
        DataError, UncalibratedError: as `compare`.
    """
    if Path(path).suffix.lower() != ".html":
        raise ConfigError(f"a report's file ends in .html, got '{os.fspath(path)}'")
    stage = stage_of(model) if isinstance(model, fx.GraphModule) else Stage.FLOAT
    if stage not in (Stage.FAKE_QUANT, Stage.INTEGER):
        raise StageError(
            f"report takes what prepare_qat or convert returned, got {say_stage(model)}.\n"
            "What to do: prepare it with prepare_qat first."
        )
    prepared = stage is Stage.FAKE_QUANT
    inside = as_float(model) if prepared else None
    if reference is None:
        reference = model if inside is None else inside
    found = _report(model, inside, reference, data)
    content = page(f"fxquant: {found.network}", "report", _told(model, found, reference is model))
    write_whole(path, content)
    return found


def _report(
    model: fx.GraphModule,
    inside: fx.GraphModule | None,
    reference: nn.Module,
    data: Tensor | Iterable[Any],
) -> Report:
    """`inside` is the float network of a prepared one."""
    values = _Values(model)
    errors = measured(reference, model, data, values)
    quantized: fx.GraphModule | None = model
    found: Audit | str
    try:
        quantized = model if inside is None else convert(model)
        found = audit(quantized)
    except FxQuantError as error:
        quantized, found = None, str(error)
    sums = {} if isinstance(found, str) else {row.node: row for row in found.rows}
    nodes = {node.name: node for node in model.graph.nodes}
    return Report(
        network=type(model).__name__,
        stage=stage_of(model),
        errors=errors,
        layers=tuple(
            _layer(model, nodes[row.node], row, values, sums.get(_path(nodes[row.node])))
            for row in errors.rows
        ),
        audit=found,
        float_bytes=None if inside is None else state_bytes(inside),
        integer_bytes=None if quantized is None else state_bytes(quantized),
    )


def _path(node: fx.Node) -> str:
    return str(node.target).removeprefix(f"{SITES}.")


def _layer(
    model: fx.GraphModule, node: fx.Node, row: Row, values: _Values, sums: AuditRow | None
) -> Layer:
    terms = None if sums is None else sums.terms
    elements = values.elements.get(node.name, 0)
    distribution = values.distributions.get(node.name)
    return Layer(
        row=row,
        values=None if distribution is None else distribution.histogram(),
        weights=_weights(model, node),
        multiplies=None if terms is None else terms * elements,
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
    module, weight = called_module(model, node), node.kwargs.get("weight")
    if isinstance(module, IntegerOp):
        codes = getattr(module, "weight", None)
        if not isinstance(codes, Tensor):
            return None
        distribution = Distribution()
        distribution.add(codes)
        return distribution.histogram()
    if not isinstance(module, CallSite) or module.weight_quant is None:
        return None
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return None  # computed from parameters
    value = get_attribute(model, str(weight.target)).detach()
    scale = module.weight_quant.scale(value)
    q = QParams(scale, torch.zeros_like(scale, dtype=torch.int32), module.weight_quant.scheme)
    distribution = Distribution(q)
    distribution.add(module.weight_quant.transform(value))
    return distribution.histogram()


# What the page is told


def _told(model: fx.GraphModule, found: Report, alone: bool) -> dict[str, Any]:
    return {
        "network": found.network,
        "stage": found.stage.value,
        "compared": not alone,
        "cards": [*_cards(found, alone)],
        "graph": graph_data(to_networkx(model)),
        "layers": [_layer_told(layer) for layer in found.layers],
        "passes": [asdict(record) for record in history(model)],
        "audit": _audit_told(found.audit),
    }


def _cards(found: Report, alone: bool) -> Iterable[dict[str, str]]:
    first, worst, last = found.errors.first, found.errors.worst, found.errors.rows[-1]
    if not alone:
        output = "equal" if last.sqnr == float("inf") else f"{last.sqnr:.1f} dB"
        yield {"what": "signal to error of the last operator", "value": output}
        if worst is not None:
            what = f"worst by itself: {worst.node}"
            yield {"what": what, "value": f"{worst.alone:.1f} dB", "node": worst.node}
        bad = {"value": first.node, "tone": "bad", "node": first.node} if first else {}
        what = "no operator is bad" if first is None else f"first bad operator, {first.why}"
        yield {"what": what, "value": "none", "tone": "good", **bad}
    sizes = [f"{size:,}" for size in (found.float_bytes, found.integer_bytes) if size is not None]
    yield {"what": "bytes of parameters and numbers", "value": " → ".join(sizes)}
    yield {"what": "multiply-adds for one input", "value": f"{found.multiplies:,}"}
    if isinstance(found.audit, Audit):
        sums = [row for row in found.audit.rows if row.width is not None]
        proved = sum(row.proved for row in sums)
        tone = "good" if proved == len(sums) else "bad"
        yield {"what": "sums proved to fit", "value": f"{proved} of {len(sums)}", "tone": tone}


def _layer_told(layer: Layer) -> dict[str, Any]:
    row = asdict(layer.row)
    return {
        **{key: finite(value) if isinstance(value, float) else value for key, value in row.items()},
        "values": _histogram_told(layer.values),
        "weights": _histogram_told(layer.weights),
        "multiplies": layer.multiplies,
        "bytes": layer.weight_bytes,
    }


def _histogram_told(histogram: Histogram | None) -> dict[str, Any] | None:
    if histogram is None:
        return None
    ends = {"low": finite(histogram.low), "high": finite(histogram.high)}
    return {
        **ends,
        "counts": histogram.counts,
        "range": histogram.range,
        "outside": histogram.outside,
    }


def _audit_told(found: Audit | str) -> dict[str, Any]:
    if isinstance(found, str):
        return {"head": (), "rows": (), "result": found}
    head, *rows = found.cells
    return {"head": head, "rows": rows, "result": found.result}
