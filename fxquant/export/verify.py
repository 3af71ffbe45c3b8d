"""Whether an engine gives the integers of the network, and if not, where it parts from them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, fx

from fxquant.errors import ConfigError, DataError, StageError
from fxquant.export.engines import Values, engines_of, refusals
from fxquant.export.walk import values_of
from fxquant.files import need_path
from fxquant.graph.nested import leaves
from fxquant.pipeline import Stage, stage_of


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
    need_path(path)
    if not Path(path).is_file():
        raise ConfigError(f"there is no file '{path}'")
    opened = engines_of(path, engines, {node.name for node in quantized.graph.nodes})
    tally, count = _Tally(), 0
    for count, arguments in enumerate(_batches(data), 1):
        expected, outputs = _expected(quantized, arguments, count)
        given = [x.detach().cpu() for x in leaves(arguments) if isinstance(x, Tensor)]
        for engine in opened:
            with refusals(f"{engine.name} does not run '{path}' on batch {count}"):
                whole, every_value = engine.as_it_is(given), engine.with_nodes(given)
            tally.compare_outputs(engine.name, outputs, whole)
            tally.compare_nodes(engine.name, expected, every_value)
    if not count:
        raise DataError("there is no data to verify with")
    if expected and not tally.nodes:
        raise ConfigError(f"'{path}' has no node of the network: it was exported from another one")
    return Verification(
        engines=tuple(engine.name for engine in opened),
        nodes=len({node for _, node in tally.nodes}),
        elements=sum(found.elements for found in tally.nodes.values()),
        outputs=tuple(found for found in tally.outputs.values() if found.differing),
        partings=tuple(found for found in tally.nodes.values() if found.differing),
    )


def _expected(
    quantized: fx.GraphModule, arguments: Sequence[Any], number: int
) -> tuple[dict[str, Tensor], list[Tensor]]:
    try:
        return values_of(quantized, arguments)
    except Exception as error:
        raise DataError(f"the network does not run on batch {number}: {error}") from error


_Found = dict[tuple[str, str], Parting]


class _Tally:
    """Adds up what differs over batches, by engine and name: in the order of the network, since
    the first batch has all of them.
    """

    def __init__(self) -> None:
        self.outputs: _Found = {}
        self.nodes: _Found = {}

    def compare_outputs(self, engine: str, expected: Sequence[Tensor], given: Values) -> None:
        """Of what comes out, in order."""
        if len(expected) != len(given):
            raise ConfigError(
                f"the network gives {len(expected)} tensors and the file {len(given)}: it was "
                "exported from another one"
            )
        for ours, (name, theirs) in zip(expected, given.items(), strict=True):
            _compare(self.outputs, engine, name, ours, theirs)

    def compare_nodes(self, engine: str, expected: Values, given: Values) -> None:
        """Of what has one name in both."""
        for name, ours in expected.items():
            if name in given:
                _compare(self.nodes, engine, name, ours, given[name])


def _compare(found: _Found, engine: str, name: str, ours: Tensor, theirs: Tensor) -> None:
    if ours.shape != theirs.shape:
        raise ConfigError(
            f"'{name}' has the shape {list(ours.shape)} in the network and "
            f"{list(theirs.shape)} in the file: it was exported from another one"
        )
    a, b = ours.double(), theirs.double()  # the type of either may lack numbers of the other
    apart = (a - b)[a != b].abs()
    before = found.get((engine, name), Parting(engine, name, 0, 0, 0.0))
    found[engine, name] = Parting(
        engine, name,
        before.differing + apart.numel(),
        before.elements + a.numel(),
        max(before.largest, float(apart.max()) if apart.numel() else 0.0),
    )


def _batches(data: Any) -> Iterator[tuple[Any, ...]]:
    if not isinstance(data, Iterable):
        raise ConfigError(f"data is one batch, or several, got {type(data).__name__}")
    for batch in [data] if isinstance(data, Tensor) else data:
        yield (batch,) if isinstance(batch, Tensor) else tuple(batch)
