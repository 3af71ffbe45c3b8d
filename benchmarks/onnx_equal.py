"""Whether onnxruntime gives the integers of a converted network, from either ONNX form.

    python benchmarks/onnx_equal.py [--batches 100] [--networks resnet18 …] [--json onnx_equal.json]

Each network is prepared, sees two random batches, is converted, exported and run on random batches
of two pictures: every output integer of every batch, and every node's of the first. The outputs
come from the file as it is, with all that onnxruntime optimizes.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import torch
import torchvision.models as models
from rich.progress import Progress
from torch import Tensor, fx, nn

import fxquant
from fxquant import QuantConfig
from fxquant.darts import DARTS_V2, NetworkCIFAR, SearchNetwork
from measures import write

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "DARTS_V2 C16 L8": (lambda: NetworkCIFAR(16, 10, 8, DARTS_V2), 32),
    "DARTS_V2 C36 L20": (lambda: NetworkCIFAR(36, 10, 20, DARTS_V2), 32),
    "DARTS search C8 L4": (lambda: SearchNetwork(8, 10, 4), 32),
    "resnet18": (lambda: models.resnet18(), 64),
    "mobilenet_v2": (lambda: models.mobilenet_v2(), 64),
    "mobilenet_v3_small": (lambda: models.mobilenet_v3_small(), 64),
    "shufflenet_v2_x1_0": (lambda: models.shufflenet_v2_x1_0(), 64),
    "efficientnet_b0": (lambda: models.efficientnet_b0(), 64),
    "densenet121": (lambda: models.densenet121(), 64),
    "vit_b_16": (lambda: models.vit_b_16(image_size=32), 32),
}
FORMS = {"operators": "half_up", "qdq": "fp32_rne"}


def integers(model: nn.Module, size: int, rounding: Any) -> fx.GraphModule:
    """The network in integers, its ranges from random pictures."""
    config = QuantConfig(rounding=rounding, batch_norm="fold")
    prepared = fxquant.prepare_qat(model, torch.randn(2, 3, size, size), config)
    with torch.no_grad():
        for _ in range(2):
            prepared(torch.randn(8, 3, size, size))
    return fxquant.convert(prepared)


def session(path: Path) -> Callable[[Tensor], Tensor]:
    """The file in onnxruntime on one core, as it comes: what it makes of its only input."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    found = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = found.get_inputs()[0].name
    return lambda x: torch.from_numpy(found.run(None, {name: x.numpy()})[0])


def measure(name: str, form: Any, batches: int, tell: Callable[[], object]) -> dict[str, Any]:
    """One row."""
    make, size = NETWORKS[name]
    torch.manual_seed(0)
    quantized, x = integers(make(), size, FORMS[form]), torch.randn(2, 3, size, size)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        fxquant.export_onnx(quantized, path, x, form=form)
        nodes = fxquant.verify(quantized, path, x)
        engine, differ, elements = session(path), 0, 0
        for _ in range(batches):
            ours = quantized(x)
            differ += int((engine(x) != ours).sum())
            elements += ours.numel()
            x = torch.randn_like(x)
            tell()
        megabytes = path.stat().st_size / 1e6
    return {
        "network": name, "form": form, "nodes": nodes.nodes, "node_elements": nodes.elements,
        "nodes_that_differ": len(nodes.partings), "batches": batches, "outputs": elements,
        "outputs_that_differ": differ, "megabytes": megabytes,
    }


def main() -> None:
    """Measure, print a table, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=FORMS)
    parser.add_argument("--json", type=Path, help="write the rows here, too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    pairs = [(name, form) for name in arguments.networks for form in arguments.forms]
    with Progress() as progress:
        progress.print("| network | form | nodes | of their integers differ | batches | outputs "
                       "| differ | MB |\n|---|---|---|---|---|---|---|---|", soft_wrap=True)
        task = progress.add_task("batches", total=len(pairs) * arguments.batches)
        for name, form in pairs:
            row = measure(name, form, arguments.batches, lambda: progress.advance(task))
            rows.append(row)
            progress.print(
                f"| {name} | {form} | {row['nodes']} | {row['nodes_that_differ']} of "
                f"{row['node_elements']:,} | {row['batches']} | {row['outputs']:,} | "
                f"{row['outputs_that_differ']} | {row['megabytes']:.1f} |", soft_wrap=True,
            )
            if arguments.json:
                write(arguments.json, rows)


if __name__ == "__main__":
    main()
