"""What a training step costs with fake-quants: its time and peak memory over a float step's.

    python benchmarks/qat_step.py [--rounds 15] [--json qat_step.json]

Forward, backward and SGD in channels_last, one pinned thread. Both networks take their steps in
turn, in one process; a ratio is the median of the rounds' ratios. Memory is what the step's
activations and temporaries take at their most, parameters and gradients apart (torch.profiler).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import fxquant
from fxquant.darts import DARTS_V2, NetworkCIFAR
from measures import interleaved, one_quiet_thread, peak_bytes, write

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18 64x64 b16": (lambda: torchvision.models.resnet18(), (16, 3, 64, 64)),
    "DARTS_V2 C16 L8 32x32 b16": (
        lambda: NetworkCIFAR(16, 10, 8, DARTS_V2), (16, 3, 32, 32),
    ),
}


class Loop:
    """A network with its optimizer and one batch."""

    def __init__(self, net: nn.Module, x: Tensor) -> None:
        self.net = net.train().to(memory_format=torch.channels_last)
        self.x = x.to(memory_format=torch.channels_last)
        self.labels = torch.arange(len(x)) % 10
        self.optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)

    def step(self) -> None:
        """Forward, backward, SGD."""
        self.optimizer.zero_grad()
        outputs = self.net(self.x)
        logits = outputs if isinstance(outputs, Tensor) else outputs[0]
        F.cross_entropy(logits, self.labels).backward()
        self.optimizer.step()


def measure(name: str, rounds: int) -> dict[str, Any]:
    """One row."""
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    net, x = make(), torch.randn(shape)
    quantized = Loop(fxquant.prepare_qat(net, x), x)
    real = Loop(net, x)
    took = interleaved({"float": real.step, "qat": quantized.step}, rounds)
    return {
        "network": name,
        "float_ms": took.ms("float"),
        "qat_ms": took.ms("qat"),
        "time_ratio": took.ratio("qat", over="float"),
        "memory_ratio": peak_bytes(quantized.step) / peak_bytes(real.step),
    }


def main() -> None:
    """Measure, print a table, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--json", type=Path, help="write the rows here, too")
    arguments = parser.parse_args()
    one_quiet_thread()
    rows = []
    print(f"{'network':28} {'float':>9} {'QAT':>9} {'time':>6} {'memory':>7}")
    for name in arguments.networks:
        row = measure(name, arguments.rounds)
        rows.append(row)
        print(
            f"{name:28} {row['float_ms']:6.1f} ms {row['qat_ms']:6.1f} ms {row['time_ratio']:6.2f} "
            f"{row['memory_ratio']:7.2f}",
            flush=True,
        )
    if arguments.json:
        write(arguments.json, rows)


if __name__ == "__main__":
    main()
