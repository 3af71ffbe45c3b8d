"""Example values of nodes, on the meta device: shapes without memory, and numbers.

With them a shape in an `if`, a loop over a tensor and unpacking are answered as the model would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

from fxquant.graph.decided import FACTORIES
from fxquant.graph.live import plain
from fxquant.graph.own import is_torchs_module

_CALL, _GETATTR = nn.Module.__call__, nn.Module.__getattr__  # before fx patches them
_TABLES = ("_parameters", "_buffers", "_modules")  # of a module; tensors are slow to write out
UNKNOWN = object()


class Examples:
    """What the nodes of one graph give for example inputs, where that can be known."""

    def __init__(
        self,
        inputs: Sequence[Any],
        functions: tuple[Callable[..., Any], ...],
        is_identity: Callable[[nn.Module], bool],
        results: dict[str, Any] | None = None,
    ) -> None:
        """`functions` may need real tensors; `is_identity` tells who hands its input on;
        `results` are those of modules that are alike, on arguments alike, in other graphs.
        """
        self.inputs, self.functions, self.is_identity = list(inputs), functions, is_identity
        self.values: dict[fx.Node, Any] = {}
        self.results = {} if results is None else results

    def of(self, node: fx.Node) -> Any:
        """The example of a node, or UNKNOWN."""
        return self.values.get(node, UNKNOWN)

    def look(self, node: fx.Node) -> str:
        """The example of a node as a text: of tensors all but the elements."""
        return "" if node not in self.values else _written(self.values[node])

    def add(self, node: fx.Node, root: nn.Module) -> Any:
        """Find the example of a new node in the graph of `root`; UNKNOWN where there is none."""
        value = self._find(node, root)
        if value is not UNKNOWN:
            self.values[node] = value
        return value

    def _find(self, node: fx.Node, root: nn.Module) -> Any:
        if node.op == "placeholder":
            index = sum(n.op == "placeholder" for n in node.graph.nodes) - 1
            if index >= len(self.inputs):
                return UNKNOWN
            rest = str(node.target).startswith("*")  # forward(self, *inputs)
            return _to_meta(tuple(self.inputs[index:]) if rest else self.inputs[index])
        if node.op == "output":
            return UNKNOWN
        if node.op == "get_attr":
            return _to_meta(_attribute(root, str(node.target)))
        if any(n not in self.values for n in node.all_input_nodes):
            return UNKNOWN
        if node.op == "call_module":
            module = root.get_submodule(str(node.target))
            if self.is_identity(module):
                return self.values[node.all_input_nodes[0]] if node.all_input_nodes else UNKNOWN
            if not is_torchs_module(module):
                return UNKNOWN  # a float leaf may do anything; it is not run for its shape
        arguments = plain((node.args, node.kwargs))
        args, kwargs = fx.node.map_arg(arguments, self.values.__getitem__)
        try:
            with torch.no_grad():
                return self._call(node, root, args, kwargs)
        except Exception:  # data-dependent, or not for the meta device: unknown from here on
            return UNKNOWN

    def _call(self, node: fx.Node, root: nn.Module, args: Any, kwargs: Any) -> Any:
        if isinstance(node.target, str):
            if node.op == "call_method":
                return getattr(args[0], node.target)(*args[1:], **kwargs)
            module = root.get_submodule(node.target)
            key = _alike(module, (args, kwargs))
            if key not in self.results:
                state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
                state = {name: _to_meta(value) for name, value in state.items()}
                with _patches_off():
                    result = torch.func.functional_call(module, state, args, kwargs)
                self.results[key] = result
            return _to_meta(self.results[key])  # tensors of its own: unsqueeze_ changes their shape
        if node.target in self.functions:  # it may draw random numbers, and not on every device
            with torch.random.fork_rng(devices=[]):
                zeros = fx.node.map_aggregate((args, kwargs), _zeros)
                return _to_meta(node.target(*zeros[0], **zeros[1]))
        if node.target in FACTORIES:
            kwargs = kwargs | {"device": "meta"}
        return node.target(*args, **kwargs)


@contextmanager
def _patches_off() -> Iterator[None]:
    """Use modules as they are: while tracing, fx routes their calls and reads to the tracer."""
    patched = nn.Module.__call__, nn.Module.__getattr__
    nn.Module.__call__, nn.Module.__getattr__ = _CALL, _GETATTR  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__call__, nn.Module.__getattr__ = patched  # type: ignore[method-assign]


def _zeros(value: Any) -> Any:
    return torch.zeros_like(value, device="cpu") if isinstance(value, torch.Tensor) else value


def _alike(module: nn.Module, arguments: Any) -> str:
    """A text that modules of torch with the same result on the meta device have in common."""
    parts = [
        (type(part), {k: v for k, v in vars(part).items() if k not in _TABLES})
        for part in module.modules()
    ]
    shapes = [(t.shape, t.dtype) for t in (*module.parameters(), *module.buffers())]
    return f"{parts} {shapes} {_written(arguments)}"


def _written(value: Any) -> str:
    return repr(
        fx.node.map_aggregate(
            value, lambda v: (v.shape, v.stride(), v.dtype) if isinstance(v, torch.Tensor) else v
        )
    )


def _to_meta(value: Any) -> Any:
    return fx.node.map_aggregate(
        value, lambda v: v.detach().to("meta") if isinstance(v, torch.Tensor) else v
    )


def _attribute(root: nn.Module, path: str) -> Any:
    """What lies at `path`, read past nn.Module.__getattr__, which fx has patched."""
    value: Any = root
    for name in path.split("."):
        held = vars(value)
        tables = (held.get("_parameters", {}), held.get("_buffers", {}), held.get("_modules", {}))
        value = next(table[name] for table in (*tables, held) if name in table)
    return value
