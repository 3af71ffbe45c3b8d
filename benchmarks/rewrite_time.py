"""How long prepare_qat and convert take as networks grow: milliseconds per graph node.

    python benchmarks/rewrite_time.py [--layers 4 8 20 40] [--json rewrite_time.json]

Two networks: one of DARTS, and a small one in the manner of DenseNet, in which every layer asks for
a number of its own, `drop_rate`. One pinned thread; each figure is the best of three, after a
warm-up.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant.darts import DARTS_V2, NetworkCIFAR
from measures import best, one_quiet_thread, write


class DenseLayer(nn.Module):
    """Reads all the layers before it in its block, and drops some of what it adds."""

    def __init__(self, channels: int) -> None:
        """`channels` of all that it reads."""
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(channels), nn.Conv2d(channels, 4, 3, padding=1)
        self.drop_rate = 0.0

    def forward(self, features: list[Tensor]) -> Tensor:
        """Four more channels."""
        y: Tensor = self.conv(torch.relu(self.norm(torch.cat(features, 1))))
        if self.drop_rate > 0:
            y = F.dropout(y, self.drop_rate, self.training)
        return y


class DenseBlock(nn.Module):
    """Four dense layers, and a convolution that takes their channels back to four."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([DenseLayer(4 + 4 * i) for i in range(4)])
        self.last = nn.Conv2d(20, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Four channels to four channels."""
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        y: Tensor = self.last(torch.cat(features, 1))
        return y


def darts(layers: int) -> nn.Module:
    """A network of DARTS with as many cells."""
    return NetworkCIFAR(4, 10, layers, DARTS_V2)


def dense(layers: int) -> nn.Module:
    """Dense blocks, of four layers each."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), *(DenseBlock() for _ in range(layers // 4)))


def measure(build: Callable[[int], nn.Module], layers: int) -> dict[str, float | str]:
    """One row: nodes, and milliseconds per node of each rewrite."""
    net, x = build(layers), torch.randn(2, 3, 16, 16)
    prepare, prepared = best(lambda: fxquant.prepare_qat(net))
    examples, _ = best(lambda: fxquant.prepare_qat(net, x))
    with torch.no_grad():
        prepared.train()(x)
    convert, _ = best(lambda: fxquant.convert(prepared))
    nodes = len(prepared.graph.nodes)
    return {
        "network": build.__name__,
        "layers": layers,
        "nodes": nodes,
        "prepare_ms_per_node": 1e3 * prepare / nodes,
        "examples_ms_per_node": 1e3 * examples / nodes,
        "convert_ms_per_node": 1e3 * convert / nodes,
    }


def main() -> None:
    """Measure each size, print a table, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 8, 20, 40])
    parser.add_argument("--json", type=Path, help="write the rows here, too")
    arguments = parser.parse_args()
    one_quiet_thread()
    measure(darts, 3)
    print("network  layers  nodes  prepare  with examples  convert   (ms per node)")
    rows = []
    for build, layers in product((darts, dense), arguments.layers):
        rows.append(measure(build, layers))
        row = rows[-1]
        print(
            f"{row['network']:8} {layers:5} {row['nodes']:6} {row['prepare_ms_per_node']:8.2f} "
            f"{row['examples_ms_per_node']:14.2f} {row['convert_ms_per_node']:8.2f}",
            flush=True,
        )
    if arguments.json:
        write(arguments.json, rows)


if __name__ == "__main__":
    main()
