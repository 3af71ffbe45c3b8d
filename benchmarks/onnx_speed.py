"""How long onnxruntime takes for the QDQ form of a network, over its own time for the float one.

    python benchmarks/onnx_speed.py [--rounds 20] [--networks resnet18 …] [--json onnx_speed.json]

One pinned thread; both files take turns in one process; a ratio is the median of the rounds'
ratios. The float network is what torch.onnx writes of the same model, batch norms folded by
onnxruntime. That the integers are those of the network is checked on the way.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn

import fxquant
from measures import interleaved, one_quiet_thread, write
from onnx_equal import NETWORKS, integers, session

SIZES = {"resnet18": 224, "mobilenet_v2": 224, "mobilenet_v3_small": 224, "shufflenet_v2_x1_0": 224}
SPEED = ("resnet18", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x1_0",
         "DARTS_V2 C16 L8", "DARTS_V2 C36 L20")
BATCHES = 1, 16


def export_float(model: nn.Module, x: Tensor, path: Path) -> None:
    """The float network, as torch writes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its older exporter, which needs no further package
        torch.onnx.export(
            model.eval(), (x,), path, dynamo=False, opset_version=17, input_names=["x"],
            dynamic_axes={"x": {0: "batch"}},
        )


def measure(name: str, rounds: int, tell: Any) -> list[dict[str, Any]]:
    """A row for each batch size."""
    make, size = NETWORKS[name]
    size = SIZES.get(name, size)
    torch.manual_seed(0)
    model, rows = make(), []
    quantized, x = integers(model, size, "fp32_rne"), torch.randn(2, 3, size, size)
    with tempfile.TemporaryDirectory() as folder:
        real, whole = Path(folder) / "float.onnx", Path(folder) / "qdq.onnx"
        export_float(model, x, real)
        fxquant.export_onnx(quantized, whole, x, form="qdq")
        for batch in BATCHES:
            x = torch.randn(batch, 3, size, size)
            in_float, in_integers = session(real), session(whole)
            differ = int((in_integers(x) != quantized(x)).sum())
            calls = {"float": partial(in_float, x), "qdq": partial(in_integers, x)}
            took = interleaved(calls, rounds, tell=tell)
            rows.append({
                "network": name, "size": size, "batch": batch, "float_ms": took.ms("float"),
                "qdq_ms": took.ms("qdq"), "ratio": took.ratio("qdq", over="float"),
                "outputs_that_differ": differ,
            })
    return rows


def main() -> None:
    """Measure, print a table, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--networks", nargs="+", default=list(SPEED), choices=NETWORKS)
    parser.add_argument("--json", type=Path, help="write the rows here, too")
    arguments = parser.parse_args()
    one_quiet_thread()
    rows: list[dict[str, Any]] = []
    with Progress() as progress:
        progress.print("| network | picture | batch | float | QDQ | QDQ / float | outputs that "
                       "differ |\n|---|---|---|---|---|---|---|", soft_wrap=True)
        total = len(arguments.networks) * len(BATCHES) * (arguments.rounds + 3)
        task = progress.add_task("rounds", total=total)
        for name in arguments.networks:
            found = measure(name, arguments.rounds, lambda: progress.advance(task))
            rows += found
            for row in found:
                progress.print(
                    f"| {name} | {row['size']} | {row['batch']} | {row['float_ms']:.2f} ms | "
                    f"{row['qdq_ms']:.2f} ms | {row['ratio']:.2f} | "
                    f"{row['outputs_that_differ']} |", soft_wrap=True,
                )
            if arguments.json:
                write(arguments.json, rows)


if __name__ == "__main__":
    main()
