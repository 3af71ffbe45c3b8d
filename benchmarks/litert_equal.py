"""Whether LiteRT gives the integers of a converted network, from its .tflite file.

    python benchmarks/litert_equal.py [--batches 10] [--networks resnet18 …] [--json litert.json]

Each network is prepared, sees two random batches, is converted, exported and run on random batches
of two pictures: every output integer of every batch, and every node's of the first, in the kernels
that round as the network does: the reference ones for gemmlowp, the optimized ones for ruy. The
demo's network reads real digits, 128 for its ranges and then all that are held out. A JSON file
that has rows already is gone on with.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

import fxquant
from fxquant import preset
from fxquant.darts import DARTS_V2, NetworkCIFAR
from fxquant.demo import FULL, load_digits
from fxquant.export.litert import run_tflite
from onnx_networks import NETWORKS
from rows import Row, fill

DEMO = "the demo's, DARTS_V2 C8 L4"
NAMES = (DEMO, *(name for name in NETWORKS if name != "vit_b_16"))  # whose softmax is refused
ROUNDINGS = {"gemmlowp": "reference", "ruy": "optimized"}
"""And LiteRT's kernels that round so."""
COLUMNS = {
    "network": "{network}",
    "kernels, rounding": "{kernels}, `{rounding}`",
    "nodes": "{nodes}",
    "of their integers differ": "{nodes_that_differ} of {node_elements:,}",
    "inputs": "{inputs}",
    "outputs": "{outputs:,}",
    "differ": "{outputs_that_differ}",
    "MB": "{megabytes:.1f}",
}


def integers(model: nn.Module, pictures: list[Tensor], rounding: Any) -> fx.GraphModule:
    """The network in integers, its ranges from those pictures."""
    config = replace(preset("litert").config, rounding=rounding, batch_norm="fold")
    prepared = fxquant.prepare_qat(model, pictures[0], config)
    with torch.no_grad():
        for x in pictures:
            prepared(x)
    return fxquant.convert(prepared)


def network_and_data(name: str, rounding: str, batches: int) -> tuple[fx.GraphModule, list[Tensor]]:
    """A converted network, and the batches that it is to read."""
    torch.manual_seed(0)
    if name == DEMO:
        ranges, held_out = load_digits(FULL.images)
        model = NetworkCIFAR(FULL.channels, 10, FULL.layers, DARTS_V2, in_channels=1)
        quantized = integers(model, list(ranges.images[:128].split(64)), rounding)
        return quantized, list(held_out.images.split(64))
    make, size = NETWORKS[name]
    quantized = integers(make(), [torch.randn(8, 3, size, size) for _ in range(2)], rounding)
    return quantized, [torch.randn(2, 3, size, size) for _ in range(batches)]


def measure(job: Row, tell: Callable[[], object]) -> Row:
    """One network in one rounding, on so many batches."""
    quantized, data = network_and_data(job["network"], job["rounding"], job["batches"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.tflite"
        fxquant.export_tflite(quantized, path, data[0])
        nodes = fxquant.verify(quantized, path, data[0][:2])
        model, differ, elements = path.read_bytes(), 0, 0
        for x in data:
            ours, (theirs,) = quantized(x), run_tflite(model, [x]).values()
            differ += int((theirs != ours).sum())
            elements += ours.numel()
            tell()
    return {
        "kernels": ROUNDINGS[job["rounding"]], "nodes": nodes.nodes,
        "node_elements": nodes.elements, "nodes_that_differ": len(nodes.partings),
        "inputs": sum(map(len, data)), "outputs": elements, "outputs_that_differ": differ,
        "megabytes": len(model) / 1e6,
    }


def main() -> None:
    """Measure, print a table, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--networks", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--roundings", nargs="+", default=list(ROUNDINGS), choices=ROUNDINGS)
    parser.add_argument("--json", type=Path, help="keep the rows here, too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    jobs: list[Row] = [
        {"network": name, "rounding": rounding, "batches": arguments.batches}
        for name in arguments.networks for rounding in arguments.roundings
    ]
    fill(COLUMNS, jobs, measure, arguments.batches, arguments.json)


if __name__ == "__main__":
    main()
