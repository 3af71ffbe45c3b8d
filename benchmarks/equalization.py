"""What equalization gains: a small MobileNet on handwritten digits, its channels badly scaled.

    python benchmarks/equalization.py [--seeds 0 1 2] [--json equalization.json]

A network is trained in float. Then its channels are multiplied by powers of two, and what reads
them divided by the same: the function stays, bit for bit. Each network is quantized to 8 bits
without training, and compared with the float one on digits that nobody has seen.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn

import fxquant
from digits import BATCH, digits, train
from fxquant import QuantConfig, QuantScheme
from measures import decibels, write

RANGE_BATCHES = 8  # of training images, from which ranges are taken
SPREADS = (0, 2, 6)  # channels are multiplied by 2^-spread to 2^spread

# --- the network ----------------------------------------------------------------------------------


class Block(nn.Module):
    """An inverted residual: expand, depthwise, project; the last without an activation.

    [N, c_in, H, W] -> [N, c_out, H/stride, W/stride]
    """

    def __init__(
        self, c_in: int, c_out: int, stride: int, expansion: int, act: type[nn.Module]
    ) -> None:
        super().__init__()
        c = expansion * c_in
        self.expand, self.bn1 = nn.Conv2d(c_in, c, 1, bias=False), nn.BatchNorm2d(c)
        self.depthwise = nn.Conv2d(c, c, 3, stride, 1, groups=c, bias=False)
        self.bn2 = nn.BatchNorm2d(c)
        self.project, self.bn3 = nn.Conv2d(c, c_out, 1, bias=False), nn.BatchNorm2d(c_out)
        self.act1, self.act2 = act(), act()
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.bn1(self.expand(x)))
        y = self.act2(self.bn2(self.depthwise(y)))
        y = self.bn3(self.project(y))
        return x + y if self.residual else y


class MobileNet(nn.Module):
    """Digits, [N, 1, 8, 8] -> [N, 10]: two stages of blocks between two convolutions."""

    def __init__(self, act: type[nn.Module], width: int = 8, repeats: int = 2) -> None:
        super().__init__()
        stages = [(width, 2 * width, 1), (2 * width, 3 * width, 2)]
        self.stem, self.bn = nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.act = act()
        self.stages = nn.ModuleList(
            nn.Sequential(
                Block(c_in, c_out, stride, 4, act),
                *(Block(c_out, c_out, 1, 4, act) for _ in range(repeats - 1)),
            )
            for c_in, c_out, stride in stages
        )
        self.last = nn.Conv2d(3 * width, 8 * width, 1, bias=False)
        self.last_bn, self.last_act = nn.BatchNorm2d(8 * width), act()
        self.head = nn.Linear(8 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn(self.stem(x)))
        for stage in self.stages:
            x = stage(x)
        x = self.last_act(self.last_bn(self.last(x)))
        return self.head(x.mean((2, 3)))


# --- bad scales -----------------------------------------------------------------------------------


class Region(NamedTuple):
    """Channels that must have one factor: the batch norms that write them, who reads them."""

    writers: list[nn.BatchNorm2d]
    readers: list[nn.Module]
    behind_activation: bool


def regions(model: MobileNet) -> list[Region]:
    """All channels of the network but those of its input and output."""
    stages = [list(stage) for stage in model.stages]
    behind = [*(blocks[0].expand for blocks in stages[1:]), model.last]
    found = [Region([model.bn], [stages[0][0].expand], True)]
    for blocks, reader in zip(stages, behind, strict=True):
        for block in blocks:
            found.append(Region([block.bn1], [block.depthwise], True))
            found.append(Region([block.bn2], [block.project], True))
        # the later blocks read what the first one gives, and add to it
        readers = [*(block.expand for block in blocks[1:]), reader]
        found.append(Region([block.bn3 for block in blocks], readers, False))
    return [*found, Region([model.last_bn], [model.head], True)]


def rescale(model: MobileNet, spread: int, generator: torch.Generator) -> None:
    """Multiply every channel by 2^-spread to 2^spread, and divide what reads it.

    The function stays exactly what it was, since these are powers of two. A ReLU lets them
    through; a ReLU6 does not, so there only channels without an activation are multiplied.
    """
    through = isinstance(model.act, nn.ReLU)
    with torch.no_grad():
        for region in regions(model):
            if region.behind_activation and not through:
                continue
            c = len(region.writers[0].weight)
            factors = 2.0 ** torch.randint(-spread, spread + 1, (c,), generator=generator)
            for bn in region.writers:
                bn.weight *= factors
                bn.bias *= factors
            for layer in region.readers:
                depthwise = layer.weight.shape[1] == 1
                shape = [1, -1][:: -1 if depthwise else 1] + [1] * (layer.weight.dim() - 2)
                layer.weight /= factors.reshape(shape)


# --- quantization ---------------------------------------------------------------------------------

EQUALIZE = {"batch_norm": "fold", "equalize": True}
ABSORB = EQUALIZE | {"absorb_high_bias": True}
CORRECT = ABSORB | {"correct_bias": True}

# what is done: its name, its configuration, whether biases are corrected from data afterwards
METHODS: tuple[tuple[str, dict[str, object], bool], ...] = (
    ("plain", {"batch_norm": "fold"}, False),
    ("equalize", EQUALIZE, False),
    ("+ absorb_high_bias", ABSORB, False),
    ("+ correct_bias, from batch norms", CORRECT, False),
    ("+ correct_bias, from data", ABSORB, True),
)
WEIGHTS = {
    "per tensor": QuantScheme(narrow=True),
    "per channel": QuantScheme(narrow=True, per_channel=True),
}


def quantize(
    model: nn.Module, batches: list[Tensor], config: QuantConfig, from_data: bool
) -> nn.Module:
    """The integers of `model`, their ranges from `batches`, without training."""
    prepared = fxquant.prepare_qat(model, batches[0], config).train()
    with torch.no_grad():
        for batch in batches:
            prepared(batch)
    if from_data:
        fxquant.correct_bias(prepared, batches)
    return fxquant.convert(prepared)


# --- measuring ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One network, quantized in one way. The accuracy is a share of the held-out digits."""

    seed: int
    activation: str
    spread: int
    weights: str
    method: str
    decibels: float
    accuracy: float


def measure(seed: int, act: type[nn.Module], epochs: int, tell: Callable[[], None]) -> list[Row]:
    """Every row of one seed and activation; `tell` is called after each step on the way."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    training, held_out = digits(generator)
    model = MobileNet(act)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    train(model, training, epochs, optimizer, generator)
    tell()
    with torch.no_grad():
        logits = model(held_out.images)
    batches = list(training.images[: BATCH * RANGE_BATCHES].split(BATCH))
    rows = []

    def add(spread: int, weights: str, method: str, found: Tensor) -> None:
        accuracy = float((found.argmax(1) == held_out.labels).float().mean())
        names = (seed, act.__name__, spread, weights, method)
        rows.append(Row(*names, decibels(logits, found), accuracy))
        tell()

    for spread in SPREADS:
        scaled = copy.deepcopy(model)
        rescale(scaled, spread, generator)
        with torch.no_grad():
            add(spread, "float", "float", scaled(held_out.images))
        for weights, scheme in WEIGHTS.items():
            for method, options, from_data in METHODS:
                config = QuantConfig(weight=scheme, **options)  # type: ignore[arg-type]
                quantized = quantize(scaled, batches, config, from_data)
                add(spread, weights, method, quantized(held_out.images))
    return rows


ACTIVATIONS = (nn.ReLU, nn.ReLU6)
STEPS = 1 + len(SPREADS) * (1 + len(WEIGHTS) * len(METHODS))  # of each seed and activation


def show(rows: list[Row], console: Console) -> None:
    """One table for each activation: dB, the mean over seeds, least and most; the accuracy."""
    for act in dict.fromkeys(row.activation for row in rows):
        table = Table(title=f"{act}: dB against float (least to most), digits read correctly")
        table.add_column("weights")
        table.add_column("method", min_width=32)
        for spread in SPREADS:
            scaled = f"channels × 2^±{spread}" if spread else "as trained"
            table.add_column(scaled, justify="right", min_width=18)
            table.add_column("", justify="right")
        ours = [row for row in rows if row.activation == act]
        for weights, method in dict.fromkeys((row.weights, row.method) for row in ours):
            cells = []
            for spread in SPREADS:
                key = (spread, weights, method)
                same = [row for row in ours if (row.spread, row.weights, row.method) == key]
                found = [row.decibels for row in same]
                mean = sum(found) / len(found)
                cells.append(f"{mean:.1f} ({min(found):.1f} to {max(found):.1f})")
                cells.append(f"{100 * sum(row.accuracy for row in same) / len(same):.1f} %")
            table.add_row(weights, method, *cells)
        console.print(table)


def main() -> None:
    """Measure each seed, print the tables, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--json", type=Path, help="write every row here, too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    rows = []
    columns = (TextColumn("{task.description:16}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        for act in ACTIVATIONS:
            for seed in arguments.seeds:
                task = progress.add_task(f"{act.__name__}, seed {seed}", total=STEPS)
                rows += measure(seed, act, arguments.epochs, partial(progress.advance, task))
    show(rows, console)
    if arguments.json:
        write(arguments.json, [asdict(row) for row in rows])


if __name__ == "__main__":
    main()
