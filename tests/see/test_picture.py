"""Graphs as networkx graphs and as pictures: at every stage, and of plain torch.fx graphs."""

import os
import pickle
import sys
from xml.etree import ElementTree

import networkx
import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

import fxquant
from fxquant.darts import DARTS_V2, NetworkCIFAR
from fxquant.errors import ConfigError, MissingExtraError

STAGES = ("float", "prepared", "integer")


class Small(nn.Module):
    """conv, bn, relu; a pool; added to itself; a linear layer of plain functions."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())
        self.weight = nn.Parameter(torch.randn(3, 2))

    def forward(self, x):
        x = F.max_pool2d(self.block(x), 2)
        x = torch.cat([x, x + x], 3).mean((2, 3))
        return F.linear(x, self.weight), x.shape[0]


def stages(model, *inputs):
    prepared = fxquant.prepare_qat(model, inputs)
    prepared.train()(*inputs)
    graphs = fx.symbolic_trace(model.eval()), prepared, fxquant.convert(prepared)
    return dict(zip(STAGES, graphs, strict=True))


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return stages(Small(), torch.randn(2, 1, 8, 8))


@pytest.fixture(scope="module")
def darts():
    torch.manual_seed(0)
    return stages(NetworkCIFAR(2, 4, 3, DARTS_V2), torch.randn(2, 3, 16, 16))


def texts(svg):
    """What an SVG shows: the titles of its nodes, and every line of text."""
    root = ElementTree.fromstring(svg)
    name = "{http://www.w3.org/2000/svg}"
    nodes = [group for group in root.iter(f"{name}g") if group.get("class") == "node"]
    return {node.find(f"{name}title").text for node in nodes}, {
        text.text for text in root.iter(f"{name}text")
    }


# As a networkx graph


@pytest.mark.parametrize("stage", STAGES)
def test_nodes_and_edges_are_those_of_the_graph(darts, stage):
    gm = darts[stage]
    graph = fxquant.to_networkx(gm)
    assert list(graph) == [node.name for node in gm.graph.nodes]
    assert set(graph.edges) == {(a.name, b.name) for b in gm.graph.nodes for a in b.all_input_nodes}
    assert networkx.is_directed_acyclic_graph(graph)
    for node in gm.graph.nodes:
        facts = graph.nodes[node.name]
        assert facts["op"] == node.op
        assert all(isinstance(facts[key], str) for key in ("kind", "target", "module"))


def test_what_is_said_of_operators(small):
    def kinds(stage):
        graph = fxquant.to_networkx(small[stage])
        return [kind for _, kind in graph.nodes(data="kind") if kind != "parameter"]

    assert kinds("float") == [
        *("input", "conv2d", "batch_norm", "relu", "max_pool2d", "add", "cat", "mean"),
        *("linear", "getattr", "getitem", "output"),
    ]
    prepared = kinds("prepared")
    assert prepared[:2] == ["input", "fake_quant"]
    assert {"conv2d → batch_norm → relu", "max_pool2d", "add", "linear"} <= set(prepared)
    integer = kinds("integer")
    assert integer[:2] == ["input", "quantize"]
    assert {"conv2d → relu", "max_pool2d", "add", "linear", "dequantize"} <= set(integer)


@pytest.mark.parametrize("stage", STAGES)
def test_operators_know_the_module_they_come_from(darts, stage):
    graph = fxquant.to_networkx(darts[stage])
    modules = dict(graph.nodes(data="module"))
    assert modules["stem_0"] == "stem.0"
    assert modules["cat"] == "cells.0"
    assert modules["cells_0__ops_0_op_1"] == "cells.0._ops.0.op.1"
    assert modules["x"] == ""


def test_an_edge_names_the_arguments_that_it_is_read_as(small):
    edges = fxquant.to_networkx(small["float"]).edges
    assert edges["max_pool2d", "add"]["arguments"] == ("0", "1")
    assert edges["add", "cat"]["arguments"] == ("0[1]",)
    edges = fxquant.to_networkx(small["prepared"]).edges
    assert edges["weight", "linear"]["arguments"] == ("weight",)


def test_integers_and_their_numbers(small):
    prepared = small["prepared"]
    site = prepared.get_submodule("fxquant.block_0")
    graph = fxquant.to_networkx(prepared)
    conv = graph.nodes["block_0"]
    assert (conv["dtype"], conv["bits"], conv["weight"]) == ("uint8", 8, "int8/channel")
    assert conv["scale"] == site.output.scale.item()
    assert conv["zero_point"] == site.output.zero_point.item()
    pool = graph.nodes["max_pool2d"]  # on its input's grid
    assert (pool["dtype"], pool["scale"]) == (conv["dtype"], conv["scale"])
    assert graph.nodes["x"]["dtype"] == graph.nodes["weight"]["dtype"] == "float"
    assert all("dtype" not in graph.nodes[name] for name in ("getattr_1", "getitem"))

    graph = fxquant.to_networkx(small["integer"])
    assert graph.nodes["quantize_x"]["dtype"] == "uint8"
    assert graph.nodes["dequantize_linear"]["dtype"] == "float"
    assert graph.nodes["block_0"]["dtype"] == "uint8"
    assert graph.nodes["block_0"]["scale"] == conv["scale"]


def test_no_numbers_before_any_data():
    facts = fxquant.to_networkx(fxquant.prepare_qat(Small(), torch.randn(1, 1, 8, 8))).nodes
    assert facts["block_0"]["dtype"] == "uint8"
    assert "scale" not in facts["block_0"]


def test_a_plain_graph_has_the_dtypes_of_shape_propagation():
    gm = fx.symbolic_trace(nn.ReLU())
    name = next(iter(gm.graph.nodes)).name
    assert "dtype" not in fxquant.to_networkx(gm).nodes[name]
    ShapeProp(gm).propagate(torch.zeros(2, dtype=torch.int32))
    assert fxquant.to_networkx(gm).nodes[name]["dtype"] == "int32"


# As a picture


@pytest.mark.parametrize("stage", STAGES)
def test_an_svg_names_every_operator(darts, stage, tmp_path):
    path = tmp_path / "graph.svg"
    fxquant.visualize(darts[stage], path)
    titles, lines = texts(path.read_text())
    graph = fxquant.to_networkx(darts[stage])
    operators = {name for name, op in graph.nodes(data="op") if op != "get_attr"}
    assert titles == operators
    assert {graph.nodes[name]["kind"] for name in operators} <= lines
    assert {"stem", "cells.0", "cells.1", "cells.2"} <= lines  # the groups


@pytest.mark.parametrize(
    ("ending", "start"),
    [("svg", b"<?xml"), ("SVG", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")],
)
def test_the_ending_decides(small, ending, start, tmp_path):
    path = tmp_path / f"graph.{ending}"
    fxquant.visualize(small["integer"], str(path))
    assert path.read_bytes().startswith(start)
    assert os.listdir(tmp_path) == [path.name]


def test_dot_can_be_read_back(small, tmp_path):
    import pygraphviz

    path = tmp_path / "graph.dot"
    fxquant.visualize(small["prepared"], path)
    drawing = pygraphviz.AGraph(str(path))
    assert {"x", "quantize_x", "block_0", "linear", "output"} <= set(drawing.nodes())
    assert ("quantize_x", "block_0") in drawing.edges()
    assert drawing.get_node("block_0").attr["label"].startswith("conv2d → batch_norm → relu")
    # arrows tell integers from floats
    arrows = [drawing.get_edge(*ends).attr["color"] for ends in drawing.edges(["x", "quantize_x"])]
    assert len(set(arrows)) == 2


def test_parameters_are_drawn_where_no_operator_reads_them_by_name(small):
    prepared, plain = (fxquant.visualize(small[stage])._repr_svg_() for stage in STAGES[1::-1])
    assert "weight" not in texts(prepared)[0]
    assert "weight" in texts(plain)[0]


def test_it_shows_itself_in_jupyter_and_changes_nothing(small):
    code = small["integer"].code
    svg = fxquant.visualize(small["integer"])._repr_svg_()
    assert "quantize_x" in texts(svg)[0]
    assert small["integer"].code == code


def test_after_pickling_the_places_are_lost_and_the_rest_is_drawn(small, tmp_path):
    gm = pickle.loads(pickle.dumps(small["float"]))
    fxquant.visualize(gm, tmp_path / "graph.svg")
    titles, _ = texts((tmp_path / "graph.svg").read_text())
    assert titles == {node.name for node in gm.graph.nodes}


def test_odd_names_are_drawn_as_they_are():
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(lambda value: value, (x,)))
    svg = fxquant.visualize(fx.GraphModule(nn.Module(), graph))._repr_svg_()
    assert "<lambda>" in texts(svg)[1]


@pytest.mark.parametrize("name", ["graph", "graph.jpg", "svg"])
def test_another_ending_is_refused(small, name, tmp_path):
    with pytest.raises(ConfigError, match=rf"ends in \.svg, \.png, .* or \.json, got '.*{name}'"):
        fxquant.visualize(small["float"], tmp_path / name)
    assert not os.listdir(tmp_path)


def test_without_pygraphviz_the_extra_is_named(small, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pygraphviz", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fxquant\[draw\]'"):
        fxquant.visualize(small["float"], tmp_path / "graph.svg")
    assert not os.listdir(tmp_path)
    assert len(fxquant.to_networkx(small["float"])) == len(small["float"].graph.nodes)


@pytest.mark.parametrize("fails", ["pathlib.Path.write_bytes", "os.replace"])
def test_a_failed_write_leaves_what_was_there(small, fails, monkeypatch, tmp_path):
    path = tmp_path / "graph.svg"
    path.write_text("the old one")

    def refuse(path, _):
        path.open("a").close()  # as a write that stops half-way leaves it
        raise OSError("the disk is full")

    monkeypatch.setattr(fails, refuse)
    with pytest.raises(OSError, match="the disk is full"):
        fxquant.visualize(small["float"], path)
    assert os.listdir(tmp_path) == ["graph.svg"]
    assert path.read_text() == "the old one"
