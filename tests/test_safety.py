"""Nothing that fxquant reads can make it run code, or read a file that the user did not name: no
pickle, no eval, no unsafe YAML, no path out of a folder.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import fxquant
from fxquant.errors import ExportError

ROOT = Path(__file__).parent.parent
FILES = sorted([*(ROOT / "fxquant").rglob("*.py"), *(ROOT / "passes").rglob("*.py")])

MODULES = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "subprocess"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
ATTRIBUTES = {
    "torch.load", "torch.save", "torch.jit.load", "torch.hub.load", "os.system", "os.popen",
    "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load",
    "yaml.Loader", "yaml.FullLoader", "yaml.UnsafeLoader",
}  # fmt: skip


def unsafe(source: str) -> Iterator[str]:
    """What a file imports, calls or names that could run what it reads."""
    tree = ast.parse(source)
    tensors_alone = {
        node.func
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {(node.module or "").split(".")[0]}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            names = {node.func.id} & BUILTINS
        elif isinstance(node, ast.Attribute) and node not in tensors_alone:
            names = {ast.unparse(node)} & ATTRIBUTES
        else:
            continue
        yield from sorted(names & (MODULES | BUILTINS | ATTRIBUTES))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_runs_nothing_that_it_reads(path: Path):
    assert list(unsafe(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from pickle import loads", "torch.load('x')", "eval('1')",
     "torch.load('x', weights_only=False)",
     "yaml.load(text)", "from subprocess import run", "exec(code)", "import marshal as m"],
)  # fmt: skip
def test_notices(source: str):
    assert list(unsafe(source))


@pytest.mark.parametrize("source", [
    "model.eval()", "yaml.safe_load(text)", "re.compile('x')", "torch.load('x', weights_only=True)",
])  # fmt: skip
def test_lets_pass(source: str):
    assert not list(unsafe(source))


@pytest.mark.parametrize("location", ["../secret", "{}/secret"], ids=["relative", "absolute"])
def test_weights_that_an_onnx_file_finds_elsewhere_are_not_read(tmp_path, location):
    onnx = pytest.importorskip("onnx", reason="onnx is in the extra `onnx`")
    pytest.importorskip("onnxruntime", reason="onnxruntime is in the extra `onnx`")
    prepared, x = fxquant.prepare_ptq(nn.Linear(64, 64)), torch.randn(2, 64)
    fxquant.calibrate(prepared, [x])
    quantized, path = fxquant.convert(prepared), tmp_path / "folder" / "network.onnx"
    path.parent.mkdir()
    fxquant.export_onnx(quantized, path, x)
    model = onnx.load(path)
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    (tmp_path / "secret").write_bytes(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location.format(tmp_path))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match="does not run"):
        fxquant.verify(quantized, path, x)
