"""Write down a model's forward as a torch.fx graph, as it behaves in each mode.

    model.eval()  ── trace ── network ──┐
                                        ├─ merge ── one graph for both modes
    model.train() ── trace ── training ─┘

The network is what the model does in eval(): that is what ships. What training adds to it
(an auxiliary head, drop path) hangs on it as float regions that run in train() only.

With example inputs every proxy also carries an example value on the meta device, so that
shape comparisons in an `if`, iteration and unpacking are answered as the model would.
"""

from __future__ import annotations

import importlib
import inspect
import keyword
import linecache
import operator
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from traceback import walk_tb
from types import FrameType
from typing import Any

import torch
from torch import fx, nn
from torch.fx.proxy import TraceError

from fxquant.errors import CaptureError
from fxquant.graph.compare import largest_differences
from fxquant.graph.decided import FACTORIES, UNKNOWN_FACTORIES, is_decided
from fxquant.graph.edit import SITES, nodes_in
from fxquant.graph.inplace import (
    IN_PLACE,
    make_functional,
    overwriting_modules,
    refuse_overwriting_leaves,
)
from fxquant.graph.live import (
    Decisions,
    LiveFloat,
    is_constant,
    live_floats,
    make_plain,
    plain,
    read_beside_parameters,
)
from fxquant.graph.merge import merge, merge_where
from fxquant.graph.modes import is_identity_in_eval
from fxquant.graph.network import Network, network
from fxquant.graph.place import (
    caller_place,
    copy_place,
    is_user_code,
    raised_at,
    set_example,
    set_place,
)
from fxquant.graph.positional import put_first_argument_first
from fxquant.graph.spell_out import is_spelled_out, spelled_out
from fxquant.graph.tensors import lists_replaced, register_tensors
from fxquant.graph.wrapped import (
    is_users_function,
    wrap_none_of_torchs,
    wrapped_functions_opened,
)

_CALL, _GETATTR = nn.Module.__call__, nn.Module.__getattr__  # before fx patches them
_UNKNOWN = object()
_TABLES = ("_parameters", "_buffers", "_modules")  # of a module; tensors are slow to write out
_RESERVED = ("self", "graph", "meta", "code", "recompile", "_graph", "fxquant")
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrap(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """The model inside DataParallel, DistributedDataParallel or torch.compile, and in what it
    was, from the outside in.
    """
    wrappers: list[str] = []
    while True:
        if isinstance(model, _WRAPPERS):
            inner = model.module
        else:
            inner = getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model, tuple(wrappers)
        wrappers.append(type(model).__name__)
        model = inner


def trace(
    model: nn.Module,
    example_inputs: Sequence[Any] | None = None,
    leaves: frozenset[str] = frozenset(),
) -> Network:
    """A GraphModule over `model`'s own submodules; `model` is edited, so hand in a copy.

    `leaves` are paths of submodules that stay one node each. Raises CaptureError, naming the
    line of the user's code, where the forward depends on data or on unknown shapes, or does
    what a graph cannot: draws random numbers outside it, writes to buffers, runs under no_grad.
    """
    _refuse_root(model)
    register_tensors(model)
    modes = {module: module.training for module in model.modules()}
    try:
        in_eval = _trace_mode(model, False, example_inputs, leaves, Decisions())
        in_training, others = _trace_training(model, example_inputs, leaves)
    finally:
        for module, mode in modes.items():
            module.training = mode
    inside = {m for path in leaves for m in model.get_submodule(path).modules()}
    overwriting = overwriting_modules(model) - inside
    for graph in (in_eval, in_training, *(graph for graph, _, _ in others)):
        put_first_argument_first(graph, model)
        refuse_overwriting_leaves(graph, model, leaves)
        make_functional(graph, model, overwriting, graph is not in_eval)
        _protect_inputs(graph, model)
    for module in overwriting:
        module.inplace = False  # type: ignore[assignment]
    for graph in (in_eval, in_training, *(graph for graph, _, _ in others)):
        read_beside_parameters(graph)
    make_plain(in_eval)
    trained, gm = network(model, in_training), network(model, in_eval)
    for graph, comparison, holds in others:
        merge_where(trained, graph, comparison, holds)
    if hasattr(trained, SITES):
        gm.add_module(SITES, trained.get_submodule(SITES))
    merge(gm, trained.graph)
    gm.recompile()
    return gm


def _trace_training(
    model: nn.Module, example_inputs: Sequence[Any] | None, leaves: frozenset[str]
) -> tuple[fx.Graph, list[tuple[fx.Graph, LiveFloat, bool]]]:
    """What training does, and what it does instead where a comparison of a live number turns out
    otherwise: each such graph with its comparison, and whether that holds there.

    The first graph does as little as there is: drop path comes to it where there is any. Refuses
    comparisons that matter and are asked only where another one holds.
    """
    graphs: dict[frozenset[str], tuple[fx.Graph, Decisions]] = {}

    def traced_with(inverted: frozenset[str]) -> tuple[fx.Graph, Decisions]:
        if inverted not in graphs:
            asked = Decisions(inverted)
            graphs[inverted] = _trace_mode(model, True, example_inputs, leaves, asked), asked
        return graphs[inverted]

    def traced(inverted: frozenset[str]) -> fx.Graph:
        return traced_with(inverted)[0]

    natural, decisions = traced_with(frozenset())
    switched: dict[str, fx.Graph] = {}  # what it does if that comparison is inverted
    for text in list(decisions.asked):
        try:
            other = traced(frozenset({text}))
        except CaptureError as error:
            if _raised_by_the_user(error.__cause__):
                continue  # that way lies an error
            raise
        if str(other) != str(natural):
            switched[text] = other
    most = len(natural.nodes)
    off = frozenset(text for text, other in switched.items() if len(other.nodes) < most)
    others = []
    for text in switched:
        comparison, answer = decisions.asked[text]
        holds = answer if text in off else not answer
        others.append((traced(off ^ {text}), comparison, holds))
    least, asked_first = traced_with(off)
    inside = [text for text in switched if text not in asked_first.asked]
    for text in switched:
        here = off ^ {text}
        for inner in traced_with(here)[1].asked.keys() - asked_first.asked.keys():
            with suppress(CaptureError):
                if str(traced(here ^ {inner})) != str(traced(here)):
                    inside.append(inner)
    if inside:
        raise CaptureError(
            f"{type(model).__name__}.forward asks {inside[0]} in train() only where another "
            "comparison holds: each has to stand by itself to follow what is set later.\n"
            "What to do: make one comparison of the two; hold a number that never changes in the "
            "class, not in the instance; or keep that submodule in float (keep_float)."
        )
    return least, others


def check_capture(gm: Network, model: nn.Module, example_inputs: Sequence[Any]) -> str | None:
    """Run `gm` and a copy of `model` on the example inputs, in both modes, and compare.

    Returns why they could not be compared in train(), if so: a batch norm may need more values
    than an example has. Raises CaptureError where they differ: the forward does something that
    its trace does not show, such as asking whether its input is a tensor. Also where the model
    itself cannot run in eval().
    """
    name = type(model).__name__
    differences = largest_differences(model, gm, example_inputs, (False, True))
    for mode in ("eval", "train"):
        try:
            with spelled_out():
                difference = next(differences)
        except Exception as error:
            text = (
                f"{name}.forward cannot run on the example inputs in {mode}(), at "
                f"{raised_at(error.__traceback__)}: {error}"
            )
            if mode == "train":
                return text
            text += "\nWhat to do: pass example_inputs that it runs on."
            raise CaptureError(text) from error
        if difference > 0.0:
            raise CaptureError(
                f"the graph of {name} gives other outputs than the model in {mode}() on the "
                "example inputs.\n"
                "What to do: look for what its forward asks of its inputs besides their values and "
                "shapes (isinstance, attributes); keep that submodule in float (keep_float)."
            )
    return None


def _refuse_root(model: nn.Module) -> None:
    """What a model does around its forward is not in a graph of its forward."""
    name, reason = type(model).__name__, None
    if model._forward_hooks or model._forward_pre_hooks:
        reason = "has forward hooks: register them on what prepare_qat returns"
    elif "forward" in vars(model):
        reason = "has a forward of its own on the instance: define it in the class"
    elif type(model).train is not nn.Module.train and not isinstance(model, fx.GraphModule):
        reason = "overrides train(): do in the training loop what it does, or in a submodule"
    if reason is not None:
        raise CaptureError(f"{name} {reason}.")
    for path, _ in (*model.named_modules(), *model.named_parameters(), *model.named_buffers()):
        parts = path.split(".")
        odd = [part for part in parts if keyword.iskeyword(part) or set(part) & set("\"'\\\n")]
        odd += [part for part in parts[:1] if part in _RESERVED]
        if odd:
            raise CaptureError(
                f"torch.fx cannot write code for a member called {odd[0]!r}, in '{path}' of {name}."
                "\nWhat to do: rename it."
            )


def _protect_inputs(graph: fx.Graph, model: nn.Module) -> None:
    """Give drop path and the like a copy: in training they may overwrite what they read."""
    for node in list(graph.nodes):
        if node.args and isinstance(node.args[0], fx.Node) and _is_users_own(node, model):
            with graph.inserting_before(node):
                copied = graph.call_method("clone", (node.args[0],))
            copy_place(node, copied)
            node.args = (copied, *node.args[1:])


def _is_users_own(node: fx.Node, model: nn.Module) -> bool:
    """Whether `node` calls a function of the user's, or a module of theirs that idles in eval()."""
    if node.op == "call_function":
        function = node.target
        return is_users_function(function)
    if node.op != "call_module":
        return False
    module = model.get_submodule(str(node.target))
    return not type(module).__module__.startswith("torch.nn.") and is_identity_in_eval(module)


def _trace_mode(
    model: nn.Module,
    training: bool,
    example_inputs: Sequence[Any] | None,
    leaves: frozenset[str],
    decisions: Decisions,
    functions: tuple[Callable[..., Any], ...] = (),
) -> fx.Graph:
    """The graph of one mode. Calls of `functions` stay one node each, and so do those of the
    user's that only training calls and that cannot be captured, such as drop path.
    """
    for module in model.modules():
        module.training = training
    tracer = _Tracer(example_inputs, leaves, decisions, functions)
    random_state = _random_state()
    try:
        with (
            torch.enable_grad(),
            live_floats(model, decisions),
            wrapped_functions_opened(),
            spelled_out(),
        ):
            graph = tracer.trace(model, _defaults(model, example_inputs))
        if random_state != _random_state():
            raise TraceError("it draws random numbers whose shape or use does not depend on inputs")
    except CaptureError:
        raise
    except Exception as error:
        function = _called_by_forward(error) if training else None
        if function is not None and function not in functions:
            again = Decisions(decisions.inverted)
            functions = (*functions, function)
            graph = _trace_mode(model, training, example_inputs, leaves, again, functions)
            decisions.asked = again.asked
            return graph
        inside = f" in '{tracer.failed_in}'" if tracer.failed_in else ""
        hints = ["pass example_inputs, so that shapes are known"] if not example_inputs else []
        if isinstance(error, AttributeError):
            hints.append("set that attribute before, if the training script does so later")
        if inside:
            keep = f"QuantConfig(keep_float=('{tracer.failed_in}',))"
            hints.append(f"keep that submodule as one float node with {keep}")
        else:
            hints.append("move that line into a submodule and keep it in float (keep_float)")
        raise CaptureError(
            f"cannot capture {type(model).__name__}.forward in {'train' if training else 'eval'}() "
            f"mode,{inside} at {raised_at(error.__traceback__)}: {error}\n"
            f"What to do: {', or '.join(hints)}."
        ) from error
    return graph


def _raised_by_the_user(error: BaseException | None) -> bool:
    """Whether it comes from a `raise` or an `assert` in the user's own code."""
    frames = list(walk_tb(error.__traceback__)) if error is not None else []
    if not frames or not is_user_code(frames[-1][0]):
        return False
    frame, line = frames[-1]
    source = linecache.getline(frame.f_code.co_filename, line).strip()
    return source.startswith(("raise", "assert"))


def _called_by_forward(error: Exception) -> Callable[..., Any] | None:
    """The function of the user's, if one, that the innermost forward had called when it failed."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    forwards = [i for i, frame in enumerate(frames) if _is_forward(frame)]
    if not forwards or forwards[-1] + 1 == len(frames):
        return None
    frame = frames[forwards[-1] + 1]
    function = frame.f_globals.get(frame.f_code.co_name)
    if not is_users_function(function) or function.__code__ is not frame.f_code:
        return None
    return function


def _is_forward(frame: FrameType) -> bool:
    return frame.f_code.co_name == "forward" and isinstance(frame.f_locals.get("self"), nn.Module)


def _random_state() -> tuple[bytes, object]:
    return bytes(torch.get_rng_state().tolist()), random.getstate()


def _defaults(model: nn.Module, example_inputs: Sequence[Any] | None) -> dict[str, Any] | None:
    """Arguments of forward that are taken at their defaults: those that no example is given for.

    Numbers, texts and None only; other defaults stay arguments of the graph.
    """
    parameters = list(inspect.signature(model.forward).parameters.values())
    given = len(example_inputs) if example_inputs is not None else 0
    plain = (int, float, str, bool, type(None))
    kept = {
        p.name: p.default
        for i, p in enumerate(parameters)
        if isinstance(p.default, plain) and i >= max(given, 1)
    }
    return kept or None


class _Proxy(fx.Proxy):
    """A proxy that knows its length, where its example value does, and that writes `x += y`
    down as what it is; fx makes `x = x + y` of it.
    """

    def __len__(self) -> int:
        assert isinstance(self.tracer, _Tracer)
        value = self.tracer.examples.get(self.node, _UNKNOWN)
        if value is _UNKNOWN:
            raise TraceError("len() of a value whose shape is not known")
        return len(value)

    def __getattr__(self, name: str) -> fx.proxy.Attribute:
        return _Attribute(self, name)

    def __setitem__(self, index: Any, value: Any) -> None:
        assert isinstance(self.tracer, _Tracer)
        written = self.tracer.create_arg((self, index, value))
        if not self.tracer.decided.issuperset(nodes_in(written)):
            raise TraceError(
                "it writes into a part of a tensor: build the result with torch.cat or torch.where"
            )
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __index__(self) -> int:
        """The number that it is now, for whoever needs a plain one; for others it is refused."""
        assert isinstance(self.tracer, _Tracer)
        return self.tracer.number(self)

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


class _Tracer(fx.Tracer):
    """Records the place of every node, and an example value where one can be had."""

    def __init__(
        self,
        example_inputs: Sequence[Any] | None = None,
        leaves: frozenset[str] = frozenset(),
        decisions: Decisions | None = None,
        functions: tuple[Callable[..., Any], ...] = (),
    ) -> None:
        """All default, because unpickling a GraphModule makes its tracer without arguments."""
        super().__init__(autowrap_functions=(*functions, *FACTORIES, *UNKNOWN_FACTORIES))
        # also where they are called as attributes of the module that defines them
        self._autowrap_search.extend((torch, *(sys.modules[f.__module__] for f in functions)))
        self.decisions = Decisions() if decisions is None else decisions
        self.functions = functions
        self.inputs = list(example_inputs) if example_inputs is not None else []
        self.leaves = leaves
        self.examples: dict[fx.Node, Any] = {}
        self.held: set[fx.Node] = set()  # what parameters alone decide: inputs do not change it
        self.decided: set[fx.Node] = set()  # what parameters and shapes decide
        self.results: dict[str, Any] = {}  # of modules that are alike, on arguments alike
        self.names: dict[int, str] = {}
        self.read: dict[str, fx.Proxy] = {}
        self.failed_in = ""  # the innermost module whose forward could not be captured

    def trace(
        self, root: nn.Module | Callable[..., Any], concrete_args: dict[str, Any] | None = None
    ) -> fx.Graph:
        if self.inputs:
            # as torch does at its first operator on meta: better not while functions are patched,
            # which it keeps
            importlib.import_module("torch._dynamo")
        with ExitStack() as self.while_tracing:
            graph = super().trace(root, concrete_args)
        wrap_none_of_torchs(graph)
        return graph

    def create_args_for_root(self, *args: Any, **kwargs: Any) -> Any:
        result = super().create_args_for_root(*args, **kwargs)
        tensors = (*self.root.named_parameters(), *self.root.named_buffers())
        self.names = {id(tensor): name for name, tensor in tensors}
        self.while_tracing.enter_context(lists_replaced(self.root, self._read))
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
            self._share_constant(a)
        return super().create_arg(a)

    def _share_constant(self, tensor: torch.Tensor) -> None:
        """Let a tensor that the forward makes be the same constant in every trace of it."""
        if tensor in self.tensor_attrs or id(tensor) in self.names:
            return
        for other, name in list(self.tensor_attrs.items()):
            if is_constant(name) and isinstance(other, torch.Tensor) and _are_equal(tensor, other):
                self.tensor_attrs[tensor] = name
                return

    def call_module(self, m: nn.Module, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().call_module(m, *args, **kwargs)
        except Exception:
            self.failed_in = self.failed_in or self.path_of_module(m)
            raise

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        with self.decisions.paused():
            if module_qualified_name in self.leaves or is_identity_in_eval(m):
                return True
        if m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m):
            return False  # so that what they do is in the graph, too
        if is_spelled_out(m):
            return False
        return super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if not torch.is_grad_enabled():
            raise TraceError("under no_grad, which a graph does not know: use detach() instead")
        if args[1] in UNKNOWN_FACTORIES:
            raise TraceError(f"torch.{args[1].__name__} of a size that is traced")
        node = super().create_node(*args, **kwargs)
        set_place(node, caller_place(self.scope.module_path, _trace_mode.__code__))
        if node.op == "get_attr" or (
            node.all_input_nodes and self.held.issuperset(node.all_input_nodes)
        ):
            self.held.add(node)
        if is_decided(node, self.decided):
            self.decided.add(node)
        value = self._example(node)
        if value is not _UNKNOWN:
            self.examples[node] = value
            set_example(node, value)
        return node

    def iter(self, obj: Any) -> Iterator[Any]:
        value = self.examples.get(obj.node, _UNKNOWN)
        if value is _UNKNOWN:
            return super().iter(obj)
        if isinstance(value, torch.Tensor) and obj.node not in self.held:
            self._guard(obj.shape[0], len(value), "a loop over a tensor")
        return iter([obj[i] for i in range(len(value))])

    def to_bool(self, obj: fx.Proxy) -> bool:
        value = self.examples.get(obj.node, _UNKNOWN)
        if isinstance(value, (bool, int, float, tuple, list)):
            if obj.node not in self.held:
                self._guard(obj, value, "a decision")
            return bool(value)
        return super().to_bool(obj)

    def number(self, obj: fx.Proxy) -> int:
        """What `obj` is now, where that is an integer that the model's shapes decide."""
        value = self.examples.get(obj.node, _UNKNOWN)
        if type(value) is not int:
            raise TypeError(f"'{obj}' is no integer that shapes decide")
        if obj.node not in self.held:
            self._guard(obj, value, "a number")
        return value

    def _guard(self, obj: Any, value: Any, what: str) -> None:
        """Let the graph refuse inputs for which the answer would have been another."""
        where = self.scope.module_path
        text = f"{what} in '{where}' was captured for other shapes: {obj} is not {value}"
        self.create_proxy("call_function", torch._assert, (obj == value, text), {})

    def _example(self, node: fx.Node) -> Any:
        """What `node` gives, on the meta device, or _UNKNOWN."""
        if node.op == "placeholder":
            index = sum(n.op == "placeholder" for n in self.graph.nodes) - 1
            if index >= len(self.inputs):
                return _UNKNOWN
            rest = str(node.target).startswith("*")  # forward(self, *inputs)
            return _to_meta(tuple(self.inputs[index:]) if rest else self.inputs[index])
        if node.op == "output":
            return _UNKNOWN
        if node.op == "get_attr":
            return _to_meta(_attribute(self.root, str(node.target)))
        if any(n not in self.examples for n in node.all_input_nodes):
            return _UNKNOWN
        if node.op == "call_module":
            module = self.root.get_submodule(str(node.target))
            with self.decisions.paused():
                identity = is_identity_in_eval(module)
            if identity:
                return self.examples[node.all_input_nodes[0]] if node.all_input_nodes else _UNKNOWN
            if not type(module).__module__.startswith("torch.nn."):
                return _UNKNOWN  # a float leaf may do anything; it is not run for its shape
        arguments = plain((node.args, node.kwargs))
        args, kwargs = fx.node.map_arg(arguments, self.examples.__getitem__)
        try:
            with torch.no_grad():
                return self._call(node, args, kwargs)
        except Exception:  # data-dependent, or not for the meta device: unknown from here on
            return _UNKNOWN

    def _call(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        if isinstance(node.target, str):
            if node.op == "call_method":
                return getattr(args[0], node.target)(*args[1:], **kwargs)
            module = self.root.get_submodule(node.target)
            key = _alike(module, (args, kwargs))
            if key not in self.results:
                state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
                state = {name: _to_meta(value) for name, value in state.items()}
                with _patches_off():
                    result = torch.func.functional_call(module, state, args, kwargs)
                self.results[key] = result
            return self.results[key]
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


def _are_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype is b.dtype and a.device == b.device and torch.equal(a, b)


def _alike(module: nn.Module, arguments: Any) -> str:
    """A text that modules of torch with the same result on the meta device have in common."""
    parts = [
        (type(part), {k: v for k, v in vars(part).items() if k not in _TABLES})
        for part in module.modules()
    ]
    shapes = [(t.shape, t.dtype) for t in (*module.parameters(), *module.buffers())]
    tensors = fx.node.map_aggregate(
        arguments, lambda v: (v.shape, v.stride(), v.dtype) if isinstance(v, torch.Tensor) else v
    )
    return repr((parts, shapes, tensors))


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
