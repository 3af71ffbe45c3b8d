"""Draw what each calibrator makes of one histogram: docs/pictures/calibrator_*.svg, and a table.

    python tools/calibrators.py

The values are those behind a layer: 20 batches of 2,000 normal numbers, and 20 outliers among them.
matplotlib draws; it is no extra of fxquant.
"""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib
import torch

from fxquant.observers import CALIBRATORS, Fixed, Observer
from fxquant.observers.histogram import Histogram, bins_of
from fxquant.observers.mse import squared_error
from fxquant.schemes import QuantScheme

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "fxquant"  # the same file every time
matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text
from matplotlib import pyplot  # noqa: E402 - after the backend is chosen

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "pictures"
SCHEME = QuantScheme(bits=4, symmetric=False)


def batches() -> list[torch.Tensor]:
    """Normal numbers, one outlier in each batch."""
    torch.manual_seed(0)
    return [torch.cat([torch.randn(2000), torch.randn(1) * 4 + 6]) for _ in range(20)]


def main() -> None:
    """One picture and one row for each calibrator."""
    data = batches()
    values = torch.cat(data)
    bins = bins_of(Histogram().of(values))
    print("| calibrator | low | high | error, dB |\n| --- | ---: | ---: | ---: |")
    for kind in CALIBRATORS:
        calibrator = Fixed(-3.0, 3.0) if kind is Fixed else kind()
        observer = Observer(calibrator)
        for batch in data:
            observer(batch)
        low, high = (float(end) for end in observer.range(SCHEME))
        error = torch.tensor(squared_error(bins, low, high, SCHEME) / float(values.square().sum()))
        print(f"| `{calibrator}` | {low:.2f} | {high:.2f} | {float(10 * error.log10()):.1f} |")
        draw(values, low, high, str(calibrator), kind.__name__)


def draw(values: torch.Tensor, low: float, high: float, title: str, name: str) -> None:
    """The histogram, counts on a logarithmic axis, and the range that was found."""
    figure, axes = pyplot.subplots(figsize=(5, 1.8))
    axes.hist(values.numpy(), bins=60, color="#9db7d5")
    axes.set_yscale("log")
    axes.axvspan(low, high, color="#2f6db3", alpha=0.15, linewidth=0)
    for end in (low, high):
        axes.axvline(end, color="#2f6db3")
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=7)
    figure.tight_layout()
    path = FOLDER / f"calibrator_{name.lower()}.svg"
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    path.write_text(re.sub(r"[ \t]+\n", "\n", path.read_text()))


if __name__ == "__main__":
    main()
