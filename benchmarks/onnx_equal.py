"""Whether onnxruntime gives the integers of a converted network, from either ONNX form.

    python benchmarks/onnx_equal.py [--batches 100] [--networks resnet18 …] [--json onnx_equal.json]

Each network is prepared, sees two random batches, is converted, exported and run on random batches
of two pictures: every output integer of every batch, and every node's of the first. The outputs
come from the file as it is, with all that onnxruntime optimizes. A JSON file that has rows already
is gone on with.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fxquant
from onnx_networks import NETWORKS, integers, session
from rows import Row, fill

FORMS = {"operators": "half_up", "qdq": "fp32_rne"}
COLUMNS = {
    "network": "{network}",
    "form": "{form}",
    "nodes": "{nodes}",
    "of their integers differ": "{nodes_that_differ} of {node_elements:,}",
    "batches": "{batches}",
    "outputs": "{outputs:,}",
    "differ": "{outputs_that_differ}",
    "MB": "{megabytes:.1f}",
}


def measure(job: Row, tell: Callable[[], object]) -> dict[str, Any]:
    """One network in one form, on so many batches."""
    make, size = NETWORKS[job["network"]]
    torch.manual_seed(0)
    quantized = integers(make(), size, FORMS[job["form"]])
    x = torch.randn(2, 3, size, size)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        fxquant.export_onnx(quantized, path, x, form=job["form"])
        nodes = fxquant.verify(quantized, path, x, engines=["onnxruntime"])
        engine, differ, elements = session(path), 0, 0
        for _ in range(job["batches"]):
            ours = quantized(x)
            differ += int((engine(x) != ours).sum())
            elements += ours.numel()
            x = torch.randn_like(x)
            tell()
        megabytes = path.stat().st_size / 1e6
    return {
        "nodes": nodes.nodes, "node_elements": nodes.elements,
        "nodes_that_differ": len(nodes.partings), "outputs": elements,
        "outputs_that_differ": differ, "megabytes": megabytes,
    }


def main() -> None:
    """Measure, print a table, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=FORMS)
    parser.add_argument("--json", type=Path, help="keep the rows here, too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    jobs: list[Row] = [
        {"network": name, "form": form, "batches": arguments.batches}
        for form in arguments.forms for name in arguments.networks
    ]
    fill(COLUMNS, jobs, measure, arguments.batches, arguments.json)


if __name__ == "__main__":
    main()
