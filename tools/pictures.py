"""Draw docs/pictures/: the flow, the contract, the steps of a grid, the ways of a batch norm.

    pip install -e '.[draw]' && python tools/pictures.py

The graphs of the guides, `graph_….svg`, are drawn by fxquant.visualize itself.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import fxquant

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"

STYLE = """
    bgcolor="white" fontname="Helvetica" fontsize=13 pad=0.25 nodesep=0.3 ranksep=0.4
    node [shape=box style="rounded,filled" fillcolor="#f5f5f5" color="#9e9e9e"
          fontname="Helvetica" fontsize=13 height=0.4 margin="0.15,0.08"]
    edge [color="#616161" fontname="Helvetica" fontsize=12 arrowsize=0.7]
"""
FLOAT, FAKE, INTEGER = "#e3f2fd", "#fff3e0", "#e8f5e9"

FLOW = f"""digraph {{ {STYLE} rankdir=LR
    model    [label="your nn.Module"]
    traced   [label="FLOAT\\ncall sites" fillcolor="{FLOAT}"]
    fake     [label="FAKE_QUANT\\nrounds while it trains" fillcolor="{FAKE}"]
    integer  [label="INTEGER\\nbit for bit the same" fillcolor="{INTEGER}"]
    model -> traced  [label="trace"]
    traced -> fake   [label="prepare_qat\\nprepare_ptq"]
    fake -> fake     [label="you train\\nor calibrate"]
    fake -> integer  [label="convert"]
}}"""

CONTRACT = f"""digraph {{ {STYLE} rankdir=TB
    subgraph cluster_eval {{
        label="prepared.eval(), at every step" style="rounded" color="#ffb74d"
        real [label="weights, scales,\\nbatch-norm statistics\\nas they are now" fillcolor="{FAKE}"]
        make [label="OpSpec.numbers"]
        run [label="OpSpec.kernel"]
        real -> make -> run
    }}
    subgraph cluster_integer {{
        label="convert(prepared)" style="rounded" color="#81c784"
        kept [label="integers, stored once:\\nw, b, m, S, z" fillcolor="{INTEGER}"]
        run2 [label="OpSpec.kernel"]
        kept -> run2
    }}
    make -> kept [label="          convert runs it once" style=dashed]
    y [label="the same codes,\\nbit for bit"]
    run -> y
    run2 -> y
}}"""

BATCH_NORM = f"""digraph {{ {STYLE} rankdir=TB
    bn [label="conv → batch norm → ReLU, one call site"]
    train [fillcolor="{FAKE}" label="batch_norm=\\"train\\" (default)
the norm trains on;\neval() folds it into the integers"]
    freeze [fillcolor="{FAKE}" label="freeze_batch_norm=N
the same, with running statistics\nafter N steps"]
    fold [fillcolor="{FLOAT}" label="batch_norm=\\"fold\\"
folded into the weights before\ntraining; equalize needs it"]
    same [label="integers: no batch norm is left" fillcolor="{INTEGER}"]
    bn -> {{ train freeze fold }} -> same
}}"""


def grid() -> str:
    """How 16 codes describe the reals between -1 and 2: a staircase, as SVG."""
    low, high, codes = -1.0, 2.0, 16
    scale = (high - low) / (codes - 1)
    width, height, left, top = 520, 270, 60, 20

    def at(x: float, y: float) -> str:
        return f"{left + (x + 1.5) / 4 * width:.1f},{top + height - (y + 1.5) / 4 * height:.1f}"

    steps = [at(-1.5, low)]
    for code in range(codes):
        y = low + code * scale
        if code:
            steps.append(at(y - scale / 2, y))
        steps.append(at(min(y + scale / 2, 2.5) if code < codes - 1 else 2.5, y))
    zero_x, zero_y = at(0, 0).split(",")
    text = 'font-family="Helvetica, Arial, sans-serif" font-size="13" fill="#424242"'
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" width="640" height="340" viewBox="0 0 640 340">
<rect width="640" height="340" fill="white"/>
<g stroke="#bdbdbd"><path d="M{at(-1.5, 0)} {at(2.5, 0)} M{at(0, -1.5)} {at(0, 2.5)}"/></g>
<path d="M{at(-1.5, -1.5)} {at(2.5, 2.5)}" stroke="#90caf9" stroke-dasharray="4 3" fill="none"/>
<path d="M{' '.join(steps)}" stroke="#ef6c00" stroke-width="2" fill="none"/>
<circle cx="{zero_x}" cy="{zero_y}" r="4" fill="#2e7d32"/>
<g {text}>
<text x="{float(zero_x) + 10:.0f}" y="{float(zero_y) + 20:.0f}">0 is a code of its own: q = z</text>
<text x="420" y="40">clamped to qmax</text>
<text x="66" y="276">clamped to qmin</text>
<text x="590" y="{float(zero_y) + 5:.0f}">x</text>
<text x="{float(zero_x) - 70:.0f}" y="18">(q - z)·s</text>
<text x="64" y="328">
4 bits for the range -1 … 2: s = 0.2, z = 5. Inside, no x is farther than s/2.
</text>
</g>
</svg>
"""


def graphs() -> None:
    """A small network as prepare_qat and as convert leave it."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip
    x = torch.rand(4, 3, 8, 8)
    prepared = fxquant.prepare_qat(model, x)
    prepared(x)
    fxquant.visualize(prepared, PICTURES / "graph_prepared.svg")
    fxquant.visualize(fxquant.convert(prepared), PICTURES / "graph_integer.svg")


def main() -> None:
    """Write every picture."""
    import pygraphviz

    PICTURES.mkdir(exist_ok=True)
    for name, dot in (("flow", FLOW), ("contract", CONTRACT), ("batch_norm", BATCH_NORM)):
        pygraphviz.AGraph(string=dot).draw(PICTURES / f"{name}.svg", prog="dot")
    (PICTURES / "grid.svg").write_text(grid())
    graphs()
    print(*sorted(path.name for path in PICTURES.iterdir()))


if __name__ == "__main__":
    main()
