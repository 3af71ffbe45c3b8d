"""How quickly, and how exactly, a whole DARTS search network goes to integers.

    python benchmarks/search_network.py [--C 16] [--layers 8] [--steps 60] [--json PATH]

The network of the paper, three times: as it starts, with decided alphas (from N(0, 1)), both on
random images of CIFAR's size, and after a short training on scikit-learn's digits. Its batch norms
are held at running statistics of its own activations (`batch_statistics=False`), every range is the
extremes of eight batches, and all is measured on images that neither has seen:

    int8    dB from the float network's output down to the error of the integer network
    input   the same for the float network itself when noise of -40 dB is added to its input,
            which is about what rounding an image to 8 bits does: what of the error is the network's

Seconds are those of the processor, with one thread.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, fx, nn

import fxquant
from fxquant.darts import SearchNetwork
from fxquant.fake_quant import ActivationFakeQuant
from fxquant.observers import MinMax, MovingAverage, Observer
from measures import decibels, timed, write

CALIBRATION_BATCHES = 8
NOISE = 40.0  # dB below the input
Sample = Callable[[int], Tensor]  # a batch of so many images


def noise(batch: int) -> Tensor:
    """Random images in CIFAR's shape."""
    return torch.randn(batch, 3, 32, 32)


def digits() -> tuple[Tensor, Tensor]:
    """Handwritten digits: images [1797, 3, 8, 8], the same in each channel, and what they show."""
    data = load_digits()
    images = torch.tensor(data.images[:, None] / 16, dtype=torch.float32)
    return images.repeat(1, 3, 1, 1), torch.tensor(data.target)


def drawn_from(images: Tensor) -> Sample:
    """Batches of some of these."""
    return lambda batch: images[torch.randint(len(images), (batch,))]


def train(net: SearchNetwork, images: Tensor, labels: Tensor, steps: int) -> None:
    """Weights and alphas together: a network whose alphas have moved, not a search."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch = torch.randint(len(images), (64,))
        optimizer.zero_grad()
        F.cross_entropy(net.train()(images[batch]), labels[batch]).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        schedule.step()


def settle_batch_norms(net: nn.Module, sample: Sample) -> None:
    """Make running statistics plain averages over a few larger batches."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # torch's word for a plain average
    with torch.no_grad():
        for _ in range(4):
            net.train()(sample(16))


def calibrate(prepared: fx.GraphModule, sample: Sample, batch: int) -> None:
    """Make every observed range the extremes of all batches, instead of a moving average."""
    for module in prepared.modules():
        watches = isinstance(module, ActivationFakeQuant)
        if watches and isinstance(module.observer.calibrator, MovingAverage):
            module.observer = Observer(MinMax())
    with torch.no_grad():
        for _ in range(CALIBRATION_BATCHES):
            prepared.train()(sample(batch))


def measure(net: SearchNetwork, sample: Sample, batch: int, x: Tensor) -> dict[str, Any]:
    """One row, on the images `x`; ranges are those of batches of `batch`."""
    settle_batch_norms(net, sample)
    prepare, prepared = timed(lambda: fxquant.prepare_qat(net, sample(2)))
    fxquant.set_phase(prepared, fxquant.Phase(batch_statistics=False))
    calibrate(prepared, sample, batch)
    convert, quantized = timed(lambda: fxquant.convert(prepared))
    nodes = len(prepared.graph.nodes)
    added = torch.randn_like(x) * x.square().mean().sqrt() * 10 ** (-NOISE / 20)
    with torch.no_grad():
        real, noisy = net.eval()(x), net(x + added)
        integers, evaluated = quantized(x), prepared.eval()(x)
    return {
        "nodes": nodes,
        "prepare_seconds": prepare,
        "prepare_ms_per_node": 1e3 * prepare / nodes,
        "convert_seconds": convert,
        "convert_ms_per_node": 1e3 * convert / nodes,
        "int8_decibels": decibels(real, integers),
        "input_decibels": decibels(real, noisy),
        "equal": torch.equal(integers, evaluated),
    }


def main() -> None:
    """Measure the three, print a table, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--C", type=int, default=16)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--steps", type=int, default=60, help="of training on digits")
    parser.add_argument("--json", type=Path, help="write the rows here, too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    initial = SearchNetwork(arguments.C, 10, arguments.layers)
    decided, trained = copy.deepcopy(initial), copy.deepcopy(initial)
    for alpha in decided.arch_parameters():
        nn.init.normal_(alpha)
    images, labels = digits()

    print("          nodes   prepare   ms/node   convert   ms/node      int8     input  equal")
    rows = []
    for name, net, sample, batch, x in (
        ("initial", initial, noise, 4, noise(8)),
        ("decided", decided, noise, 4, noise(8)),
        # small images; what they show differs, so that more of them are needed for the ranges
        ("trained", trained, drawn_from(images[:1400]), 64, images[1400:]),
    ):
        if net is trained:
            train(net, images[:1400], labels[:1400], arguments.steps)
        rows.append({"network": name, **measure(net, sample, batch, x)})
        print(
            "{network:8} {nodes:6} {prepare_seconds:7.1f} s {prepare_ms_per_node:9.2f} "
            "{convert_seconds:7.1f} s {convert_ms_per_node:9.2f} {int8_decibels:6.1f} dB "
            "{input_decibels:6.1f} dB  {equal}".format(**rows[-1]),
            flush=True,
        )
    if arguments.json:
        write(arguments.json, rows)


if __name__ == "__main__":
    main()
