"""What a page and a Model Explorer graph hold; a browser looks at them in test_browser.py."""

import json
import re

import pytest
import torch
from torch import fx, nn

import fxquant
from fxquant.darts import SearchNetwork
from fxquant.errors import CaptureError, StageError, WriteError
from fxquant.see.page import graph_data
from tests.strategies import chain


def data_of(page):
    """What the scripts of a page are told."""
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(text[1])


@pytest.fixture(scope="module")
def prepared():
    spec = chain("conv", "bn", "relu", "gate", "mixed", head=True)
    gm = fxquant.prepare_qat(spec.build(), spec.inputs())
    gm.train()(spec.inputs())
    return gm


def test_a_page_holds_every_operator_and_edge(prepared, tmp_path):
    path = tmp_path / "graph.html"
    fxquant.visualize(prepared, path)
    told = data_of(path.read_text())["graph"]
    graph = fxquant.to_networkx(prepared)
    shown = [node["id"] for node in told["nodes"]]
    assert {name for name, op in graph.nodes(data="op") if op != "get_attr"} <= set(shown)
    edges = {(shown[a], shown[b]) for a, b, _ in told["edges"]}
    assert edges == {(a, b) for a, b in graph.edges if a in shown and b in shown}
    groups = {node["group"] for node in told["nodes"]} | set(told["groups"].values())
    assert groups <= {"", *told["groups"]}


def test_a_page_loads_nothing(prepared):
    page = fxquant.visualize(prepared).render("html").decode()
    assert "default-src 'none'" in page
    assert not re.findall(r'(?:src|href)="', page)


def test_names_do_not_end_the_script():
    graph = fx.Graph()
    graph.output(graph.placeholder("x"))
    gm = fx.GraphModule(nn.Module(), graph, class_name="</script><b>")
    page = fxquant.visualize(gm).render("html").decode()
    assert data_of(page)["graph"]["name"] == "</script><b>"
    assert page.count("</script>") == page.count("<script")
    assert "<title>&lt;/script&gt;" in page


def test_in_jupyter_it_is_a_frame(prepared):
    shown = fxquant.visualize(prepared)._repr_html_()
    assert shown.startswith('<iframe srcdoc="&lt;!doctype html&gt;')
    assert shown.count('"') == 2 * len(re.findall(r'\w+="', shown))  # the page is escaped


def test_a_plain_model_is_traced():
    told = graph_data(fxquant.visualize(nn.Sequential(nn.Linear(2, 2), nn.ReLU())).graph)
    assert [node["kind"] for node in told["nodes"]] == ["input", "linear", "relu", "output"]


class Unpacks(nn.Module):
    """Needs an input to be captured: plain torch.fx cannot unpack."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return sum(row for row in self.layer(x))


def test_a_model_is_captured_as_prepare_qat_does():
    model = nn.DataParallel(Unpacks())
    graph = fxquant.visualize(model, example_inputs=torch.randn(3, 4)).graph
    assert graph.nodes["layer"]["shape"] == (3, 4)
    with pytest.raises(CaptureError, match="example_inputs"):
        fxquant.visualize(model)


def test_a_search_network_is_captured():
    network = SearchNetwork(1, 4, 3, nodes=1)
    kinds = {kind for _, kind in fxquant.visualize(network).graph.nodes(data="kind")}
    assert {"conv2d", "batch_norm", "avg_pool2d", "softmax"} <= kinds


def test_what_is_no_model_and_no_graph_is_refused():
    with pytest.raises(CaptureError, match=r"visualize takes an nn\.Module, got a NoneType"):
        fxquant.visualize(None)
    with pytest.raises(StageError, match="to_networkx takes a graph, got a Linear"):
        fxquant.to_networkx(nn.Linear(2, 2))


@pytest.mark.parametrize("name", ["no/folder.html", "folder.html", f"{'long' * 99}.html"])
def test_where_it_cannot_be_written(prepared, name, tmp_path):
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(WriteError, match="cannot be written: "):
        fxquant.visualize(prepared, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.html"]


def test_edges_carry_what_their_source_gives(prepared):
    graph = fxquant.to_networkx(prepared)
    for source, _, facts in graph.edges(data=True):
        node = graph.nodes[source]
        for key in ("dtype", "bits", "scale", "zero_point", "shape"):
            assert facts.get(key) == node.get(key)
    assert any("scale" in facts for _, _, facts in graph.edges(data=True))


def test_model_explorer(prepared, tmp_path):
    """Its loader takes a collection that has a label and graphs; every edge ends at a node."""
    path = tmp_path / "graph.json"
    fxquant.visualize(fxquant.convert(prepared), path)
    collection = json.loads(path.read_text())
    assert collection["label"] == "an integer graph"
    (graph,) = collection["graphs"]
    names = {node["id"] for node in graph["nodes"]}
    for node in graph["nodes"]:
        assert isinstance(node["label"], str)
        assert {edge["sourceNodeId"] for edge in node["incomingEdges"]} <= names
        assert all(isinstance(pair["value"], str) for pair in node["attrs"])
    conv = next(node for node in graph["nodes"] if node["label"].startswith("conv2d"))
    assert {"key": "dtype", "value": "uint8"} in conv["outputsMetadata"][0]["attrs"]
    assert conv["namespace"] == "steps/0"


def test_model_explorers_own_records_take_it(prepared):
    builder = pytest.importorskip("model_explorer.graph_builder", reason="not an extra of fxquant")
    told = json.loads(fxquant.visualize(prepared).render("json"))
    for node in told["graphs"][0]["nodes"]:
        builder.GraphNode(**node)


def test_seen_shapes_are_told(prepared):
    assert fxquant.to_networkx(prepared).nodes["x"]["shape"] == (2, 4, 8, 8)
