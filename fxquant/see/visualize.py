"""A graph as a picture or as a page.

    GraphModule ── to_networkx ── Drawing ── SVG, PNG, PDF, DOT      laid out by Graphviz
                                          ── HTML, Jupyter           groups open and close
                                          ── JSON                    for Model Explorer
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx, nn

from fxquant.errors import CaptureError, MissingExtraError
from fxquant.files import ending_of, write_whole
from fxquant.graph.around import unwrap
from fxquant.graph.tensors import copy_of
from fxquant.graph.trace import trace
from fxquant.pipeline import say_stage
from fxquant.see import model_explorer, picture
from fxquant.see.facts import to_networkx
from fxquant.see.page import graph_data, in_notebook, page

if TYPE_CHECKING:
    import networkx

ENDINGS = (*picture.ENDINGS, "html", "json")


def visualize(
    model: nn.Module,
    path: str | os.PathLike[str] | None = None,
    example_inputs: Sequence[Any] | Tensor | None = None,
) -> Drawing:
    """A drawing of the graph, which shows itself in Jupyter; written to `path` if given.

    Operators are coloured by what they do, badges and arrows say which integers they give, and
    modules (in DARTS: cells) are groups, which open and close in HTML.

    Args:
        model: any fx graph, float, prepared or converted; or a model, which is captured as
            prepare_qat does, and not touched.
        path: ends in .svg, .png, .pdf, .dot, .html, or in .json for Model Explorer; written whole
            or not at all.
        example_inputs: of a model that is no graph yet, as prepare_qat takes them.

    Raises:
        CaptureError: the model cannot be captured; names the line.
        ConfigError: another ending.
        WriteError: the file cannot be written.
        MissingExtraError: a picture is asked for, and pygraphviz is not installed.
    """
    if path is not None:
        ending_of(path, ENDINGS, "a drawing")
    drawing = Drawing(to_networkx(_captured(model, example_inputs)))
    if path is not None:
        drawing.save(path)
    return drawing


def _captured(
    model: nn.Module, example_inputs: Sequence[Any] | Tensor | None
) -> fx.GraphModule:
    if isinstance(model, fx.GraphModule):
        return model
    if not isinstance(model, nn.Module):
        raise CaptureError(
            f"visualize takes an nn.Module, got {say_stage(model)}.\n"
            "What to do: hand it the model itself, such as visualize(Net())."
        )
    model, _ = unwrap(model)
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else example_inputs
    return trace(copy_of(model), inputs)


class Drawing:
    """A graph that can be looked at."""

    def __init__(self, graph: networkx.DiGraph) -> None:
        self.graph = graph

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it, in the format that the file's ending names, whole or not at all."""
        write_whole(path, self.render(ending_of(path, ENDINGS, "a drawing")))

    def render(self, ending: str) -> bytes:
        """It in one of `ENDINGS`."""
        if ending == "html":
            title = f"{self.graph.name}: {self.graph.graph['stage']}"
            return page(title, "graph", {"graph": graph_data(self.graph)})
        if ending == "json":
            return model_explorer.encode(self.graph)
        return picture.draw(self.graph, ending)

    def _repr_html_(self) -> str:
        return in_notebook(self.render("html"))

    def _repr_svg_(self) -> str | None:
        try:
            return self.render("svg").decode()
        except MissingExtraError:
            return None  # Jupyter shows the page
