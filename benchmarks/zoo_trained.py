"""The networks of zoo.py once they have learned something: docs/zoo_trained.md.

    python benchmarks/zoo_trained.py                       what results/zoo_trained.json lacks
    python benchmarks/zoo_trained.py --models resnet18     only these, anew
    python benchmarks/zoo_trained.py --one resnet18        one, in this process, as a line of JSON

An untrained network with settled batch norms amplifies whatever comes in, roundings included
(docs/zoo.md). So each is trained on scikit-learn's digits first, in float: AdamW on batches of 32
until the loss of the last twenty is below 0.1 on average, or 400 of them. Then batch norms are
settled, and ranges are the extremes of eight random batches, everything in 8 bits unless the
default says otherwise; dB and the share of digits told right are those of images held out.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from sklearn.datasets import load_digits
from torch import Tensor, nn

import fxquant
import zoo
from measures import decibels

RESULTS = Path(__file__).parent / "results" / "zoo_trained.json"
PAGE = Path(__file__).parents[1] / "docs" / "zoo_trained.md"
BATCH, TEST = 32, 128
MOST_STEPS, RECENT, LEARNED = 400, 20, 0.1
HEAD = """\
# torchvision's classification networks in integers, trained on digits

Made by `python benchmarks/zoo_trained.py`: each network is trained in float on scikit-learn's
digits for at most 400 batches of 32, on the smallest images that it takes; no integers are trained.
Settled batch norms, the extremes of 8 random batches as ranges, 8 bits.

- *int8*: how far the integer network's error lies below the float network's logits, on 128 digits
  that neither has seen
- *input*: the same for the float network with noise 40 dB below its input
- *float top-1*, *int8 top-1*: the share of those digits told right
- *differ*: the logits in which eval() of the prepared network and the converted one differ
"""


class Digits(NamedTuple):
    """Images [N, 3, S, S] in -1..1, made as they are asked for, and their labels [N]."""

    small: Tensor  # [N, 1, 8, 8]
    labels: Tensor
    size: int

    def batch(self, indices: Tensor) -> Tensor:
        """The images of those indices."""
        image = F.interpolate(self.small[indices], size=(self.size, self.size), mode="bilinear")
        return image.expand(-1, 3, -1, -1).contiguous()


def digits(size: int) -> Digits:
    """scikit-learn's 1,797 digits, in an order that a seed shuffles."""
    data = load_digits()
    order = torch.randperm(len(data.target))
    small = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    return Digits(small[order], torch.tensor(data.target)[order], size)


def random_batches(known: int) -> Iterator[Tensor]:
    """Indices of random batches of the first `known` images."""
    while True:
        yield torch.randint(known, (BATCH,))


def train(net: nn.Module, data: Digits, batches: Iterator[Tensor]) -> int:
    """Train until the digits are learned; how many steps that took."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    recent: deque[float] = deque(maxlen=RECENT)
    net.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for step in range(MOST_STEPS):
        indices = next(batches)
        outputs = net(data.batch(indices))
        logits = [outputs] if isinstance(outputs, Tensor) else [o for o in outputs if o is not None]
        losses = [F.cross_entropy(y, data.labels[indices]) for y in logits]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        recent.append(losses[0].item())
        if len(recent) == RECENT and statistics.mean(recent) < LEARNED:
            return step + 1
    return MOST_STEPS


def measure(name: str) -> dict[str, Any]:
    """The row of one network."""
    torch.manual_seed(0)
    options, size = zoo.settings(name)
    net = zoo.build(name, options)
    data = digits(size)
    known = len(data.labels) - TEST
    batches = random_batches(known)
    steps = train(net, data, batches)
    zoo.settle_batch_norms(net, [data.batch(next(batches)) for _ in range(16)])
    x, labels = data.batch(torch.arange(known, known + TEST)), data.labels[known:]
    prepared = fxquant.prepare_qat(net, x[:2])
    zoo.calibrate(prepared, [data.batch(next(batches)) for _ in range(8)])
    quantized = fxquant.convert(prepared)
    noise = 10 ** (-zoo.NOISE / 20) * x.square().mean().sqrt() * torch.randn_like(x)
    parts = range(0, TEST, BATCH)  # a batch at a time, so that the largest fit
    with torch.no_grad():
        real = torch.cat([net(x[i : i + BATCH]) for i in parts])
        noisy = torch.cat([net((x + noise)[i : i + BATCH]) for i in parts])
        ours = torch.cat([quantized(x[i : i + BATCH]) for i in parts])
        evaluated = torch.cat([prepared(x[i : i + BATCH]) for i in parts])
    return {
        "network": name,
        "size": size,
        "steps": steps,
        "decibels": round(decibels(real, ours), 1),
        "input_decibels": round(decibels(real, noisy), 1),
        "float_top_1": float((real.argmax(1) == labels).float().mean()),
        "top_1": float((ours.argmax(1) == labels).float().mean()),
        "mismatches": int((ours != evaluated).sum()),
    }


def operations(name: str) -> float:
    """Billions of multiplications for one image, as torchvision states them: the quickest first."""
    weights = torchvision.models.get_model_weights(name)
    return float(weights.DEFAULT.meta["_ops"])  # type: ignore[attr-defined]


def page(rows: list[dict[str, Any]]) -> str:
    """docs/zoo_trained.md."""
    good = [row for row in rows if "error" not in row]
    lines = [
        *HEAD.splitlines(),
        "",
        f"{len(good)} networks: median **{statistics.median(r['decibels'] for r in good):.1f} dB** "
        f"(input: {statistics.median(r['input_decibels'] for r in good):.1f} dB), "
        f"{sum(row['mismatches'] for row in good)} logits differ.",
        "",
        "| network | image | steps | int8 | input | float top-1 | int8 top-1 | differ |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['network']} | | | {row['error']} | | | | |")
            continue
        lines.append(
            f"| {row['network']} | {row['size']} | {row['steps']} | {row['decibels']:.1f} dB | "
            f"{row['input_decibels']:.1f} dB | {row['float_top_1']:.1%} | {row['top_1']:.1%} | "
            f"{row['mismatches']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing, keep each row as it comes, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", help="only these, and anew")
    parser.add_argument("--one", help="this network in this process")
    arguments = parser.parse_args()
    if arguments.one:
        torch.set_num_threads(1)
        print(json.dumps(measure(arguments.one)))
        return
    wanted = arguments.models or sorted(zoo.names(), key=operations)
    zoo.keep(Path(__file__), RESULTS, wanted, anew=arguments.models is not None, jobs=1)
    PAGE.write_text(page(json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
