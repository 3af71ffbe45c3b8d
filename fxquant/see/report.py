"""Everything about one network, on one page that needs nothing but itself."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from torch import Tensor, fx, nn

from fxquant.audit import Audit
from fxquant.errors import StageError
from fxquant.files import ending_of, write_whole
from fxquant.pipeline import CONVERTED, PREPARED, Stage, history, say_stage, stage_of
from fxquant.see.as_float import as_float
from fxquant.see.examine import Layer, Report, examine
from fxquant.see.facts import to_networkx
from fxquant.see.histogram import Histogram
from fxquant.see.page import finite, graph_data, page


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
        WriteError: the file cannot be written.
        DataError, UncalibratedError: as `compare`.
    """
    ending_of(path, ("html",), "a report")
    stage = stage_of(model) if isinstance(model, fx.GraphModule) else Stage.FLOAT
    if stage not in (*PREPARED, *CONVERTED):
        raise StageError(
            f"report takes what prepare_qat or convert returned, got {say_stage(model)}.\n"
            "What to do: prepare it with prepare_qat first."
        )
    inside = as_float(model) if stage in PREPARED else None
    if reference is None:
        reference = model if inside is None else inside
    found = examine(model, inside, reference, data)
    content = page(f"fxquant: {found.network}", "report", _told(model, found, reference is model))
    write_whole(path, content)
    return found


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


def _cards(found: Report, alone: bool) -> Iterator[dict[str, str]]:
    first, worst = found.errors.first, found.errors.worst
    if not alone and found.errors.rows:
        last = found.errors.rows[-1]
        output = "equal" if last.sqnr == math.inf else f"{last.sqnr:.1f} dB"
        yield {"what": "signal to error of the last operator", "value": output}
        if worst is not None:
            what = f"worst by itself: {worst.node}"
            yield {"what": what, "value": f"{worst.alone:.1f} dB", "node": worst.node}
        bad = {"value": first.node, "tone": "bad", "node": first.node} if first else {}
        what = "no operator is bad" if first is None else f"first bad operator, {first.why}"
        yield {"what": what, "value": "none", "tone": "good", **bad}
    yield _bytes(found)
    yield {"what": "multiply-adds for one input", "value": f"{found.multiplies:,}"}
    if isinstance(found.audit, Audit):
        sums = [row for row in found.audit.rows if row.width is not None]
        proved = sum(row.proved for row in sums)
        tone = "good" if proved == len(sums) else "bad"
        yield {"what": "sums proved to fit", "value": f"{proved} of {len(sums)}", "tone": tone}


def _bytes(found: Report) -> dict[str, str]:
    """Of what it converts to, beside the float network; of one of them where there is no other."""
    what, size = "bytes of parameters and numbers", found.integer_bytes
    if size is None:
        return {"what": f"{what}, in float", "value": f"{found.float_bytes or 0:,}"}
    beside = "" if found.float_bytes is None else f"; {found.float_bytes:,} in float"
    return {"what": what + beside, "value": f"{size:,}"}


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
