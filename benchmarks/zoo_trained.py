"""The networks of zoo.py once they have learned something: docs/zoo_trained.md.

    python benchmarks/zoo_trained.py                       what results/zoo_trained.json lacks
    python benchmarks/zoo_trained.py --models resnet18     only these, anew
    python benchmarks/zoo_trained.py --one resnet18        one, in this process, as a line of JSON

An untrained network with settled batch norms amplifies whatever comes in, error_sources included
(docs/zoo.md). So each is trained on scikit-learn's digits first, in float: AdamW on batches of 32
until the loss of the last twenty is below 0.1 on average, or 400 of them, or 120 processor seconds
are over. Then batch norms are settled, and ranges are the extremes of eight random batches,
everything in 8 bits unless the default says otherwise; dB and the share of digits told right are
those of images held out. What is below 30 dB is looked into, by error_sources.py.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from sklearn.datasets import load_digits
from torch import Tensor, fx, nn

import error_sources
import fxquant
import zoo
from measures import decibels, timed

RESULTS = Path(__file__).parent / "results" / "zoo_trained.json"
PAGE = Path(__file__).parents[1] / "docs" / "zoo_trained.md"
BATCH, TEST = 32, 128
MOST_STEPS, RECENT, LEARNED = 400, 20, 0.1
MOST_SECONDS = 120.0  # of the processor; rows without `train_seconds` were made before this limit
GOOD = 30.0  # dB
KNOWS = 0.5  # float top-1; the logits of networks that know less hardly depend on the image
HEAD = """\
# torchvision's classification networks in integers, trained on digits

Made by `python benchmarks/zoo_trained.py`: each network is trained in float on scikit-learn's
digits for at most 400 batches of 32, on the smallest images that it takes; no integers are trained.
Large ones end earlier, after 120 processor seconds: they have fewer steps, and their top-1 says
what they have learned. Rows that give no seconds were made without that limit. A network that told
less than half of the digits right has learned too little to say anything: it counts neither among
the good ones nor in the median.
Settled batch norms, the extremes of 8 random batches as ranges, 8 bits.

- *seconds*: the processor's, for training
- *int8*: how far the integer network's error lies below the float network's logits, on 128 digits
  that neither has seen; why it is below 30 dB is asked at the end
- *input*: the same for the float network with noise 40 dB below its input
- *float top-1*, *int8 top-1*: the share of those digits told right
- *differ*: the logits in which eval() of the prepared network and the converted one differ
"""
WHY = """\
## Below 30 dB

- *median*: the dB of the image in the middle, each measured against its own logits
- *one image*: the share of the whole error that one of the 128 images makes
- *ranges seen*: the dB of the same network if ranges are the extremes of these 128 images as well:
  what is missing to it was cut off, because no batch had shown values so large
- *values*: how many values have a range of their own; the dB on 32 images if they are all rounded,
  and no weight is; and which of them costs most when it alone is rounded, with the dB that leaves

So where the one value that costs most leaves far more than all together, no 16 bits in one place
would mend it: many small roundings add up in a network that amplifies them.

| network | int8 | median | one image | ranges seen | values | all of them | costs most | alone |
|---|---|---|---|---|---|---|---|---|
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


def train(
    net: nn.Module, data: Digits, batches: Iterator[Tensor], most_seconds: float = math.inf
) -> int:
    """Train until the digits are learned or the time is up; how many steps that took."""
    start = time.process_time()
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
        learned = len(recent) == RECENT and statistics.mean(recent) < LEARNED
        if learned or time.process_time() - start > most_seconds:
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
    seconds, steps = timed(lambda: train(net, data, batches, MOST_SECONDS))
    zoo.settle_batch_norms(net, [data.batch(next(batches)) for _ in range(16)])
    x, labels = data.batch(torch.arange(known, known + TEST)), data.labels[known:]
    prepared = fxquant.prepare_qat(net, x[:2])
    zoo.calibrate(prepared, [data.batch(next(batches)) for _ in range(8)])
    quantized = fxquant.convert(prepared)
    parts = x.split(BATCH)  # a batch at a time, so that the largest fit
    noise = 10 ** (-zoo.NOISE / 20) * x.square().mean().sqrt() * torch.randn_like(x)
    real, noisy = logits(net, parts), logits(net, (x + noise).split(BATCH))
    ours, evaluated = logits(quantized, parts), logits(prepared, parts)
    row = {
        "network": name,
        "size": size,
        "steps": steps,
        "train_seconds": round(seconds),
        "decibels": round(decibels(real, ours), 1),
        "input_decibels": round(decibels(real, noisy), 1),
        "float_top_1": float((real.argmax(1) == labels).float().mean()),
        "top_1": float((ours.argmax(1) == labels).float().mean()),
        "mismatches": int((ours != evaluated).sum()),
    }
    if row["decibels"] < GOOD and row["float_top_1"] >= KNOWS:
        row["why"] = why(prepared, parts, real, ours)
    return row


def logits(net: nn.Module, parts: Sequence[Tensor]) -> Tensor:
    """Those of all images [N, classes]."""
    with torch.no_grad():
        return torch.cat([net(x) for x in parts])


def why(
    prepared: fx.GraphModule, parts: Sequence[Tensor], real: Tensor, ours: Tensor
) -> dict[str, Any]:
    """Where the error of `ours` comes from; the ranges of `prepared` are wider afterwards."""
    images = error_sources.of_images(real, ours)
    values = error_sources.of_values(prepared, parts[0])
    zoo.calibrate(prepared, list(parts))
    return {
        "median_decibels": round(images.median, 1),
        "one_image": round(images.share, 3),
        "seen_decibels": round(decibels(real, logits(prepared, parts)), 1),
        "values": values.number,
        "values_decibels": round(values.together, 1),
        "worst_value": values.worst,
        "worst_decibels": round(values.alone, 1),
    }


def operations(name: str) -> float:
    """Billions of multiplications for one image, about: the quickest networks are run first.
    torchvision states them for images of its own size; ours are those of zoo.py.
    """
    weights = torchvision.models.get_model_weights(name).DEFAULT  # type: ignore[attr-defined]
    sizes = {row["network"]: row["size"] for row in json.loads(zoo.RESULTS.read_text())}
    stated = weights.transforms().crop_size[0]
    return float(weights.meta["_ops"]) * (sizes[name] / stated) ** 2


def page(rows: list[dict[str, Any]]) -> str:
    """docs/zoo_trained.md."""
    good = [row for row in rows if row.get("float_top_1", 0.0) >= KNOWS]
    bad = [row for row in good if row["decibels"] < GOOD]
    lines = [
        *HEAD.splitlines(),
        "",
        f"{len(good) - len(bad)} of {len(zoo.names())} have {GOOD:.0f} dB or more. "
        f"The median of the {len(good)} that were trained is "
        f"**{statistics.median(row['decibels'] for row in good):.1f} dB** "
        f"(input: {statistics.median(r['input_decibels'] for r in good):.1f} dB), "
        f"{sum(row.get('mismatches', 0) for row in rows)} logits of all differ.",
        "",
        "| network | image | steps | seconds | int8 | input | float top-1 | int8 top-1 | differ |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['network']} | | | | {row['error']} | | | | |")
            continue
        lines.append(
            f"| {row['network']} | {row['size']} | {row['steps']} | "
            f"{row.get('train_seconds', '')} | {row['decibels']:.1f} dB | "
            f"{row['input_decibels']:.1f} dB | {row['float_top_1']:.1%} | {row['top_1']:.1%} | "
            f"{row['mismatches']} |"
        )
    return "\n".join([*lines, "", *WHY.splitlines(), *map(_why_line, bad)]) + "\n"


def _why_line(row: dict[str, Any]) -> str:
    name, decibels = row["network"], f"{row['decibels']:.1f} dB"
    if "why" not in row:
        return f"| {name} | {decibels} | | | | | | not asked yet | |"
    why = row["why"]
    return (
        f"| {name} | {decibels} | {why['median_decibels']:.1f} dB | {why['one_image']:.0%} | "
        f"{why['seen_decibels']:.1f} dB | {why['values']} | {why['values_decibels']:.1f} dB | "
        f"`{why['worst_value']}` | {why['worst_decibels']:.1f} dB |"
    )


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
