"""Engines that run exported files, each in one way: tensors in, tensors by name out.

Twice for each: the file as it is, with all that the engine optimizes, for the outputs; and with
every node's value as a further output, for the place where it parts from the network.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fxquant.errors import ConfigError, ExportError, FileError
from fxquant.export.flatbuffer import is_tflite, with_every_value
from fxquant.export.litert import run_tflite
from fxquant.extras import needs_extra

if TYPE_CHECKING:
    import onnx

Values = Mapping[str, Tensor]
Run = Callable[[Sequence[Tensor]], Values]


class Engine(NamedTuple):
    """An engine that runs a file as it is, and with the values of nodes as outputs, too."""

    name: str
    as_it_is: Run
    with_nodes: Run


def engines_of(
    path: str | os.PathLike[str], wanted: Sequence[str] | None, nodes: set[str]
) -> list[Engine]:
    """The engines that are to run a file, which has the values of `nodes` by their names.

    Raises:
        ConfigError: another one is wanted than run such a file.
        FileError: the file is no ONNX model, or export_tflite did not write it.
        ExportError: an engine refuses it.
        MissingExtraError: the extra `onnx`, or `litert`, is not installed.
    """
    with open(path, "rb") as file:
        in_litert = is_tflite(file.read(8))
    there = [_LITERT] if in_litert else list(_OF_ONNX)
    if wanted is None:
        wanted = there if importlib.util.find_spec("openvino") else there[:1]
    if not wanted or not set(wanted) <= set(there):
        raise ConfigError(
            f"engines for this file are of {', '.join(map(repr, there))}; got {wanted!r}"
        )
    return [_in_litert(path)] if in_litert else _of_onnx(path, wanted, nodes)


@contextmanager
def refusals(what: str) -> Iterator[None]:
    """Around an engine, whose errors are of classes of its own."""
    try:
        yield
    except Exception as error:
        raise ExportError(
            f"{what}: {error}\nWhat to do: verify with the file that this network was exported to, "
            "and with data of its sizes and types."
        ) from error


def _in_litert(path: str | os.PathLike[str]) -> Engine:
    model = Path(path).read_bytes()
    every = with_every_value(model)
    return Engine(_LITERT, partial(run_tflite, model), partial(run_tflite, every))


def _of_onnx(
    path: str | os.PathLike[str], names: Sequence[str], nodes: set[str]
) -> list[Engine]:
    with needs_extra("onnx"):
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    plain = _loaded(path)
    every = _with_every_value(plain, nodes)
    engines = []
    for name in names:
        opened = partial(_OF_ONNX[name], path)
        with refusals(f"{name} does not run '{path}'"):
            engines.append(Engine(name, opened(plain), opened(every)))
    return engines


def _loaded(path: str | os.PathLike[str]) -> onnx.ModelProto:
    import onnx

    try:
        found = onnx.load(path, load_external_data=False)
    except Exception as error:  # of the packages that onnx reads with
        raise FileError(f"'{path}' is no ONNX model: {error}") from error
    if not found.graph.output:
        raise FileError(f"'{path}' is no ONNX model: it has no graph with an output")
    return found


def _with_every_value(model: onnx.ModelProto, names: set[str]) -> onnx.ModelProto:
    """The model with the values of those names as outputs, too."""
    import onnx

    found = onnx.ModelProto()
    found.CopyFrom(model)
    given = {output.name for output in found.graph.output}
    known = {info.name: info for info in found.graph.value_info}
    for node in found.graph.node:
        for name in node.output:
            if name in names and name not in given and name in known:
                found.graph.output.append(known[name])
    return found


def _onnxruntime(path: str | os.PathLike[str], model: onnx.ModelProto) -> Run:
    """onnxruntime on the CPU, as it comes."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    folder = str(Path(path).resolve().parent)
    settings.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", folder
    )
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    names = [given.name for given in session.get_inputs()]
    outputs = [given.name for given in session.get_outputs()]

    def run(inputs: Sequence[Tensor]) -> Values:
        if len(inputs) != len(names):
            raise ValueError(f"the file takes {len(names)} tensors, and there are {len(inputs)}")
        feeds = dict(zip(names, (x.numpy() for x in inputs), strict=True))
        found = session.run(outputs, feeds)
        return {name: torch.from_numpy(x) for name, x in zip(outputs, found, strict=True)}

    return run


def _openvino(path: str | os.PathLike[str], model: onnx.ModelProto) -> Run:
    """OpenVINO on the CPU, in the precision of the file."""
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "SNIPPETS_MODE": "DISABLE"}
    compiled = openvino.Core().compile_model(
        openvino.Core().read_model(model.SerializeToString()), "CPU", settings
    )
    outputs = [output.name for output in model.graph.output]

    def run(inputs: Sequence[Tensor]) -> Values:
        found = compiled([x.numpy() for x in inputs])
        return {
            name: torch.from_numpy(found[i].copy()) for i, name in enumerate(outputs)
        }

    return run


_LITERT = "LiteRT"
_OF_ONNX = {"onnxruntime": _onnxruntime, "OpenVINO": _openvino}
