"""Watch every value that will be an integer with a range of its own.

    before   x ────────────── conv ── relu ── y
    after    x ── quantize ── conv ── relu ── y       quantize and conv each hold an observer

A float value that enters the integer part (an input of the network, the result of a layer
kept in float) gets a node for that, and a parameter before it is moved; every other observer sits
in the site it watches. Values that keep their input's range (pools, ReLU, reshapes) need none; one
whose range is known beforehand (sigmoid, softmax) gets an observer that always says so, unless it
is attention, of which many use a small part of that range.
An operator without an integer form is an error here, unless it was kept in float.
"""

from __future__ import annotations

from torch import fx
from torch.nn.utils.parametrize import is_parametrized

from fxquant.errors import UnsupportedOperatorError
from fxquant.graph.edit import called_module, insert_site, set_source, source_of
from fxquant.graph.held import held
from fxquant.graph.merge import TrainOnly, item
from fxquant.graph.place import copy_place, describe, place_of
from fxquant.graph.values import assertions, indices, scalars
from fxquant.observers import Calibrator, Fixed, MovingAverage, Observer
from fxquant.ops.spec import Output
from fxquant.pipeline import Log, Pass, Stage, history
from fxquant.sites.call_site import CallSite, InputQuantizer
from fxquant.sites.flow import inputs_of, integer_values, sites
from fxquant.sites.move import is_move
from fxquant.sites.width import is_attention


def _way_out(gm: fx.GraphModule, path: str) -> str:
    owner, computed, _ = f"{path}.".partition("parametrizations.")
    if computed or is_parametrized(gm.get_submodule(path)):
        owner = owner.rstrip(".")
        module = f"model.get_submodule('{owner}')" if owner else "model"
        return (
            "make the weights that are computed permanent first, as with "
            f"torch.nn.utils.parametrize.remove_parametrizations({module}, 'weight')"
        )
    if path:
        return f"keep the module in float: QuantConfig(keep_float=('{path}',))"
    return "move it into a submodule and keep that in float: QuantConfig(keep_float=(…,))"


class InsertObservers(Pass):
    """Watches every value that will be an integer with a range of its own."""

    name = "insert_observers"
    summary = "every value that will be an integer is watched"
    needs = Stage.FLOAT
    gives = Stage.OBSERVED

    def __init__(
        self,
        float_leaves: frozenset[str] = frozenset(),
        calibrator: Calibrator = MovingAverage(),  # noqa: B008 - a frozen record
    ) -> None:
        """`float_leaves`: the module paths that were kept in float on purpose; `calibrator`: what
        finds the ranges that are not known beforehand.
        """
        self.float_leaves = float_leaves
        self.calibrator = calibrator

    def edit(self, gm: fx.GraphModule, log: Log) -> None:
        """One observer per range, then one entrance per float value that a site reads."""
        self._refuse_unsupported(gm)
        for node, site in sites(gm):
            if site.op.output is Output.OWN:
                known = _known_range(gm, node, site)
                site.output = Observer(known or self.calibrator).train(site.training)
                log.change(node, "its range is known" if known else "observed")
        integers, constants = integer_values(gm), held(gm)
        entrances: dict[fx.Node, fx.Node] = {}
        for node, _ in sites(gm):
            for value in inputs_of(node):
                first, reader = _before_moves(gm, value, node, constants, integers)
                if first in integers:
                    continue
                if first not in entrances:
                    entrances[first] = _add_entrance(gm, first, Observer(self.calibrator))
                    integers.add(entrances[first])
                    log.change(entrances[first], f"'{first.name}' enters here, observed")
                reader.replace_input_with(first, entrances[first])

    def _refuse_unsupported(self, gm: fx.GraphModule) -> None:
        others = scalars(gm.graph) | indices(gm.graph) | assertions(gm.graph) | held(gm)
        unknown = [
            node
            for node in gm.graph.nodes
            if node not in others and not self._is_known(gm, node)
        ]
        if not unknown:
            return
        left_alone = (entry for record in history(gm) for entry in record.left_alone)
        why = {entry.node: f": {entry.text}" for entry in left_alone}
        lines = "\n".join(f"  {describe(node)}{why.get(node.name, '')}" for node in unknown[:10])
        more = f"\n  and {len(unknown) - 10} more" if len(unknown) > 10 else ""
        way_out = _way_out(gm, place_of(unknown[0]).module)
        raise UnsupportedOperatorError(
            f"no integer form for:\n{lines}{more}\nWhat to do: {way_out}."
        )

    def _is_known(self, gm: fx.GraphModule, node: fx.Node) -> bool:
        if node.op in ("placeholder", "get_attr", "output") or node.target is item:
            return True
        module = called_module(gm, node)
        return (
            isinstance(module, (CallSite, TrainOnly))
            or is_move(gm, node)
            or (module is not None and node.target in self.float_leaves)
        )


def _known_range(gm: fx.GraphModule, node: fx.Node, site: CallSite) -> Fixed | None:
    """The range of a site's output where it is known beforehand, and used."""
    if site.op.range is None or is_attention(gm, node):
        return None
    clamp = site.activation
    low, high = (
        end if clamp is None else min(max(end, clamp.low), clamp.high) for end in site.op.range
    )
    return Fixed(low, high)


def _before_moves(
    gm: fx.GraphModule,
    value: fx.Node,
    reader: fx.Node,
    constants: set[fx.Node],
    integers: set[fx.Node],
) -> tuple[fx.Node, fx.Node]:
    """An integer that is moved to be `value`, or a constant that is moved as shapes say, such as a
    class token that is expanded, and who moves it; `value` and its reader where it is neither.
    """

    def is_known(node: fx.Node) -> bool:
        return node in constants or node in integers

    first, mover = value, reader
    while not is_known(first) and is_move(gm, first) and isinstance(first.args[0], fx.Node):
        first, mover = first.args[0], first
    return (first, mover) if is_known(first) else (value, reader)


def _add_entrance(gm: fx.GraphModule, value: fx.Node, observer: Observer) -> fx.Node:
    entrance = InputQuantizer(observer)
    with gm.graph.inserting_after(_after_inputs(value)):
        node = insert_site(gm, f"quantize_{value.name}", entrance, (value,))
    copy_place(value, node)
    set_source(gm, node, source_of(gm, value))
    return node


def _after_inputs(value: fx.Node) -> fx.Node:
    """`value`, or the last placeholder where it is one: they stand together at the top."""
    while value.op == "placeholder" and value.next.op == "placeholder":
        value = value.next
    return value
