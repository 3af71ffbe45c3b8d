"""What training does, and what it does instead where a number of the model is set otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from torch import fx, nn

from fxquant.errors import CaptureError
from fxquant.graph.forward import raised_by_the_user, trace_forward
from fxquant.graph.live import Decisions, LiveFloat


def trace_training(
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
            graphs[inverted] = trace_forward(model, True, example_inputs, leaves, asked), asked
        return graphs[inverted]

    def traced(inverted: frozenset[str]) -> fx.Graph:
        return traced_with(inverted)[0]

    natural, decisions = traced_with(frozenset())
    switched: dict[str, fx.Graph] = {}  # what it does if that comparison is inverted
    for text in list(decisions.asked):
        try:
            other = traced(frozenset({text}))
        except CaptureError as error:
            if raised_by_the_user(error.__cause__):
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
