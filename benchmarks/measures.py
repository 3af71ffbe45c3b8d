"""How the benchmarks measure: one quiet thread, calls that take turns, files written whole."""

from __future__ import annotations

import ctypes
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from fxquant.files import write_whole

T = TypeVar("T")
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of mallopt(3)


def decibels(signal: Tensor, other: Tensor) -> float:
    """How far the difference lies below the signal: 10·log10(Σ s² / Σ (s - o)²)."""
    error = float((signal.double() - other.double()).square().sum())
    return 10 * math.log10(float(signal.double().square().sum()) / error) if error else math.inf


def timed(call: Callable[[], T]) -> tuple[float, T]:
    """Processor seconds of one call, and its result. What else runs on the machine waits or makes
    us wait, and is not counted.
    """
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def best(call: Callable[[], T], times: int = 3) -> tuple[float, T]:
    """Processor seconds of the quickest of some calls, and the result of the last."""
    seconds = []
    for _ in range(times):
        second, result = timed(call)
        seconds.append(second)
    return min(seconds), result


def one_quiet_thread() -> None:
    """From here on this process computes in one thread on one core, the last that it may use, and
    keeps the memory that it has had: the kernel would hand out, and fill with zeros, every large
    tensor anew, which costs some networks more than their sums do.
    """
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


@dataclass(frozen=True)
class Rounds:
    """Processor seconds of each call in each round."""

    seconds: Mapping[str, Sequence[float]]

    def ms(self, name: str) -> float:
        """The median of that call, in milliseconds."""
        return 1e3 * statistics.median(self.seconds[name])

    def ratio(self, name: str, over: str) -> float:
        """The median over the rounds of how often one call takes as long as another."""
        pairs = zip(self.seconds[name], self.seconds[over], strict=True)
        return statistics.median(a / b for a, b in pairs)


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    warm_up: int = 3,
    tell: Callable[[], object] = lambda: None,
) -> Rounds:
    """All calls once a round, in turn, so that what slows the machine for a while slows them all.
    `tell` is called after each round, those to warm up included.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(warm_up + rounds):
        for name, call in calls.items():
            taken, _ = timed(call)
            if i >= warm_up:
                seconds[name].append(taken)
        tell()
    return Rounds(seconds)


def peak_bytes(call: Callable[[], object]) -> int:
    """The most that tensors allocated within one call take at once, whatever was there before."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        call()
    assert profile.profiler is not None
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The b of seconds ≈ a · size^b, by least squares of the logarithms: 1 is linear."""
    points = map(math.log, sizes), map(math.log, seconds)
    return statistics.linear_regression(*map(list, points)).slope


def processor() -> str:
    """What this machine computes with, as it calls itself."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows as JSON, with what they were measured on."""
    write_json(path, {"torch": torch.__version__, "processor": processor(), "rows": list(rows)})


def write_json(path: Path, content: object) -> None:
    """A file of JSON, written whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of such a file."""
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    return rows
