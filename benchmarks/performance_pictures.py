"""The picture of docs/performance.md, from what the benchmarks have written: needs matplotlib.

    python benchmarks/performance_pictures.py

docs/pictures/rewrite_time.svg: seconds over nodes, both on logarithmic axes, and the target's line.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

from measures import read

matplotlib.use("svg")
from matplotlib import pyplot as plt  # once the backend is chosen

ROOT = Path(__file__).parents[1]
TARGET = 1.5  # ms per node, prepare and convert together


def main() -> None:
    """Draw it."""
    rows = [row for row in read(ROOT / "benchmarks/results/rewrite_time.json") if "nodes" in row]
    figure, axes = plt.subplots(figsize=(6, 4))
    for network in dict.fromkeys(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == network]
        nodes = [row["nodes"] for row in own]
        seconds = [row["nodes"] * row["both_ms_per_node"] / 1e3 for row in own]
        axes.loglog(nodes, seconds, marker="o", label=network)
    ends = [min(row["nodes"] for row in rows), max(row["nodes"] for row in rows)]
    target = [end * TARGET / 1e3 for end in ends]
    axes.loglog(ends, target, linestyle="--", color="grey", label=f"{TARGET} ms per node")
    axes.set(xlabel="nodes of the prepared graph", ylabel="prepare and convert, seconds")
    axes.legend()
    plt.rcParams["svg.hashsalt"] = "fxquant"  # the same file every time
    figure.savefig(ROOT / "docs/pictures/rewrite_time.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
