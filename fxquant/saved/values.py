"""Values as JSON and back: arguments of nodes, and plain attributes of modules.

    None, True, 1, 0.5, "same", [1, 2]     themselves
    (1, 2)                                 {"tuple": [1, 2]}
    node x                                 {"node": "x"}
    QuantScheme(bits=4, …)                 {"QuantScheme": {"bits": 4, …}}

Whatever has no row here is refused, on the way out and on the way in. Names are looked up in
written lists only, so that a file can name nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxquant.errors import FileError
from fxquant.fake_quant import ByChance, Clipped, Nearest, Plain, Tanh
from fxquant.observers import CALIBRATORS
from fxquant.ops import op_named
from fxquant.ops.accumulator import Operand
from fxquant.ops.spec import Clamp, OpSpec
from fxquant.rounding import Rounding, rounding_named
from fxquant.saved.callables import function_named, name_of
from fxquant.schemes import Channels, QuantScheme
from fxquant.sites.integer import Facts
from fxquant.sites.phase import Phase

Json = Any  # what json.loads gives

RECORDS: tuple[type[Any], ...] = (
    *(QuantScheme, Channels, Clamp, Operand, Facts, Phase),
    *(Nearest, ByChance, Plain, Clipped, Tanh),
    *CALIBRATORS,
)
_TORCH_NAMES = (torch.dtype, torch.memory_format, torch.layout)


class Writer:
    """Writes values; `paths` are those of the modules that values may point at."""

    def __init__(self, paths: Mapping[nn.Module, str]) -> None:
        self.paths = paths

    def write(self, value: Any) -> Json:
        """The JSON of a value. Raises FileError where it has none."""
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {"float": str(float(value))}
        for kind, write in self._forms:
            if isinstance(value, kind):
                return write(self, value)
        if callable(value):
            return {"function": name_of(value)}
        raise _no_form(value)

    def _record(self, value: Any) -> Json:
        names = getattr(value, "_fields", None) or value.__dataclass_fields__
        fields = {name: self.write(getattr(value, name)) for name in names}
        return {type(value).__name__: fields}

    def _tuple(self, value: tuple[Any, ...]) -> Json:
        if type(value) not in (tuple, torch.Size):
            raise _no_form(value)
        return {"tuple": [self.write(part) for part in value]}

    def _mapping(self, value: Mapping[Any, Any]) -> Json:
        if not all(isinstance(key, (str, int)) for key in value):
            raise _no_form(value)
        return {"dict": [[key, self.write(part)] for key, part in value.items()]}

    def _module(self, value: nn.Module) -> Json:
        if value not in self.paths:
            raise _no_form(value)
        return {"module": self.paths[value]}

    def _shape_of(self, value: Tensor) -> Json:
        if value.device.type != "meta":
            raise _no_form(value)
        return {"example": [_torch_name(value.dtype), list(value.shape)]}

    # in this order: our records are tuples, too
    _forms: tuple[tuple[Any, Callable[[Writer, Any], Json]], ...] = (
        (RECORDS, _record),
        (fx.Node, lambda self, value: {"node": value.name}),
        (tuple, _tuple),
        (list, lambda self, value: [self.write(part) for part in value]),
        (Mapping, _mapping),
        (slice, lambda s, v: {"slice": [s.write(part) for part in (v.start, v.stop, v.step)]}),
        (range, lambda self, value: {"range": [value.start, value.stop, value.step]}),
        (type(...), lambda self, value: {"ellipsis": 0}),
        (_TORCH_NAMES, lambda self, value: {"torch": _torch_name(value)}),
        (torch.device, lambda self, value: {"device": str(value)}),
        (Tensor, _shape_of),
        (nn.Module, _module),
        (OpSpec, lambda self, value: {"operator": value.name}),
        (Rounding, lambda self, value: {"rounding": value.name}),
    )


class Reader:
    """Reads values that point at these nodes and modules."""

    def __init__(self, nodes: Mapping[str, fx.Node], modules: Mapping[str, nn.Module]) -> None:
        self.nodes = nodes
        self.modules = modules

    def read(self, data: Json) -> Any:
        """The value that was written. Raises FileError, or what a wrong field raises."""
        if isinstance(data, list):
            return [self.read(part) for part in data]
        if not isinstance(data, dict):
            return data
        ((tag, content),) = data.items()
        for record in RECORDS:
            if tag == record.__name__:
                return record(**{name: self.read(part) for name, part in content.items()})
        for known, read in self._forms:
            if tag == known:
                return read(self, content)
        raise FileError(f"'{tag}' is no kind of value that a file may hold")

    def _example(self, content: Json) -> Tensor:
        dtype, shape = content
        return torch.empty(shape, dtype=_torch_named(dtype), device="meta")

    _forms: tuple[tuple[str, Callable[[Reader, Json], Any]], ...] = (
        ("node", lambda self, name: self.nodes[name]),
        ("tuple", lambda self, parts: tuple(self.read(part) for part in parts)),
        ("dict", lambda self, pairs: {_key(key): self.read(part) for key, part in pairs}),
        ("float", lambda self, text: float(text)),
        ("slice", lambda self, parts: slice(*(self.read(part) for part in parts))),
        ("range", lambda self, parts: range(*parts)),
        ("ellipsis", lambda self, _: ...),
        ("torch", lambda self, name: _torch_named(name)),
        ("device", lambda self, name: torch.device(name)),
        ("example", _example),
        ("module", lambda self, path: self.modules[path]),
        ("operator", lambda self, name: op_named(name)),
        ("rounding", lambda self, name: rounding_named(name)),
        ("function", lambda self, name: function_named(name)),
    )


def _key(key: Json) -> str | int:
    if not isinstance(key, (str, int)):
        raise FileError(f"{key!r} is no key of a dictionary")
    return key


def _torch_name(value: object) -> str:
    return str(value).removeprefix("torch.")


def _torch_named(name: str) -> Any:
    """A dtype, a memory format or a layout."""
    value = getattr(torch, name, None)
    if not isinstance(value, _TORCH_NAMES):
        raise FileError(f"torch has no type called {name!r}")
    return value


def _no_form(value: object) -> FileError:
    kind = type(value)
    return FileError(f"a {kind.__module__}.{kind.__qualname__} has no form in a file")
