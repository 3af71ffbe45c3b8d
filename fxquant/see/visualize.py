"""A graph as a picture or as a page.

    GraphModule ── to_networkx ── Drawing ── SVG, PNG, PDF, DOT      laid out by Graphviz
                                          ── HTML, Jupyter           groups open and close
                                          ── JSON                    for Model Explorer
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from torch import fx, nn

from fxquant.errors import ConfigError, MissingExtraError
from fxquant.files import write_whole
from fxquant.see import model_explorer, picture
from fxquant.see.facts import to_networkx
from fxquant.see.page import graph_data, in_notebook, page

if TYPE_CHECKING:
    import networkx

ENDINGS = (*picture.ENDINGS, "html", "json")


def visualize(model: nn.Module, path: str | os.PathLike[str] | None = None) -> Drawing:
    """A drawing of the graph, which shows itself in Jupyter; written to `path` if given.

    Operators are coloured by what they do, badges and arrows say which integers they give, and
    modules (in DARTS: cells) are groups, which open and close in HTML.

    Args:
        model: any fx graph, float, prepared or converted; or a model that torch.fx can trace.
        path: ends in .svg, .png, .pdf, .dot, .html, or in .json for Model Explorer; written whole
            or not at all.

    Raises:
        ConfigError: another ending.
        MissingExtraError: a picture is asked for, and pygraphviz is not installed.
    """
    if path is not None:
        _ending(path)  # before any work
    gm = model if isinstance(model, fx.GraphModule) else fx.symbolic_trace(model)
    drawing = Drawing(to_networkx(gm))
    if path is not None:
        drawing.save(path)
    return drawing


class Drawing:
    """A graph that can be looked at."""

    def __init__(self, graph: networkx.DiGraph) -> None:
        self.graph = graph

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it, in the format that the file's ending names, whole or not at all."""
        write_whole(path, self.render(_ending(path)))

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


def _ending(path: str | os.PathLike[str]) -> str:
    ending = Path(path).suffix.lower().removeprefix(".")
    if ending not in ENDINGS:
        listed = ", ".join(f".{known}" for known in ENDINGS)
        raise ConfigError(f"a drawing's file ends in one of {listed}, got '{os.fspath(path)}'")
    return ending
