"""How well quantized networks read: handwriting, three networks, every calibrator and fake-quant.

    python benchmarks/accuracy.py                        all that is missing, then docs/accuracy.md
    python benchmarks/accuracy.py --networks ResNet      one network
    python benchmarks/accuracy.py --ways "QAT, LSQ,*" "*AdaRound*W4A8"     these, in this order
    python benchmarks/accuracy.py --page                 the page alone, from what is there

Each row stands in benchmarks/results/accuracy/ as soon as it is measured, so that a run which was
stopped goes on where it was. Float networks are kept there beside it, ignored by git.

Every network is trained in float from three seeds. Post-training rows calibrate on 8 batches of 64
training images. Training rows go on from the float network for 6 epochs, and beside them a row of
float does, too. Weights and activations have the bits given; below 8, the first and the last layers
have 8. What is evaluated is the converted network, in integers, on the 719 held-out digits. Rows of
Brevitas are measured where it is installed (pip install brevitas).
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import fx, nn
from torch.ao.quantization import (
    FakeQuantize,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    QConfig,
    QConfigMapping,
)
from torch.ao.quantization.quantize_fx import prepare_qat_fx

import fxquant
from digits import BATCH, NETWORKS, Digits, accuracy, digits, seeded, train
from fxquant import BINARY, INQ, LSQ, TERNARY, TWN, QuantConfig, Stages, StraightThrough
from fxquant.fake_quant import FAKE_QUANTS, FakeQuant, Tanh
from fxquant.fake_quant.quantizer import Quantizer
from fxquant.files import write_whole
from fxquant.observers import CALIBRATORS, Fixed, MinMax
from fxquant.schemes import UINT8
from measures import read, write

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/accuracy"
PAGE = ROOT / "docs/accuracy.md"

SEEDS = (0, 1, 2)
FLOAT_EPOCHS, EPOCHS = 24, 6  # in float, and with fake-quants from there on
CALIBRATION_BATCHES = 8
ROUNDING_STEPS = 200
SHARES = (0.5, 0.75, 0.875)  # of the weights that INQ fixes, before each part of the training
WORST_FIRST = (8, 4, 3, 2)
PLAIN, LEARNED = "rounding, to the nearest", "rounding, learned, layer by layer (AdaRound)"


class Rates(NamedTuple):
    """Learning rates of the network, and of each number of a learned grid as a share of it."""

    network: float
    grids: float


RATES = Rates(5e-3, 0.01)  # as benchmarks/accuracy_rates.py chooses


@dataclass(frozen=True)
class Task:
    """One row to measure: a way to make a network of a float one, at so many bits.

    `bits` are those of weights and activations, 0 for float; `run` takes the float network and what
    to train on, and gives what is evaluated.
    """

    way: str
    weight: int
    activation: int
    run: Callable[[nn.Module, Digits, int], nn.Module]

    def __str__(self) -> str:
        return f"{self.way}, W{self.weight}A{self.activation}" if self.weight else self.way


@dataclass(frozen=True)
class Row:
    """What came out: the share of held-out digits that are read correctly."""

    network: str
    seed: int
    way: str
    weight: int
    activation: int
    accuracy: float
    seconds: float


# --- ways to make a network of a float one --------------------------------------------------------


def config(weight: int, activation: int, **settings: object) -> QuantConfig:
    """So many bits, 8 in the first and the last layers."""
    return QuantConfig(
        weight=BINARY.with_bits(weight),
        activation=UINT8.with_bits(activation),
        first_last_bits=None if weight == activation == 8 else 8,
        **settings,  # type: ignore[arg-type]
    )


def as_it_is(model: nn.Module, data: Digits, seed: int) -> nn.Module:
    """The float network."""
    return model


def fit(
    model: nn.Module, data: Digits, epochs: int, seed: int, rates: Rates = RATES
) -> None:
    """Adam, for the network and what its fake-quants learn; the model is in eval() afterwards.

    Each number of a learned grid has a rate of its own, a share of what it is.
    """
    model.train()
    with torch.no_grad():
        model(data.images[:BATCH])  # learned grids start from a batch
    ours = any(isinstance(module, Quantizer) for module in model.modules())
    groups = fxquant.parameter_groups(model, rates.grids) if ours else model.parameters()
    optimizer = torch.optim.Adam(groups, lr=rates.network)
    train(model, data, epochs, optimizer, seeded(seed))


def trained_on(model: nn.Module, data: Digits, seed: int) -> nn.Module:
    """The float network after as much more training as the others have."""
    fit(model, data, EPOCHS, seed)
    return model


def calibrated(model: nn.Module, data: Digits, settings: QuantConfig) -> fx.GraphModule:
    """After training: with ranges from a few batches."""
    batches = data.images[: BATCH * CALIBRATION_BATCHES].split(BATCH)
    prepared = fxquant.prepare_ptq(model, batches[0], settings)
    fxquant.calibrate(prepared, batches)
    return prepared


def after_training(settings: QuantConfig) -> Callable[[nn.Module, Digits, int], nn.Module]:
    """Calibrated and converted."""
    return lambda model, data, seed: fxquant.convert(calibrated(model, data, settings))


def with_fake_quants(settings: QuantConfig) -> Callable[[nn.Module, Digits, int], nn.Module]:
    """Trained with fake-quants and converted."""

    def run(model: nn.Module, data: Digits, seed: int) -> nn.Module:
        prepared = fxquant.prepare_qat(model, data.images[:2], settings)
        fit(prepared, data, EPOCHS, seed)
        return fxquant.convert(prepared)

    return run


def fixed_step_by_step(bits: int) -> Callable[[nn.Module, Digits, int], nn.Module]:
    """A growing share of the weights on the paper's codes of so many bits; activations of 8."""
    settings = config(2 ** (bits - 2) + 1, 8, fake_quant=LSQ(), weight_fake_quant=INQ())

    def run(model: nn.Module, data: Digits, seed: int) -> nn.Module:
        prepared = fxquant.prepare_qat(model, data.images[:2], settings)
        for share in SHARES:
            fxquant.fix_weights(prepared, share)
            fit(prepared, data, EPOCHS // len(SHARES), seed)
        fxquant.fix_weights(prepared, 1.0)
        return fxquant.convert(prepared)

    return run


# the modules whose layers are learned together: cells, and what stands in sequence
BLOCKS = ("cells.*", "3", "4", "5")


def rounded(bits: int, learn: bool, blocks: tuple[str, ...]) -> Callable[..., nn.Module]:
    """Weights of so many bits, activations of 8; rounded to the nearest, or as is learned."""

    def run(model: nn.Module, data: Digits, seed: int) -> nn.Module:
        prepared = calibrated(model, data, config(bits, 8, calibrator=MinMax()))
        if learn:
            batches = data.images[: BATCH * CALIBRATION_BATCHES].split(BATCH)
            known = {name for name, _ in model.named_modules()}
            fitting = tuple(b for b in blocks if fnmatch.filter(known, b))
            fxquant.learn_rounding(prepared, batches, fitting, ROUNDING_STEPS)
        return fxquant.convert(prepared)

    return run


def torch_ao(bits: int) -> Callable[[nn.Module, Digits, int], nn.Module]:
    """Trained with torch.ao's fake-quants in FX graph mode, on ranges that follow the training, as
    its tutorial has it; the first and the last layer with 8 bits. What is evaluated is the
    fake-quantized network: its integers have 8 bits alone.
    """

    def qconfig(bits: int) -> QConfig:
        top = 2 ** (bits - 1) - 1
        return QConfig(
            activation=FakeQuantize.with_args(
                observer=MovingAverageMinMaxObserver, quant_min=0, quant_max=2**bits - 1
            ),
            weight=FakeQuantize.with_args(
                observer=MovingAveragePerChannelMinMaxObserver, quant_min=-top, quant_max=top,
                dtype=torch.qint8, qscheme=torch.per_channel_symmetric,
            ),
        )

    def run(model: nn.Module, data: Digits, seed: int) -> nn.Module:
        mapping = QConfigMapping().set_global(qconfig(bits))
        for name in first_and_last(model):
            mapping.set_module_name(name, qconfig(8))
        prepared = prepare_qat_fx(model.train(), mapping, (data.images[:2],))
        fit(prepared, data, EPOCHS, seed)
        return prepared

    return run


def brevitas(bits: int) -> Callable[[nn.Module, Digits, int], nn.Module]:
    """Trained with Brevitas' layers in the place of ours: weights, and what layers read, are
    fake-quantized, on ranges that follow the training; sums, pools and batch norms stay in float.
    The first and the last layer with 8 bits.
    """

    def layers(bits: int) -> dict[type[nn.Module], tuple[type[nn.Module], dict[str, object]]]:
        import brevitas.nn as qnn
        from brevitas.quant import Int8WeightPerChannelFloat, ShiftedUint8ActPerTensorFloat

        options: dict[str, object] = {
            "weight_quant": Int8WeightPerChannelFloat, "weight_bit_width": bits,
            "input_quant": ShiftedUint8ActPerTensorFloat, "input_bit_width": bits,
            "bias_quant": None, "return_quant_tensor": False,
        }
        return {nn.Conv2d: (qnn.QuantConv2d, options), nn.Linear: (qnn.QuantLinear, options)}

    def run(model: nn.Module, data: Digits, seed: int) -> nn.Module:
        from brevitas.graph.quantize import layerwise_quantize

        ends = first_and_last(model)
        inner = [name for name in layer_names(model) if name not in ends]
        prepared = layerwise_quantize(model, layers(8), name_blacklist=inner)
        prepared = layerwise_quantize(prepared, layers(bits), name_blacklist=ends)
        fit(prepared, data, EPOCHS, seed)
        return prepared

    return run


def layer_names(model: nn.Module) -> list[str]:
    """Those of convolutions and linear layers, in the order in which they are held."""
    return [n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def first_and_last(model: nn.Module) -> list[str]:
    """What keeps 8 bits."""
    names = layer_names(model)
    return [names[0], names[-1]]


def _method(method: FakeQuant) -> str:
    return type(method).__name__


def tasks() -> list[Task]:
    """All of them, in the order of the page."""
    found = [Task("float", 0, 0, as_it_is), Task("float, trained on", 0, 0, trained_on)]
    for kind in CALIBRATORS:
        if kind is Fixed:
            continue
        for bits in (8, 6, 4):
            settings = config(bits, bits, calibrator=kind())
            found.append(Task(f"PTQ, {kind.__name__}", bits, bits, after_training(settings)))
    first = (LSQ(), StraightThrough())
    rest = tuple(
        Stages(Tanh(), learned=True) if kind is Stages else kind()
        for kind in FAKE_QUANTS
        if kind not in (LSQ, StraightThrough, TWN, INQ)  # the last two are for weights alone
    )
    for method in (*first, *rest):
        for bits in WORST_FIRST:
            settings = config(bits, bits, fake_quant=method)
            found.append(Task(f"QAT, {_method(method)}", bits, bits, with_fake_quants(settings)))
    for weight, activation in ((3, 8), (8, 3)):  # which of the two it is that costs
        settings = config(weight, activation, fake_quant=LSQ())
        found.append(Task("QAT, LSQ", weight, activation, with_fake_quants(settings)))
    found += [Task("QAT, INQ", bits, 8, fixed_step_by_step(bits)) for bits in (4, 3)]
    for name, learn, blocks in (
        (PLAIN, False, ()),
        (LEARNED, True, ()),
        ("rounding, learned, block by block (BRECQ)", True, BLOCKS),
    ):
        for bits in (4, 3, 2):
            found.append(Task(name, bits, 8, rounded(bits, learn, blocks)))
    found += [Task("peer, torch.ao", bits, bits, torch_ao(bits)) for bits in (8, 4)]
    if find_spec("brevitas"):
        found += [Task("peer, Brevitas", bits, bits, brevitas(bits)) for bits in (8, 4)]
    for name, scheme in (("ternary weights (TWN)", TERNARY), ("binary weights", BINARY)):
        settings = QuantConfig(
            weight=scheme, first_last_bits=8, fake_quant=LSQ(), weight_fake_quant=TWN()
        )
        found.append(Task(f"QAT, {name}", scheme.bits, 8, with_fake_quants(settings)))
    return found


# --- measuring ------------------------------------------------------------------------------------


def results_of(network: str) -> Path:
    """Where the rows of a network stand."""
    return RESULTS / f"{network}.json"


def rows_of(network: str) -> list[Row]:
    """The rows that were measured so far."""
    path = results_of(network)
    return [Row(**row) for row in read(path)] if path.exists() else []


def float_network(network: str, seed: int, data: Digits) -> nn.Module:
    """Trained in float; kept in a file, since all rows of a seed begin with it."""
    make, _ = NETWORKS[network]
    torch.manual_seed(seed)
    model = make()
    path = RESULTS / f".{network}-{seed}.pt"
    if path.exists():
        model.load_state_dict(torch.load(path))
        return model.eval()
    fit(model, data, FLOAT_EPOCHS, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return model


def measure(
    networks: Sequence[str], seeds: Sequence[int], ways: Sequence[str], console: Console
) -> None:
    """Every row that is missing, seed by seed."""
    every = tasks()
    fitting = [task for way in ways for task in every if fnmatch.fnmatchcase(str(task), way)]
    wanted = list(dict.fromkeys(fitting))
    if not wanted:
        known = "\n".join(map(str, every))
        raise SystemExit(f"no way matches {' '.join(ways)}; there are:\n{known}")
    columns = (TextColumn("{task.description:44}"), BarColumn(), MofNCompleteColumn(),
               TimeElapsedColumn())
    for network in networks:
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task(network, total=len(wanted) * len(seeds))
            for seed in seeds:
                done = {(r.seed, r.way, r.weight, r.activation) for r in rows_of(network)}
                training, held_out = digits(seeded(seed), NETWORKS[network][1])
                for task in wanted:
                    progress.update(bar, description=f"{network}, seed {seed}, {task}")
                    if (seed, task.way, task.weight, task.activation) not in done:
                        row = _measured(network, seed, task, training, held_out)
                        write(results_of(network), [asdict(r) for r in (*rows_of(network), row)])
                    progress.advance(bar)


def _measured(network: str, seed: int, task: Task, training: Digits, held_out: Digits) -> Row:
    model = float_network(network, seed, training)
    torch.manual_seed(seed + 1)
    start = time.process_time()
    made = task.run(copy.deepcopy(model), training, seed + 1)
    seconds = round(time.process_time() - start, 1)
    share = accuracy(made, held_out)
    return Row(network, seed, task.way, task.weight, task.activation, share, seconds)


# --- the page -------------------------------------------------------------------------------------


def cell(rows: list[Row], way: str, weight: int, activation: int) -> str:
    """Mean and deviation over seeds, in percent; the number of seeds where some are missing."""
    key = (way, weight, activation)
    found = [100 * r.accuracy for r in rows if (r.way, r.weight, r.activation) == key]
    if not found:
        return ""
    spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
    missing = f" ({len(found)} of {len(SEEDS)} seeds)" if len(found) < len(SEEDS) else ""
    return f"{statistics.mean(found):.1f}{spread}{missing}"


def table(prefix: str, columns: tuple[tuple[int, int], ...]) -> str:
    """All ways whose name begins with `prefix`, network by network."""
    names = [f"W{w}A{a}" if w != a else f"{w} bits" if w else "float" for w, a in columns]
    lines = [f"| network | way | {' | '.join(names)} |", "|---|---|" + "--:|" * len(columns)]
    for network in NETWORKS:
        rows = rows_of(network)
        for way in dict.fromkeys(row.way for row in rows if row.way.startswith(prefix)):
            cells = [cell(rows, way, *column) for column in columns]
            if any(cells):
                name = way.removeprefix(prefix).removeprefix(", ") or prefix
                lines.append(f"| {network} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def losses(network: str, way: str, bits: tuple[int, int], reference: str) -> dict[int, float]:
    """By seed, how many points a way of so many bits lies below another that is float."""
    rows = rows_of(network)
    real = {row.seed: row.accuracy for row in rows if row.way == reference}
    return {
        row.seed: 100 * (real[row.seed] - row.accuracy)
        for row in rows
        if row.way == way and (row.weight, row.activation) == bits and row.seed in real
    }


def goals() -> str:
    """What training costs, seed by seed, and how much of what it costs rounding wins back."""
    lines = [f"| | goal | {' | '.join(NETWORKS)} |", "|---|---|" + "--:|" * len(NETWORKS)]
    for way, bits, most in (
        ("StraightThrough", 8, 0.2), ("LSQ", 8, 0.2), ("LSQ", 4, 0.5), ("LSQ", 3, 1.5),
    ):
        cells = [_lost(network, f"QAT, {way}", (bits, bits), most) for network in NETWORKS]
        lines.append(f"| {way}, {bits} bits, loses | at most {most} | {' | '.join(cells)} |")
    for bits in (4, 3):
        cells = [_won_back(network, (bits, 8)) for network in NETWORKS]
        lines.append(f"| AdaRound, W{bits}A8, wins back | half | {' | '.join(cells)} |")
    return "\n".join(lines)


def _lost(network: str, way: str, bits: tuple[int, int], most: float) -> str:
    found = list(losses(network, way, bits, "float, trained on").values())
    if len(found) < 2:
        return ""
    missed = "" if statistics.mean(found) <= most else ", missed"
    return f"{statistics.mean(found):.1f} ± {statistics.stdev(found):.1f}{missed}"


def _won_back(network: str, bits: tuple[int, int]) -> str:
    plain, learned = (losses(network, way, bits, "float") for way in (PLAIN, LEARNED))
    both = plain.keys() & learned.keys()
    if not both:
        return ""
    lost = statistics.mean(plain[seed] for seed in both)
    won = lost - statistics.mean(learned[seed] for seed in both)
    return f"{won:.1f} of {lost:.1f}" + ("" if won >= lost / 2 else ", missed")


def write_page() -> None:
    """docs/accuracy.md, from what is there."""
    same = tuple((bits, bits) for bits in WORST_FIRST)
    parts = {
        "FLOAT": table("float", ((0, 0),)),
        "PTQ": table("PTQ, ", ((8, 8), (6, 6), (4, 4))),
        "QAT": table("QAT, ", (*same, (4, 8), (3, 8), (8, 3), (2, 8), (1, 8))),
        "ROUNDING": table("rounding, ", ((4, 8), (3, 8), (2, 8))),
        "GOALS": goals(),
        "PEERS": table("peer, ", ((8, 8), (4, 4))),
    }
    for name, lines in parts.items():
        put(name, lines)


def put(name: str, lines: str) -> None:
    """Into docs/accuracy.md, between the marks of that name."""
    text = PAGE.read_text()
    before, rest = text.split(f"<!-- {name} -->\n")
    _, behind = rest.split(f"<!-- end of {name} -->")
    text = f"{before}<!-- {name} -->\n{lines}\n<!-- end of {name} -->{behind}"
    write_whole(PAGE, text.encode())


def main() -> None:
    """Measure what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--ways", nargs="+", default=["*"], help="patterns, in order of priority")
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.page:
        measure(arguments.networks, arguments.seeds, arguments.ways, Console())
    write_page()


if __name__ == "__main__":
    main()
