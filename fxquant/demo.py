"""The demo: real handwriting, from a float DARTS network to integers, and what that costs.

    digits ── train in float ── prepare_qat ── train on ── convert ── compare, draw, write down

`run` computes and writes files, `show` prints; `demo` does both, with a progress bar.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxquant.api import convert, prepare_qat
from fxquant.config import QuantConfig
from fxquant.darts import DARTS_V2, NetworkCIFAR
from fxquant.errors import ConfigError
from fxquant.extras import needs_extra
from fxquant.files import write_whole
from fxquant.graph.edit import state_bytes
from fxquant.pipeline import history
from fxquant.see.visualize import visualize

BATCH = 64

# So that folding and equalization have something to show. The default, with live batch norms, bears
# rougher training.
CONFIG = QuantConfig(batch_norm="fold", equalize=True)

# The second is low because the float network knows its digits by heart by then. Without batch
# norms 1e-4 wanders off: of 599 digits, 1.0 was lost on average over four seeds, and this 0.5.
FLOAT_RATE, TUNING_RATE = 3e-3, 2e-5

Tell = Callable[[str, int, int], None]  # a stage, so many steps done, of so many


@dataclass(frozen=True)
class Plan:
    """How large a demo to run. As it stands: a minute or two on two cores.

    channels, layers   of the network, C and layers in DARTS
    epochs             in float
    tuning_epochs      with fake-quants
    images             so many of the 1797 digits; two in five are held out
    """

    seed: int = 0
    channels: int = 8
    layers: int = 4
    epochs: int = 9
    tuning_epochs: int = 2
    images: int = 1797


FULL = Plan()
QUICK = Plan(channels=2, layers=3, epochs=1, tuning_epochs=1, images=288)


class Digits(NamedTuple):
    """Images, float [N, 1, 32, 32] in -1..1, and their labels, int64 [N]."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class PassCount:
    """One pass: how many nodes there were, and what it did."""

    name: str
    nodes_before: int
    nodes_after: int
    changed: int
    left_alone: int


@dataclass(frozen=True)
class Outcome:
    """What `summary.json` holds. Accuracies are fractions of the held-out digits."""

    float_accuracy: float
    qat_accuracy: float
    integer_accuracy: float
    mismatches: int  # elements of the logits, prepared in eval() against converted
    seconds: float
    held_out: int
    logits: int
    float_bytes: int
    integer_bytes: int
    passes: tuple[PassCount, ...]
    plan: Plan
    torch: str


def demo(out: Path, plan: Plan) -> Outcome:
    """Run it with a progress bar, print the tables, leave the files in `out`."""
    with needs_extra("demo"):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
    console = Console()
    console.print(
        f"Handwritten digits, a DARTS_V2 network of {plan.layers} cells, seed {plan.seed}."
    )
    columns = (TextColumn("{task.description:24}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        tasks: dict[str, TaskID] = {}

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done)

        outcome = run(out, plan, tell)
    show(outcome)
    console.print(f"Pictures and summary.json are in {out}/.")
    return outcome


def run(out: Path, plan: Plan, tell: Tell = lambda stage, done, total: None) -> Outcome:
    """Train, prepare, train on, convert, compare; pictures and summary.json go to `out`.

    Equal seeds give equal outcomes. torch's own random state and thread count stay.
    """
    start = time.perf_counter()
    _make_folder(out)
    with torch.random.fork_rng(devices=[]), _one_thread():
        torch.manual_seed(plan.seed)
        training, held_out = load_digits(plan.images)
        network = NetworkCIFAR(plan.channels, 10, plan.layers, DARTS_V2, in_channels=1)
        visualize(fx.symbolic_trace(network.eval()), out / "graph-float.svg")

        told = partial(tell, "training in float")
        train(network, training, plan.epochs, FLOAT_RATE, told)
        prepared = prepare_qat(network, config=CONFIG)
        told = partial(tell, "training with fake-quants")
        train(prepared, training, plan.tuning_epochs, TUNING_RATE, told)
        quantized = convert(prepared)
        visualize(prepared, out / "graph-prepared.svg")
        visualize(quantized, out / "graph-integer.svg")

        logits = []
        for i, model in enumerate((network, prepared, quantized), 1):
            logits.append(evaluate(model, held_out.images))
            tell("evaluating all three", i, 3)
    in_float, in_qat, in_integers = ((each.argmax(1) == held_out.labels) for each in logits)
    outcome = Outcome(
        float_accuracy=in_float.double().mean().item(),
        qat_accuracy=in_qat.double().mean().item(),
        integer_accuracy=in_integers.double().mean().item(),
        mismatches=int((logits[1] != logits[2]).sum()),
        seconds=round(time.perf_counter() - start, 1),
        held_out=len(held_out.labels),
        logits=logits[2].numel(),
        float_bytes=state_bytes(network),
        integer_bytes=state_bytes(quantized),
        passes=tuple(
            PassCount(r.name, r.nodes_before, r.nodes_after, len(r.changed), len(r.left_alone))
            for r in history(quantized)
        ),
        plan=plan,
        torch=torch.__version__,
    )
    write_whole(out / "summary.json", json.dumps(asdict(outcome), indent=2).encode() + b"\n")
    return outcome


def load_digits(images: int) -> tuple[Digits, Digits]:
    """scikit-learn's handwritten digits, 8 × 8 made 32 × 32: to train on, and held out."""
    with needs_extra("demo"):
        from sklearn.datasets import load_digits as load
    data = load()
    small = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    large = F.interpolate(small, size=(32, 32), mode="bilinear")
    labels = torch.tensor(data.target, dtype=torch.int64)
    order = torch.randperm(len(labels))[:images]
    held_out, training = order[: 2 * images // 5], order[2 * images // 5 :]
    return Digits(large[training], labels[training]), Digits(large[held_out], labels[held_out])


def train(
    model: nn.Module, digits: Digits, epochs: int, rate: float, tell: Callable[[int, int], None]
) -> None:
    """An ordinary training loop: it knows nothing of quantization. `rate` is the highest."""
    count = len(digits.labels) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * count)
    model.train()
    for epoch in range(epochs):
        order = torch.randperm(len(digits.labels))[: count * BATCH]
        for i, batch in enumerate(order.reshape(count, BATCH), 1):
            loss = F.cross_entropy(model(digits.images[batch]), digits.labels[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            tell(epoch * count + i, epochs * count)


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor) -> Tensor:
    """The logits of all images, [N, 10]."""
    model.eval()
    return torch.cat([model(batch) for batch in torch.split(images, 128)])


def show(outcome: Outcome) -> None:
    """Print the tables."""
    with needs_extra("demo"):
        from rich.console import Console
        from rich.table import Table
    results = Table(title=f"{outcome.held_out} held-out digits", title_justify="left")
    for heading in ("", "float", "QAT eval", "integer"):
        results.add_column(heading, justify="right" if heading else "left")
    accuracies = outcome.float_accuracy, outcome.qat_accuracy, outcome.integer_accuracy
    results.add_row("accuracy", *(f"{100 * accuracy:.2f} %" for accuracy in accuracies))
    sizes = f"{outcome.float_bytes:,} bytes", "", f"{outcome.integer_bytes:,} bytes"
    results.add_row("model size", *sizes)
    differ = f"{outcome.mismatches} of {outcome.logits}"
    results.add_row("logits that differ from QAT eval", "", "", differ)

    passes = Table(title="Passes", title_justify="left")
    passes.add_column("pass")
    for heading in ("nodes before", "nodes after", "changes", "left alone"):
        passes.add_column(heading, justify="right")
    for step in outcome.passes:
        counts = step.nodes_before, step.nodes_after, step.changed, step.left_alone
        passes.add_row(step.name, *map(str, counts))

    console = Console()
    console.print(results, passes, f"{outcome.seconds:.0f} seconds.", sep="\n")


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder '{out}': {error.strerror}") from error


@contextmanager
def _one_thread() -> Iterator[None]:
    """One torch thread: the sums come out the same whatever the number of cores.

    Two gain a third on so small a network, and lose minutes waiting for each other where
    something else runs beside them.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
