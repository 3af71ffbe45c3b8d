"""Learn, after training, for each weight whether it is rounded up or down.

    batches ── the network in float ────────────────────────── what a unit should give
            └─ the network as it is quantized so far ── unit ── what it gives: the error falls

A unit is one layer (AdaRound), or all that a module does (BRECQ: block reconstruction). They come
one after another, so that each makes up for what rounding did before it.

Sources: Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization"; Li et
al. 2021, "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction".
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.batches import arguments, named
from fxquant.errors import ConfigError, UncalibratedError
from fxquant.fake_quant import AdaptiveRounding, WeightFakeQuant
from fxquant.fields import is_number
from fxquant.graph.edit import called_module
from fxquant.graph.held import held
from fxquant.graph.modes import evaluating
from fxquant.graph.place import place_of
from fxquant.graph.sharing import parameter_reads, shared_parameter
from fxquant.graph.values import scalars
from fxquant.overrides import near_misses
from fxquant.pipeline import need_prepared
from fxquant.see.as_float import as_float
from fxquant.sites.call_site import CallSite
from fxquant.sites.flow import sites
from fxquant.sites.parameters import parameters_of
from fxquant.sites.phase import Phase

PENALTY = 1.0  # of rounding that is not settled at all, beside the error of rounding to the nearest
WARM_UP = 0.2  # of the steps are without it
BETAS = (20.0, 2.0)  # from the first step with a penalty to the last
EXAMPLES = 32  # in a step


def learn_rounding(
    prepared: fx.GraphModule,
    batches: Iterable[Any],
    blocks: Sequence[str] = (),
    steps: int = 500,
    rate: float = 1e-2,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Move each weight to the grid point, of the two around it, with which the output of its layer
    is nearest to that of the float network on `batches`.

    For networks that are not trained further. Scales stay. Weights that another call shares, that
    are computed from others, or that are shaped before they are rounded (binary, ternary, tanh)
    stay as they are.

    Args:
        prepared: what prepare_ptq or prepare_qat returned, its ranges settled; changed in place.
        batches: inputs; a list or a DataLoader, since they are run several times for each unit.
            A few hundred examples are enough.
        blocks: paths of modules, `*` and `?` allowed, whose layers are learned together.
        steps: for each unit, on 32 examples each.
        rate: Adam's, up to 1.
        tell: called with the steps done and the steps in all, after each.

    Raises:
        StageError: `prepared` was not prepared.
        UncalibratedError: it has no ranges yet.
        DataError: a batch is empty, holds NaN or infinity, or does not fit; or there is none.
        ConfigError: a pattern of `blocks` matches no module with a layer to learn, or there is
            none at all.
    """
    need_prepared(prepared, "learn_rounding")
    if type(steps) is not int or steps < 1:
        raise ConfigError(f"steps is a number of steps for each unit, got {steps!r}")
    if not is_number(rate) or not 0 < rate <= 1:
        raise ConfigError(f"rate lies in (0, 1], got {rate!r}")
    if (
        isinstance(blocks, str)
        or not isinstance(blocks, Sequence)
        or not all(isinstance(pattern, str) for pattern in blocks)
    ):
        raise ConfigError(f"blocks are paths of modules, such as ('layer1.*',), got {blocks!r}")
    _need_ranges(prepared)
    units = _units(prepared, blocks)
    inputs = list(arguments(prepared, batches))
    reference = as_float(prepared).eval()
    done, total = 0, steps * len(units)
    with evaluating(prepared):
        for unit in units:
            wanted = _watched(reference, inputs, [node.name for node in unit.outputs])
            given = _watched(prepared, inputs, [node.name for node in unit.inputs])
            for _ in _learn(prepared, unit, given, wanted, steps, rate):
                done += 1
                tell(done, total)


@dataclass(frozen=True)
class _Unit:
    """Nodes that are learned together, in the order of the graph, and the layers among them."""

    nodes: tuple[fx.Node, ...]
    layers: tuple[fx.Node, ...]

    @property
    def inputs(self) -> list[fx.Node]:
        """Values that come from outside."""
        read = (x for node in self.nodes for x in node.all_input_nodes)
        return [x for x in dict.fromkeys(read) if x not in self.nodes]

    @property
    def outputs(self) -> list[fx.Node]:
        """Values that are read outside: of sites, or of these moved."""
        fixed = scalars(self.nodes[0].graph)
        return [
            node
            for node in self.nodes
            if node.op.startswith("call") and node not in fixed
            and any(user not in self.nodes for user in node.users)
        ]


# ------------------------------------------------------------------------ what is learned together


def _units(gm: fx.GraphModule, blocks: Sequence[str]) -> list[_Unit]:
    reads = parameter_reads(gm)
    layers = [
        node
        for node, site in sites(gm)
        if site.weight_quant is not None
        and type(site.weight_quant).transform is WeightFakeQuant.transform  # rounded as it is
        and shared_parameter(gm, node, reads) is None
    ]
    if not layers:
        raise ConfigError("there is no layer whose weight is its own and rounded as it is")
    inside = {node: around(place_of(node).module) for node in gm.graph.nodes}
    known = dict.fromkeys(path for layer in layers for path in inside[layer])
    block_of: dict[fx.Node, object] = {layer: layer for layer in layers}
    for pattern in blocks:
        matches = fnmatch.filter(known, pattern)
        if not matches:
            raise ConfigError(
                f"blocks: no module with a layer matches '{pattern}'{near_misses(pattern, known)}"
            )
        for node in gm.graph.nodes:
            path = next((path for path in matches if path in inside[node]), None)
            if path is not None and node.op.startswith("call"):
                block_of[node] = path
    units: dict[object, set[fx.Node]] = {}
    for node, block in block_of.items():
        units.setdefault(block, set()).add(node)
    found = [_unit(gm, nodes, layers) for nodes in units.values()]
    read = [unit for unit in found if unit.layers and unit.outputs]
    return sorted(read, key=lambda unit: order(gm)[unit.layers[0]])


def _unit(gm: fx.GraphModule, nodes: set[fx.Node], layers: list[fx.Node]) -> _Unit:
    """With the numbers and the parameters that `nodes` read, which are the same for any data, and
    without what the network's outputs do not depend on.
    """
    given = scalars(gm.graph) | held(gm)
    todo = list(nodes)
    while todo:
        read = todo.pop().all_input_nodes
        more = [x for x in read if (x in given or x.op == "get_attr") and x not in nodes]
        nodes.update(more)
        todo += more
    used: set[fx.Node] = set()
    for node in reversed(gm.graph.nodes):
        if node.op == "output" or not used.isdisjoint(node.users):
            used.add(node)
    chosen = [node for node in gm.graph.nodes if node in nodes and node in used]
    return _Unit(tuple(chosen), tuple(node for node in chosen if node in layers))


def order(gm: fx.GraphModule) -> dict[fx.Node, int]:
    """Where each node stands."""
    return {node: i for i, node in enumerate(gm.graph.nodes)}


def around(path: str) -> list[str]:
    """The path itself and those of the modules around it."""
    parts = path.split(".") if path else []
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


# ------------------------------------------------------------------------ learning


def _learn(
    gm: fx.GraphModule, unit: _Unit, given: dict[str, Tensor], wanted: dict[str, Tensor],
    steps: int, rate: float,
) -> Iterator[None]:
    """Learn the rounding of one unit, and settle it; gives way after each step."""
    weights = {node: parameters_of(gm, node)[0] for node in unit.layers}
    part, count = _Part(gm, unit, given, wanted), len(next(iter(wanted.values())))
    with torch.no_grad(), _soft(gm, unit, {}):
        nearest = part.error(torch.arange(count)).clamp(min=1e-30)
    with _soft(gm, unit, weights) as soft:
        rises = [rounding.rise for rounding in soft.values()]
        optimizer = torch.optim.Adam(rises, lr=rate)
        generator = torch.Generator().manual_seed(0)
        for step in range(steps):
            chosen = torch.randperm(count, generator=generator)[:EXAMPLES]
            loss = part.error(chosen) / nearest
            loss = loss + _penalty(soft.values(), step / steps)
            for rise, grad in zip(rises, torch.autograd.grad(loss, rises), strict=True):
                rise.grad = grad
            optimizer.step()
            yield
        with torch.no_grad():
            for node, rounding in soft.items():
                weights[node].copy_(rounding.settled())


def _penalty(soft: Iterable[AdaptiveRounding], passed: float) -> Tensor | float:
    if passed < WARM_UP:
        return 0.0
    first, last = BETAS
    share = (passed - WARM_UP) / (1 - WARM_UP)
    beta = last + (first - last) * (1 + math.cos(math.pi * share)) / 2
    return PENALTY * torch.stack([rounding.penalty(beta) for rounding in soft]).mean()


@contextmanager
def _soft(
    gm: fx.GraphModule, unit: _Unit, weights: dict[fx.Node, Tensor]
) -> Iterator[dict[fx.Node, AdaptiveRounding]]:
    """The unit as it is in training, its ranges standing still, its weights between grid points,
    and what leaves it not rounded.
    """
    called = [(node, called_module(gm, node)) for node in unit.nodes]
    modules = [(node, module) for node, module in called if isinstance(module, CallSite)]
    before = [(site, site.weight_quant, site.output, site.phase) for _, site in modules]
    soft: dict[fx.Node, AdaptiveRounding] = {}
    for node, site in modules:
        site.training, site.phase = True, Phase()  # only itself: its quantizers stand still
        if node in weights:
            assert site.weight_quant is not None
            soft[node] = site.weight_quant = AdaptiveRounding(site.weight_quant, weights[node])
        if not any(user in unit.nodes for user in node.users):
            site.output = None
    try:
        yield soft
    finally:
        for site, quantizer, output, phase in before:
            site.training, site.phase = False, phase
            site.weight_quant, site.output = quantizer, output


class _Part(fx.Interpreter):
    """Runs the nodes of a unit on values that are there already, and compares."""

    def __init__(
        self, gm: fx.GraphModule, unit: _Unit, given: dict[str, Tensor], wanted: dict[str, Tensor]
    ) -> None:
        super().__init__(gm)
        self.nodes = unit.nodes
        self.given = {node: given[node.name] for node in unit.inputs}
        self.wanted = {node: wanted[node.name] for node in unit.outputs if node.name in wanted}

    def error(self, chosen: Tensor) -> Tensor:
        """The mean squared error of what leaves the unit, on the `chosen` examples."""
        self.env = {node: x[chosen] for node, x in self.given.items()}
        for node in self.nodes:
            self.env[node] = self.run_node(node)
        errors = [(self.env[node] - y[chosen]).square().mean() for node, y in self.wanted.items()]
        return torch.stack(errors).sum()


class _Watcher(fx.Interpreter):
    """Runs a graph and keeps the values of some nodes."""

    def __init__(self, gm: fx.GraphModule, names: Sequence[str]) -> None:
        super().__init__(gm)
        self.names = set(names)
        self.kept: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.names:
            self.kept[n.name] = value
        return value


def _watched(
    gm: fx.GraphModule, batches: Sequence[tuple[Any, ...]], names: Sequence[str]
) -> dict[str, Tensor]:
    """The values of the nodes of those names, of all batches, one behind the other; but of those
    that give no tensor in eval().
    """
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    for number, inputs in enumerate(batches):
        watcher = _Watcher(gm, names)
        with named(inputs, number), torch.no_grad():
            watcher.run(*inputs)
        for name in names:
            if isinstance(watcher.kept[name], Tensor):
                parts[name].append(watcher.kept[name])
    return {name: torch.cat(values) for name, values in parts.items() if values}


def _need_ranges(gm: fx.GraphModule) -> None:
    missing = [node.name for node, site in sites(gm) if not site.ready]
    if missing:
        raise UncalibratedError(
            f"learn_rounding needs ranges, but '{missing[0]}' has seen no finite data.\n"
            "What to do: fxquant.calibrate(prepared, batches) first."
        )
