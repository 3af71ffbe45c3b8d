"""Every classification network of torchvision, from float to integers: docs/zoo.md.

    python benchmarks/zoo.py                       what results/zoo.json lacks, then the page
    python benchmarks/zoo.py --models resnet18     only these, anew
    python benchmarks/zoo.py --one resnet18        one, in this process, as a line of JSON
    python benchmarks/zoo.py --logits resnet18     how far the logits of its images lie apart

Each network runs in a process of its own, with random weights, on random images of the smallest
size that it takes. Its batch norms are settled on such images, every range is the extremes of
eight batches seen in eval(), all in 8 bits unless the default says otherwise. Then, on images that
neither has seen:

    int8    dB from the float network's logits down to the error of the integer network
    input   the same for the float network itself when noise of -40 dB is added to its input,
            which is about what rounding an image to 8 bits does: what of the error is the network's

and the elements that differ between eval() of the prepared network and the converted one, before
and after a training step; and the nodes that give floats between quantize and dequantize.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import get_model_builder, list_models

import fxquant
from fxquant.fake_quant import ActivationFakeQuant
from fxquant.graph.edit import Site, called_module
from fxquant.observers import MinMax, MovingAverage, Observer
from fxquant.sites.integer import Dequantize
from measures import decibels, timed, write_json

RESULTS = Path(__file__).parent / "results" / "zoo.json"
PAGE = Path(__file__).parents[1] / "docs" / "zoo.md"
# of square images, smallest first, but 28, for patches of 14: the others take 32
SIZES = (32, 28, 48, 64, 75, 96, 112, 128, 160, 192, 224, 299)
BATCHES, BATCH, TEST = 8, 8, 4
HEAD = """\
# torchvision's classification networks in integers

Made by `python benchmarks/zoo.py`. Random weights, random images of the smallest size that each
network takes, settled batch norms, the extremes of 8 batches as ranges, 8 bits.

- *in float*: operators between quantize and dequantize that are not integers
- *differ*: the elements in which eval() of the prepared network and the converted one differ,
  before and after a training step
- *int8*: how far the integer network's error lies below the float network's logits, on images that
  neither has seen
- *input*: the same for the float network itself, with noise 40 dB below its input, which is about
  what rounding the images to 8 bits does. An untrained network with settled batch norms amplifies
  whatever comes in: where *input* is low, so is *int8*, whatever the integers do.

Figures below 20 dB are such networks: the rounding of each value, 35 to 40 dB below it, adds up
over a hundred layers that amplify. EfficientNets are the extreme: of 64 images one gives logits 300
(v2_s) to 6,000 times (b5) as large as the median one does, in float, and sets the ranges for all
(`python benchmarks/zoo.py --logits efficientnet_b5`).
"""
NOISE = 40.0  # dB below the input


def names() -> list[str]:
    """All of torchvision's classification networks."""
    return list_models(module=torchvision.models)


# --- one network ----------------------------------------------------------------------------------


def build(name: str, options: dict[str, Any]) -> nn.Module:
    """The network with random weights; what torchvision warns of concerns weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_model_builder(name)(weights=None, **options)


def settings(name: str) -> tuple[dict[str, Any], int]:
    """How to build the network for the smallest images that it takes, and their size.

    Some are told the size when they are built, under one name or another: they are asked.
    """
    plain = build(name, {}).to("meta")
    for size in SIZES:
        for options in ({}, {"image_size": size}, {"input_size": (size, size)}):
            try:
                with torch.device("meta"):
                    net = build(name, options) if options else plain
                    net.train()(torch.empty(2, 3, size, size))
            except Exception:  # not this size, or not told so: whatever the network raises
                continue
            return options, size
    raise SystemExit(f"{name} takes no images of {SIZES}")


def settle_batch_norms(net: nn.Module, batches: list[Tensor]) -> None:
    """Make running statistics the plain averages over `batches`; leaves `net` in eval()."""
    net.eval()
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # torch's word for a plain average
            module.train()
    with torch.no_grad():
        for x in batches:
            net(x)
    net.eval()


def calibrate(prepared: fx.GraphModule, batches: list[Tensor]) -> None:
    """Make every observed range the extremes of `batches`, seen without drop path and dropout."""
    prepared.eval()
    for module in prepared.modules():
        if isinstance(module, ActivationFakeQuant):
            if isinstance(module.observer.calibrator, MovingAverage):
                module.observer = Observer(MinMax())
            module.train()
        elif isinstance(module, Site) and not hasattr(module, "in_training"):
            module.training = True  # not its children: batch norms keep their statistics
    with torch.no_grad():
        for x in batches:
            prepared(x)
    prepared.eval()


def in_float(quantized: fx.GraphModule, x: Tensor) -> list[str]:
    """The nodes between quantize and dequantize that give floating-point tensors."""
    found = []

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            inside = n.op not in ("placeholder", "output")
            is_float = isinstance(result, Tensor) and result.is_floating_point()
            if inside and is_float and not isinstance(called_module(quantized, n), Dequantize):
                found.append(n.name)
            return result

    Watch(quantized).run(x)
    return found


def training_step(prepared: fx.GraphModule, x: Tensor) -> list[str]:
    """One step of SGD; the parameters that no gradient reached, or none that is finite."""
    outputs = prepared.train()(x)
    logits = [outputs] if isinstance(outputs, Tensor) else [o for o in outputs if o is not None]
    labels = torch.arange(len(x))
    sum(F.cross_entropy(y, labels) for y in logits).backward()  # type: ignore[union-attr]
    torch.optim.SGD(prepared.parameters(), lr=1e-4).step()
    return [
        name
        for name, p in prepared.named_parameters()
        if p.grad is None or not bool(torch.isfinite(p.grad).all())
    ]


def mismatches(prepared: fx.GraphModule, quantized: fx.GraphModule, x: Tensor) -> int:
    """How many output elements differ, in batches of several sizes."""
    with torch.no_grad():
        return sum(
            int((quantized(part) != prepared.eval()(part)).sum()) for part in (x, x[:1], x[1:4])
        )


def settled(name: str, calibration: int, batch: int) -> tuple[nn.Module, list[Tensor], Tensor]:
    """A network, the batches that its norms are settled on, and images that it has not seen."""
    torch.manual_seed(0)
    options, size = settings(name)
    net = build(name, options)
    for weight in net.parameters():  # some begin with a last layer of zeros, which says nothing
        if weight.dim() > 1 and not weight.any():
            nn.init.trunc_normal_(weight, std=0.02)
    batches = [torch.randn(batch, 3, size, size) for _ in range(calibration)]
    x = torch.randn(TEST, 3, size, size)
    settle_batch_norms(net, batches)
    return net, batches, x


def logits(name: str) -> str:
    """How far the images of the batches lie apart, in float: what one of them does to the range."""
    net, batches, _ = settled(name, BATCHES, BATCH)
    with torch.no_grad():
        largest = torch.cat([net(x) for x in batches]).abs().amax(1)
    median, most = float(largest.median()), float(largest.max())
    return f"{name}: largest logit of an image, median {median:.3g}, most {most:.3g}"


def measure(name: str, calibration: int = BATCHES, batch: int = BATCH) -> dict[str, Any]:
    """The row of one network, whose ranges come of so many batches."""
    net, batches, x = settled(name, calibration, batch)
    prepare, prepared = timed(partial(fxquant.prepare_qat, net, x[:2]))
    calibrate(prepared, batches)
    convert, quantized = timed(lambda: fxquant.convert(prepared))
    with torch.no_grad():
        real, noisy = net(x), net(x + 10 ** (-NOISE / 20) * torch.randn_like(x))
    del net
    row = {
        "network": name,
        "size": x.shape[-1],
        "nodes": len(prepared.graph.nodes),
        "prepare_seconds": round(prepare, 2),
        "convert_seconds": round(convert, 2),
        "float": in_float(quantized, x[:1]),
        "decibels": round(decibels(real, quantized(x)), 1),
        "input_decibels": round(decibels(real, noisy), 1),
        "mismatches": mismatches(prepared, quantized, x),
    }
    del quantized
    row["without_gradient"] = training_step(prepared, x[:4])
    row["mismatches_after_a_step"] = mismatches(prepared, fxquant.convert(prepared), x)
    return row


# --- all of them ----------------------------------------------------------------------------------


def in_own_process(script: Path, name: str) -> dict[str, Any]:
    """The row that `script` gives for one network, or why there is none."""
    command = [sys.executable, str(script), "--one", name]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        last = [line for line in done.stderr.strip().splitlines() if line.strip()][-3:]
        return {"network": name, "error": " ".join(last) or f"ended with {done.returncode}"}
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def measured(script: Path, wanted: list[str], jobs: int) -> Iterator[dict[str, Any]]:
    """The rows of those networks as they come, `jobs` at a time, with a progress bar."""
    from rich.progress import track

    with ThreadPoolExecutor(jobs) as pool:
        rows = as_completed([pool.submit(in_own_process, script, name) for name in wanted])
        for row in track(rows, description="networks", total=len(wanted)):
            yield row.result()


def keep(script: Path, results: Path, wanted: list[str], *, anew: bool, jobs: int) -> None:
    """Write what `script` gives for those networks into `results`, row by row as they come;
    only what is missing there, or all `anew`.
    """
    rows = {}
    if results.exists():
        rows = {row["network"]: row for row in json.loads(results.read_text())}
    missing = [name for name in wanted if anew or "error" in rows.get(name, {"error": "none"})]
    for row in measured(script, missing, jobs):
        rows[row["network"]] = row
        print(json.dumps(row), flush=True)
        write_json(results, [rows[name] for name in names() if name in rows])


def page(rows: list[dict[str, Any]]) -> str:
    """docs/zoo.md."""
    good = [row for row in rows if "error" not in row]
    whole = [
        row
        for row in good
        if not (row["float"] or row["mismatches"] or row["mismatches_after_a_step"])
    ]
    lines = [
        *HEAD.splitlines(),
        "",
        f"**{len(whole)} of {len(rows)}** are integers throughout and differ nowhere; median "
        f"**{statistics.median(row['decibels'] for row in good):.1f} dB** "
        f"(input: {statistics.median(row['input_decibels'] for row in good):.1f} dB).",
        "",
        "| network | image | nodes | prepare | convert | in float | differ | int8 | input |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['network']} | | | | | {row['error']} | | | |")
            continue
        differ = f"{row['mismatches']}, {row['mismatches_after_a_step']}"
        lines.append(
            f"| {row['network']} | {row['size']} | {row['nodes']} | "
            f"{row['prepare_seconds']:.1f} s | {row['convert_seconds']:.1f} s | "
            f"{len(row['float'])} | {differ} | "
            f"{row['decibels']:.1f} dB | {row['input_decibels']:.1f} dB |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing, keep each row as it comes, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", help="only these, and anew")
    parser.add_argument("--jobs", type=int, default=1, help="at a time; large ones need 12 GB each")
    parser.add_argument("--one", help="this network in this process")
    parser.add_argument("--logits", help="of this network: how far they lie apart")
    arguments = parser.parse_args()
    if arguments.logits:
        print(logits(arguments.logits))
        return
    if arguments.one:
        torch.set_num_threads(1)
        print(json.dumps(measure(arguments.one)))
        return
    wanted = arguments.models or names()
    anew = arguments.models is not None
    keep(Path(__file__), RESULTS, wanted, anew=anew, jobs=arguments.jobs)
    PAGE.write_text(page(json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
