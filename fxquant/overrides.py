"""What each call is quantized with: what the config says of all, or what an override says of it.

    path       "layer1.0.conv1"     the module whose forward makes the call, or one around it
    operator   "conv2d"             what it computes, as `explain` and `audit` call it
    site       "layer1_0_conv1"     the node of the graph, one call

Settings come in this order, and the later one wins: those of the config, the bits of the first and
the last layer, the 16 bits of what 8 describe badly (sites/width.py), each override as it stands.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from torch import Tensor, fx

from fxquant.errors import ConfigError
from fxquant.fake_quant import (
    INQ,
    TQT,
    FakeQuant,
    Stochastic,
    StraightThrough,
    WeightFakeQuant,
    weight_quantizer,
)
from fxquant.graph.edit import called_module
from fxquant.graph.place import describe, place_of, taken_in
from fxquant.observers import Calibrator
from fxquant.ops.spec import Output
from fxquant.schemes import INT16, Channels, QuantScheme
from fxquant.sites.call_site import CallSite, InputQuantizer
from fxquant.sites.flow import grids, inputs_of, sites
from fxquant.sites.width import wide_values


@dataclass(frozen=True, kw_only=True)
class Override:
    """Calls that are quantized otherwise than the rest: those that match all that is given.

    path, operator, site
                 which calls; `*` and `?` are allowed; a path means all that lies inside, too, and
                 that of a module that a layer took in, such as a ReLU, the layer's output;
                 "quantize" is the operator where a float value enters the integers
    activation   the integers of their outputs: a scheme, or its bits alone
    weight       the integers of their weights, likewise; symmetric
    calibrator   how the ranges of their outputs are found, such as Percentile(99.9)
    fake_quant   how their outputs and weights are rounded in training
    weight_fake_quant
                 the same for their weights, where it is another one
    """

    path: str | None = None
    operator: str | None = None
    site: str | None = None
    activation: QuantScheme | int | None = None
    weight: QuantScheme | int | None = None
    calibrator: Calibrator | None = None
    fake_quant: FakeQuant | None = None
    weight_fake_quant: FakeQuant | None = None

    def __post_init__(self) -> None:
        for name in ("path", "operator", "site"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise ConfigError(f"{name} of an override is a name or a pattern, got {value!r}")
        if not self._which:
            raise ConfigError("an override says which calls it means: path=, operator= or site=")
        if not self._sets:
            raise ConfigError(
                f"{self} sets nothing: activation=, weight=, calibrator= or fake_quant="
            )
        for name in ("activation", "weight"):
            _check_scheme(name, getattr(self, name))
        if self.calibrator is not None:
            check_calibrator(self.calibrator)
        for name in ("fake_quant", "weight_fake_quant"):
            if getattr(self, name) is not None:
                check_fake_quant(name, getattr(self, name))

    @property
    def _which(self) -> dict[str, str]:
        names = ("path", "operator", "site")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def _sets(self) -> tuple[str, ...]:
        names = ("activation", "weight", "calibrator", "fake_quant", "weight_fake_quant")
        return tuple(name for name in names if getattr(self, name) is not None)

    def __str__(self) -> str:
        which = ", ".join(f"{name}={pattern!r}" for name, pattern in self._which.items())
        return f"Override({which})"


def _check_scheme(name: str, value: QuantScheme | int | None) -> None:
    if type(value) is int:
        QuantScheme(bits=value)  # or it says how many there may be
    elif isinstance(value, QuantScheme):
        check_scheme(name, value)
    elif value is not None:
        raise ConfigError(f"{name} of an override is a QuantScheme or its bits, got {value!r}")


def check_fake_quant(name: str, value: object) -> None:
    """Refuse what is no choice of how to round in training."""
    if not isinstance(value, FakeQuant):
        raise ConfigError(f"{name} is a FakeQuant, such as fxquant.LSQ(), got {value!r}")


def check_scheme(name: str, scheme: object) -> None:
    """Refuse what cannot be the scheme of a `weight`, or of the activations that `name` says."""
    if not isinstance(scheme, QuantScheme):
        raise ConfigError(
            f"{name} is a QuantScheme, such as QuantScheme(bits=4), got {scheme!r}"
        )
    if name == "weight" and not scheme.symmetric:
        raise ConfigError(f"weights need a symmetric scheme, got {scheme!r}")
    if name != "weight" and scheme.bits == 1:
        raise ConfigError(f"activations have 2 to 16 bits, got {name}={scheme!r}")
    if name != "weight" and scheme.per_channel:
        raise ConfigError("activations have one scale per tensor, got per_channel=True")


def check_calibrator(calibrator: object) -> None:
    """Refuse what is none."""
    if not isinstance(calibrator, Calibrator):
        raise ConfigError(f"a calibrator is a record such as MinMax(), got {calibrator!r}")


@dataclass(frozen=True)
class Choice:
    """What one call is quantized with; `why` is empty where it is the config's own, `calibrator`
    None where that is the one that is there.
    """

    activation: QuantScheme
    weight: QuantScheme
    fake_quant: FakeQuant
    weight_fake_quant: FakeQuant
    calibrator: Calibrator | None = None
    why: str = ""

    def weight_quantizer(self, channels: Channels, weight: Tensor) -> WeightFakeQuant:
        """What rounds `weight`, as it is now."""
        return weight_quantizer(self.weight_fake_quant, self.weight, channels, weight)


@dataclass(frozen=True)
class Choices:
    """What the user wants of each call: made from a config, resolved on a graph."""

    default: Choice
    first_last_bits: int | None = None
    widen: bool = True
    overrides: tuple[Override, ...] = ()

    def of(self, gm: fx.GraphModule) -> dict[fx.Node, Choice]:
        """The choice for each call of an observed graph, and for each entrance.

        Raises ConfigError where an override matches nothing, or nothing that it could change.
        """
        chosen = dict.fromkeys(_operators(gm), self.default)
        if self.first_last_bits is not None:
            _set_first_and_last(gm, chosen, self.first_last_bits)
        for node, why in wide_values(gm).items() if self.widen else ():
            chosen[node] = replace(chosen[node], activation=INT16, why=why)
        for number, override in enumerate(self.overrides):
            for node in _matches(gm, override, f"overrides[{number}], {override}"):
                chosen[node] = _overridden(chosen[node], override, _is_own(node, override))
        for node, choice in chosen.items():
            _check_steps(node, choice)
        return chosen


def _check_steps(node: fx.Node, choice: Choice) -> None:
    """Refuse scales that are powers of two where training moves them elsewhere."""
    for scheme, method in (
        (choice.activation, choice.fake_quant), (choice.weight, choice.weight_fake_quant)
    ):
        if scheme.power_of_two and not isinstance(method, (StraightThrough, Stochastic, TQT, INQ)):
            raise ConfigError(
                f"{method} learns scales that are no powers of two, as {describe(node)} is to have."
                "\nWhat to do: take TQT(), or leave power_of_two out of the scheme."
            )


def _overridden(choice: Choice, override: Override, own: bool) -> Choice:
    """`own`: of the call itself, its weight included; else of the output that it took over."""
    activation = _scheme(override.activation, choice.activation)
    calibrator = override.calibrator or choice.calibrator
    method = override.fake_quant or choice.fake_quant
    weight, of_weight = choice.weight, choice.weight_fake_quant
    if own:
        weight = _scheme(override.weight, weight)
        of_weight = override.weight_fake_quant or override.fake_quant or of_weight
    return Choice(activation, weight, method, of_weight, calibrator, str(override))


def _scheme(wish: QuantScheme | int | None, before: QuantScheme) -> QuantScheme:
    if wish is None:
        return before
    return before.with_bits(wish) if isinstance(wish, int) else wish


# ------------------------------------------------------------------------ which calls


def _operators(gm: fx.GraphModule) -> dict[fx.Node, str]:
    """What is quantized, in order, and the name of the operator there."""
    found = {}
    for node in gm.graph.nodes:
        module = called_module(gm, node)
        if isinstance(module, CallSite):
            found[node] = module.op.name
        elif isinstance(module, InputQuantizer):
            found[node] = "quantize"
    return found


def _is_own(node: fx.Node, override: Override) -> bool:
    """Whether the path, if there is one, means the call itself, not one that it took in."""
    own = _around(place_of(node).module)
    return override.path is None or bool(fnmatch.filter(own, override.path))


def _paths(node: fx.Node) -> list[str]:
    """Those of the modules around the call and around those that it took in."""
    return [path for place in (place_of(node), *taken_in(node)) for path in _around(place.module)]


def _around(path: str) -> list[str]:
    """The path itself and those of the modules around it, the model itself first, which is ""."""
    parts = path.split(".") if path else []
    return [".".join(parts[:length]) for length in range(len(parts) + 1)]


def _matches(gm: fx.GraphModule, override: Override, name: str) -> list[fx.Node]:
    """The calls that an override means; none of them is an error, and so is a setting for which
    none of them has a use.
    """
    operators = _operators(gm)
    names: dict[str, Callable[[fx.Node], Iterable[str]]] = {
        "path": _paths,
        "operator": lambda node: (operators[node],),
        "site": lambda node: (node.name,),
    }
    found = list(operators)
    for kind, pattern in override._which.items():
        of_kind = {n for n in operators if fnmatch.filter(names[kind](n), pattern)}
        if not of_kind:
            passed = [n.name for n in gm.graph.nodes if fnmatch.filter(_paths(n), pattern)]
            if kind == "path" and passed:
                raise ConfigError(
                    f"{name}: what lies in '{pattern}' ({', '.join(passed[:3])}) is not quantized "
                    "by itself: it hands on what it reads, or stays in float"
                )
            known = dict.fromkeys(text for node in operators for text in names[kind](node))
            raise ConfigError(f"{name}: no {kind} matches '{pattern}'{near_misses(pattern, known)}")
        found = [node for node in found if node in of_kind]
    if not found:
        raise ConfigError(f"{name}: no call matches all of it, though some match each part")
    for setting in override._sets:
        if not any(_takes(gm, node, setting, _is_own(node, override)) for node in found):
            lacks = "a weight" if "weight" in setting else "a range of its own"
            calls = ", ".join(node.name for node in found[:3])
            raise ConfigError(f"{name} sets {setting}, but what matches, {calls}, has not {lacks}")
    return found


def _takes(gm: fx.GraphModule, node: fx.Node, setting: str, own_weight: bool) -> bool:
    module = called_module(gm, node)
    site = module if isinstance(module, CallSite) else None
    weight = own_weight and site is not None and site.op.weight_axis is not None
    own = site is None or site.op.output is Output.OWN
    if setting == "fake_quant":
        return own or weight
    return weight if "weight" in setting else own


def near_misses(wrong: str, known: Iterable[str]) -> str:
    """What was perhaps meant, as the end of a message; nothing where nothing is near."""
    near = difflib.get_close_matches(wrong, list(known), n=3, cutoff=0.3)
    return f"; did you mean {', '.join(map(repr, near))}?" if near else ""


# ------------------------------------------------------------------------ the first and the last


def _set_first_and_last(gm: fx.GraphModule, chosen: dict[fx.Node, Choice], bits: int) -> None:
    """The weights of the first and the last layers, what both read, and the outputs."""
    layers = {node for node, site in sites(gm) if site.op.weight_axis is not None}
    inside = _reached(gm, layers, forward=True)  # behind a layer, its own output included
    ahead = _reached(gm, layers, forward=False)  # a layer or before one
    first = {n for n in layers if not any(x in inside for x in n.all_input_nodes)}
    last = {n for n in layers if not any(reader in ahead for reader in n.users)}
    grid = grids(gm)
    read = {grid[value] for node in last for value in inputs_of(node) if value in grid}
    for node, choice in chosen.items():
        if node in first | last:
            choice = replace(choice, weight=choice.weight.with_bits(bits), why=_ENDS)
        if node in read or node not in inside or node in last or node not in ahead:
            choice = replace(choice, activation=choice.activation.with_bits(bits), why=_ENDS)
        chosen[node] = choice


_ENDS = "of the first or the last layer"


def _reached(gm: fx.GraphModule, start: set[fx.Node], forward: bool) -> set[fx.Node]:
    """`start`, and all that reads of it, or all that it reads."""
    found = set(start)
    nodes = list(gm.graph.nodes)
    for node in nodes if forward else reversed(nodes):
        neighbours = node.all_input_nodes if forward else node.users
        if any(neighbour in found for neighbour in neighbours):
            found.add(node)
    return found
