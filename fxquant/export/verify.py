"""Whether an engine gives the integers of the network, and if not, where it parts from them.

Twice for each engine: the file as it is, with all that the engine optimizes, for the outputs; and
with every node's value as a further output, for the place.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, fx

from fxquant.errors import ConfigError, DataError, ExportError, FileError, StageError
from fxquant.export.tflite import is_tflite, run_tflite, with_every_value
from fxquant.extras import needs_extra
from fxquant.graph.nested import leaves
from fxquant.pipeline import Stage, stage_of

if TYPE_CHECKING:
    import onnx

Values = Mapping[str, Tensor]
Run = Callable[[Sequence[Tensor]], Values]


class Parting(NamedTuple):
    """A node that an engine gives other values of: how many of how many elements differ, and the
    largest distance, in codes where they are integers (LSB).
    """

    engine: str
    node: str
    differing: int
    elements: int
    largest: float


@dataclass(frozen=True)
class Verification:
    """What was compared, and where it parts, in the order of the network."""

    engines: tuple[str, ...]
    nodes: int
    elements: int
    outputs: tuple[Parting, ...]
    partings: tuple[Parting, ...]

    @property
    def equal(self) -> bool:
        """Whether every element of every output, and of every node, is the same."""
        return not self.outputs and not self.partings

    def __str__(self) -> str:
        where = " and ".join(self.engines)
        if self.equal:
            return f"{where}: {self.nodes} nodes, {self.elements:,} elements, none differs"
        lines = [f"{where}: {self.nodes} nodes, {self.elements:,} elements"]
        lines += [f"output {_text(parting)}" for parting in self.outputs]
        lines += [f"node {_text(parting)}" for parting in self.partings[:1]]
        if len(self.partings) > 1:
            lines.append(f"and {len(self.partings) - 1} nodes behind it")
        return "\n".join(lines)


def _text(p: Parting) -> str:
    return f"'{p.node}' ({p.engine}): {p.differing} of {p.elements} differ, by up to {p.largest:g}"


def verify(
    quantized: fx.GraphModule,
    path: str | os.PathLike[str],
    data: Tensor | Iterable[Tensor | Sequence[Any]],
    engines: Sequence[str] | None = None,
) -> Verification:
    """Run an exported file in onnxruntime, and in OpenVINO where that is installed, or a .tflite
    file in LiteRT, and compare every node with the integer network.

    LiteRT runs it by those of its kernels that round as the network does.

    Args:
        quantized: the network that was exported.
        path: the ONNX file, or the .tflite file.
        data: one batch, or several: tensors, or the arguments of one call each.
        engines: of "onnxruntime" and "OpenVINO", or "LiteRT", those to run; None for all that are
            installed.

    Raises:
        StageError: `quantized` is no converted network.
        ConfigError: there is no data, no such file, or no such engine, or another network was
            exported to that file.
        DataError: the network does not run on a batch.
        FileError: the file is no ONNX model, or export_tflite did not write it.
        ExportError: an engine refuses the file, or a batch.
        MissingExtraError: the extra `onnx`, or `litert`, is not installed.
    """
    if not isinstance(quantized, fx.GraphModule) or stage_of(quantized) is not Stage.INTEGER:
        raise StageError("what is verified is an integer network: hand it what `convert` gave")
    if not Path(path).is_file():
        raise ConfigError(f"there is no file '{path}'")
    with open(path, "rb") as file:
        in_litert = is_tflite(file.read(8))
    there = ["LiteRT"] if in_litert else list(_ENGINES)
    if engines is None:
        engines = there if importlib.util.find_spec("openvino") else there[:1]
    if not engines or not set(engines) <= set(there):
        raise ConfigError(
            f"engines for this file are of {', '.join(map(repr, there))}; got {engines!r}"
        )
    names = {node.name for node in quantized.graph.nodes}
    runs = _in_litert(path) if in_litert else _of_onnx(path, engines, names)
    tally, count = _Tally(), 0
    for count, arguments in enumerate(_batches(data), 1):
        expected, outputs = _expected(quantized, arguments, count)
        given = [x.detach().cpu() for x in leaves(arguments) if isinstance(x, Tensor)]
        for name, as_it_is, with_nodes in runs:
            with _told(f"{name} does not run '{path}' on batch {count}"):
                whole, every_value = as_it_is(given), with_nodes(given)
            tally.outputs(name, outputs, whole)
            tally.nodes(name, expected, every_value)
    if not count:
        raise DataError("there is no data to verify with")
    if expected and not tally.compared:
        raise ConfigError(f"'{path}' has no node of the network: it was exported from another one")
    nodes = len({node for _, node in tally.compared})
    of_outputs, of_nodes = (tuple(found.values()) for found in tally.found)
    return Verification(tuple(engines), nodes, tally.elements, of_outputs, of_nodes)


def _loaded(path: str | os.PathLike[str]) -> onnx.ModelProto:
    import onnx

    try:
        found = onnx.load(path, load_external_data=False)
    except Exception as error:  # of the packages that onnx reads with
        raise FileError(f"'{path}' is no ONNX model: {error}") from error
    if not found.graph.output:
        raise FileError(f"'{path}' is no ONNX model: it has no graph with an output")
    return found


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Around an engine, whose errors are of classes of its own."""
    try:
        yield
    except Exception as error:
        raise ExportError(
            f"{what}: {error}\nWhat to do: verify with the file that this network was exported to, "
            "and with data of its sizes and types."
        ) from error


def _expected(
    quantized: fx.GraphModule, arguments: Sequence[Any], number: int
) -> tuple[dict[str, Tensor], list[Tensor]]:
    try:
        return values_of(quantized, arguments)
    except Exception as error:
        raise DataError(f"the network does not run on batch {number}: {error}") from error


class _Tally:
    """Adds up what differs, over batches and engines."""

    def __init__(self) -> None:
        self.elements = 0
        self.compared: set[tuple[str, str]] = set()
        self.found: tuple[dict[Any, Parting], dict[Any, Parting]] = ({}, {})

    def outputs(self, engine: str, expected: Sequence[Tensor], given: Values) -> None:
        """Compare what comes out, in order."""
        if len(expected) != len(given):
            raise ConfigError(
                f"the network gives {len(expected)} tensors and the file {len(given)}: it was "
                "exported from another one"
            )
        for ours, (name, theirs) in zip(expected, given.items(), strict=True):
            self._compare(self.found[0], engine, name, ours, theirs)

    def nodes(self, engine: str, expected: Values, given: Values) -> None:
        """Compare what has one name in both."""
        for name in expected.keys() & given.keys():
            self.compared.add((engine, name))
            self.elements += expected[name].numel()
        for name in expected:  # in the order of the network
            if name in given:
                self._compare(self.found[1], engine, name, expected[name], given[name])

    def _compare(
        self, found: dict[Any, Parting], engine: str, name: str, ours: Tensor, theirs: Tensor
    ) -> None:
        if ours.shape != theirs.shape:
            raise ConfigError(
                f"'{name}' has the shape {list(ours.shape)} in the network and "
                f"{list(theirs.shape)} in the file: it was exported from another one"
            )
        if torch.equal(ours, theirs.to(ours.dtype)):
            return
        apart = (ours.double() - theirs.double()).abs()
        before = found.get((engine, name), Parting(engine, name, 0, 0, 0.0))
        found[engine, name] = Parting(
            engine, name,
            before.differing + int((apart != 0).sum()),
            before.elements + ours.numel(),
            max(before.largest, float(apart.max())),
        )


def _batches(data: Any) -> Iterator[tuple[Any, ...]]:
    if not isinstance(data, Iterable):
        raise ConfigError(f"data is one batch, or several, got {type(data).__name__}")
    for batch in [data] if isinstance(data, Tensor) else data:
        yield (batch,) if isinstance(batch, Tensor) else tuple(batch)


class _Keeper(fx.Interpreter):
    """Keeps the tensors of every node."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.found: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and n.op not in ("placeholder", "output"):
            self.found[n.name] = result
        return result


def values_of(
    gm: fx.GraphModule, arguments: Sequence[Any]
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """What the nodes of the network give, by name, and what comes out."""
    keeper = _Keeper(gm)
    with torch.no_grad():
        result = keeper.run(*arguments)
    return keeper.found, [x for x in leaves(result) if isinstance(x, Tensor)]


def _in_litert(path: str | os.PathLike[str]) -> list[tuple[str, Run, Run]]:
    """As the file is, and with the values of nodes."""
    model = Path(path).read_bytes()
    return [("LiteRT", partial(run_tflite, model), partial(run_tflite, with_every_value(model)))]


def _of_onnx(
    path: str | os.PathLike[str], engines: Sequence[str], names: set[str]
) -> list[tuple[str, Run, Run]]:
    """Of each engine, as the file is, and with the values of those names."""
    with needs_extra("onnx"):
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    plain = _loaded(path)
    every = _with_every_value(plain, names)
    runs = []
    for name in engines:
        with _told(f"{name} does not run '{path}'"):
            runs.append((name, _ENGINES[name](path, plain), _ENGINES[name](path, every)))
    return runs


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


_ENGINES = {"onnxruntime": _onnxruntime, "OpenVINO": _openvino}
