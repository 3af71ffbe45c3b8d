"""Write down one forward: in one mode, with given answers to the comparisons of live numbers.

What cannot be captured is refused with the line of the user's code and what to do about it.
"""

from __future__ import annotations

import inspect
import linecache
import random
from collections.abc import Callable, Sequence
from traceback import walk_tb
from types import FrameType
from typing import Any

import torch
from torch import fx, nn
from torch.fx.proxy import TraceError

from fxquant.errors import CaptureError
from fxquant.graph.calls import Call
from fxquant.graph.inplace import make_functional, overwriting_modules, refuse_overwriting_leaves
from fxquant.graph.live import Asked, Decisions, live_floats, read_beside_parameters
from fxquant.graph.modes import is_identity_in_eval
from fxquant.graph.own import is_torchs_module
from fxquant.graph.place import copy_place, is_user_code, raised_at
from fxquant.graph.positional import put_first_argument_first
from fxquant.graph.spell_out import spelled_out
from fxquant.graph.tracer import Tracer
from fxquant.graph.wrapped import is_users_function, wrapped_functions_opened


class Traced:
    """A forward as a graph in which nothing is overwritten, with what was asked and called on the
    way. `writes` says that it changed a list or dict of the model's, through which one call may
    tell another what it does.
    """

    def __init__(
        self, graph: fx.Graph, asked: dict[str, Asked], calls: list[Call], writes: bool
    ) -> None:
        """Its nodes are those of the graph as it is now; those of a call lie together."""
        self.graph, self.asked, self.calls, self.writes = graph, asked, calls, writes
        self.nodes = list(graph.nodes)

    def nodes_were_inserted(self) -> None:
        """Let the calls follow: a new node belongs where the one behind it does."""
        position = {node: i for i, node in enumerate(self.graph.nodes)}
        ends = [0, *(position[node] + 1 for node in self.nodes)]
        for call in self.calls:
            call.start, call.end = ends[call.start], ends[call.end]
        self.nodes = list(self.graph.nodes)


class Forward:
    """The forward of a model, which is there to be traced, again and again.

    `leaves` are paths of submodules that stay one node each.
    """

    def __init__(
        self, model: nn.Module, example_inputs: Sequence[Any] | None, leaves: frozenset[str]
    ) -> None:
        """The model is edited while it is traced; only its modes change for good."""
        self.model, self.example_inputs, self.leaves = model, example_inputs, leaves
        inside = {m for path in leaves for m in model.get_submodule(path).modules()}
        self.overwriting = overwriting_modules(model) - inside
        # batch norms that do more, of which torch's own is in the graph of that mode, and those
        # of which it must not be
        self.reduced: dict[bool, set[nn.Module]] = {False: set(), True: set()}
        self.frozen: set[nn.Module] = set()
        self.results: dict[str, Any] = {}  # examples that all traces share

    def traced(self, training: bool, inverted: frozenset[str] = frozenset()) -> Traced:
        """The graph of one mode, where the comparisons `inverted` turn out the other way."""
        found = self._traced(training, inverted, ())
        put_first_argument_first(found.graph, self.model)
        refuse_overwriting_leaves(found.graph, self.model, self.leaves)
        make_functional(found.graph, self.model, self.overwriting, training)
        _protect_inputs(found.graph, self.model)
        read_beside_parameters(found.graph)
        found.nodes_were_inserted()
        return found

    def _traced(
        self, training: bool, inverted: frozenset[str], functions: tuple[Callable[..., Any], ...]
    ) -> Traced:
        """Calls of `functions` stay one node each, and so do those of the user's that only
        training calls and that cannot be captured, such as drop path.
        """
        for module in self.model.modules():
            module.training = training
        decisions = Decisions(inverted)
        tracer = Tracer(
            self.example_inputs, self.leaves, decisions, functions, self.results, self.frozen
        )
        random_state = _random_state()
        try:
            with (
                torch.enable_grad(),
                live_floats(self.model, decisions),
                wrapped_functions_opened(),
                spelled_out(),
            ):
                graph = tracer.trace(self.model, _defaults(self.model, self.example_inputs))
            if random_state != _random_state():
                raise TraceError(
                    "it draws random numbers whose shape or use does not depend on inputs"
                )
            self.reduced[training] |= tracer.reduced
        except CaptureError:
            raise
        except Exception as error:
            function = _called_by_forward(error) if training else None
            if function is not None and function not in functions:
                return self._traced(training, inverted, (*functions, function))
            raise self._refusal(error, training, tracer.failed_in) from error
        return Traced(graph, decisions.asked, tracer.calls.all, tracer.writes)

    def _refusal(self, error: Exception, training: bool, failed_in: str) -> CaptureError:
        inside = f" in '{failed_in}'" if failed_in else ""
        hints = ["pass example_inputs, so that shapes are known"] if not self.example_inputs else []
        if isinstance(error, AttributeError):
            hints.append("set that attribute before, if the training script does so later")
        if inside:
            keep = f"QuantConfig(keep_float=('{failed_in}',))"
            hints.append(f"keep that submodule as one float node with {keep}")
        else:
            hints.append("move that line into a submodule and keep it in float (keep_float)")
        mode = "train" if training else "eval"
        return CaptureError(
            f"cannot capture {type(self.model).__name__}.forward in {mode}() "
            f"mode,{inside} at {raised_at(error.__traceback__)}: {error}\n"
            f"What to do: {', or '.join(hints)}."
        )


def raised_by_the_user(error: BaseException | None) -> bool:
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
        return is_users_function(node.target)
    if node.op != "call_module":
        return False
    module = model.get_submodule(str(node.target))
    return not is_torchs_module(module) and is_identity_in_eval(module)
