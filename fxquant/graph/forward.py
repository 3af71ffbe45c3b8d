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
from fxquant.graph.live import Decisions, live_floats
from fxquant.graph.own import is_torchs_function
from fxquant.graph.place import raised_at
from fxquant.graph.tracer import Tracer


def trace_forward(
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
    tracer = Tracer(example_inputs, leaves, decisions, functions)
    random_state = _random_state()
    try:
        with torch.enable_grad(), live_floats(model, decisions):
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
            graph = trace_forward(model, training, example_inputs, leaves, again, functions)
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


def raised_by_the_user(error: BaseException | None) -> bool:
    """Whether it comes from a `raise` or an `assert` in the user's own code."""
    frames = list(walk_tb(error.__traceback__)) if error is not None else []
    if not frames:
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
    if not inspect.isfunction(function) or function.__code__ is not frame.f_code:
        return None
    return None if is_torchs_function(function) else function


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
