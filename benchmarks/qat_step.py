"""What a training step costs with fake-quants: its time and peak memory over a float step's.

    python benchmarks/qat_step.py [--rounds 15] [--json qat_step.json]

Forward, backward and SGD in channels_last, one pinned thread. Both networks take their steps in
turn, in one process; a ratio is the median of the rounds' ratios. Memory is what the step's
activations and temporaries take at their most, parameters and gradients apart (torch.profiler).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import fxquant
from fxquant.darts import DARTS_V2, NetworkCIFAR

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

    def seconds(self) -> float:
        """Of one step."""
        start = time.perf_counter()
        self.step()
        return time.perf_counter() - start

    def peak_bytes(self) -> int:
        """The most that tensors allocated within one step take at once."""
        with torch.profiler.profile(profile_memory=True) as profile:
            self.step()
        assert profile.profiler is not None
        events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
        sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
        return max(itertools.accumulate(sizes))


def measure(name: str, rounds: int) -> dict[str, Any]:
    """One row."""
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    net, x = make(), torch.randn(shape)
    quantized = Loop(fxquant.prepare_qat(net, x), x)
    real = Loop(net, x)
    for _ in range(3):
        real.step(), quantized.step()
    pairs = [(real.seconds(), quantized.seconds()) for _ in range(rounds)]
    return {
        "network": name,
        "float_ms": 1e3 * statistics.median(a for a, _ in pairs),
        "qat_ms": 1e3 * statistics.median(b for _, b in pairs),
        "time_ratio": statistics.median(b / a for a, b in pairs),
        "memory_ratio": quantized.peak_bytes() / real.peak_bytes(),
    }


def main() -> None:
    """Measure, print a table, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--json", type=Path, help="write the rows here, too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
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
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
