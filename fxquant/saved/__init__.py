"""Prepared and converted networks as files, without pickled code.

    one safetensors file     tensors: every parameter and buffer, each once
                             metadata: version, digest, and the network as JSON

The JSON says which modules there are and what the graph calls. Operators, functions, methods and
classes are looked up by name in written lists (`callables`, `modules`); nothing from the file is
executed, imported or unpickled, and a converted network needs no class of the user's.
"""

from __future__ import annotations

import json
import os
from typing import Any

from torch import fx, nn

from fxquant.errors import FileError, StageError
from fxquant.graph.network import IntegerNetwork, Network, borrow_methods, network
from fxquant.graph.tensors import copy_of, lend_attributes
from fxquant.pipeline import (
    CONVERTED,
    PREPARED,
    Entry,
    PassRecord,
    Stage,
    check_stage,
    history,
    set_history,
    stage_of,
)
from fxquant.saved.container import read_file, write_file
from fxquant.saved.graphs import read_graph, write_graph
from fxquant.saved.modules import (
    holds,
    other_paths,
    paths_of,
    read_attributes,
    read_modules,
    write_modules,
)
from fxquant.saved.tensors import read_tensors, write_tensors
from fxquant.saved.values import Json, Reader, Writer

__all__ = ["load", "save"]


def save(gm: fx.GraphModule, path: str | os.PathLike[str]) -> None:
    """Write a prepared or a converted network into one file, whole or not at all.

    The file holds the graph, all parameters and buffers, the modes and the log of `explain`. It
    does not hold optimizers, hooks, or code of the user's: submodules of a prepared network that
    are called as a whole (drop path, what was kept in float) are taken from the model that `load`
    is given.

    Args:
        gm: what prepare_qat or convert returned; it is not touched.
        path: the file; by custom it ends in .safetensors.

    Raises:
        StageError: `gm` was neither prepared nor converted.
        FileError: it holds what a file cannot; names the node, module or tensor.
        MissingExtraError: safetensors is not installed.
    """
    if not isinstance(gm, fx.GraphModule) or stage_of(gm) not in (*PREPARED, *CONVERTED):
        raise StageError(
            f"save takes what prepare_qat or convert returned, got a {type(gm).__name__}.\n"
            "What to do: save the state_dict() of a float model with torch.save or safetensors."
        )
    writer = Writer(paths_of(gm))
    slots, tensors = write_tensors(gm)
    data = {
        "stage": stage_of(gm).name,
        "name": type(gm).__name__,
        "modules": write_modules(gm, writer),
        "other_paths": other_paths(gm, writer.paths),
        "tensors": slots,
        "graph": write_graph(gm.graph, writer),
        "history": [_written(record) for record in history(gm)],
    }
    write_file(path, json.dumps(data, allow_nan=False), tensors)


def load(path: str | os.PathLike[str], model: nn.Module | None = None) -> Any:
    """The network that `save` wrote, equal to it bit for bit, on the CPU.

    A prepared network trains on and converts as the saved one would. Nothing from the file is
    executed, so that it may come from anybody; what an unknown author's network computes is
    another matter.

    Args:
        path: the file.
        model: for a prepared network that calls code of the user's: the float model that was
            prepared, or one made alike. Methods of its class and plain attributes are lent to the
            network, too. It is copied, not touched.

    Returns:
        An fx.GraphModule, in the mode in which it was saved.

    Raises:
        FileError: the file is damaged, was not written by `save`, was written by a newer fxquant,
            names what no list has, or needs `model`.
        OSError: it cannot be read.
        MissingExtraError: safetensors is not installed.
    """
    text, tensors = read_file(path)
    try:
        return _network(json.loads(text), tensors, None if model is None else copy_of(model))
    except FileError as error:
        raise FileError(f"{os.fspath(path)}: {error}") from error
    except (Exception, RecursionError) as error:
        # whatever else goes wrong here does so because a field is not what it should be
        raise FileError(
            f"{os.fspath(path)} does not describe a network ({type(error).__name__}: {error}).\n"
            "What to do: save it again; this file was changed by other hands than fxquant.save's."
        ) from error


def _network(data: Json, tensors: dict[str, Any], model: nn.Module | None) -> fx.GraphModule:
    stage, name = Stage[data["stage"]], data["name"]
    if stage not in (*PREPARED, *CONVERTED) or not name.isidentifier():
        raise FileError(f"a file holds no {stage.value} called {name!r}")
    root = read_modules(data["modules"], data["other_paths"], model)
    read_tensors(root, data["tensors"], tensors)
    reader = Reader({}, dict(root.named_modules(remove_duplicate=False)))
    read_attributes(root, data["modules"], reader)
    graph = read_graph(data["graph"], reader, lambda path: holds(root, path))
    gm: Network
    if stage in CONVERTED:
        gm = IntegerNetwork(root, graph, class_name=name).eval()
    else:
        gm = network(root, graph, name)
        if model is not None:
            borrow_methods(gm, type(model))
            lend_attributes(model, gm)
    gm.training = root.training
    set_history(gm, stage, tuple(_read(record) for record in data["history"]))
    check_stage(gm)
    return gm


def _written(record: PassRecord) -> Json:
    entries = ([[e.node, e.text] for e in part] for part in (record.changed, record.left_alone))
    nodes = record.nodes_before, record.nodes_after
    return [record.name, record.summary, *nodes, *entries, record.notes]


def _read(data: Json) -> PassRecord:
    name, summary, before, after, changed, left_alone, notes = data
    done, left = (tuple(Entry(str(a), str(b)) for a, b in part) for part in (changed, left_alone))
    return PassRecord(str(name), str(summary), int(before), int(after), done, left, tuple(notes))
