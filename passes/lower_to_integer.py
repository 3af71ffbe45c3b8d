"""Replace every site by its integer operator, between one quantize and one dequantize.

    before   x ── quantize ── conv → fq ── flatten ── y
    after    x ── quantize ── conv ────── flatten ── dequantize ── y   integers inside

The integers are those that eval() computes with, made by the same functions. What only
training does is dropped; calls that move elements stay as they are, now moving integers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fxquant.errors import UncalibratedError
from fxquant.fake_quant import ActivationFakeQuant
from fxquant.graph.edit import (
    called_module,
    constant_site,
    erase,
    insert_site,
    map_nodes,
    nodes_in,
    replace_site,
)
from fxquant.graph.eval_only import drop_training, erase_dead
from fxquant.graph.held import held_values
from fxquant.graph.place import copy_place, describe, example_of, place_of
from fxquant.graph.values import scalars
from fxquant.ops.accumulator import Operand, prove
from fxquant.pipeline import Keeps, Log, Pass, Stage
from fxquant.sites.call_site import CallSite, InputQuantizer
from fxquant.sites.flow import grids, inputs_of, quantizer_of
from fxquant.sites.integer import Dequantize, Facts, IntegerOp, Quantize
from fxquant.sites.move import is_move
from fxquant.sites.parameters import refuse_nonfinite
from fxquant.sites.verify import verify_fake_quant

_VIEWS = {"view": "reshape", "view_as": "reshape_as"}


class LowerToInteger(Pass):
    """Replaces every site by its integer operator, between quantize and dequantize."""

    name = "lower_to_integer"
    summary = "every site becomes its integer operator"
    needs = Stage.FAKE_QUANT
    gives = Stage.INTEGER
    keeps = Keeps.NOTHING

    def edit(self, gm: fx.GraphModule, log: Log) -> None:
        """Drop what eval() does not do, add the way out of the integers, then lower."""
        verify_fake_quant(gm)  # what was prepared may have been changed since
        drop_training(gm)
        _let_codes_lie_anywhere(gm)
        quantizers = {node: quantizer_of(gm, grid) for node, grid in grids(gm).items()}
        _refuse_uncalibrated(gm, quantizers)
        _add_exits(gm, quantizers)
        with torch.no_grad():
            constants = held_values(gm)
        for node in list(gm.graph.nodes):
            module = called_module(gm, node)
            if isinstance(module, InputQuantizer):
                _lower_entrance(gm, node, module, constants)
            elif isinstance(module, CallSite):
                _lower_site(gm, node, module, constants)
                log.change(node, f"{module.extra_repr()}, in integers")
        erase_dead(gm)


def _let_codes_lie_anywhere(gm: fx.GraphModule) -> None:
    """`view` becomes `reshape`: kernels choose how their codes lie in memory."""
    for node in gm.graph.nodes:
        if node.op == "call_method" and is_move(gm, node):
            node.target = _VIEWS.get(str(node.target), node.target)


def _refuse_uncalibrated(
    gm: fx.GraphModule, quantizers: dict[fx.Node, ActivationFakeQuant]
) -> None:
    missing = [node for node, quantizer in quantizers.items() if not quantizer.ready]
    if missing:
        for path, parameter in gm.named_parameters():
            refuse_nonfinite(f"'{path}'", parameter)  # then data would not help
        raise UncalibratedError(
            f"{len(missing)} of {len(quantizers)} values have no range yet, the first at "
            f"{describe(missing[0])}: it has seen no finite data.\n"
            "What to do: run some batches through the prepared model in train() mode first."
        )


def _add_exits(gm: fx.GraphModule, quantizers: dict[fx.Node, ActivationFakeQuant]) -> None:
    """A dequantize behind every integer value that something else than integers reads."""
    numbers = scalars(gm.graph)
    for node, quantizer in quantizers.items():
        readers = [r for r in node.users if r not in quantizers and r not in numbers]
        if not readers:
            continue
        dequantize = Dequantize(quantizer.qparams)
        with gm.graph.inserting_after(node):
            exit_ = insert_site(gm, f"dequantize_{node.name}", dequantize, (node,))
        copy_place(node, exit_)
        for reader in readers:
            reader.replace_input_with(node, exit_)


def _lower_entrance(
    gm: fx.GraphModule,
    node: fx.Node,
    entrance: InputQuantizer,
    constants: dict[fx.Node, Any],
) -> None:
    value, q = inputs_of(node)[0], quantizer_of(gm, node).qparams
    if value in constants:  # of the network: its integers are constants too
        codes = entrance.rounding.quantize(constants[value], q)
        with gm.graph.inserting_before(node):
            erase(node, constant_site(gm, f"{value.name}_codes", codes))
    else:
        replace_site(gm, node, Quantize(q, entrance.rounding))


def _lower_site(
    gm: fx.GraphModule, node: fx.Node, site: CallSite, constants: dict[fx.Node, Any]
) -> None:
    def known(part: fx.Node) -> object:
        return constants.get(part, part)  # a number that the graph computes from shapes stays

    options = {name: map_nodes(value, known) for name, value in node.kwargs.items()}
    for name, value in options.items():
        refuse_nonfinite(f"the {name} of {describe(node)}", value)
    with torch.no_grad():
        numbers, settings = site.numbers_and_settings(options)
    q, sources = site.target.qparams, zip(site.sources, inputs_of(node), strict=True)
    inputs = tuple(Operand(source.scheme, _shape(value)) for source, value in sources)
    plain = {k: map_nodes(v, example_of) for k, v in settings.items() if k not in site.op.indices}
    computed = any(nodes_in(settings[name]) for name in plain)
    scale, zero_point = float(q.scale), int(q.zero_point)
    facts = Facts(scale, zero_point, inputs, plain, site.accumulator_bits, computed)
    module = IntegerOp(site.op, numbers, q.scheme, site.extra_repr(), facts)
    accumulator = module.accumulator
    if accumulator is not None:
        prove(accumulator, describe(node), place_of(node).module)
    replace_site(gm, node, module)
    node.kwargs = settings | {name: node.kwargs[name] for name in site.op.indices}


def _shape(value: fx.Node) -> tuple[int, ...] | None:
    example = example_of(value)
    return tuple(example.shape) if isinstance(example, Tensor) else None
