"""How long prepare_qat and convert take as networks grow: milliseconds per node, and the exponent.

    python benchmarks/rewrite_time.py [--networks search chain] [--json rewrite_time.json]

Networks of DARTS and whole search networks; a chain of convolutions; and a small network in the
manner of DenseNet, in which every layer asks for a number of its own, `drop_rate`. One pinned
thread, processor's time, the better of two; nodes are those of the prepared graph.
The exponent is that of the time of both over the nodes, from the smallest network to the largest.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import fxquant
from fxquant.darts import DARTS_V2, NetworkCIFAR, SearchNetwork
from measures import best, exponent, one_quiet_thread, write


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


def search(layers: int) -> nn.Module:
    """A search network of DARTS with as many cells."""
    return SearchNetwork(4, 10, layers)


def chain(layers: int) -> nn.Module:
    """As many convolutions, each with its batch norm and ReLU."""
    parts = [[nn.Conv2d(3 if i == 0 else 4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()]
             for i in range(layers)]
    return nn.Sequential(*(nn.Sequential(*part) for part in parts))


def dense(layers: int) -> nn.Module:
    """Dense blocks, of four layers each."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), *(DenseBlock() for _ in range(layers // 4)))


# with as many layers as make about 600, 2,000, 6,000 and 10,000 nodes
SIZES: dict[Callable[[int], nn.Module], tuple[int, ...]] = {
    darts: (8, 32, 96, 160),
    search: (3, 4, 8, 13),
    chain: (150, 500, 1500, 2500),
    dense: (32, 108, 324, 540),
}


def measure(build: Callable[[int], nn.Module], layers: int) -> dict[str, Any]:
    """One row: nodes, and milliseconds per node of each rewrite."""
    torch.manual_seed(0)
    net, x = build(layers), torch.randn(2, 3, 16, 16)
    prepare, prepared = best(lambda: fxquant.prepare_qat(net), 2)
    with torch.no_grad():
        prepared.train()(x)
    convert, _ = best(lambda: fxquant.convert(prepared), 2)
    nodes = len(prepared.graph.nodes)
    return {
        "network": build.__name__,
        "layers": layers,
        "nodes": nodes,
        "prepare_ms_per_node": 1e3 * prepare / nodes,
        "convert_ms_per_node": 1e3 * convert / nodes,
        "both_ms_per_node": 1e3 * (prepare + convert) / nodes,
    }


def measured(build: Callable[[int], nn.Module], console: Console) -> list[dict[str, Any]]:
    """The rows of one network as it grows, and one of the exponent."""
    rows = []
    for layers in track(SIZES[build], build.__name__, console=console):
        rows.append(measure(build, layers))
    nodes = [row["nodes"] for row in rows]
    seconds = [row["both_ms_per_node"] * row["nodes"] for row in rows]
    return [*rows, {"network": build.__name__, "exponent": exponent(nodes, seconds)}]


def main() -> None:
    """Measure each size, print a table, write JSON if asked."""
    names = {build.__name__: build for build in SIZES}
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="+", default=list(names), choices=names)
    parser.add_argument("--json", type=Path, help="write the rows here, too")
    arguments = parser.parse_args()
    one_quiet_thread()
    console = Console()
    measure(darts, 3)  # what torch imports at first use
    rows = [row for name in arguments.networks for row in measured(names[name], console)]
    table = Table("network", "nodes", "prepare", "convert", "both, ms per node", "exponent")
    for row in rows:
        if "exponent" in row:
            table.add_row(row["network"], "", "", "", "", f"{row['exponent']:.2f}")
            continue
        figures = (row[f"{what}_ms_per_node"] for what in ("prepare", "convert", "both"))
        table.add_row(row["network"], f"{row['nodes']:,}", *(f"{figure:.2f}" for figure in figures))
    console.print(table)
    if arguments.json:
        write(arguments.json, rows)


if __name__ == "__main__":
    main()
