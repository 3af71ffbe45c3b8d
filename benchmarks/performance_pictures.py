"""The pictures of docs/performance.md, from what the benchmarks have written: needs matplotlib.

    python benchmarks/performance_pictures.py

docs/pictures/rewrite_time.svg  seconds over nodes, both on logarithmic axes, and the target's line
docs/pictures/speed.svg         each tool beside fxquant in the same process, over the float network
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

from measures import read

matplotlib.use("svg")
from matplotlib import pyplot as plt  # once the backend is chosen

ROOT = Path(__file__).parents[1]
TARGET = 1.5  # ms per node, prepare and convert together


def main() -> None:
    """Draw both."""
    plt.rcParams["svg.hashsalt"] = "fxquant"  # the same file every time
    draw_rewrite_time()
    draw_speed()


def draw_speed() -> None:
    """A pair of bars for each tool and network: what is measured stands in its own panel."""
    rows = [row for row in read(ROOT / "benchmarks/peers/results/speed.json") if row["ratio"]]
    panels = [("QAT step", "QAT step over float step"), ("int8", "int8 over float, eval()")]
    counts = [sum(row["what"].startswith(what) for row in rows) for what, _ in panels]
    figure, axes = plt.subplots(
        2, figsize=(7, 1.5 + 0.3 * len(rows)), height_ratios=counts, layout="constrained"
    )
    for (what, title), ax in zip(panels, axes, strict=True):
        own = [row for row in rows if row["what"].startswith(what)][::-1]
        for offset, key, label in ((0.2, "ratio", "the tool"), (-0.2, "fxquant", "fxquant")):
            places = [place + offset for place in range(len(own))]
            bars = ax.barh(places, [row[key] for row in own], height=0.38, label=label)
            ax.bar_label(bars, fmt="%.2f", padding=2, fontsize="x-small")
        ax.set_yticks(range(len(own)), [_named(row) for row in own], fontsize="small")
        ax.axvline(1, color="grey", linestyle="--", linewidth=1)
        ax.margins(x=0.1, y=0.02)
        ax.set_title(title, fontsize="medium")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower right", ncols=2)
    figure.savefig(ROOT / "docs/pictures/speed.svg", metadata={"Date": None})


def _named(row: dict[str, Any]) -> str:
    compiled = ", compiled" if row["what"].endswith("compiled") else ""
    return f"{row['tool']}{compiled}: {row['network']}"


def draw_rewrite_time() -> None:
    """Of a chain and of the search network."""
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
    figure.savefig(ROOT / "docs/pictures/rewrite_time.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
