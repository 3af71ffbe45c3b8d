"""The tracer: torch.fx's, with the place of every node and an example of what it gives."""

from __future__ import annotations

import importlib
import operator
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch.fx.proxy import TraceError

from fxquant.graph.calls import Calls, Contents
from fxquant.graph.decided import FACTORIES, UNKNOWN_FACTORIES, is_decided
from fxquant.graph.edit import nodes_in
from fxquant.graph.examples import UNKNOWN, Examples
from fxquant.graph.guard import require_shapes
from fxquant.graph.inplace import IN_PLACE
from fxquant.graph.live import Decisions, LiveFloat, is_constant
from fxquant.graph.modes import is_identity_in_eval
from fxquant.graph.norms import NormCall, does_more
from fxquant.graph.place import caller_place, set_example, set_place
from fxquant.graph.spell_out import is_spelled_out
from fxquant.graph.tensors import lists_replaced
from fxquant.graph.wrapped import wrap_none_of_torchs

_CUTS: dict[Any, tuple[str, ...]] = {
    **dict.fromkeys(("unbind", torch.unbind), ("x", "dim")),
    **dict.fromkeys(("split", torch.split), ("x", "size", "dim")),
}


class _Proxy(fx.Proxy):
    """A proxy that knows its length, where its example value does, and that writes `x += y`
    down as what it is; fx makes `x = x + y` of it.
    """

    def __len__(self) -> int:
        assert isinstance(self.tracer, Tracer)
        value = self.tracer.examples.of(self.node)
        if value is UNKNOWN:
            raise TraceError("len() of a value whose shape is not known")
        self.tracer.guard_length(self, value, "a length")
        return len(value)

    def __getattr__(self, name: str) -> fx.proxy.Attribute:
        return _Attribute(self, name)

    def __setitem__(self, index: Any, value: Any) -> None:
        assert isinstance(self.tracer, Tracer)
        written = self.tracer.create_arg((self, index, value))
        if not self.tracer.decided.issuperset(nodes_in(written)):
            raise TraceError(
                "it writes into a part of a tensor: build the result with torch.cat or torch.where"
            )
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __index__(self) -> int:
        """The number that it is now, for whoever needs a plain one; for others it is refused."""
        assert isinstance(self.tracer, Tracer)
        return int(self.tracer.number(self, int))

    def __int__(self) -> int:
        """The same of any number, such as a square root: a side of so many patches."""
        assert isinstance(self.tracer, Tracer)
        return int(self.tracer.number(self, bool, int, float))

    def __float__(self) -> float:
        assert isinstance(self.tracer, Tracer)
        return float(self.tracer.number(self, bool, int, float))

    @property
    def data(self) -> fx.Proxy:
        """`x.data`: the same numbers without their history, as `x.detach()`."""
        return self.tracer.create_proxy("call_method", "detach", (self,), {})


class _Attribute(fx.proxy.Attribute, _Proxy):
    """An attribute of a proxy, such as its shape, which has a length, too."""


def _in_place(target: Callable[..., Any]) -> Callable[[_Proxy, Any], fx.Proxy]:
    def method(self: _Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return method


for _target in IN_PLACE:
    setattr(_Proxy, f"__{_target.__name__}__", _in_place(_target))


class Tracer(fx.Tracer):
    """Records the place of every node, and an example value where one can be had."""

    def __init__(
        self,
        example_inputs: Sequence[Any] | None = None,
        leaves: frozenset[str] = frozenset(),
        decisions: Decisions | None = None,
        functions: tuple[Callable[..., Any], ...] = (),
        results: dict[str, Any] | None = None,
        frozen: set[nn.Module] | None = None,
    ) -> None:
        """All default, because unpickling a GraphModule makes its tracer without arguments."""
        super().__init__(autowrap_functions=(*functions, *FACTORIES, *UNKNOWN_FACTORIES))
        # also where they are called as attributes of the module that defines them
        self._autowrap_search.extend((torch, *(sys.modules[f.__module__] for f in functions)))
        self.decisions = Decisions() if decisions is None else decisions
        self.leaves = leaves
        self.examples = Examples(example_inputs or (), functions, self._is_identity, results)
        self.calls = Calls(self._known)
        self.decisions.call = lambda: self.calls.now
        self.held: set[fx.Node] = set()  # what parameters alone decide: inputs do not change it
        self.decided: set[fx.Node] = set()  # what parameters and shapes decide
        self.names: dict[int, str] = {}
        self.read: dict[str, fx.Proxy] = {}
        self.writes = False  # whether a list or dict that the user's modules hold was changed
        self.norms: list[NormCall] = []  # the forwards under way, from the outside in
        self.reduced: set[nn.Module] = set()  # batch norms that do more, now a node of torch's own
        self.frozen = set() if frozen is None else frozen  # those that stay as they are
        self.failed_in = ""  # the innermost module whose forward could not be captured

    def trace(
        self, root: nn.Module | Callable[..., Any], concrete_args: dict[str, Any] | None = None
    ) -> fx.Graph:
        if self.examples.inputs:
            # as torch does at its first operator on meta: better not while functions are patched,
            # which it keeps
            importlib.import_module("torch._dynamo")
        with ExitStack() as self.while_tracing:
            graph = super().trace(root, concrete_args)
            self.writes = self.contents.changed()
        wrap_none_of_torchs(graph)
        return graph

    def create_args_for_root(self, *args: Any, **kwargs: Any) -> Any:
        result = super().create_args_for_root(*args, **kwargs)
        tensors = (*self.root.named_parameters(), *self.root.named_buffers())
        self.names = {id(tensor): name for name, tensor in tensors}
        self.while_tracing.enter_context(lists_replaced(self.root, self._read))
        self.contents = Contents(self.root)
        return result

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return self._read(attr_val) if isinstance(attr_val, torch.Tensor) else attr_val

    def _read(self, tensor: torch.Tensor) -> Any:
        """A proxy that reads one of the model's parameters or buffers where it is."""
        name = self.names.get(id(tensor))
        if name is None:
            return tensor
        if name not in self.read:
            self.read[name] = self.create_proxy("get_attr", name, (), {})
        return self.read[name]

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, float) and type(a) not in (float, LiveFloat):
            a = float(a)  # of numpy, whose repr is no number in Python code
        if isinstance(a, torch.Tensor):
            a = self._kept(a)
        return super().create_arg(a)

    def _kept(self, tensor: torch.Tensor) -> torch.Tensor:
        """What torch.fx has made an attribute of before, in another trace, if that is equal."""
        for name, kept in vars(self.root).items():
            if is_constant(name) and isinstance(kept, torch.Tensor):
                same = (kept.shape, kept.dtype, kept.device, kept.requires_grad) == (
                    (tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad)
                )
                if same and not kept.is_meta and torch.equal(kept, tensor):
                    return kept
        return tensor

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        path = self.path_of_module(m)

        def followed(*args: Any, **kwargs: Any) -> Any:  # which torch.fx calls unless m is a leaf
            with self.calls.follow(path, [args, kwargs], self.graph) as result, self._inside(m):
                result.append(forward(*args, **kwargs))
            return result[0]

        try:
            return super().call_module(m, followed, args, kwargs)
        except Exception:
            self.failed_in = self.failed_in or path
            raise

    @contextmanager
    def _inside(self, m: nn.Module) -> Iterator[None]:
        """The forward of `m`; of a batch norm that does more, torch's own is one node."""
        if not does_more(m) or m in self.frozen:
            yield
            return
        self.norms.append(NormCall(m))
        yield
        call = self.norms.pop()
        if call.normalised:
            self.reduced.add(m)
            for node in call.counting:
                self.graph.erase_node(node)

    def create_proxy(
        self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *rest: Any,
        **more: Any,
    ) -> fx.Proxy:
        call = self.norms[-1] if self.norms else None
        x = call.normalises(target, args, kwargs) if call is not None else None
        if call is not None and x is not None:
            return self._normalised(call, x)
        result = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        if call is not None and call.counts(target, args):
            call.counting.append(result.node)
        return result

    def _normalised(self, call: NormCall, x: fx.Proxy) -> fx.Proxy:
        result = super().create_proxy("call_module", self.path_of_module(call.norm), (x,), {})
        call.normalised = True
        example = self.examples.of(x.node)
        if example is not UNKNOWN:
            self.examples.values[result.node] = example
            set_example(result.node, example)
        return result

    def _known(self, node: fx.Node) -> Hashable:
        """What this tracer tells a forward of the value of `node`, in whatever way it asks."""
        target = node.target if node.op == "get_attr" else None  # read once, hence one object
        return (target, node in self.held, self.examples.look(node))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self.leaves or self._is_identity(m):
            return True
        if m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m):
            return False  # so that what they do is in the graph, too
        if is_spelled_out(m):
            return False
        return super().is_leaf_module(m, module_qualified_name)

    def _is_identity(self, m: nn.Module) -> bool:
        with self.decisions.paused():
            return is_identity_in_eval(m)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if not torch.is_grad_enabled():
            raise TraceError("under no_grad, which a graph does not know: use detach() instead")
        if args[1] in UNKNOWN_FACTORIES:
            raise TraceError(f"torch.{args[1].__name__} of a size that is traced")
        node = super().create_node(*args, **kwargs)
        if isinstance(node.type, str):  # an annotation by name, which no pickle would find
            node.type = None
        set_place(node, caller_place(self.scope.module_path, Tracer.trace.__code__))
        if node.op == "get_attr" or (
            node.all_input_nodes and self.held.issuperset(node.all_input_nodes)
        ):
            self.held.add(node)
        if is_decided(node, self.decided):
            self.decided.add(node)
        value = self.examples.add(node, self.root)
        if value is not UNKNOWN:
            set_example(node, value)
        return node

    def iter(self, obj: Any) -> Iterator[Any]:
        value = self.examples.of(obj.node)
        if value is UNKNOWN:
            return super().iter(obj)
        self.guard_length(obj, value, "a loop over a tensor")
        return iter([obj[i] for i in range(len(value))])

    def to_bool(self, obj: fx.Proxy) -> bool:
        value = self.examples.of(obj.node)
        if isinstance(value, (bool, int, float, tuple, list)):
            if obj.node not in self.held:
                self._guard(obj, value, "a decision")
            return bool(value)
        return super().to_bool(obj)

    def number(self, obj: fx.Proxy, *kinds: type[float]) -> float:
        """What `obj` is now, where that is a number of one of these kinds that shapes decide."""
        value: float = self.examples.of(obj.node)
        if type(value) not in kinds:
            name = "integer" if kinds == (int,) else "number"
            raise TypeError(f"'{obj}' is no {name} that shapes decide")
        if obj.node not in self.held:
            self._guard(obj, value, "a number")
        return value

    def guard_length(self, obj: Any, value: Any, what: str) -> None:
        """Let the graph refuse inputs for which `obj`, now `value`, would have another length."""
        if obj.node in self.held:
            return
        if isinstance(value, torch.Tensor):
            self._guard(obj.shape[0], len(value), what)
        elif (cut := _cut(obj.node)) is not None:
            x, size, dim = cut
            shape: Any = self.proxy(x).shape
            length = shape[dim]
            self._guard((length + (size - 1)) // size if size > 1 else length, len(value), what)

    def _guard(self, obj: Any, value: Any, what: str) -> None:
        """Let the graph refuse inputs for which the answer would have been another."""
        where = self.scope.module_path
        text = f"{what} in '{where}' was captured for other shapes, where it is {value}"
        self.create_proxy("call_function", require_shapes, (obj == value, text), {})


def _cut(node: fx.Node) -> tuple[fx.Node, int, int] | None:
    """What `node` cuts into parts of which size along which dimension, as many as there are."""
    names = _CUTS.get(node.target)
    if names is None:
        return None
    named: dict[str, Any] = {"dim": 0, "size": 1}
    named |= dict(zip(names, node.args, strict=False)) | node.kwargs
    x, dim = named.get("x"), named["dim"]
    size = named.get("split_size", named.get("split_size_or_sections", named["size"]))
    if not isinstance(x, fx.Node) or type(dim) is not int or type(size) is not int or size < 1:
        return None
    return x, size, dim
