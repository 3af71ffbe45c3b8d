"""Where two networks part: node by node, on data.

    reference  ── conv1 ── relu ── pool ── …        captured, if it is a plain model
                  │                │
    candidate  ── conv1 → relu ─── pool ── …        each node beside the one whose value it gives

Every node of the candidate is measured twice: as it runs, its inputs being what came out before it,
and alone, reading what the reference computed. The first shows how errors add up, the second who
makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxquant.batches import arguments, named
from fxquant.errors import ConfigError, StageError, UncalibratedError
from fxquant.fake_quant import ActivationFakeQuant
from fxquant.graph.around import unwrap
from fxquant.graph.edit import Site, called_module, source_of
from fxquant.graph.modes import evaluating
from fxquant.graph.network import Network
from fxquant.graph.steps import Steps
from fxquant.graph.tensors import copy_of
from fxquant.graph.trace import trace
from fxquant.pipeline import PREPARED, Stage, history, say_stage, stage_of
from fxquant.see.as_float import as_float
from fxquant.see.comparison import Comparison
from fxquant.see.grid import grids_of
from fxquant.see.kind import kind_of
from fxquant.see.measure import Measure
from fxquant.sites.integer import Dequantize

# a node's name, what the reference gave in real numbers, and what the candidate did
Watch = Callable[[str, Any, Any], None]


def compare(
    reference: nn.Module, candidate: fx.GraphModule, data: Tensor | Iterable[Any]
) -> Comparison:
    """Run two networks on the same data and find where they part.

    Any two of one model: a model and what prepare_qat made of it, a prepared network and what
    convert made of it, two converted networks. Both run in eval(), and nothing of them moves. What
    the captured graph's nodes became is known of every node of ours; nodes that only move
    elements, or have no counterpart, are left out.

    A node is *bad* where rounding does not explain the difference. Between networks of integers
    that is any difference. Beside a float network it is a node alone below 15 dB, or, of a prepared
    one, other parameters than the reference has. After training compare with `as_float(prepared)`.

    Args:
        reference: the model, or a prepared or converted network.
        candidate: a prepared or converted network of the same model.
        data: a batch, or batches such as a DataLoader gives: tensors, or tuples and lists that
            begin with the arguments (labels behind them are left out).

    Raises:
        StageError: the candidate is no network of ours.
        DataError: no batch, or one that is empty or not finite.
        ConfigError: no node in common; or passes rescaled the inside of the candidate on purpose
            (equalize), and the reference is a float network without that.
        UncalibratedError: one of them has not seen data yet.
    """
    return measured(reference, candidate, data)


def measured(
    reference: nn.Module,
    candidate: fx.GraphModule,
    data: Tensor | Iterable[Any],
    watch: Watch = lambda name, expected, value: None,
) -> Comparison:
    """As `compare`; `watch` is shown each measured node's values of each batch."""
    _refuse_others(reference, candidate)
    batches = arguments(candidate, [data] if isinstance(data, Tensor) else data)
    first = next(batches)
    reference = _captured(reference, candidate, first)
    _refuse_unready(reference, "reference")
    _refuse_unready(candidate, "candidate")
    in_floats = stage_of(reference) is Stage.FLOAT
    if in_floats and not _is_as_float(reference):
        _refuse_rescaled(candidate)
    prepared = in_floats and stage_of(candidate) in PREPARED
    plain = as_float(candidate) if prepared else None
    measures = _measures(reference, candidate, plain)
    models = [reference, candidate, *([plain] if plain is not None else [])]
    with evaluating(*models), torch.no_grad():
        for number, inputs in enumerate(chain((first,), batches)):
            with named(inputs, number):
                _run(reference, candidate, plain, measures, inputs, watch)
    seen = (measure for measure in measures.values() if measure.seen)
    return Comparison(tuple(measure.row(in_floats) for measure in seen))


def _refuse_others(reference: object, candidate: object) -> None:
    if not isinstance(candidate, Network):
        raise StageError(
            f"compare takes a prepared or converted network to look at, got {say_stage(candidate)}."
            "\nWhat to do: the float model is the reference, and comes first."
        )
    if not isinstance(reference, nn.Module):
        raise StageError(
            f"compare takes a model as the reference, got {say_stage(reference)}.\n"
            "What to do: hand in the model, or a prepared or converted network of it."
        )


def _captured(
    reference: nn.Module, candidate: fx.GraphModule, inputs: tuple[Any, ...]
) -> fx.GraphModule:
    """The reference as a graph whose nodes have the names that the candidate's were captured by."""
    if isinstance(reference, Network):
        return reference
    model, _ = unwrap(reference)
    called = {str(node.target) for node in candidate.graph.nodes if node.op == "call_module"}
    leaves = {path for path in called if not isinstance(candidate.get_submodule(path), Site)}
    its_own = {path for path, _ in model.named_modules()}
    return trace(copy_of(model), inputs, frozenset(leaves & its_own))


def _is_as_float(reference: fx.GraphModule) -> bool:
    """Whether passes have run on it: then it has the parameters that they left."""
    return any(record.name == "canonicalize" for record in history(reference))


def _refuse_unready(gm: fx.GraphModule, which: str) -> None:
    for module in gm.modules():
        if isinstance(module, ActivationFakeQuant) and not module.ready:
            raise UncalibratedError(
                f"compare needs ranges, but the {which} has values that saw no finite data.\n"
                "What to do: run some batches through it in train() mode first."
            )


def _refuse_rescaled(candidate: fx.GraphModule) -> None:
    rescaling = {"equalize_cross_layer", "absorb_high_bias"}
    ran = [r.name for r in history(candidate) if r.name in rescaling and r.changed]
    if ran:
        raise ConfigError(
            f"{' and '.join(ran)} changed the values inside {type(candidate).__name__} on purpose: "
            "they cannot be compared with the model's.\n"
            "What to do: compare with as_float(prepared)."
        )


# Who is compared with whom


def _measures(
    reference: fx.GraphModule, candidate: fx.GraphModule, plain: fx.GraphModule | None
) -> dict[fx.Node, Measure]:
    """For each site of the candidate, and each layer kept in float, its counterparts."""
    theirs, unrounded = _by_source(reference), {} if plain is None else _by_source(plain)
    their_grids, grids = grids_of(reference), grids_of(candidate)
    operators = [node for node in candidate.graph.nodes if _is_measured(candidate, node)]
    found = {}
    for node in operators:
        source = source_of(candidate, node)
        if source not in theirs:
            continue
        other = theirs[source]
        found[node] = Measure(
            node, kind_of(candidate, node), other, unrounded.get(source), their_grids.get(other),
            grids.get(node),
        )
    if operators and not found:
        raise ConfigError(
            f"{type(reference).__name__} and {type(candidate).__name__} have no operator in common."
            "\nWhat to do: compare networks that were made from the same model."
        )
    return found


def _is_measured(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether it computes something: what dequantizes gives what stands before it."""
    module = called_module(gm, node)
    return module is not None and not isinstance(module, Dequantize)


def _by_source(gm: fx.GraphModule) -> dict[str, fx.Node]:
    """The nodes that give each captured node's value; the last, which is rounded, where several."""
    sources = ((source_of(gm, node), node) for node in gm.graph.nodes)
    return dict(sources)


def _run(
    reference: fx.GraphModule,
    candidate: fx.GraphModule,
    plain: fx.GraphModule | None,
    measures: dict[fx.Node, Measure],
    inputs: tuple[Any, ...],
    watch: Watch,
) -> None:
    """One batch, all networks in step."""
    theirs = Steps(reference, inputs, [measure.other for measure in measures.values()])
    runs, alone = Steps(candidate, inputs), Steps(candidate, inputs)
    unrounded = None if plain is None else Steps(plain, inputs, _plain_nodes(measures))
    for node in candidate.graph.nodes:
        value, by_itself = runs.step(), alone.step()
        measure = measures.get(node)
        if measure is None:
            continue
        expected = measure.expected(theirs.value(measure.other))
        exact = None
        if unrounded is not None and measure.plain is not None:
            exact = unrounded.value(measure.plain)
            unrounded.replace(measure.plain, expected)
        alone.replace(node, measure.as_candidate(expected, value))
        measure.add(expected, value, by_itself, exact)
        watch(node.name, expected, value)


def _plain_nodes(measures: dict[fx.Node, Measure]) -> list[fx.Node]:
    return [measure.plain for measure in measures.values() if measure.plain is not None]
