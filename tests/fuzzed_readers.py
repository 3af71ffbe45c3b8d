"""Every reader of files, and bytes to begin with: whatever is read, only our errors come out.

`tests/test_fuzzed_readers.py` feeds them, and starts `main` in a process for each.
"""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import fxquant
from fxquant import QuantConfig
from fxquant.command.models import load_weights
from fxquant.darts import parse_genotype
from fxquant.errors import FxQuantError
from fxquant.observers import KL
from fxquant.saved.container import read_file, write_file
from tests.strategies import chain

SPEC = chain("conv", "bn", "relu", "mixed", head=True)
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2, 1 << 70, 0.5, "", "x", "1", "__class__", [], {}, [0], {"node": "x"}),
    *({"tuple": []}, {"module": ""}, {"function": "torch.relu"}, {"float": "nan"}, {"torch": "x"}),
)


class Reader(NamedTuple):
    """How to read a file of bytes, and bytes with which to begin."""

    read: Callable[[Path, bytes], object]
    seeds: Callable[[Path], list[bytes]]


def _prepared() -> Any:
    prepared = fxquant.prepare_ptq(SPEC.build(), config=QuantConfig(calibrator=KL()))
    fxquant.calibrate(prepared, [SPEC.inputs()])
    return prepared


class _Made:
    """What readers need beside a file: made once, at the first file."""

    def __init__(self) -> None:
        self.prepared = _prepared()
        self.linear = nn.Linear(3, 2)
        self.text, self.tensors = "", dict[str, Tensor]()

    def network(self, path: Path) -> tuple[str, dict[str, Tensor]]:
        if not self.text:
            fxquant.save(fxquant.convert(self.prepared), path)
            self.text, self.tensors = read_file(path)
        return self.text, self.tensors


_made: list[_Made] = []


def made() -> _Made:
    if not _made:
        _made.append(_Made())
    return _made[0]


def _file(read: Callable[[Path], object]) -> Callable[[Path, bytes], object]:
    def whole(path: Path, data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return whole


def _edited_network(path: Path, data: bytes) -> object:
    """A network whose JSON was edited as the bytes say, under the right digest."""
    text, tensors = made().network(path)
    network, numbers = json.loads(text), list(data)
    for place, part, how in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=False):
        owners = [found for found in _containers(network) if found]
        if owners:
            owner = owners[(place * 257 + part * 31) % len(owners)]
            _edit(owner, part, how)
    write_file(path, json.dumps(network), tensors)
    return fxquant.load(path)


def _containers(value: Any) -> list[Any]:
    """Lists and dictionaries, outermost first."""
    found = [value] if isinstance(value, (list, dict)) else []
    parts = value.values() if isinstance(value, dict) else value if found else ()
    return found + [inner for part in parts for inner in _containers(part)]


def _edit(owner: Any, part: int, how: int) -> None:
    keys = list(owner) if isinstance(owner, dict) else list(range(len(owner)))
    key, value = keys[part % len(keys)], how % (len(VALUES) + 2)
    if value < len(VALUES):
        owner[key] = VALUES[value]
    elif value == len(VALUES):
        del owner[key]
    else:  # what stands beside it
        owner[key] = owner[keys[(part + 1) % len(keys)]]


def _config_seeds(path: Path) -> list[bytes]:
    from tests.test_bad_values import CONFIG

    fxquant.save_config(QuantConfig(), path)
    tags = [f"fxquant: !!{tag} ''" for tag in ("int", "float", "bool", "timestamp", "binary")]
    return [path.read_bytes(), *(text.encode() for text in (CONFIG, *tags))]


def _statistics_seeds(path: Path) -> list[bytes]:
    fxquant.save_statistics(made().prepared, path)
    return [path.read_bytes()]


def _network_seeds(path: Path) -> list[bytes]:
    made().network(path)
    return [path.read_bytes()]


def _checkpoint_seeds(path: Path) -> list[bytes]:
    torch.save(made().linear.state_dict(), path)
    new = path.read_bytes()
    torch.save(made().linear.state_dict(), path, _use_new_zipfile_serialization=False)
    return [new, path.read_bytes()]


def _tensor_seeds(path: Path) -> list[bytes]:
    import safetensors.torch

    return [safetensors.torch.save(made().linear.state_dict())]


def _weights(ending: str) -> Callable[[Path, bytes], object]:
    def read(path: Path, data: bytes) -> object:
        path = path.with_suffix(ending)
        path.write_bytes(data)
        return load_weights(made().linear, path)

    return read


def _genotype(path: Path, data: bytes) -> object:
    return parse_genotype(data.decode("utf-8", "replace"))


READERS = {
    "configuration": Reader(_file(fxquant.load_config), _config_seeds),
    "statistics": Reader(
        _file(lambda path: fxquant.load_statistics(made().prepared, path)), _statistics_seeds
    ),
    "network": Reader(_file(fxquant.load), _network_seeds),
    "edited network": Reader(
        _edited_network, lambda path: [bytes(range(k, k + 9)) for k in range(9)]
    ),
    "checkpoint": Reader(_weights(".pt"), _checkpoint_seeds),
    "safetensors": Reader(_weights(".safetensors"), _tensor_seeds),
    "genotype": Reader(_genotype, lambda path: [str(fxquant.darts.DARTS_V2).encode()]),
}


def feed(reader: Reader, path: Path, data: bytes) -> None:
    """Read those bytes; an error of ours is as good as success."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's, on old formats
        with contextlib.suppress(FxQuantError):
            reader.read(path, data)


def main(name: str, corpus: Path, arguments: list[str]) -> None:
    """Go on until libFuzzer stops, or something else than an error of ours comes out."""
    import atheris

    reader, path = READERS[name], corpus.with_name("read")
    corpus.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(reader.seeds(path)):
        (corpus / f"seed{i}").write_bytes(seed)
    atheris.Setup([sys.argv[0], *arguments, str(corpus)], lambda data: feed(reader, path, data))
    atheris.Fuzz()
