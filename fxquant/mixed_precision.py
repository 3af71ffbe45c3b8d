"""The best bits of all layers under a budget, from what each of them costs alone.

    a front    ways to choose for the layers so far of which none is dearer and worse than another
    a layer    each of its bits added to each way of the front; what is dearer and worse goes

Costs are taken to add up. Noise powers do where errors are small and of different layers: for a
share of 1e-2, that is 20 dB, they are some percent off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fxquant.errors import ConfigError
from fxquant.fields import is_number
from fxquant.layer_costs import Layer, Sensitivity
from fxquant.overrides import Override


@dataclass(frozen=True)
class Chosen:
    """The bits of each layer that cost least within a budget.

    bits       of the weight at each call
    cost       of all layers together: noise in the output or rise of the loss, as they add up
    spent      of the budget: bytes, or bit operations for one example
    """

    bits: Mapping[str, int]
    cost: float
    spent: float

    @property
    def overrides(self) -> tuple[Override, ...]:
        """For QuantConfig(overrides=…)."""
        return tuple(Override(site=site, weight=bits) for site, bits in self.bits.items())


def choose_bits(
    found: Sensitivity, *, size: float | None = None, bit_operations: float | None = None
) -> Chosen:
    """The bits of each layer that cost least together, within a budget: no others cost less.

    Args:
        found: what sensitivity measured.
        size: of all weights, in bytes.
        bit_operations: for one example: products, times the bits of both factors. One of the two.

    Raises ConfigError where there is not one budget, or where the least bits are beyond it.
    """
    if not isinstance(found, Sensitivity):
        raise ConfigError(f"choose_bits takes what sensitivity returned, got {found!r}")
    if (size is None) == (bit_operations is None):
        raise ConfigError("choose_bits takes one budget: size= in bytes, or bit_operations=")
    if size is not None:
        return _within("size", size, 8, found, lambda layer: layer.weights)
    return _within(
        "bit_operations", bit_operations, 1, found,
        lambda layer: layer.products * layer.activation,
    )


def _within(
    name: str, given: object, unit: int, found: Sensitivity, per_bit: Callable[[Layer], int]
) -> Chosen:
    """The best within a budget called `name`: a layer takes `per_bit` of it for each bit of its
    weights, and so many make one `unit`.
    """
    if not is_number(given) or not 0 < given < math.inf:
        raise ConfigError(f"{name} is a positive number, got {given!r}")
    prices = [[bits * per_bit(layer) for bits in found.bits] for layer in found.layers]
    budget, least = given * unit, sum(map(min, prices))
    if least > budget:
        raise ConfigError(
            f"{name}={given:g} is below {least / unit:g}, which {found.bits[0]} bits take "
            "everywhere.\nWhat to do: raise it, or let sensitivity try fewer bits."
        )
    costs = [[layer.cost[bits] for bits in found.bits] for layer in found.layers]
    picks = cheapest(prices, costs, math.floor(min(budget, sum(map(max, prices)))))
    chosen = {
        site: found.bits[pick]
        for layer, pick in zip(found.layers, picks, strict=True)
        for site in layer.sites
    }
    cost = sum(row[pick] for row, pick in zip(costs, picks, strict=True))
    spent = sum(row[pick] for row, pick in zip(prices, picks, strict=True))
    return Chosen(chosen, cost, spent / unit)


class _Front(NamedTuple):
    """Ways to choose for the layers so far of which none is dearer and worse than another: what
    they take and cost, rising and falling; which way before them they go on from, with what.
    """

    price: Tensor
    cost: Tensor
    before: Tensor
    pick: Tensor


def cheapest(
    prices: Sequence[Sequence[int]], costs: Sequence[Sequence[float]], budget: int
) -> list[int]:
    """Which option of each layer to take: the least sum of costs whose prices, whole numbers, add
    up to no more than the budget. Exact, since only what cannot be best is left out.
    """
    zero = torch.zeros(1, dtype=torch.int64)
    fronts = [_Front(zero, zero.double(), zero, zero)]
    rest = sum(map(min, prices))
    for price, cost in zip(prices, costs, strict=True):
        rest -= min(price)
        fronts.append(_extended(fronts[-1], price, cost, budget - rest))
    picks, at = [], int(fronts[-1].cost.argmin())
    for front in reversed(fronts[1:]):
        picks.append(int(front.pick[at]))
        at = int(front.before[at])
    return picks[::-1]


def _extended(
    front: _Front, prices: Sequence[int], costs: Sequence[float], most: int
) -> _Front:
    count, options = len(front.price), len(prices)
    price = (front.price[None] + torch.tensor(prices)[:, None]).flatten()
    cost = (front.cost[None] + torch.tensor(costs, dtype=torch.float64)[:, None]).flatten()
    before = torch.arange(count).repeat(options)
    pick = torch.arange(options).repeat_interleave(count)
    order = cost.argsort(stable=True)
    order = order[price[order].argsort(stable=True)]
    order = order[price[order] <= most]
    best = cost[order].cummin(0).values
    better = torch.ones_like(order, dtype=torch.bool)
    better[1:] = best[1:] < best[:-1]
    kept = order[better]
    return _Front(price[kept], cost[kept], before[kept], pick[kept])
