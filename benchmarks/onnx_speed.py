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
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fxquant
from measures import interleaved, one_quiet_thread
from onnx_networks import NETWORKS, integers, session
from rows import Row, fill

SIZES = {"resnet18": 224, "mobilenet_v2": 224, "mobilenet_v3_small": 224, "shufflenet_v2_x1_0": 224}
SPEED = ("resnet18", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x1_0",
         "DARTS_V2 C16 L8", "DARTS_V2 C36 L20")
BATCHES = 1, 16
WARM_UP = 3
COLUMNS = {
    "network": "{network}",
    "picture": "{size}",
    "batch": "{batch}",
    "float": "{float_ms:.2f} ms",
    "QDQ": "{qdq_ms:.2f} ms",
    "QDQ / float": "{ratio:.2f}",
    "outputs that differ": "{outputs_that_differ}",
}


def export_float(model: nn.Module, x: Tensor, path: Path) -> None:
    """The float network, as torch writes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its older exporter, which needs no further package
        torch.onnx.export(
            model.eval(), (x,), path, dynamo=False, opset_version=17, input_names=["x"],
            dynamic_axes={"x": {0: "batch"}},
        )


def measure(job: Row, tell: Callable[[], object]) -> dict[str, Any]:
    """One network at one size of batches, so many rounds."""
    (make, _), size = NETWORKS[job["network"]], job["size"]
    torch.manual_seed(0)
    model = make()
    quantized, x = integers(model, size, "fp32_rne"), torch.randn(job["batch"], 3, size, size)
    with tempfile.TemporaryDirectory() as folder:
        real, whole = Path(folder) / "float.onnx", Path(folder) / "qdq.onnx"
        export_float(model, x, real)
        fxquant.export_onnx(quantized, whole, x, form="qdq")
        in_float, in_integers = session(real), session(whole)
        differ = int((in_integers(x) != quantized(x)).sum())
        calls = {"float": partial(in_float, x), "qdq": partial(in_integers, x)}
        took = interleaved(calls, job["rounds"], WARM_UP, tell)
    return {
        "float_ms": took.ms("float"), "qdq_ms": took.ms("qdq"),
        "ratio": took.ratio("qdq", over="float"), "outputs_that_differ": differ,
    }


def main() -> None:
    """Measure, print a table, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--networks", nargs="+", default=list(SPEED), choices=NETWORKS)
    parser.add_argument("--json", type=Path, help="keep the rows here, too")
    arguments = parser.parse_args()
    one_quiet_thread()
    jobs: list[Row] = [
        {"network": name, "size": SIZES.get(name, NETWORKS[name][1]), "batch": batch,
         "rounds": arguments.rounds}
        for name in arguments.networks for batch in BATCHES
    ]
    fill(COLUMNS, jobs, measure, arguments.rounds + WARM_UP, arguments.json)


if __name__ == "__main__":
    main()
