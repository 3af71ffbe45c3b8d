"""Modules as JSON and back: which class, which plain attributes.

    torch's own     {"class": "torch.nn.Conv2d", "attributes": {"stride": …}}
    fxquant's own   {"class": "fxquant.CallSite", …}
    the user's      {"class": "module", …}     holds parameters and submodules, no code
                    {"class": "model", …}      is called: taken from the model that load is given

A module is made without its constructor, as a copy is: its attributes are all that it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_type_hints

from torch import fx, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from fxquant.errors import FileError
from fxquant.fake_quant import (
    BinaryWeight,
    IncrementalWeight,
    LearnedClip,
    LearnedOffset,
    LearnedStep,
    LearnedWeight,
    ObservedStep,
    ObservedWeight,
    StagedWeight,
    TernaryWeight,
    TrainedThreshold,
)
from fxquant.fake_quant.tqt import TrainedWeightThreshold
from fxquant.graph.edit import module_at
from fxquant.graph.merge import Choice, OnlyIf, Switch, TrainOnly
from fxquant.graph.own import attributes_of
from fxquant.observers import Observer
from fxquant.saved.graphs import read_graph, write_graph
from fxquant.saved.tensors import require_name
from fxquant.saved.values import Json, Reader, Writer
from fxquant.sites.call_site import CallSite, InputQuantizer
from fxquant.sites.integer import Dequantize, IntegerOp, Quantize
from fxquant.sites.quantized_layer import IntegerLayer, QuantizedLayer

OWN: tuple[type[nn.Module], ...] = (
    *(CallSite, InputQuantizer, Switch, Choice, TrainOnly, OnlyIf),
    *(Observer, ObservedStep, LearnedStep, LearnedOffset, LearnedClip, TrainedThreshold),
    *(ObservedWeight, LearnedWeight, BinaryWeight, TernaryWeight, StagedWeight),
    *(TrainedWeightThreshold, IncrementalWeight),
    *(Quantize, IntegerOp, Dequantize, QuantizedLayer, IntegerLayer),
)
_HIDDEN: tuple[type[nn.Module], ...] = (NonDynamicallyQuantizableLinear,)  # not in torch.nn
_MADE_ANEW = ("_body", "_numbers", *IntegerOp.MADE_ANEW)


def _class_name(module: nn.Module) -> str | None:
    """The name of a class that can be made without a word of the user's code."""
    kind = type(module)
    if kind in OWN:
        return f"fxquant.{kind.__name__}"
    known = kind in _HIDDEN or getattr(nn, kind.__name__, None) is kind
    return f"torch.nn.{kind.__name__}" if known else None


def _class_named(name: str) -> type[nn.Module]:
    if name == "module":
        return nn.Module
    library, _, short = name.rpartition(".")
    if library == "fxquant":
        found = [kind for kind in OWN if kind.__name__ == short]
    elif library == "torch.nn":
        kinds = (*_HIDDEN, getattr(nn, short, None))
        found = [kind for kind in kinds if isinstance(kind, type) and kind.__name__ == short]
    else:
        found = []
    if not found or not issubclass(found[0], nn.Module):
        raise FileError(f"a file may not make a '{name}'")
    return found[0]


# ------------------------------------------------------------------------ out


def paths_of(root: nn.Module) -> dict[nn.Module, str]:
    """Each module with its first path; the root has ''."""
    return {module: path for path, module in root.named_modules()}


def write_modules(root: fx.GraphModule, writer: Writer) -> Json:
    """Every module of a network under `root`, and other paths that lead to the same ones."""
    called = _called(root)
    entries: list[Json] = []
    users = ""  # inside a module of the user's that is called nothing has to be made
    for module, path in writer.paths.items():
        if users and path.startswith(f"{users}."):
            continue
        entry = _write_module(module, path, writer, module in called)
        users = path if entry["class"] == "model" else users
        entries.append(entry)
    return entries


def other_paths(root: nn.Module, paths: Mapping[nn.Module, str]) -> Json:
    """Pairs of a path and the first path of the module that it leads to: of all that an owner
    holds, in its order, where one of them has an earlier path.
    """
    every = [*root.named_modules(remove_duplicate=False)]
    owners = {_owner(path) for path, module in every if path != paths[module]}
    return [[path, paths[module]] for path, module in every if path and _owner(path) in owners]


def _owner(path: str) -> str:
    return path.rpartition(".")[0]


def _called(gm: fx.GraphModule) -> set[nn.Module]:
    """The modules that a network, in training or not, calls or hands to a site."""
    bodies = [module.body for module in gm.modules() if isinstance(module, TrainOnly)]
    found = (_inner(body).values() for body in (gm, *bodies))
    return {module for modules in found for module in modules}


def _inner(gm: fx.GraphModule) -> dict[str, nn.Module]:
    """The modules that one graph names, by the paths under which it does."""
    found = {str(node.target): module_at(gm, node) for node in gm.graph.nodes}
    return {path: module for path, module in found.items() if module is not None}


def _write_module(module: nn.Module, path: str, writer: Writer, called: bool) -> Json:
    name = _class_name(module)
    entry: dict[str, Json] = {"path": path, "training": module.training}
    if name is None and called:
        return entry | {"class": "model", "name": type(module).__name__}
    attributes = attributes_of(module)
    if name is None:  # numbers that a script sets later; the graph reads nothing else
        attributes = {key: value for key, value in attributes.items() if type(value) is float}
    try:
        written = {k: writer.write(v) for k, v in attributes.items() if k not in _MADE_ANEW}
    except FileError as error:
        raise FileError(f"module '{path}', a {type(module).__name__}, cannot be saved: {error}.\n"
                        "What to do: save the state_dict() instead.") from error
    entry |= {"class": name or "module", "attributes": written}
    if isinstance(module, TrainOnly):
        entry["body"] = write_graph(module.body.graph, writer)
        entry["inner"] = [  # some belong to it alone
            [path, writer.paths.get(inner) or _write_module(inner, path, writer, True)]
            for path, inner in _inner(module.body).items()
        ]
    return entry


# ------------------------------------------------------------------------ in


def read_modules(data: Json, others: Json, model: nn.Module | None) -> nn.Module:
    """The bare modules, without attributes and tensors, under a new root."""
    root = nn.Module()
    for entry in data:
        path, kind = entry["path"], entry["class"]
        if path:
            _put(root, path, _of_the_user(entry, model) if kind == "model" else _bare(kind))
        root.get_submodule(path).training = bool(entry["training"])
    for path, first in others:
        _put(root, path, root.get_submodule(first))
    return root


def _bare(name: str) -> nn.Module:
    kind = _class_named(name)
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    return module


def _of_the_user(entry: Json, model: nn.Module | None) -> nn.Module:
    path, called = entry["path"], f"this network calls '{entry['path']}', a {entry['name']}"
    if model is None:
        raise FileError(
            f"{called}, which is the user's own code.\n"
            "What to do: hand load the float model that was prepared: load(path, model)."
        )
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise FileError(
            f"{called}, and the model has no such submodule.\n"
            "What to do: hand load the float model that was prepared."
        ) from error


def _put(root: nn.Module, path: str, module: nn.Module) -> None:
    """At the end of what its owner holds, also where it stood there before."""
    owner_path, _, name = path.rpartition(".")
    require_name(name, path)
    owner = root.get_submodule(owner_path)
    owner._modules.pop(name, None)
    owner.add_module(name, module)


def read_attributes(root: nn.Module, data: Json, reader: Reader) -> None:
    """Give every module under `root` its plain attributes."""
    for entry in data:
        if entry["class"] != "model":
            _read_attributes(root.get_submodule(entry["path"]), entry, reader)


def _read_attributes(module: nn.Module, entry: Json, reader: Reader) -> None:
    for name, value in entry["attributes"].items():
        if not name.isidentifier() or name in vars(module):
            raise FileError(f"'{entry['path']}' may not have an attribute {name!r}")
        vars(module)[name] = reader.read(value)
    if isinstance(module, IntegerOp):
        _read_numbers(module)
    if isinstance(module, TrainOnly):
        module._body = (_read_body(entry, reader),)


def _read_body(entry: Json, reader: Reader) -> fx.GraphModule:
    root = nn.Module()
    for path, part in entry["inner"]:
        if isinstance(part, str):
            module = reader.modules[part]
        else:
            module = _bare(part["class"])
            module.training = bool(part["training"])
            _read_attributes(module, part, reader)
        _make_way(root, path)
        _put(root, path, module)
    graph = read_graph(entry["body"], reader, lambda path: holds(root, path))
    return fx.GraphModule(root, graph, class_name="TrainOnlyBody")


def _make_way(root: nn.Module, path: str) -> None:
    """Put empty modules where a path goes through nothing yet."""
    *owners, _ = path.split(".")
    for i, name in enumerate(owners):
        if name not in root.get_submodule(".".join(owners[:i]))._modules:
            _put(root, ".".join(owners[: i + 1]), nn.Module())


def _read_numbers(module: IntegerOp) -> None:
    """Its record of numbers, which its buffers must fill."""
    numbers: Any = get_type_hints(module.op.numbers)["return"]
    if {*module._buffers, *module._roundings} != {*numbers._fields}:
        raise FileError(f"'{module.op.name}' has other numbers than it computes with")
    module._numbers = numbers
    module.use_kernels(module.choice)


def holds(root: nn.Module, path: str) -> bool:
    """Whether a path leads to a module, a tensor or a number under `root`."""
    owner, _, name = path.rpartition(".")
    module: nn.Module | None = root
    for atom in owner.split(".") if owner else ():
        module = None if module is None else module._modules.get(atom)
    if module is None:
        return False
    tables = (module._modules, module._parameters, module._buffers)
    return any(name in table for table in tables) or type(vars(module).get(name)) is float
