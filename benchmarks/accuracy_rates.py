"""Which learning rates benchmarks/accuracy.py takes, chosen on digits that it never tests.

    python benchmarks/accuracy_rates.py          what is missing, then the table of docs/accuracy.md

Each seed of accuracy.py holds out 719 digits, and reports how many of them are read. Some digits
are held out by none of its seeds: only these say here which rates are better. The networks come
from other seeds, and were trained on as many of the other digits. LSQ with 3 bits, which depends
on rates the most.
"""

from __future__ import annotations

import copy
import statistics
from dataclasses import asdict, dataclass

import torch
from rich.progress import track

import fxquant
from accuracy import EPOCHS, RESULTS, SEEDS, Rates, config, fit, float_network, put
from digits import ALL, NETWORKS, Digits, accuracy, chosen, divided, seeded
from fxquant import LSQ
from measures import read, write

PATH = RESULTS / "rates.json"
OTHER_SEEDS = (3, 4)
CANDIDATES = (Rates(5e-3, 0.01), Rates(5e-3, 0.003), Rates(5e-3, 0.03), Rates(2e-3, 0.01))
BITS = 3


@dataclass(frozen=True)
class Row:
    """The share of the digits to validate on that are read."""

    network: str
    seed: int
    rate: float
    grid_rate: float
    accuracy: float


def digits(seed: int, channels: int) -> tuple[Digits, Digits]:
    """To train on, and to validate on: all that no seed of accuracy.py holds out."""
    known = torch.zeros(ALL, dtype=torch.bool)
    for reported in SEEDS:
        known[divided(torch.arange(ALL), seeded(reported))[1]] = True
    training, _ = divided(known.nonzero().flatten(), seeded(seed))
    return chosen(training, channels), chosen((~known).nonzero().flatten(), channels)


def rows_of() -> list[Row]:
    """What was measured so far."""
    return [Row(**row) for row in read(PATH)] if PATH.exists() else []


def measured(network: str, seed: int, rates: Rates) -> Row:
    """One training."""
    training, validation = digits(seed, NETWORKS[network][1])
    model = float_network(network, seed, training)
    settings = config(BITS, BITS, fake_quant=LSQ())
    torch.manual_seed(seed + 1)
    prepared = fxquant.prepare_qat(copy.deepcopy(model), training.images[:2], settings)
    fit(prepared, training, EPOCHS, seed + 1, rates)
    return Row(network, seed, *rates, accuracy(fxquant.convert(prepared), validation))


def table(rows: list[Row]) -> str:
    """Networks, and the mean of all, by rates; of the seeds that have every row."""
    found = {(r.network, r.seed, Rates(r.rate, r.grid_rate)): 100 * r.accuracy for r in rows}
    needed = [(n, r) for n in NETWORKS for r in CANDIDATES]
    seeds = [s for s in OTHER_SEEDS if all((n, s, r) in found for n, r in needed)]
    lines = [
        f"| rate of weights | of steps | {' | '.join(NETWORKS)} | mean |",
        "|--:|--:|" + "--:|" * (len(NETWORKS) + 1),
    ]
    for rates in CANDIDATES if seeds else ():
        each = [statistics.mean(found[n, s, rates] for s in seeds) for n in NETWORKS]
        cells = [f"{value:.1f}" for value in (*each, statistics.mean(each))]
        lines.append(f"| {rates.network:g} | {100 * rates.grids:g} % | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing, then write the table."""
    torch.set_num_threads(1)
    wanted = [(n, s, r) for s in OTHER_SEEDS for n in NETWORKS for r in CANDIDATES]
    done = {(r.network, r.seed, Rates(r.rate, r.grid_rate)) for r in rows_of()}
    for task in track([task for task in wanted if task not in done], "rates"):
        write(PATH, [asdict(row) for row in (*rows_of(), measured(*task))])
    put("RATES", table(rows_of()))


if __name__ == "__main__":
    main()
