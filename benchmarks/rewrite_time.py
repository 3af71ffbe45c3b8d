"""How long prepare_qat and convert take as networks grow: milliseconds per graph node.

    python benchmarks/rewrite_time.py [--layers 4 8 20 40] [--json rewrite_time.json]

One pinned thread; each figure is the best of three, after a warm-up.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

import fxquant
from fxquant.darts import DARTS_V2, NetworkCIFAR

T = TypeVar("T")


def best_of_three(call: Callable[[], T]) -> tuple[float, T]:
    """Seconds of the quickest of three calls, and its result."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def measure(layers: int) -> dict[str, float]:
    """One row: nodes, and milliseconds per node of each rewrite."""
    net = NetworkCIFAR(4, 10, layers, DARTS_V2)
    prepare, prepared = best_of_three(lambda: fxquant.prepare_qat(net))
    with torch.no_grad():
        prepared.train()(torch.randn(2, 3, 16, 16))
    convert, _ = best_of_three(lambda: fxquant.convert(prepared))
    nodes = len(prepared.graph.nodes)
    return {
        "layers": layers,
        "nodes": nodes,
        "prepare_ms_per_node": 1e3 * prepare / nodes,
        "convert_ms_per_node": 1e3 * convert / nodes,
    }


def main() -> None:
    """Measure each size, print a table, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 8, 20, 40])
    parser.add_argument("--json", type=Path, help="write the rows here, too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measure(3)
    print(f"{'layers':>6} {'nodes':>6} {'prepare':>8} {'convert':>8}   (ms per node)")
    rows = []
    for layers in arguments.layers:
        rows.append(measure(layers))
        row = rows[-1]
        print(
            f"{layers:6} {row['nodes']:6} {row['prepare_ms_per_node']:8.2f} "
            f"{row['convert_ms_per_node']:8.2f}",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
